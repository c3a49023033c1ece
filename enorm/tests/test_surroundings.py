"""A step under other defaults and modes, and beside values that its sums do not see."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import enorm
from enorm.tests.compiler import needs_compiler

WAYS: list[dict[str, Any]] = [{}, {"order": "jacobi"}, {"cycles": 2}]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


class Residual(nn.Module):
    """A stream with a layer that reads and writes it; ``inner`` may be depthwise."""

    def __init__(self, inner: nn.Conv1d) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv1d(3, 4, 1), inner, nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """To ``(N, 2, length)``."""
        x = self.first(x)
        found: Tensor = self.last(x + torch.relu(self.inner(x)))
        return found


@pytest.mark.parametrize("way", WAYS)
def test_first_step_under_another_default_device(way: dict[str, Any]) -> None:
    model = mlp()
    twin = copy.deepcopy(model)
    stepper = enorm.ENorm(model, **way)
    with torch.device("meta"):
        stepper.step()
    stepper.step()
    other = enorm.ENorm(twin, **way)
    other.step()
    other.step()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
def test_steps_in_and_out_of_inference_mode(way: dict[str, Any], dtype: torch.dtype) -> None:
    """What the first step keeps in memory serves the next one, whatever its mode."""
    model = mlp().to(dtype)
    twin = copy.deepcopy(model)
    stepper, other = enorm.ENorm(model, **way), enorm.ENorm(twin, **way)
    with torch.inference_mode():
        stepper.step()
    stepper.step()
    other.step()
    other.step()
    for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, expected)


@pytest.mark.parametrize("made", ["state", "copy"])
def test_what_cannot_be_written_is_found_first(made: str) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with torch.inference_mode():
        copies = [copy.deepcopy(model)] if made == "copy" else []
    stepper = enorm.ENorm(model, optimizer, copies=copies)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.inference_mode(made == "state"):
        optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError,
        match=r"'0.weight' was made in inference mode .* out of torch\.inference_mode\(\)$",
    ):
        stepper.step()
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


@pytest.mark.parametrize("way", [*WAYS, pytest.param({"compile": True}, marks=needs_compiler)])
@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (torch.optim.Adam, "exp_avg_sq", 1e33),
        (lambda given, lr: torch.optim.SGD(given, lr, momentum=0.9), "momentum_buffer", 1e36),
    ],
)
def test_large_state_stays_finite(way: dict[str, Any], kind: Any, key: str, value: float) -> None:
    """One factor alone would take it out of float32's range, both together do not."""
    model = mlp()
    weight = model.get_parameter("2.weight")
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(2.0**14)
        model.get_parameter("4.weight").mul_(2.0**-14)
    optimizer = kind(model.parameters(), lr=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state[weight][key]
    state.fill_(value)
    stepper = enorm.ENorm(model, optimizer, **way)
    before = weight.detach().double()
    stepper.step()
    # It goes with the power of what the weight itself was multiplied by, rounded a few times.
    power = -2 if key == "exp_avg_sq" else -1
    expected = value * (weight.detach().double() / before) ** power
    assert expected.max() < torch.finfo(torch.float32).max
    assert ((state.double() - expected).abs() <= 16 * 2.0**-24 * expected).all()


@pytest.mark.parametrize("way", [{}, {"order": "jacobi"}])
@pytest.mark.parametrize("groups", [1, 4])
def test_an_entry_with_one_scale_on_both_sides_stays(way: dict[str, Any], groups: int) -> None:
    """No sum shows how large it is, so that multiplying before dividing could overflow."""
    torch.manual_seed(0)
    model = Residual(nn.Conv1d(4, 4, 1, groups=groups))
    with torch.no_grad():
        model.inner.weight[0, 0] = -3e37
        model.first.weight[0] *= 1e-4
        model.last.weight[:, 0] *= 1e6
    enorm.ENorm(model, **way).step()
    assert abs(model.inner.weight[0, 0].item() / -3e37 - 1) <= 4 * 2.0**-24


@needs_compiler
@pytest.mark.parametrize("cycles", [1, 2])
def test_another_memory_format_is_compiled_anew(cycles: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    stepper = enorm.ENorm(model, optimizer, cycles=cycles, compile=True)
    stepper.step()
    model.to(memory_format=torch.channels_last)
    stepper.step()
    assert enorm.residual(model) < 1e-6
