"""What each process of ``torchrun --nproc-per-node 2 -m enorm.tests.two_processes`` does."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
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
        images = torch.randn(8, 3, 6, 6, generator=generator)
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


TASKS: dict[str, Callable[[int, int], None]] = {"replicas": replicas}


def main() -> None:
    """Run one task in a group of processes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        TASKS[options.task](options.width, options.steps)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
