"""What each process of ``torchrun --nproc-per-node 2 -m enorm.tests.two_processes`` does."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import enorm


class Residual(nn.Module):
    """A residual stream, a concatenation and BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.a = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * width)
        self.b = nn.Conv2d(2 * width, width, 3, padding=1)
        self.c = nn.Conv2d(2 * width, 5, 1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        h = torch.relu(self.stem(x))
        g = torch.relu(h + self.b(torch.relu(self.bn(self.a(h)))))
        result: Tensor = self.fc(torch.relu(self.c(torch.cat([h, g], 1))).mean((2, 3)))
        return result


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int, steps: int) -> None:
    """Steps on random images; ``seed`` says which."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        dtype = next(model.parameters()).dtype
        images = torch.randn(8, 3, 6, 6, generator=generator, dtype=dtype)
        labels = torch.randint(4, (8,), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()


def equal_everywhere(tensor: Tensor) -> bool:
    """Whether all processes hold the same bits."""
    copies = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(copies, tensor.contiguous())
    return all(torch.equal(copies[0], one) for one in copies)


def replicas(width: int, steps: int) -> None:
    """DDP: each process has images of its own, and both end with the same bits."""
    torch.manual_seed(0)
    model = Residual(width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    stepper = enorm.ENorm(model, optimizer, c=1.2)
    stepper.attach()
    train(DistributedDataParallel(model), optimizer, seed=dist.get_rank(), steps=steps)
    assert stepper.state_dict()["calls"] == steps
    for name, parameter in model.named_parameters():
        assert equal_everywhere(parameter.detach()), f"{name} differs between processes"
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert equal_everywhere(momentum), f"momentum of {name} differs between processes"


def assert_close(sharded: nn.Module, whole: nn.Module, what: str) -> None:
    """Equal up to float64's rounding, in which sums over rows are added in another order."""
    for (name, mine), other in zip(sharded.named_parameters(), whole.parameters(), strict=True):
        full = mine.full_tensor()  # type: ignore[attr-defined]
        equal = torch.allclose(full, other.detach(), rtol=1e-9, atol=1e-12)
        assert equal, f"{what}, {name}: {full} is not {other}"


def sharded(width: int, steps: int) -> None:
    """``fully_shard``: the same weights as on one process, while training and after."""
    for kind, options in (
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.AdamW, {"lr": 1e-3, "eps": 1e-3}),
    ):
        models, optimizers = [], []
        for shard in (True, False):
            torch.manual_seed(0)
            model = Residual(width).double()
            plan = enorm.trace(model)
            if shard:
                for name in ("a", "b", "c"):
                    fully_shard(model.get_submodule(name))
                fully_shard(model)
            optimizer = kind(model.parameters(), **options)  # type: ignore[arg-type]
            enorm.ENorm(model, optimizer, plan=plan, c=1.2).attach()
            # All processes have the same images, so that a mean of gradients is the gradient.
            train(model, optimizer, seed=3, steps=steps)
            models.append(model)
            optimizers.append(optimizer)
        assert_close(models[0], models[1], f"after {steps} steps of {kind.__name__}")
        results = [
            enorm.balance_(model, plan, optimizer=optimizer, p=3.0)
            for model, optimizer in zip(models, optimizers, strict=True)
        ]
        assert results[0].cycles == results[1].cycles
        assert abs(results[0].energy_after / results[1].energy_after - 1) < 1e-9
        assert_close(models[0], models[1], "balanced")
        for result in results:
            result.undo_()
        assert_close(models[0], models[1], "undone")


def extreme(width: int, steps: int) -> None:
    """The same where only logarithms hold the masses, with a dead unit and a large bias."""
    models = []
    for shard in (True, False):
        torch.manual_seed(0)
        model = Residual(width).double()
        with torch.no_grad():
            model.stem.weight.mul_(1e150)
            model.get_parameter("stem.bias")[0] = 1e300
            model.c.weight.mul_(1e-150)
            model.a.weight[:, 1] = 0
            model.c.weight[:, [1, 1 + width]] = 0
        plan = enorm.trace(model)
        if shard:
            fully_shard(model)
        stepper = enorm.ENorm(model, plan=plan, cycles=2)
        for _ in range(steps):
            stepper.step()
        models.append(model)
    assert_close(models[0], models[1], "extreme")


def refused(width: int, steps: int) -> None:
    """What cannot be done with parameters that are spread says so."""
    del steps
    model = Residual(width)
    plan = enorm.trace(model)
    grouped = nn.Sequential(nn.Conv1d(4, 4, 1), nn.ReLU(), nn.Conv1d(4, 4, 1, groups=2))
    its_plan = enorm.trace(grouped)
    for one in (model, grouped):
        fully_shard(one)
    # Its own constructor asks for an accelerator.
    flat = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(flat)
    flat._modules["_fsdp_wrapped_module"] = Residual(width)
    for call, words in (
        (lambda: enorm.trace(model), "trace the model before, and pass the plan"),
        (lambda: enorm.balance_(model, plan, solver="newton"), "Newton's steps need whole weights"),
        (lambda: enorm.ENorm(grouped, plan=its_plan), "grouped or transposed convolution with"),
        (lambda: enorm.trace(flat), "use fully_shard"),
        (
            lambda: enorm.ENorm(
                model, torch.optim.SGD(model.parameters()), plan=plan, precondition_bias=True
            ),
            "precondition_bias needs whole parameters",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            call()
    # A hook of the user's own is no part of the plan, with fully_shard as without.
    model.get_submodule("a").register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="plan was traced from another model"):
        plan.check(model)


TASKS: dict[str, Callable[[int, int], None]] = {
    "replicas": replicas,
    "sharded": sharded,
    "extreme": extreme,
    "refused": refused,
}


def main() -> None:
    """Run one task in a group of processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    TASKS[options.task](options.width, options.steps)
    dist.barrier()
    # Without a teardown: gloo's threads abort about one process in ten when the group is destroyed.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
