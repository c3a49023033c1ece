"""ENorm inside a training loop: whatever happens between them, each cycle keeps its promises."""

from __future__ import annotations

import copy

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

import enorm
from properties import oracle, tolerances
from properties.implementation import Order, current
from properties.specs import Net, weighted
from properties.strategies import C_FACTORS, ORDERS, P, dtypes_of, nets

CARRIES = "SGD" in current().capabilities.momentum
NETS = nets(dtypes=dtypes_of("float64"), max_decades=1.0, max_hidden=3)
RATES = st.sampled_from([0.0, 1e-3, 1e-2, 1e-1])


class Training(RuleBasedStateMachine):
    """SGD steps, cycles, checkpoints, new rates and frozen layers, in any order."""

    @initialize(net=NETS, c=C_FACTORS, order=ORDERS, rate=RATES)
    def build(self, net: Net, c: float, order: Order, rate: float) -> None:
        """A network, its optimizer, and an implementation of ENorm between them."""
        self.net, self.c, self.order = net, c, order
        self.inputs = net.draw_inputs()
        self.model = net.build()
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=rate, momentum=0.9 if CARRIES else 0.0, weight_decay=1e-3
        )
        self._start()

    def _start(self) -> None:
        self.parameters = dict(self.model.named_parameters())
        self.frozen = {id(one) for one in self.parameters.values() if not one.requires_grad}
        self.step = current().stepper(
            self.model, self.optimizer, p=P, c=self.c, order=self.order, batchnorm="affine"
        )

    @rule()
    def train(self) -> None:
        """One SGD step, in train mode."""
        self.optimizer.zero_grad()
        self.model.train()
        outputs = self.model(self.inputs / self.net.input_scale)
        outputs.square().mean().backward()
        # A large rate may still be unstable; this keeps what follows finite.
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.model.eval()

    @rule(training=st.booleans())
    def cycle(self, training: bool) -> None:
        """Function kept, energy not raised, weights those of Algorithm 1, momentum inverse.

        In either mode, as a training loop or a validation between its steps leaves the model.
        """
        before = copy.deepcopy(self.model)
        products = self._products()
        self.model.train(training)
        rate = self.optimizer.param_groups[0]["lr"]
        self.step()
        assert self.model.training == training
        assert self.optimizer.param_groups[0]["lr"] == rate
        self.model.eval()
        for by_batch in (False, True):
            found = enorm.verify(before, self.model, self.inputs, training=by_batch)
            if by_batch and found.ratio is None:
                assert "varies less than rounding" in (found.reason or ""), found.reason
                continue
            assert found.ratio is not None
            kept = found.ratio <= 1
            assert kept, self._failure("error of the function", found.error, found.bound or 0)
        energies = [oracle.energy(model, P, self.c) for model in (before, self.model)]
        bound = energies[0] * (1 + tolerances.energy(self.net.torch_dtype, P))
        assert energies[1] <= bound, self._failure("energy", energies[1], bound)
        expected = oracle.cycle(oracle.chain(before), P, self.c, self.order)
        # Steps leave noise of rounding where weights were dead, of which scales may be large.
        rtol = tolerances.stored_weight(
            self.net.torch_dtype,
            oracle.fan_in(self.model),
            log_range=oracle.log_range(before, self.model),
        )
        oracle.assert_same(self.net, "a cycle", oracle.chain(self.model), expected, rtol)
        for name, product in self._products().items():
            error = (product - products[name]).abs().max().item()
            allowed = 2 * rtol * products[name].abs().max().item()
            assert error <= allowed, self._failure(f"weight × momentum of {name}", error, allowed)

    @rule()
    def save_and_load(self) -> None:
        """Training goes on in a new process, with what state dicts hold."""
        model = self.net.build()
        model.load_state_dict(self.model.state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        optimizer.load_state_dict(self.optimizer.state_dict())
        for old, new in zip(self.model.parameters(), model.parameters(), strict=True):
            new.requires_grad_(old.requires_grad)
        self.model, self.optimizer = model, optimizer
        self._start()

    @rule(rate=RATES)
    def change_rate(self, rate: float) -> None:
        """As a scheduler does."""
        self.optimizer.param_groups[0]["lr"] = rate

    @precondition(lambda self: len(weighted(self.model)) > 1)
    @rule(data=st.data())
    def freeze_or_thaw(self, data: st.DataObject) -> None:
        """A hidden layer takes no gradient; a cycle still rescales it, for its function stays."""
        hidden = weighted(self.model)[:-1]
        layer, _ = hidden[data.draw(st.integers(0, len(hidden) - 1), label="layer")]
        for parameter in layer.parameters():
            parameter.requires_grad_(not parameter.requires_grad)
            parameter.grad = None
            self.frozen ^= {id(parameter)}

    @invariant()
    def parameters_are_sound(self) -> None:
        """The same objects as ever, frozen where they were frozen, and finite."""
        if hasattr(self, "model"):
            for name, parameter in self.model.named_parameters():
                assert parameter is self.parameters[name], name
                assert parameter.requires_grad == (id(parameter) not in self.frozen), name
                assert parameter.isfinite().all(), f"{name}\n{self.net!r}"
            assert not any(module.training for module in self.model.modules())

    def _products(self) -> dict[str, Tensor]:
        return {
            name: parameter.detach() * self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.model.named_parameters()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }

    def _failure(self, what: str, measured: float, bound: float) -> str:
        return oracle.failure(self.net, what, measured, bound)


def test_training_in_any_order() -> None:
    """SGD step, cycle, save, load, change of rate, freeze a layer: a state machine."""
    # The default of 50 steps repeats what a dozen already combine.
    run_state_machine_as_test(Training, settings=settings(stateful_step_count=12))
