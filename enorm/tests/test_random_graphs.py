"""Networks that nobody wrote: whatever the plan is, the function is kept and the energy falls.

A network is a list of instructions on earlier values; Hypothesis draws and shrinks it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, nn

import enorm


def _with_zeros(x: Tensor) -> Tensor:
    x[:, :, 0] = 0.0
    return x


# Operations of one value that keep its shape.
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky": lambda x: F.leaky_relu(x, -0.3),
    "in place": lambda x: F.relu(x.clone(), inplace=True),
    "negative": lambda x: -x,
    "third": lambda x: x / 3,
    "sigmoid": torch.sigmoid,
    "shift": lambda x: x + 0.5,
    "pool": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "clamp": lambda x: x.clamp(min=0),
    "clamp above": lambda x: x.clamp(max=1),
    "from zero": lambda x: (0 + x) * x.size(1),
    "sized": lambda x: F.interpolate(F.pad(x, [x.size(2) % 3, 1, 0, 0]), x.size()[2:]),
    "resize": lambda x: F.interpolate(x, size=(4, 4)),
    "moved": lambda x: F.pad(x[:, :, 1:], (0, 0, 1, 0)),
    "last of each row": lambda x: F.interpolate(x[..., -1:], size=(4, 4)),
    "largest of each row": lambda x: F.interpolate(x.max(3, True)[0], size=(4, 4)),
    "smallest of each row": lambda x: x.min(3).values[..., None] + x,
    "in a row": lambda x: F.interpolate(x.flatten(2)[:, :, None], size=(4, 4)),
    "one position": lambda x: (
        x + F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(-1)[..., None, None]
    ),
    "one row": lambda x: F.adaptive_avg_pool2d(x, (1, 4)).squeeze(2)[:, :, None] + x,
    "squeezed": lambda x: F.interpolate(x[..., :1].squeeze(-1)[..., None], size=(4, 4)),
    "first unit": lambda x: x[:, :1] + x,
    "of each other sample": lambda x: x[torch.tensor([1, 0])],
    "there and back": lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
    "weighted": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "shuffle": lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2),
    "first half twice": lambda x: torch.cat([x.chunk(2, 1)[0]] * 2, 1),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "softmax": lambda x: F.softmax(x, 1),
    "written into": lambda x: _with_zeros(x.clone()),
}
# The same, of code that asks for sizes, which only example inputs tell.
SIZED: dict[str, Callable[[Tensor], Tensor]] = {
    "even or odd": lambda x: F.relu(x) if x.size(2) % 2 == 0 else torch.sigmoid(x),
    "row by row": lambda x: torch.cat([F.relu(x[:, :, i : i + 1]) for i in range(x.size(2))], 2),
    "by its root": lambda x: x * int(x.flatten(1).shape[1] ** 0.5),
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "subtract": lambda x, y: x - y,
    "larger": torch.maximum,
    "smaller": torch.min,
    "multiply": torch.mul,
    "add in place": lambda x, y: x.clone().add_(y),
}


class Block(nn.Module):
    """A residual block: an identity, or a projection where the width changes, and a branch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        self.a = nn.Conv2d(inputs, 3, 3, padding=1)
        self.b = nn.Conv2d(3, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        return F.relu(self.skip(x) + self.b(F.relu(self.a(x))))


class Coupled(nn.Module):
    """A layer that adds to what it reads."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        del outputs
        self.a = nn.Conv2d(inputs, inputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        return x + F.relu(self.a(x))


LAYERS: dict[str, Callable[[int, int], nn.Module]] = {
    "conv": lambda i, o: nn.Conv2d(i, o, 3, padding=1),
    "bare": lambda i, o: nn.Conv2d(i, o, 1, bias=False),
    "grouped": lambda i, o: nn.Conv2d(i, o, 3, padding=1, groups=2),
    "depthwise": lambda i, o: nn.Conv2d(i, i, 3, padding=1, groups=i),
    "transposed": lambda i, o: nn.ConvTranspose2d(i, o, 3, padding=1),
    "transposed in groups": lambda i, o: nn.ConvTranspose2d(i, o, 1, groups=2),
    "batch norm": lambda i, o: nn.BatchNorm2d(i),
    "group norm": lambda i, o: nn.GroupNorm(2, i),
    "block": Block,
    "coupled": Coupled,
}


@dataclass(frozen=True)
class Instruction:
    """``kind`` of one of the tables above, or "cat"; operands count back from the newest value."""

    kind: str
    first: int
    second: int
    width: int


class Program(nn.Module):
    """Runs the instructions; a sum of values of other widths takes the first one alone."""

    def __init__(self, instructions: list[Instruction], seen: list[int]) -> None:
        super().__init__()
        self.instructions, self.seen = instructions, seen
        widths = [4]
        for number, one in enumerate(instructions):
            width = widths[self.place(len(widths), one.first)]
            other = widths[self.place(len(widths), one.second)]
            if one.kind in LAYERS:
                layer = LAYERS[one.kind](width, one.width)
                self.add_module(f"layer{number}", layer)
                kept = one.kind in ("depthwise", "batch norm", "group norm", "coupled")
                width = width if kept else one.width
            elif one.kind == "cat":
                width += other
            widths.append(width)
        self.widths = widths
        last = sum(widths[self.place(len(widths), one)] for one in seen)
        self.head = nn.Linear(last * 16, 3)

    @staticmethod
    def place(count: int, back: int) -> int:
        """Which of ``count`` values is meant."""
        return count - 1 - back % count

    def forward(self, x: Tensor) -> Tensor:
        """As described."""
        values = [x]
        for number, one in enumerate(self.instructions):
            first = values[self.place(len(values), one.first)]
            place = self.place(len(values), one.second)
            if one.kind in LAYERS:
                value = getattr(self, f"layer{number}")(first)
            elif one.kind in UNARY or one.kind in SIZED:
                value = (UNARY | SIZED)[one.kind](first)
            elif one.kind == "cat":
                value = torch.cat([first, values[place]], 1)
            elif self.widths[self.place(len(values), one.first)] == self.widths[place]:
                value = BINARY[one.kind](first, values[place])
            else:
                value = first
            values.append(value)
        chosen = [values[self.place(len(values), one)] for one in self.seen]
        result: Tensor = self.head(torch.cat(chosen, 1).flatten(1))
        return result


BACK = st.integers(0, 3)
# Mostly what residual networks are made of: every other operation is a wall.
KINDS = [
    *["conv", "block", "coupled"] * 5,
    *LAYERS,
    *["relu", "add"] * 8,
    *UNARY,
    *SIZED,
    *BINARY,
    *["cat"] * 3,
]
INSTRUCTIONS = st.builds(
    Instruction, st.sampled_from(KINDS), BACK, BACK, st.sampled_from([4, 4, 4, 2, 6])
)


@given(
    instructions=st.lists(INSTRUCTIONS, min_size=1, max_size=12),
    seen=st.lists(BACK, min_size=1, max_size=2),
    shown=st.booleans(),
    rule=st.sampled_from([2.0, 1.0]),
)
def test_whatever_the_plan_the_function_is_kept(
    instructions: list[Instruction], seen: list[int], shown: bool, rule: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    model = Program(instructions, seen).double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                uneven = 10 ** (2 * torch.rand(len(tensor), generator=generator).double() - 1)
                drawn = 0.5 + torch.rand(tensor.shape, generator=generator).double()
                signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
                positive = any(tensor is buffer for buffer in model.buffers())
                drawn = drawn if positive else drawn * signs
                tensor.copy_(drawn * uneven.view(-1, *[1] * (tensor.dim() - 1)))
    inputs = torch.randn(2, 4, 4, 4, generator=generator, dtype=torch.float64)
    shown = shown or any(one.kind in SIZED for one in instructions)
    plan = enorm.trace(model, inputs if shown else None)
    producers = max((len(group.producers) for group in plan.groups), default=0)
    sliced = any(one.start for group in plan.groups for one in group.consumers)
    event(f"{min(len(plan.groups), 3)} groups, {producers} producers" + ", slices" * sliced)
    if not plan.groups:
        return
    before = copy.deepcopy(model)
    expected = before(inputs)
    energies = [enorm.energy(plan, p=rule)]
    stepper = enorm.ENorm(model, plan=plan, p=rule)
    for _ in range(3):
        stepper.step()
        energies.append(enorm.energy(plan, p=rule))
    result = enorm.balance_(model, plan, p=rule, max_cycles=200)
    energies.append(result.energy_after)
    for new, old in zip(energies[1:], energies[:-1], strict=True):
        assert new <= old * (1 + 1e-12)
    scale = expected.abs().amax().item()
    torch.testing.assert_close(model(inputs), expected, rtol=1e-9, atol=1e-9 * scale)
