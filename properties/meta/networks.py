"""``python -m properties.meta.networks``: every torchvision classification model, rescaled.

Each is built with random weights and uneven BatchNorm parameters and statistics, rescaled to the
minimum of its energy (c = 1, p = 2), and run before and after on the same images in float32. Writes
``docs/networks.md``; a model that fails ends the table with exit status 1.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torchvision import models
from tqdm import tqdm

import enorm

ROOT = Path(__file__).parents[2]
# What their own code asks for.
_OPTIONS = {name: {"init_weights": True} for name in ("googlenet", "inception_v3")}
# Positions are embedded, or windows have a size.
_FIXED = ("vit", "swin", "maxvit")

PAGE = """\
# torchvision's classification models, rescaled

Made by `python -m properties.meta.networks` with torch {torch}, torchvision {torchvision}: random
weights in float32, BatchNorm parameters and statistics uneven, seed 0; `balance_(model)` to the
minimum for p = 2 and c = 1 (at most {cycles} cycles).

* **weights**: share of all parameters that some scale touches;
* **energy**: after ÷ before, of all weights that count;
* **error**: largest change of an output in units of the float32 rounding unit 2⁻²⁴ times the
  largest output. The last column gives the same for 2⁻²⁴ of noise on every weight of the model as
  it was: what its own rounding is worth.
* **walls**: places where groups end, by reason.

{count} models: {whole} without a wall, {none} without any group, largest error {worst:.0f} units
({worst_name}).

| model | groups | weights | cycles | energy | error | walls | noise |
|---|---|---|---|---|---|---|---|
{rows}
"""


@dataclass(frozen=True)
class Row:
    """One model's line."""

    name: str
    groups: int
    share: float
    cycles: int
    energy: float
    error: float
    noise: float
    walls: Counter[str]

    def __str__(self) -> str:
        walls = "; ".join(f"{reason} ({count})" for reason, count in self.walls.most_common())
        cells = [self.name, str(self.groups), f"{self.share:.1%}"]
        if self.groups:
            cells += [str(self.cycles), f"{self.energy:.3f}", f"{self.error:.1f}"]
        else:
            cells += ["", "", ""]
        return f"| {' | '.join([*cells, walls, f'{self.noise:.1f}'])} |"


def build(name: str) -> nn.Module:
    """Random weights, seed 0, in eval mode; no two channels alike."""
    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None, **_OPTIONS.get(name, {})).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear) and not module.weight.any():
                # Some heads begin with zeros: outputs of zero would show no error.
                nn.init.normal_(module.weight, std=0.02)
    return model


@torch.no_grad()
def measure(name: str, cycles: int) -> Row:
    """Rescale one model and compare."""
    model = build(name)
    size = 224 if name.startswith(_FIXED) else 96
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    plan = enorm.trace(model)
    before = model(images)

    def units(after: torch.Tensor) -> float:
        return 2.0**24 * float((after - before).abs().max() / before.abs().max())

    parameters = dict(model.named_parameters())
    touched = sum(parameters[one].numel() for one in plan.parameter_names())
    error = ratio = 0.0
    used = 0
    if plan.groups:
        result = enorm.balance_(model, plan, max_cycles=cycles)
        error, used = units(model(images)), result.cycles
        ratio = result.energy_after / result.energy_before
        result.undo_()
        del result
    generator = torch.Generator().manual_seed(2)
    for parameter in parameters.values():
        parameter.mul_(1 + 2.0**-24 * torch.randn(parameter.shape, generator=generator))
    return Row(
        name,
        len(plan.groups),
        touched / sum(one.numel() for one in parameters.values()),
        used,
        ratio,
        error,
        units(model(images)),
        Counter(skip.reason for skip in plan.skipped),
    )


def main() -> int:
    """Write the page."""
    names = models.list_models(module=torchvision.models)
    parser = argparse.ArgumentParser(prog="python -m properties.meta.networks")
    parser.add_argument("--models", nargs="+", default=names, choices=names, metavar="MODEL")
    parser.add_argument("--cycles", type=int, default=100, help="at most (default: 100)")
    options = parser.parse_args()
    rows = []
    for name in tqdm(options.models, unit="model"):
        rows.append(measure(name, options.cycles))
        tqdm.write(str(rows[-1]))
    worst = max(rows, key=lambda row: row.error)
    text = PAGE.format(
        torch=torch.__version__,
        torchvision=torchvision.__version__,
        cycles=options.cycles,
        count=len(rows),
        whole=sum(not row.walls for row in rows),
        none=sum(not row.groups for row in rows),
        worst=worst.error,
        worst_name=worst.name,
        rows="\n".join(map(str, rows)),
    )
    if options.models == names:
        (ROOT / "docs" / "networks.md").write_text(text)
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
