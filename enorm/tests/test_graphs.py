"""Networks that are no chains: their groups, their function, their minimum."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm._apply import parameters, targets_of, write_
from enorm._descent import Solver
from enorm._plan import tensors_of
from enorm._solve import Order
from enorm.tests.test_trace import groups, reasons

Groups = list[tuple[list[str], list[str], int]]
Code = Callable[[Any, Tensor], Any]


class Graph(nn.Module):
    """Named layers and the forward code that joins them."""

    def __init__(self, layers: Mapping[str, nn.Module], code: Code) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.code = code

    def forward(self, x: Tensor) -> Any:
        """The given code."""
        return self.code(self, x)


@dataclass(frozen=True)
class Case:
    """A network, its input's shape, and the groups it has.

    Attributes:
        layers: made anew at each call.
        code: the forward code.
        shape: of the input, batch included.
        groups: producers, consumers and size; empty if it is all walls.
        shown: whether the shape has to be given to ``trace``.
        reason: of one of the walls.
    """

    layers: Callable[[], Mapping[str, nn.Module]]
    code: Code
    shape: tuple[int, ...]
    groups: Groups
    shown: bool = False
    reason: str | None = None


def linears(**sizes: tuple[int, int]) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {name: nn.Linear(*size) for name, size in sizes.items()}


def convs(**sizes: tuple[int, ...]) -> Callable[[], dict[str, nn.Module]]:
    """``name=(in, out, kernel, groups)``, padded; two sizes make a Linear."""

    def make() -> dict[str, nn.Module]:
        return {
            name: nn.Linear(*size)
            if len(size) == 2
            else nn.Conv2d(size[0], size[1], size[2], padding=size[2] // 2, groups=size[3])
            for name, size in sizes.items()
        }

    return make


def with_norms(
    layers: Callable[[], dict[str, nn.Module]], **sizes: int
) -> Callable[[], dict[str, nn.Module]]:
    return lambda: {**layers(), **{name: nn.BatchNorm2d(size) for name, size in sizes.items()}}


def unet(m: Any, x: Tensor) -> Any:
    """Down, up, and across."""
    high = F.relu(m.a(x))
    low = F.relu(m.b(F.max_pool2d(high, 2)))
    return m.out(F.relu(m.c(torch.cat([m.up(low), high], 1))))


def resnet(m: Any, x: Tensor) -> Any:
    """A block with an identity and one with a projection."""
    h = F.relu(m.stem(x))
    h = F.relu(h + m.b(F.relu(m.a(h))))
    h = F.relu(m.skip(h) + m.d(F.relu(m.c(h))))
    return m.out(F.adaptive_avg_pool2d(h, 1).flatten(1))


def selective(m: Any, x: Tensor) -> Any:
    """Branches weighed against each other by what both hold."""
    branches = torch.stack([F.relu(m.a(x)), F.relu(m.b(x))], dim=1)
    pooled = branches.sum(1).mean((2, 3))
    weights = torch.softmax(m.squeeze(pooled), 1)
    return m.c((branches * weights[..., None, None, None]).sum(dim=1))


def normalized(m: Any, x: Tensor) -> Any:
    """The same with BatchNorm, which starts each branch anew."""
    h = F.relu(m.n0(m.stem(x)))
    h = F.relu(h + m.n2(m.b(F.relu(m.n1(m.a(h))))))
    return m.out(F.adaptive_avg_pool2d(h, 1).flatten(1))


def squeezed(m: Any, x: Tensor) -> Any:
    """Channels weighted by what they hold themselves."""
    h = F.relu(m.a(x))
    weight = torch.sigmoid(m.up(F.relu(m.down(h.mean((2, 3), keepdim=True)))))
    return m.b(h * weight)


def points(m: Any, x: Tensor) -> Any:
    """A layer at each point, and the largest of each channel, as in PointNet."""
    h = F.relu(m.b(F.relu(m.n(m.a(x)))))
    return m.d(F.relu(m.c(torch.max(h, 2)[0])))


def causal(m: Any, x: Tensor) -> Any:
    """What looks ahead is cut off, as in temporal convolutional networks."""
    h = F.relu(m.a(x)[:, :, :-2].contiguous())
    return m.c(F.relu(m.b(h)[..., :-4])[:, :, -1])


def cropped(m: Any, x: Tensor) -> Any:
    """A shortcut cut to the size of what it meets, as in the first U-Net."""
    wide = F.relu(m.a(x))
    h = F.relu(m.b(wide))[:, :, 1:-1, 1:-1]
    y, z = ((wide.size(axis) - h.size(axis)) // 2 for axis in (2, 3))
    skip = wide[:, :, y : y + h.size(2), z : z + h.size(3)]
    return m.c(torch.cat([skip, h], 1))


def in_place(m: Any, x: Tensor) -> Any:
    """A sum written over one of its operands."""
    h = F.relu(m.a(x))
    h += m.b(x)
    h *= 0.5
    return m.c(h)


def clipped(m: Any, x: Tensor) -> Any:
    """ReLU by its other names."""
    h = torch.clamp(m.a(x).clamp(min=0).clamp_min(0), 0, None)
    h = m.threshold(F.threshold(torch.clip(h, min=0.0), 0, 0)) - torch.clamp(m.a2(x), max=0)
    return m.c(h.clamp_(min=0))


def sized(m: Any, x: Tensor) -> Any:
    """Windows and factors computed from sizes."""
    h = F.relu(m.a(x))
    h = F.avg_pool2d(h, h.size()[2:]) + F.max_pool2d(h, kernel_size=h.shape[2:])
    h = F.adaptive_avg_pool2d(h, x.shape[-2:])  # type: ignore[arg-type]
    h = h * x.size(2) / math.sqrt(x.size(1))
    return m.b(h)


def padded(m: Any, x: Tensor) -> Any:
    """A U-Net whose lower path loses rows."""
    high = F.relu(m.a(x))
    low = m.up(F.relu(m.b(F.max_pool2d(high, 4))))
    rows, columns = high.size(2) - low.size(2), high.size(3) - low.size(3)
    low = F.pad(low, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
    return m.out(F.relu(m.c(torch.cat([low, high], 1))))


FC = {"a": (3, 5), "b": (5, 5), "c": (5, 2)}
STREAM = linears(a=(3, 5), b=(5, 5), c=(5, 2))
TWO = linears(a=(3, 4), b=(3, 4), c=(4, 2))
PAIR = convs(a=(3, 4, 3, 1), b=(4, 5, 3, 1))
IMAGE = (4, 3, 6, 6)

CASES = {
    "sum of two": Case(
        TWO, lambda m, x: m.c(F.relu(m.a(x)) + F.relu(m.b(x))), (7, 3), [(["a", "b"], ["c"], 4)]
    ),
    "difference": Case(
        TWO, lambda m, x: m.c(F.relu(m.a(x)) - 0.3 * m.b(x)), (7, 3), [(["a", "b"], ["c"], 4)]
    ),
    "larger of two": Case(
        TWO, lambda m, x: m.c(torch.maximum(m.a(x), m.b(x))), (7, 3), [(["a", "b"], ["c"], 4)]
    ),
    "in place": Case(TWO, in_place, (7, 3), [(["a", "b"], ["c"], 4)]),
    "self-coupled": Case(
        STREAM,
        lambda m, x: m.c((h := F.relu(m.a(x))) + F.relu(m.b(h))),
        (7, 3),
        [(["a", "b"], ["b", "c"], 5)],
    ),
    "self-coupled twice": Case(
        linears(a=(3, 5), b=(5, 5), d=(5, 5), c=(5, 2)),
        lambda m, x: m.c((h := (g := F.relu(m.a(x))) + F.relu(m.b(g))) + F.relu(m.d(h))),
        (7, 3),
        [(["a", "b", "d"], ["b", "d", "c"], 5)],
    ),
    "scaled": Case(
        linears(a=(3, 4), c=(4, 2)),
        lambda m, x: m.c(-F.relu(m.a(x)) * 0.5 / 3),
        (7, 3),
        [(["a"], ["c"], 4)],
    ),
    "absolute": Case(
        linears(a=(3, 4), c=(4, 2)),
        lambda m, x: m.c(abs(m.a(x)).abs()),
        (7, 3),
        [(["a"], ["c"], 4)],
    ),
    "clipped at zero": Case(
        lambda: {**linears(a=(3, 4), a2=(3, 4), c=(4, 2))(), "threshold": nn.Threshold(0, 0.0)},
        clipped,
        (7, 3),
        [(["a", "a2"], ["c"], 4)],
    ),
    "clipped elsewhere": Case(
        TWO,
        lambda m, x: m.c(m.a(x).clamp(min=0.1)),
        (7, 3),
        [],
        reason="clips at another value than 0",
    ),
    "clipped from above": Case(
        TWO,
        lambda m, x: m.c(torch.clamp(m.a(x), 0, max=6)),
        (7, 3),
        [],
        reason="clips at another value than 0",
    ),
    "clipped at a size": Case(
        TWO,
        lambda m, x: m.c(torch.clamp_min(m.a(x), x.size(0))),
        (7, 3),
        [],
        reason="clips at another value than 0",
    ),
    "threshold": Case(
        lambda: {**TWO(), "threshold": nn.Threshold(0, 0.5)},
        lambda m, x: m.c(m.threshold(m.a(x))),
        (7, 3),
        [],
        reason="clips at another value than 0",
    ),
    "functional threshold": Case(
        TWO,
        lambda m, x: m.c(F.threshold(m.a(x), 0.5, 0)),
        (7, 3),
        [],
        reason="clips at another value than 0",
    ),
    "Python's sum": Case(
        TWO,
        lambda m, x: m.c(F.relu(sum([m.a(x), m.b(x)]))),
        (7, 3),
        [(["a", "b"], ["c"], 4)],
    ),
    "detached": Case(TWO, lambda m, x: m.c(F.relu(m.a(x)).detach()), (7, 3), [(["a"], ["c"], 4)]),
    "cast to what it is": Case(
        TWO,
        lambda m, x: m.c(F.relu(m.a(x).double().to(torch.float64).to(x.device).cpu())),
        (7, 3),
        [(["a"], ["c"], 4)],
    ),
    "cast to less": Case(
        TWO,
        lambda m, x: m.c(m.a(x).to(dtype=torch.float32).to(torch.float64)),
        (7, 3),
        [],
        reason="casts to torch.float32, which holds less than the parameters' dtype",
    ),
    "cast to whole numbers": Case(
        TWO,
        lambda m, x: m.c(m.a(x).to("cpu", torch.int64).double()),
        (7, 3),
        [],
        reason="casts to torch.int64, which holds less than the parameters' dtype",
    ),
    "cast to another's dtype": Case(
        TWO,
        lambda m, x: m.c(m.a(x).to(x.dtype)),
        (7, 3),
        [],
        reason="casts to a dtype that cannot be told",
    ),
    "bits": Case(
        TWO,
        lambda m, x: m.c(m.a(x).view(torch.float64)),
        (7, 3),
        [],
        reason="reads the activations' bits as another dtype",
    ),
    "normalized by a function": Case(
        TWO,
        lambda m, x: m.c(F.normalize(m.a(x))),
        (7, 3),
        [],
        reason="not known to be positively homogeneous",
    ),
    "sizes": Case(convs(a=(3, 4, 3, 1), b=(4, 2, 3, 1)), sized, IMAGE, [(["a"], ["b"], 4)]),
    "pads by sizes": Case(
        lambda: (
            convs(a=(3, 4, 3, 1), b=(4, 6, 3, 1), c=(9, 5, 3, 1), out=(5, 2, 1, 1))()
            | {"up": nn.ConvTranspose2d(6, 5, 4, stride=4)}
        ),
        padded,
        (4, 3, 7, 9),
        [(["a"], ["b", "c"], 4), (["b"], ["up"], 6), (["up"], ["c"], 5), (["c"], ["out"], 5)],
    ),
    "pads as a size says": Case(
        PAIR,
        lambda m, x: m.b(F.pad(m.a(x), x.size()[2:])),
        IMAGE,
        [],
        reason="pads axes that cannot be told",
    ),
    "keeps axes as a size says": Case(
        convs(a=(3, 4, 3, 1), b=(4, 2)),
        lambda m, x: m.b(m.a(x).mean((2, 3), keepdim=x.size(2) < 3)),
        IMAGE,
        [],
        reason="reduces in a way that cannot be followed",
    ),
    "synchronized BatchNorm": Case(
        lambda: (
            {**PAIR(), "n0": nn.SyncBatchNorm(4), "n1": nn.SyncBatchNorm(6)}
            | linears(c=(180, 6), d=(6, 2))()
        ),
        lambda m, x: m.d(F.relu(m.n1(m.c(F.relu(m.b(F.relu(m.n0(m.a(x))))).flatten(1))))),
        IMAGE,
        [(["n0"], ["b"], 4), (["b"], ["c"], 5), (["n1"], ["d"], 6)],
    ),
    "residual with projection": Case(
        convs(
            stem=(3, 4, 3, 1),
            a=(4, 6, 3, 1),
            b=(6, 4, 3, 1),
            c=(4, 5, 3, 1),
            d=(5, 6, 3, 1),
            skip=(4, 6, 1, 1),
            out=(6, 2),
        ),
        resnet,
        IMAGE,
        [
            (["stem", "b"], ["a", "skip", "c"], 4),
            (["a"], ["b"], 6),
            (["skip", "d"], ["out"], 6),
            (["c"], ["d"], 5),
        ],
    ),
    "residual with BatchNorm": Case(
        with_norms(
            convs(stem=(3, 4, 3, 1), a=(4, 6, 3, 1), b=(6, 4, 3, 1), out=(4, 2)), n0=4, n1=6, n2=4
        ),
        normalized,
        IMAGE,
        [(["n0", "n2"], ["a", "out"], 4), (["n1"], ["b"], 6)],
    ),
    "concatenation": Case(
        convs(a=(3, 4, 1, 1), b=(3, 5, 3, 1), c=(9, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1)),
        IMAGE,
        [(["a"], ["c"], 4), (["b"], ["c"], 5)],
    ),
    "concatenation, flattened": Case(
        convs(a=(3, 4, 1, 1), b=(3, 5, 3, 1), c=(324, 2)),
        lambda m, x: m.c(torch.cat([m.a(x), F.relu(m.b(x))], dim=-3).flatten(1)),
        IMAGE,
        [(["a"], ["c"], 4), (["b"], ["c"], 5)],
    ),
    "concatenation with itself": Case(
        linears(a=(3, 4), c=(8, 2)),
        lambda m, x: m.c(torch.cat([h := F.relu(m.a(x)), -h], 1)),
        (7, 3),
        [(["a"], ["c", "c"], 4)],
    ),
    "concatenation with the input": Case(
        convs(a=(3, 4, 1, 1), c=(7, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([x, F.relu(m.a(x))], 1)),
        IMAGE,
        [(["a"], ["c"], 4)],
        shown=True,
    ),
    "concatenation with an unseen input": Case(
        convs(a=(3, 4, 1, 1), c=(7, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([x, F.relu(m.a(x))], 1)),
        IMAGE,
        [],
        reason="concatenates a value of unknown size: pass example_inputs",
    ),
    "concatenation of positions": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([m.a(x), F.relu(m.b(x))], 2)),
        IMAGE,
        [(["a", "b"], ["c"], 4)],
    ),
    "concatenation of positions, from the end": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([h := m.a(x), -h, m.b(x)], -1)),
        IMAGE,
        [(["a", "b"], ["c"], 4)],
    ),
    "concatenation of samples": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(4, 2, 1, 1), d=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([h := m.a(x), m.b(x)])).sum() + m.d(h),
        IMAGE,
        [(["a", "b"], ["c", "d"], 4)],
    ),
    "concatenation of positions of other units": Case(
        convs(a=(3, 4, 1, 1), b=(3, 2, 3, 1), d=(3, 2, 3, 1), c=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.cat([m.a(x), torch.cat([m.b(x), m.d(x)], 1)], 2)),
        IMAGE,
        [],
        reason="concatenates values whose units stand differently",
    ),
    "selective kernels": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), squeeze=(4, 2), c=(4, 2, 1, 1)),
        selective,
        IMAGE,
        [(["a", "b"], ["squeeze", "c"], 4)],
        shown=True,
        reason="not known to be positively homogeneous",
    ),
    "stack behind the units": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.stack([F.relu(m.a(x)), m.b(x)], dim=-1).amax(-1)),
        IMAGE,
        [(["a", "b"], ["c"], 4)],
    ),
    "stack before the units": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(4, 2, 1, 1)),
        lambda m, x: m.c(torch.stack([F.relu(m.a(x)), m.b(x)]).flatten(0, 1)),
        IMAGE,
        [(["a", "b"], ["c"], 4)],
    ),
    "stack of Linears": Case(
        linears(a=(3, 4), b=(3, 4), c=(4, 2)),
        lambda m, x: m.c(torch.stack([F.relu(m.a(x)), m.b(x)], 1)),
        (7, 3),
        [(["a", "b"], ["c"], 4)],
        shown=True,
    ),
    "dense": Case(
        convs(a=(3, 4, 3, 1), b=(4, 3, 3, 1), c=(7, 3, 3, 1), out=(10, 2, 1, 1)),
        lambda m, x: m.out(
            torch.cat([g := torch.cat([h := m.a(x), F.relu(m.b(h))], 1), F.relu(m.c(g))], 1)
        ),
        IMAGE,
        [(["a"], ["b", "c", "out"], 4), (["b"], ["c", "out"], 3), (["c"], ["out"], 3)],
    ),
    "concatenations added": Case(
        linears(a=(3, 2), b=(3, 3), d=(3, 2), e=(3, 3), c=(5, 2)),
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1) + torch.cat([m.d(x), m.e(x)], 1)),
        (7, 3),
        [(["a", "d"], ["c"], 2), (["b", "e"], ["c"], 3)],
    ),
    "concatenation added to a whole": Case(
        linears(a=(3, 2), b=(3, 3), d=(3, 5), c=(5, 2)),
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1) + m.d(x)),
        (7, 3),
        [],
        reason="adds values whose units stand differently",
    ),
    "depthwise": Case(
        convs(a=(3, 4, 1, 1), b=(4, 4, 3, 4), c=(4, 2, 1, 1)),
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        IMAGE,
        [(["a"], ["b"], 4), (["b"], ["c"], 4)],
    ),
    "depthwise, multiplied": Case(
        convs(a=(3, 4, 1, 1), b=(4, 8, 3, 4), c=(8, 2, 1, 1)),
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        IMAGE,
        [(["a"], ["b"], 4), (["b"], ["c"], 8)],
    ),
    "grouped": Case(
        convs(a=(3, 6, 1, 1), b=(6, 4, 3, 2), c=(4, 2, 1, 1)),
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        IMAGE,
        [(["a"], ["b"], 6), (["b"], ["c"], 4)],
    ),
    "grouped at the ends": Case(
        convs(a=(3, 6, 1, 3), b=(6, 2, 3, 2)),
        lambda m, x: m.b(F.relu(m.a(x))),
        IMAGE,
        [(["a"], ["b"], 6)],
    ),
    "grouped, self-coupled": Case(
        convs(a=(3, 6, 1, 1), b=(6, 6, 3, 2), c=(6, 2, 1, 1)),
        lambda m, x: m.c((h := F.relu(m.a(x))) + F.relu(m.b(h))),
        IMAGE,
        [(["a", "b"], ["b", "c"], 6)],
    ),
    "depthwise, self-coupled": Case(
        convs(a=(3, 6, 1, 1), b=(6, 6, 3, 6), c=(6, 2, 1, 1)),
        lambda m, x: m.c((h := F.relu(m.a(x))) + F.relu(m.b(h))),
        IMAGE,
        [(["a", "b"], ["b", "c"], 6)],
    ),
    "grouped behind a concatenation": Case(
        convs(a=(3, 4, 1, 1), b=(3, 4, 3, 1), c=(8, 2, 1, 2)),
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)),
        IMAGE,
        [],
        reason="a grouped convolution of a concatenation",
    ),
    "transposed": Case(
        lambda: {
            "a": nn.ConvTranspose2d(3, 4, 2, 2),
            "b": nn.ConvTranspose2d(4, 5, 3),
            "c": nn.Conv2d(5, 2, 1),
        },
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        IMAGE,
        [(["a"], ["b"], 4), (["b"], ["c"], 5)],
    ),
    "transposed and grouped": Case(
        lambda: {
            "a": nn.ConvTranspose1d(4, 6, 2, 2, groups=2),
            "b": nn.ConvTranspose1d(6, 9, 3, groups=3),
            "c": nn.Conv1d(9, 2, 1),
        },
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))),
        (4, 4, 6),
        [(["a"], ["b"], 6), (["b"], ["c"], 9)],
    ),
    "unet": Case(
        lambda: {
            **convs(a=(3, 4, 3, 1), b=(4, 6, 3, 1), c=(9, 4, 3, 1), out=(4, 2, 1, 1))(),
            "up": nn.ConvTranspose2d(6, 5, 2, 2),
        },
        unet,
        IMAGE,
        [(["a"], ["b", "c"], 4), (["b"], ["up"], 6), (["up"], ["c"], 5), (["c"], ["out"], 4)],
    ),
    "squeeze and excitation": Case(
        convs(a=(3, 4, 3, 1), down=(4, 2, 1, 1), up=(2, 4, 1, 1), b=(4, 2, 1, 1)),
        squeezed,
        IMAGE,
        [(["a"], ["down", "b"], 4), (["down"], ["up"], 2)],
        reason="not known to be positively homogeneous",
    ),
    "points": Case(
        lambda: {
            "a": nn.Conv1d(3, 4, 1),
            "n": nn.BatchNorm1d(4),
            "b": nn.Conv1d(4, 6, 1),
            "c": nn.Linear(6, 5),
            "d": nn.Linear(5, 2),
        },
        points,
        (4, 3, 8),
        [(["n"], ["b"], 4), (["b"], ["c"], 6), (["c"], ["d"], 5)],
    ),
    "causal": Case(
        lambda: {
            "a": nn.Conv1d(3, 4, 3, padding=2),
            "b": nn.Conv1d(4, 5, 3, padding=4, dilation=2),
            "c": nn.Linear(5, 2),
        },
        causal,
        (4, 3, 8),
        [(["a"], ["b"], 4), (["b"], ["c"], 5)],
    ),
    "cropped": Case(
        convs(a=(3, 4, 3, 1), b=(4, 5, 5, 1), c=(9, 2, 1, 1)),
        cropped,
        IMAGE,
        [(["a"], ["b", "c"], 4), (["b"], ["c"], 5)],
    ),
    "resized and padded": Case(
        PAIR,
        lambda m, x: m.b(F.pad(F.interpolate(F.relu(m.a(x)), scale_factor=2), (1, 1))),
        IMAGE,
        [(["a"], ["b"], 4)],
    ),
    "padded by modules": Case(
        lambda: {**PAIR(), "pad": nn.ReflectionPad2d(1), "up": nn.Upsample(scale_factor=2)},
        lambda m, x: m.b(m.up(m.pad(F.relu(m.a(x))))),
        IMAGE,
        [(["a"], ["b"], 4)],
    ),
    "padded with ones": Case(
        PAIR,
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (1, 1), value=1.0)),
        IMAGE,
        [],
        reason="pads with a constant",
    ),
    "channels padded": Case(
        convs(a=(3, 4, 3, 1), b=(6, 5, 3, 1)),
        lambda m, x: m.b(F.pad(F.relu(m.a(x)), (0, 0, 0, 0, 1, 1))),
        IMAGE,
        [],
        reason="pads along the axis of the hidden units",
    ),
    "mean over positions": Case(
        convs(a=(3, 4, 3, 1), b=(4, 2)),
        lambda m, x: m.b(F.relu(m.a(x)).mean([2, 3])),
        IMAGE,
        [(["a"], ["b"], 4)],
    ),
    "mean over units": Case(
        convs(a=(3, 4, 3, 1), b=(6, 2)),
        lambda m, x: m.b(F.relu(m.a(x)).mean((1, 2))),
        IMAGE,
        [],
        reason="reduces over hidden units",
    ),
    "channels last": Case(
        convs(a=(3, 4, 3, 1), fc=(4, 5), b=(5, 2)),
        lambda m, x: m.b(F.relu(m.fc(F.relu(m.a(x)).permute(0, 2, 3, 1))).mean((1, 2))),
        IMAGE,
        [(["a"], ["fc"], 4), (["fc"], ["b"], 5)],
    ),
    "transposed axes": Case(
        lambda: {"a": nn.Conv1d(3, 4, 1), "b": nn.Linear(4, 2)},
        lambda m, x: m.b(F.relu(m.a(x)).transpose(1, 2)),
        (5, 3, 6),
        [(["a"], ["b"], 4)],
    ),
    "moved, then flattened": Case(
        convs(a=(3, 4, 3, 1), b=(144, 2)),
        lambda m, x: m.b(F.relu(m.a(x)).permute(0, 2, 1, 3).flatten(1)),
        IMAGE,
        [],
        reason="flattens positions in front of the units",
    ),
    "layer norm": Case(
        lambda: {**TWO(), "ln": nn.LayerNorm(4)},
        lambda m, x: m.c(F.relu(m.ln(m.a(x)))),
        (7, 5, 3),
        [(["ln"], ["c"], 4)],
    ),
    "layer norm that is added to": Case(
        lambda: {**TWO(), "ln": nn.LayerNorm(4)},
        lambda m, x: m.c(F.relu(m.ln(m.a(x)) + m.b(x))),
        (7, 3),
        [(["ln", "b"], ["c"], 4)],
    ),
    "group norm": Case(
        lambda: (
            {**PAIR(), "gn": nn.GroupNorm(2, 4), "last": nn.InstanceNorm2d(5, affine=True)}
            | convs(out=(5, 2, 1, 1))()
        ),
        lambda m, x: m.out(F.relu(m.last(m.b(F.relu(m.gn(m.a(x))))))),
        IMAGE,
        [(["gn"], ["b"], 4), (["last"], ["out"], 5)],
    ),
    "layer norm over several axes": Case(
        lambda: {"a": nn.Conv1d(3, 4, 1), "ln": nn.LayerNorm((4, 6)), "b": nn.Conv1d(4, 2, 1)},
        lambda m, x: m.b(F.relu(m.ln(m.a(x)))),
        (5, 3, 6),
        [],
        reason="its weights lie along several axes",
    ),
    "parametric slopes": Case(
        lambda: {**PAIR(), "act": nn.PReLU(4), "other": nn.RReLU()},
        lambda m, x: m.b(m.other(m.act(m.a(x)))),
        IMAGE,
        [(["a"], ["b"], 4)],
    ),
}


def build(name: str) -> tuple[nn.Module, enorm.Plan, Tensor]:
    """In float64 and eval mode, with uneven units and BatchNorm statistics."""
    case = CASES[name]
    generator = torch.Generator().manual_seed(0)
    model = Graph(case.layers(), case.code).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            uneven = torch.rand(len(parameter), generator=generator, dtype=torch.float64) + 0.1
            normal = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(normal * uneven.view(-1, *[1] * (parameter.dim() - 1)))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    inputs = torch.randn(case.shape, generator=generator, dtype=torch.float64)
    return model, enorm.trace(model, inputs if case.shown else None), inputs


LIVE = [name for name, case in CASES.items() if case.groups]


@pytest.mark.parametrize("name", CASES)
def test_groups(name: str) -> None:
    """As expected; shapes known or not."""
    case = CASES[name]
    model, plan, inputs = build(name)
    assert groups(plan) == case.groups
    if case.reason is None:
        assert plan.skipped == ()
    else:
        assert case.reason in reasons(plan)
    if case.reason is None or "example_inputs" not in case.reason:
        assert groups(enorm.trace(model, inputs)) == case.groups


@pytest.mark.parametrize("solver", ["sor", "cyclic", "newton"])
@pytest.mark.parametrize(("p", "c"), [(2.0, 1.0), (1.0, 1.2)])
@pytest.mark.parametrize("name", LIVE)
def test_solvers_reach_the_minimum_and_keep_the_function(
    name: str, p: float, c: float, solver: Solver
) -> None:
    """No small change of any scale lowers the energy any more."""
    model, plan, inputs = build(name)
    before = copy.deepcopy(model)
    result = enorm.balance_(model, plan, p=p, c=c, solver=solver, tol=1e-10, max_cycles=20_000)
    assert result.converged
    assert result.energy_after <= result.energy_before
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-10, atol=1e-12)
    verified = enorm.verify(before, model, inputs)
    assert verified.ok in (True, None), verified

    jobs = parameters(targets_of(plan), tensors_of(model, plan))
    generator = torch.Generator().manual_seed(1)
    least = enorm.energy(plan, p, c)
    for _ in range(10):
        moved = [
            1e-3 * torch.randn(group.size, generator=generator, dtype=torch.float64)
            for group in plan.groups
        ]
        write_(jobs, moved)
        assert enorm.energy(plan, p, c) >= least * (1 - 1e-12)
        write_(jobs, [-one for one in moved])


@pytest.mark.parametrize("order", ["cyclic", "jacobi"])
@pytest.mark.parametrize("cycles", [1, 3])
@pytest.mark.parametrize("name", LIVE)
def test_steps_lower_the_energy_and_keep_the_function(name: str, cycles: int, order: Order) -> None:
    """In plain arithmetic and in logarithms alike."""
    model, plan, inputs = build(name)
    before, twin = copy.deepcopy(model), copy.deepcopy(model)
    stepper = enorm.ENorm(model, plan=plan, c=1.2, cycles=cycles, order=order)
    wide = enorm.ENorm(twin, plan=enorm.trace(twin, inputs), c=1.2, cycles=cycles, order=order)
    wide._precision = "log"
    energies = [enorm.energy(plan, c=1.2)]
    for _ in range(5):
        stepper.step()
        wide.step()
        energies.append(enorm.energy(plan, c=1.2))
    assert all(new <= old * (1 + 1e-12) for old, new in itertools.pairwise(energies))
    torch.testing.assert_close(model(inputs), before(inputs), rtol=1e-10, atol=1e-12)
    for mine, its in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LIVE)
def test_powers_of_two_keep_every_bit(name: str) -> None:
    model, plan, inputs = build(name)
    before = copy.deepcopy(model)
    enorm.balance_(model, plan, power_of_two=True)
    assert torch.equal(model(inputs), before(inputs))


@pytest.mark.parametrize("name", LIVE)
def test_optimizer_state_lies_as_weights_do(name: str) -> None:
    """Momentum is divided where its weight is multiplied, whatever the layout."""
    model, plan, _ = build(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = {parameter: parameter.detach().clone() for parameter in model.parameters()}
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.ones_like(parameter)
    enorm.balance_(model, plan, optimizer=optimizer)
    for parameter, old in before.items():
        momentum = optimizer.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(momentum * parameter, old, rtol=1e-12, atol=0)


def test_self_coupled_units_settle() -> None:
    """A whole update of both units of an antisymmetric pair swaps them for ever; half does not."""
    model = Graph(STREAM(), CASES["self-coupled"].code).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e-3)
        model.get_parameter("b.weight")[0, 1] = 100.0
    result = enorm.balance_(model, solver="cyclic", tol=1e-9, max_cycles=100_000)
    assert result.converged


def test_rows_of_a_slice_are_named() -> None:
    plan = enorm.trace(Graph(CASES["concatenation"].layers(), CASES["concatenation"].code))
    assert "c (from 4)" in str(plan)
