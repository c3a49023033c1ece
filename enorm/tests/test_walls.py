"""Every wall in full: where groups end, the reason word by word, and what is left of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import enorm
from enorm._plan import BatchNormRule
from enorm.tests.test_trace import Written, groups


class Inner(nn.Module):
    """A sigmoid in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        return torch.sigmoid(x)


class Squeeze(nn.Module):
    """``x.squeeze(axis)``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        return x.squeeze(self.axis)


def hooked(model: nn.Sequential, index: int) -> nn.Sequential:
    """With a forward hook on one module."""
    model[index].register_forward_hook(lambda *_: None)
    return model


def without_bias(model: nn.Sequential, index: int) -> nn.Sequential:
    """With a bias taken away from one module."""
    model[index].bias = None  # type: ignore[assignment]
    return model


def hidden(code: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    """Two Linear layers with ``code`` on the activations between them."""
    return lambda: Written(lambda m, x: m.b(code(F.relu(m.a(x)))))


def positions(code: Callable[[Tensor], Tensor], features: int = 18) -> Callable[[], nn.Module]:
    """A convolution, ``code``, and a Linear that reads ``features``."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(2, 6, 1)
            self.fc = nn.Linear(features, 4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.fc(code(F.relu(self.conv(x))))
            return result

    return Chain


def pooled(axis: int) -> Callable[[], nn.Module]:
    """Images of one column, of which an axis is taken away."""
    pool = nn.AdaptiveAvgPool2d((None, 1))
    return lambda: nn.Sequential(nn.Conv2d(2, 6, 1), pool, Squeeze(axis), nn.Conv1d(6, 2, 1))


def images(code: Callable[[Tensor], Tensor], *axes: Any) -> Callable[[], nn.Module]:
    """``code`` on images, and squeezes one after the other."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 6, 1)
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = code(F.relu(self.conv(x)))
            for axis in axes:
                h = F.relu(h.squeeze(axis))
            result: Tensor = self.fc(h)
            return result

    return Chain


def unpacked(h: Tensor) -> Tensor:
    """The values; whether the positions are used decides."""
    values, _ = torch.max(h, 2)
    return values


def summed(h: Any) -> Tensor:
    """By NumPy's name of the argument, of which type stubs know nothing."""
    total: Tensor = h.sum(axis=2)
    return total


GROUP_A = [(["a"], ["b"], 6)]
IMAGES = GROUP_CONV = [(["conv"], ["fc"], 6)]


@dataclass(frozen=True)
class Case:
    """A model, and what its plan has to be.

    Attributes:
        make: the model.
        shape: of example inputs, or None.
        rule: for BatchNorm.
        groups: producers, consumers and size.
    """

    make: Callable[[], nn.Module]
    groups: list[tuple[list[str], list[str], int]] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    rule: BatchNormRule = "affine"


def dropped(h: Tensor) -> Tensor:
    """A factor per sample, as drop paths make it."""
    kept = h.new_empty((h.shape[0],) + (1,) * (h.ndim - 1)).bernoulli_(0.5)
    return h * kept.div_(0.5)


CASES = {
    "a path dropped": Case(hidden(dropped), GROUP_A),
    "a path dropped, seen": Case(hidden(dropped), GROUP_A, shape=(5, 6)),
    "noise of its shape": Case(hidden(lambda h: h * torch.rand_like(h)), GROUP_A, shape=(5, 6)),
    "ones of its shape": Case(hidden(lambda h: h * torch.ones_like(h)), GROUP_A),
    "viewed as itself": Case(hidden(lambda h: h.view_as(h)), GROUP_A),
    "viewed as another": Case(hidden(lambda h: h.view_as(-h)), GROUP_A, shape=(5, 6)),
    "another view, unseen": Case(hidden(lambda h: h.view_as(-h))),
    "copied by a function": Case(hidden(lambda h: +torch.clone(torch.negative(h))), GROUP_A),
    "shuffled": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 1))
    ),
    "indexed": Case(hidden(lambda h: h[:, :6])),
    "indexed, seen": Case(hidden(lambda h: h[:, :6]), shape=(5, 6)),
    "last position": Case(positions(lambda h: h[:, :, -1], 6), GROUP_CONV),
    "last position behind dots": Case(positions(lambda h: h[..., -1], 6), GROUP_CONV),
    "cropped": Case(positions(lambda h: h[:, :, 1 : h.size(2) - 1].mean(2), 6), GROUP_CONV),
    "axes added": Case(positions(lambda h: h[None, ..., None, :].sum((0, 3, -1)), 6), GROUP_CONV),
    "samples behind a flatten": Case(positions(lambda h: h.flatten(1)[1:]), GROUP_CONV),
    "blocks picked": Case(positions(lambda h: h.flatten(1)[:, ::3], 6)),
    "one unit": Case(positions(lambda h: h[:, 0], 3)),
    "some units": Case(positions(lambda h: h[:, ::2].flatten(1), 9)),
    "one sample": Case(positions(lambda h: h[0].T, 6)),
    "samples": Case(positions(lambda h: h[1:, :, 0], 6), GROUP_CONV),
    "indexed by a mask": Case(positions(lambda h: h[:, :, torch.tensor([True, False, True])])),
    "indexed by True": Case(positions(lambda h: h[True])),
    "largest": Case(positions(lambda h: h.max(2)[0], 6), GROUP_CONV),
    "largest, unpacked": Case(positions(unpacked, 6), GROUP_CONV),
    "smallest, by name": Case(positions(lambda h: h.min(dim=-1).values, 6), GROUP_CONV),
    "largest, kept": Case(
        positions(lambda h: torch.max(h, dim=2, keepdim=True)[0].flatten(1), 6), GROUP_CONV
    ),
    "where the largest are": Case(positions(lambda h: h.max(2)[1].float(), 6)),
    "where the smallest are": Case(positions(lambda h: h.min(2).indices.float(), 6)),
    "largest of all": Case(positions(lambda h: h.mean(2) * h.max(), 6)),
    "largest unit": Case(positions(lambda h: h.max(1)[0], 3)),
    "largest of two": Case(positions(lambda h: torch.max(h, -h).mean(2), 6), GROUP_CONV),
    "largest of another": Case(positions(lambda h: h.mean(2).min(torch.ones(6)), 6)),
    "sum by another name": Case(positions(summed, 6), GROUP_CONV),
    "mean of an axis counted": Case(positions(lambda h: h.mean(h.dim() - 1), 6)),
    "squeezed": Case(
        positions(lambda h: F.adaptive_avg_pool1d(h, 1).squeeze(-1), 6), GROUP_CONV, shape=(5, 2, 3)
    ),
    "squeezed to no avail": Case(
        positions(lambda h: h.squeeze(-1).mean(2), 6), GROUP_CONV, shape=(5, 2, 3)
    ),
    "pooled to one position": Case(
        positions(lambda h: F.relu(F.adaptive_avg_pool1d(h, 1)).squeeze(-1), 6), GROUP_CONV
    ),
    "kept by a mean, and divided": Case(
        positions(lambda h: F.relu(h.mean(2, keepdim=True) / 2).squeeze(2), 6),
    ),
    "kept by a mean": Case(
        positions(lambda h: (-h.mean(2, keepdim=True)).squeeze(dim=-1), 6), GROUP_CONV
    ),
    "one position among two": Case(pooled(-1), [(["0"], ["3"], 6)]),
    "the other among two": Case(pooled(-2)),
    "too few sizes": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 1), nn.AdaptiveAvgPool2d((1,)), Squeeze(-1), nn.Conv1d(6, 2, 1)
        )
    ),
    "one after the other": Case(images(lambda h: F.adaptive_avg_pool2d(h, 1), -1, -1), IMAGES),
    "one after the other, counted": Case(
        images(lambda h: h.mean((2, 3), keepdim=True), 2, 2), IMAGES
    ),
    "both at once": Case(images(lambda h: F.adaptive_max_pool2d(h, 1), (2, -1)), IMAGES),
    "both at once, and units": Case(images(lambda h: F.adaptive_max_pool2d(h, 1), (2, -1), -1)),
    "the last of two": Case(
        images(lambda h: F.adaptive_avg_pool2d(h, (1, 3)).mean(3, True), 2, 2), IMAGES
    ),
    "mean of a mean": Case(images(lambda h: h.mean(2, True).mean(3, True), -1, -1), IMAGES),
    "the other one as well": Case(images(lambda h: h.mean(2, True), -2, -1)),
    "samples behind a pooling": Case(
        positions(lambda h: F.adaptive_avg_pool1d(h, 1).squeeze(0), 6)
    ),
    "units behind a mean": Case(positions(lambda h: h.mean(-1).squeeze(-1), 6)),
    "one sample kept": Case(positions(lambda h: h.mean(0, True).squeeze(0).T, 6)),
    "squeezed unseen": Case(positions(lambda h: h[:, :, :1].squeeze(2), 6)),
    "squeezed behind two": Case(
        positions(lambda h: F.adaptive_avg_pool1d(h, 2)[:, :, :1].squeeze(2), 6)
    ),
    "unsqueezed": Case(positions(lambda h: h.unsqueeze(-1).sum((2, 3)), 6), GROUP_CONV),
    "unsqueezed in front": Case(
        positions(lambda h: torch.unsqueeze(h.mean(2), 0).sum(0), 6), GROUP_CONV
    ),
    "unsqueezed between": Case(positions(lambda h: h.unsqueeze(dim=1).sum((1, 3)), 6), GROUP_CONV),
    "unsqueezed, and read across": Case(positions(lambda h: h.mean(2).unsqueeze(-1), 1)),
    "unsqueezed unseen": Case(hidden(lambda h: h.unsqueeze(1).sum(1))),
    "unsqueezed unseen, from the end": Case(hidden(lambda h: h.unsqueeze(-2).sum(-2))),
    "squeezed anywhere": Case(positions(lambda h: h.mean(2, True).squeeze(), 6), shape=(5, 2, 3)),
    "squeezed samples": Case(
        positions(lambda h: h.mean(2, True).squeeze((0, 2)), 6), shape=(5, 2, 3)
    ),
    "squeezed units": Case(positions(lambda h: h.squeeze(1).flatten(1)), shape=(5, 2, 3)),
    "positions in a row": Case(positions(lambda h: h[..., None].flatten(2).mean(2), 6), GROUP_CONV),
    "positions as samples": Case(
        positions(lambda h: h.transpose(1, 2).flatten(0, 1), 6), GROUP_CONV
    ),
    "ndim read": Case(lambda: Written(lambda m, x: (m.b(h := F.relu(m.a(x))), h.ndim)), GROUP_A),
    "dtype read": Case(lambda: Written(lambda m, x: (m.b(h := F.relu(m.a(x))), h.dtype)), GROUP_A),
    "device read": Case(
        lambda: Written(lambda m, x: (m.b(h := F.relu(m.a(x))), h.device)), GROUP_A
    ),
    "dim asked": Case(hidden(lambda h: (h, h.dim())[0]), GROUP_A),
    "several values, seen": Case(hidden(lambda h: h.chunk(1, 1)[0]), shape=(5, 6)),
    "view that hides positions": Case(hidden(lambda h: h.view(5, 6)), shape=(5, 1, 6)),
    "transposed": Case(hidden(lambda h: h.T.T)),
    "nested forward": Case(lambda: nn.Sequential(nn.Linear(6, 6), Inner(), nn.Linear(6, 6))),
    "flatten all": Case(hidden(torch.flatten)),
    "flatten from the batch on": Case(positions(lambda h: h.flatten())),
    "flatten to a named end": Case(positions(lambda h: h.flatten(1, end_dim=2))),
    "flatten to a known end": Case(
        positions(lambda h: h.flatten(1, 2)), GROUP_CONV, shape=(5, 2, 3)
    ),
    "flatten to a known named end": Case(
        positions(lambda h: torch.flatten(h, 1, end_dim=2)), GROUP_CONV, shape=(5, 2, 3)
    ),
    "flatten by name": Case(
        positions(lambda h: torch.flatten(h, start_dim=1, end_dim=-1)), GROUP_CONV
    ),
    "flatten nothing": Case(positions(lambda h: h.flatten(1, 1), 3), shape=(5, 2, 3)),
    "flatten the batch": Case(positions(lambda h: h.flatten(0, 2), 18)),
    "indices": Case(positions(lambda h: F.max_pool1d(h, 1, return_indices=True)[0].flatten(1))),
    "no indices": Case(
        positions(lambda h: F.max_pool1d(h, 1, return_indices=False).flatten(1)), GROUP_CONV
    ),
    "positions in front": Case(hidden(lambda h: h.flatten(1)), shape=(5, 1, 6)),
    "one position in front": Case(hidden(lambda h: h.flatten(1)), GROUP_A, shape=(5, 6)),
    "unbatched": Case(positions(lambda h: h.flatten(1), 3), shape=(2, 3)),
    "view to a seen shape": Case(positions(lambda h: h.view(5, 18)), GROUP_CONV, shape=(5, 2, 3)),
    "view to an unseen shape": Case(positions(lambda h: h.view(5, 18))),
    "view that moves the batch": Case(positions(lambda h: h.view(3, 30), 30), shape=(5, 2, 3)),
    "view to three axes": Case(positions(lambda h: h.view(5, 3, 6), 6), shape=(5, 2, 3)),
    "view by three sizes": Case(positions(lambda h: h.view(h.size(0), -1, 3), 3)),
    "view by another axis": Case(positions(lambda h: h.view(h.size(1), -1))),
    "view by another axis named": Case(positions(lambda h: h.view(h.size(dim=2), -1))),
    "view by a shape's other axis": Case(positions(lambda h: h.view(h.shape[1], -1))),
    "view by another tensor's size": Case(
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x)).view(x.size(0), -1)))
    ),
    "view by another tensor's shape": Case(
        lambda: Written(lambda m, x: m.b(F.relu(m.a(x)).view(x.shape[0], -1)))
    ),
    "view by a fixed batch": Case(hidden(lambda h: h.view(5, -1))),
    "view from the size's tuple": Case(positions(lambda h: h.view(h.size()[0], -1)), GROUP_CONV),
    "view from a size's other entry": Case(positions(lambda h: h.view(h.size()[1], -1))),
    "view from a computed size": Case(positions(lambda h: h.view(h.size(0) * 1, -1))),
    "view with the batch last": Case(positions(lambda h: h.view(-1, h.size(0)))),
    "seen through BatchNorm": Case(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)),
        [(["0"], ["3"], 6)],
        rule="ignore",
    ),
    "hooked BatchNorm, ignored": Case(
        lambda: hooked(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)), 1
        ),
        rule="ignore",
    ),
    "BatchNorm across, ignored": Case(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(6, 6)),
        rule="ignore",
    ),
    "BatchNorm beside another reader": Case(
        lambda: Written(
            lambda m, x: (m.b(h := F.relu(m.a(x))), m.c(F.relu(m.bn(h)))), norm=nn.BatchNorm1d(6)
        ),
        [(["bn"], ["c"], 6)],
    ),
    "BatchNorm without affine": Case(
        lambda: nn.Sequential(
            nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 6)
        ),
    ),
    "BatchNorm of unknown shape": Case(
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6)),
    ),
    "BatchNorm without bias": Case(
        lambda: without_bias(
            nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6)), 1
        ),
        [(["1"], ["3"], 6)],
    ),
    "BatchNorm1d behind a convolution": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 1), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 2, 1)),
        [(["1"], ["3"], 6)],
    ),
    "BatchNorm1d along positions": Case(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(6, 6)),
        shape=(5, 4, 6),
    ),
    "LayerNorm along two axes": Case(
        lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm((3, 6)), nn.ReLU(), nn.Linear(6, 6)),
        shape=(5, 3, 6),
    ),
    "padded with a constant": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 1), nn.ConstantPad1d(1, 0.5), nn.Conv1d(6, 2, 1))
    ),
    "padded with zeros": Case(
        lambda: nn.Sequential(nn.Conv1d(2, 6, 1), nn.ConstantPad1d(1, 0.0), nn.Conv1d(6, 2, 1)),
        [(["0"], ["2"], 6)],
    ),
    "rounded": Case(hidden(lambda h: torch.div(h, 2, rounding_mode="floor"))),
    "divided, not rounded": Case(hidden(lambda h: torch.div(h, 2, rounding_mode=None)), GROUP_A),
    "multiplied from the right, in place": Case(
        lambda: Written(lambda m, x: m.b(x.mul_(F.relu(m.a(x)))))
    ),
    "multiplied from the left, one unit": Case(
        lambda: Written(lambda m, x: m.b(2 * F.relu(m.a(x))), 1), [(["a"], ["b"], 1)]
    ),
    "concatenated along an axis that is not known": Case(hidden(lambda h: torch.cat([h, h]))),
    "concatenated with a constant": Case(
        positions(lambda h: torch.cat([h, torch.ones(2, 2, 3, 3)], 2), 36)
    ),
    "stacked, axes unknown": Case(hidden(lambda h: torch.stack([h, h]).sum(0))),
    "stacked with a constant": Case(
        positions(lambda h: torch.stack([h, torch.ones(2, 2, 3, 3)], 2).sum(2))
    ),
    "concatenated blocks": Case(
        positions(lambda h: torch.cat([h.flatten(1), h.flatten(1)], 1), 36),
    ),
    "concatenated, axes unknown": Case(
        lambda: Written(lambda m, x: m.d(torch.cat([F.relu(m.a(x)) * x, m.c(x)], 1)))
    ),
    "concatenated, axes seen": Case(
        lambda: Written(lambda m, x: m.d(torch.cat([F.relu(m.a(x)) * x, m.c(x)], 1))),
        [(["a"], ["d"], 6), (["c"], ["d"], 6)],
        shape=(5, 6),
    ),
    "concatenated, no positions left": Case(
        lambda: Written(
            lambda m, x: m.d(
                torch.cat([m.a(h := torch.sigmoid(m.bn(x)).mean(2)), F.relu(m.c(h))], 1)
            ),
            norm=nn.Conv1d(6, 6, 1),
        ),
        [(["a"], ["d"], 6), (["c"], ["d"], 6)],
    ),
    "added to the input in part": Case(
        lambda: Written(
            lambda m, x: m.d(
                torch.cat([x, F.relu(m.a(x))], 1) + torch.cat([F.relu(m.b(x)), m.c(x)], 1)
            )
        ),
        shape=(5, 6),
    ),
}


REASONS = {
    "indexed": (
        "getitem in forward: indexes activations whose axes cannot be told: pass example_inputs"
    ),
    **dict.fromkeys(
        (
            "indexed, seen",
            "blocks picked",
            "one unit",
            "some units",
            "one sample",
            "indexed by True",
        ),
        "getitem in forward: indexes the activations",
    ),
    "indexed by a mask": "getitem in forward: combines several values",
    "where the largest are": "getitem in forward: reads where the extrema are",
    "where the smallest are": "getattr in forward: reads where the extrema are",
    "largest of all": "max in forward: reduces over hidden units",
    "largest unit": "max in forward: reduces over hidden units",
    "mean of an axis counted": "mean in forward: reduces over hidden units",
    "largest of another": "min in forward: adds a value that carries no scale",
    **dict.fromkeys(
        ("the other among two", "too few sizes"),
        "squeeze in 2.forward: squeezes an axis of unknown size: pass example_inputs",
    ),
    **dict.fromkeys(
        (
            "squeezed unseen",
            "squeezed behind two",
            "kept by a mean, and divided",
            "both at once, and units",
            "the other one as well",
            "samples behind a pooling",
            "units behind a mean",
        ),
        "squeeze in forward: squeezes an axis of unknown size: pass example_inputs",
    ),
    "one sample kept": "getattr in forward: reads attribute 'T' of the activations",
    "unsqueezed, and read across": (
        "fc (Linear): reads the activations along another axis than their units"
    ),
    **dict.fromkeys(
        ("unsqueezed unseen", "unsqueezed unseen, from the end"),
        "unsqueeze in forward: adds an axis to axes that cannot be told: pass example_inputs",
    ),
    **dict.fromkeys(
        ("squeezed anywhere", "squeezed samples", "squeezed units"),
        "squeeze in forward: squeezes axes that may be those of units or samples: name them, as by "
        "squeeze((2, 3)), or use flatten(1)",
    ),
    "transposed": "getattr in forward: reads attribute 'T' of the activations",
    "nested forward": "sigmoid in 1.forward: not known to be positively homogeneous",
    "flatten all": "flatten in forward: flattens other axes than all but the first",
    "flatten from the batch on": "flatten in forward: flattens other axes than all but the first",
    "flatten to a named end": (
        "flatten in forward: flattens up to an axis that may not be the last: pass example_inputs"
    ),
    "flatten nothing": "flatten in forward: flattens other axes than all but the first",
    "flatten the batch": "flatten in forward: flattens other axes than all but the first",
    "indices": "max_pool1d_with_indices in forward: returns indices beside the activations",
    "several values, seen": "chunk in forward: moves or splits values, which is not followed",
    "view that hides positions": "view in forward: flattens positions in front of the units",
    "positions in front": "flatten in forward: flattens positions in front of the units",
    "unbatched": "flatten in forward: flattens an unbatched input",
    "hooked BatchNorm, ignored": "1 (BatchNorm1d): forward hooks may change what passes",
    "BatchNorm across, ignored": "1 (BatchNorm1d): normalizes along another axis than the units",
    "BatchNorm beside another reader": "a: its activations are also normalized by bn",
    "BatchNorm without affine": (
        "1 (BatchNorm1d): BatchNorm without affine parameters cannot carry a scale"
    ),
    "BatchNorm of unknown shape": (
        "0 (BatchNorm1d): the shape of its input is not known: pass example_inputs"
    ),
    "BatchNorm1d along positions": (
        "3 (Linear): reads the activations along another axis than their units"
    ),
    "LayerNorm along two axes": "1 (LayerNorm): its weights lie along several axes",
    "padded with a constant": "1 (ConstantPad1d): pads with a constant",
    "rounded": "div in forward: rounds",
    "multiplied from the right, in place": (
        "mul_ in forward: divides by activations, or overwrites what is multiplied"
    ),
    "concatenated along an axis that is not known": (
        "cat in forward: concatenates along an axis that is not known: pass example_inputs"
    ),
    "shuffled": "1 (PixelShuffle): moves or splits values, which is not followed",
    "another view, unseen": "view_as in forward: combines several values",
    "concatenated with a constant": "cat in forward: concatenates a value that carries no scale",
    "stacked, axes unknown": (
        "stack in forward: adds an axis to axes that cannot be told: pass example_inputs"
    ),
    "stacked with a constant": "stack in forward: stacks a value that carries no scale",
    "concatenated blocks": "cat in forward: concatenates values whose units stand differently",
    "concatenated, axes unknown": (
        "cat in forward: the number of axes is not known: pass example_inputs"
    ),
    "concatenated, no positions left": "sigmoid in forward: not known to be positively homogeneous",
    "added to the input in part": "add in forward: adds a value that carries no scale",
    **{
        name: "view in forward: reshapes in a way not known to keep units apart"
        + ": pass example_inputs" * (case.shape is None and "three" not in name)
        for name, case in CASES.items()
        if name.startswith("view") and not case.groups and "hides" not in name
    },
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_in_full(name: str) -> None:
    """Groups, and every reason word by word; what the plan allows keeps the function."""
    case = CASES[name]
    inputs = None if case.shape is None else torch.zeros(case.shape)
    plan = enorm.trace(case.make(), inputs).under(case.rule)
    assert groups(plan) == case.groups
    found = [f"{skip.where}: {skip.reason}" for skip in plan.skipped]
    assert found == ([REASONS[name]] if name in REASONS else [])


def test_layers_in_full() -> None:
    """What the energy counts: kinds, parameter names, depths."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        nn.Linear(8, 2),
    )
    assert enorm.trace(model).layers == (
        enorm.Layer("0", "Conv2d", "0.weight", None, 1, 1),
        enorm.Layer("1", "BatchNorm2d", "1.weight", "1.bias", 1, 0),
        enorm.Layer("4", "Linear", "4.weight", "4.bias", 2, 8),
    )


def test_batchnorm_without_a_bias_names_none() -> None:
    plan = enorm.trace(CASES["BatchNorm without bias"].make())
    assert [producer.bias for group in plan.groups for producer in group.producers] == [None]
    assert [layer.bias for layer in plan.layers] == ["0.bias", None, "3.bias"]


def test_what_a_plan_prints() -> None:
    """Every column, and blocks where there are any."""

    def code(model: Written, x: Tensor) -> object:
        h = F.relu(model.a(x))
        return model.b(h), model.c(torch.sigmoid(model.c(x)))

    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2))
    assert str(enorm.trace(model)) == (
        "Plan: 1 group(s), 2 weight(s), depth q = 2, batchnorm='affine'\n\n"
        "group  multiplied by d  divided by d     size\n"
        "-----  ---------------  ---------------  ----\n"
        "0      0                3 (blocks of 2)  3"
    )
    assert str(enorm.trace(Written(code))) == (
        "Plan: 1 group(s), 3 weight(s), depth q = 2, batchnorm='affine'\n\n"
        "group  multiplied by d  divided by d  size\n"
        "-----  ---------------  ------------  ----\n"
        "0      a                b             6\n\n"
        "skipped     reason\n"
        "----------  --------------\n"
        "c (Linear)  called 2 times"
    )
    readers = Written(lambda m, x: m.b(h := F.relu(m.a(x))) + m.c(h))
    assert "0      a                b, c          6" in str(enorm.trace(readers))
