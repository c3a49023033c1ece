"""Dead units, zero layers, the smallest networks: what must not happen does not."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from properties import oracle, tolerances
from properties.implementation import Order, current, requires
from properties.specs import Hidden, Net, weighted
from properties.strategies import (
    C_FACTORS,
    ORDER,
    ORDERS,
    P_NORMS,
    SEEDS,
    P,
    dtypes_of,
    example_where,
    nets,
)

DOUBLE = dtypes_of("float64")
HAS_DOUBLE = "float64" in current().capabilities.dtypes
PLAIN = Hidden(out=2, bias=False)
NORMED = Net(inputs=2, hidden=(replace(PLAIN, batchnorm=True), PLAIN))
DEAD = Net(inputs=2, hidden=(replace(PLAIN, dead_in=(0,)), PLAIN))


@given(nets(), P_NORMS, ORDERS)
@example_where(HAS_DOUBLE, DEAD, P, ORDER)
def test_dead_units_are_left_alone(net: Net, p: float, order: Order) -> None:
    """Zero incoming or outgoing norm: a unit's bias keeps its bits, its zeros stay, its scale is 1.

    Its rows are divided, and its columns multiplied, by the scales of other units.
    """
    model = net.build()
    before = copy.deepcopy(model)
    step = current().stepper(model, None, p=p, c=1.0, order=order, batchnorm="affine")
    for _ in range(3):
        step()
    pairs = list(zip(weighted(before), weighted(model), strict=True))
    for index, spec in enumerate(net.hidden):
        (old, old_norm), (new, new_norm) = pairs[index]
        old_next, new_next = pairs[index + 1][0][0], pairs[index + 1][1][0]
        made, remade = (old, new) if old_norm is None else (old_norm, new_norm)
        block = old_next.weight.shape[1] // spec.out
        for unit in {*spec.dead_in, *spec.dead_out}:
            assert remade is not None
            assert made is not None
            which = f"dead unit {unit} of hidden layer {index + 1}"
            if made.bias is not None:
                is_kept = torch.equal(made.bias[unit], remade.bias[unit])
                assert is_kept, oracle.broken(net, f"the bias of {which} changed")
            # Its columns may move with the rows they stand in, so compare the ratio per row.
            columns = slice(unit * block, (unit + 1) * block)
            dead = new_next.weight[:, columns] != 0
            is_kept = torch.equal(dead, old_next.weight[:, columns] != 0)
            assert is_kept, oracle.broken(net, f"zeros behind {which} changed")
        assert_finite(net, new)
    expected = oracle.chain(before)
    for _ in range(3):
        expected = oracle.cycle(expected, p, 1.0, order)
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model), rewrites=3)
    oracle.assert_same(net, "beside dead units", oracle.chain(model), expected, rtol)


def assert_finite(net: Net, model: nn.Module) -> None:
    """Fail unless all parameters are."""
    odd = [name for name, one in model.named_parameters() if not one.isfinite().all()]
    assert not odd, oracle.broken(net, f"no longer finite: {odd}")


@given(
    nets(dead=False),
    P_NORMS,
    C_FACTORS,
    ORDERS,
    SEEDS,
    st.sampled_from([math.inf, -math.inf, math.nan]),
)
def test_units_without_a_finite_norm_are_left_alone(
    net: Net, p: float, c: float, order: Order, seed: int, value: float
) -> None:
    """One weight that is not finite: the units on its sides keep a scale of 1, all others move."""
    model = net.build()
    layers = weighted(model)
    weight = layers[seed % len(layers)][0].weight
    with torch.no_grad():
        weight.view(-1)[seed // len(layers) % weight.numel()] = value
    expected = oracle.cycle(oracle.chain(model), p, c, order)
    current().stepper(model, None, p=p, c=c, order=order, batchnorm="affine")()
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
    oracle.assert_same(net, f"beside a weight of {value}", oracle.chain(model), expected, rtol)


@requires(dtypes="float64")
def test_width_one_depth_one() -> None:
    """The smallest network there is: two numbers become equal in magnitude."""
    hidden = (Hidden(out=1, bias=False),) * (1 if current().capabilities.last_pair else 2)
    model = Net(inputs=1, hidden=hidden, outputs=1, seed=1).build()
    current().stepper(model, None, p=P, c=1.0, order=ORDER, batchnorm="affine")()
    first, second = (model.get_parameter(name).abs().item() for name in ("0.weight", "2.weight"))
    assert first == pytest.approx(second, rel=1e-15)


@given(nets(dead=False), ORDERS)
@example_where(HAS_DOUBLE, replace(DEAD, hidden=(PLAIN, PLAIN)), ORDER)
def test_a_layer_of_zeros_stays_and_harms_nobody(net: Net, order: Order) -> None:
    """All its units and all those it reads are dead; nothing becomes NaN or infinite."""
    model = net.build()
    (zero, _), *_ = weighted(model)
    with torch.no_grad():
        zero.weight.zero_()
    current().stepper(model, None, p=P, c=1.0, order=order, batchnorm="affine")()
    assert not zero.weight.any(), oracle.broken(net, "zeros are no longer zero")
    assert_finite(net, model)


@given(nets(dead=False, max_decades=1.0), C_FACTORS, ORDERS, SEEDS)
def test_hidden_units_may_change_places(net: Net, c: float, order: Order, seed: int) -> None:
    """Units permuted before a cycle end where they would have been permuted after it."""
    first, second = net.build(), net.build()
    permute_units_(first, seed)
    for model in (first, second):
        current().stepper(model, None, p=P, c=c, order=order, batchnorm="affine")()
    permute_units_(second, seed)
    rtol = 4 * oracle.fan_in(first) * torch.finfo(net.torch_dtype).eps
    oracle.assert_same(net, "permuted", oracle.chain(first), oracle.chain(second), rtol)


def permute_units_(model: torch.nn.Sequential, seed: int) -> None:
    """Put the units of every hidden layer in another order; the function stays."""
    generator = torch.Generator().manual_seed(seed)
    layers = weighted(model)
    with torch.no_grad():
        for (producer, norm), (consumer, _) in itertools.pairwise(layers):
            units = len(producer.weight)
            order = torch.randperm(units, generator=generator)
            vectors: list[torch.Tensor | None] = [producer.weight, producer.bias]
            if norm is not None:
                vectors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
            for vector in vectors:
                if vector is not None:
                    vector.copy_(vector[order])
            block = consumer.weight.shape[1] // units
            by_unit = consumer.weight.unflatten(1, (units, block))[:, order].flatten(1, 2)
            consumer.weight.copy_(by_unit)


@given(nets(dtypes=DOUBLE, dead=False, batchnorm=False, max_decades=1.0, max_hidden=3), ORDERS)
def test_one_layers_factor_spreads_evenly(net: Net, order: Order) -> None:
    """``s`` on one of q balanced layers becomes ``s^(1/q)`` on each of them."""
    factor = 5.0
    plain, scaled = net.build(), net.build()
    with torch.no_grad():
        weighted(scaled)[0][0].weight.mul_(factor)
    for model in (plain, scaled):
        oracle.settle(net, model, P, 1.0, order, tol=1e-12)
    part = oracle.balanced_part(oracle.chain(plain))
    share = factor ** (1 / len(part))
    weights = [replace(layer, weight=share * layer.weight, bias=None) for layer in part]
    found = oracle.balanced_part(oracle.chain(scaled))
    found = [replace(layer, bias=None) for layer in found]
    oracle.assert_same(net, f"s^(1/{len(part)})", found, weights, 1e-9)


@given(nets(), C_FACTORS, ORDERS)
def test_cycles_go_on_after_saving_and_loading(net: Net, c: float, order: Order) -> None:
    """Two cycles equal a cycle, a copy through a state dict, and a cycle."""
    straight, first, second = net.build(), net.build(), net.build()

    def start(model: torch.nn.Sequential) -> Callable[[], None]:
        return current().stepper(model, None, p=P, c=c, order=order, batchnorm="affine")

    step = start(straight)
    step()
    step()
    start(first)()
    second.load_state_dict(first.state_dict())
    start(second)()
    for (name, one), other in zip(straight.named_parameters(), second.parameters(), strict=True):
        same = torch.equal(one.nan_to_num(), other.nan_to_num())
        assert same, oracle.broken(net, f"{name} is another one after saving and loading")


MODES = ("eval", "train", "all but BatchNorm in train")


@given(nets(dead=False), ORDERS, st.sampled_from(MODES), st.integers(0, 3))
@example_where(
    HAS_DOUBLE and "affine" in current().capabilities.batchnorm, NORMED, ORDER, MODES[2], 0
)
def test_parameters_stay_themselves(net: Net, order: Order, mode: str, frozen: int) -> None:
    """Rescaled without a graph, frozen or not; all else about the model is untouched."""
    model = net.build().train(mode != "eval")
    expected = oracle.cycle(oracle.chain(model), P, 1.0, order)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and mode == MODES[2]:
            module.eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index != frozen)
        # Of a loop that accumulates, or looks at gradients after the step.
        parameter.grad = torch.ones_like(parameter)
    parameters = dict(model.named_parameters())
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    settings = {name: settings_of(module) for name, module in model.named_modules()}
    random = torch.get_rng_state()
    current().stepper(model, None, p=P, c=1.0, order=order, batchnorm="affine")()
    changed = []
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if parameters.get(name) is not parameter:
            changed.append(f"parameter {name}, which is another object")
        elif not parameter.is_leaf:
            changed.append(f"parameter {name}, which is no leaf")
        if parameter.requires_grad != (index != frozen):
            changed.append(f"requires_grad of {name}")
        if parameter.grad is None or not torch.equal(parameter.grad, torch.ones_like(parameter)):
            changed.append(f"the gradient of {name}")
    found = dict(model.named_buffers())
    changed += [
        f"buffer {name}"
        for name in {**buffers, **found}
        if name not in buffers or name not in found or not torch.equal(buffers[name], found[name])
    ]
    changed += [
        f"{setting} of module {name or 'the model'}"
        for name, module in model.named_modules()
        for setting in settings.get(name, {}).items() ^ settings_of(module).items()
    ]
    if not torch.equal(random, torch.get_rng_state()):
        changed.append("the state of torch's random numbers")
    assert not changed, oracle.broken(net, f"a cycle changed {'; '.join(changed)}")
    rtol = tolerances.stored_weight(net.torch_dtype, oracle.fan_in(model))
    oracle.assert_same(net, f"a cycle, {mode}", oracle.chain(model), expected, rtol)


def settings_of(module: nn.Module) -> dict[str, object]:
    """Mode, and numbers and names that the module was built with."""
    simple = (bool, int, float, str, tuple, type(None))
    return {name: value for name, value in vars(module).items() if isinstance(value, simple)}


@given(nets(dead=False), ORDERS)
def test_memory_stays(net: Net, order: Order) -> None:
    """Parameters stay where they are, which captured graphs and flat buffers count on."""
    model = net.build()
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    current().stepper(model, None, p=P, c=1.0, order=order, batchnorm="affine")()
    moved = [name for name, one in model.named_parameters() if one.data_ptr() != places[name]]
    assert not moved, oracle.broken(net, f"now elsewhere in memory: {moved}")
