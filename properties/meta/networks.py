"""``python -m properties.meta.networks``: other people's classification models, rescaled.

All of torchvision's, or with ``--library timm`` the smallest of each of timm's families. Each is
built with random weights and uneven BatchNorm parameters and statistics, rescaled to the minimum of
its energy (c = 1, p = 2), and run before and after on the same images in float32. Writes
``docs/networks.md`` or ``docs/networks-timm.md``; a model that fails ends the table with exit
status 1.
"""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
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
# {title}, rescaled

Made by `{command}` with torch {torch}, {library} {version}:
random weights in float32, BatchNorm parameters and statistics uneven, seed 0; `balance_` to the
minimum for p = 2 and c = 1 (at most {cycles} cycles). {plan}

* **weights**: share of all parameters that some scale touches;
* **energy**: after ÷ before, of all weights that count;
* **error**: largest change of an output in units of the float32 rounding unit 2⁻²⁴ times the
  largest output. The last column gives the same for 2⁻²⁴ of noise on every weight of the model as
  it was: what its own rounding is worth.
* **walls**: places where groups end, by reason.

{count} models: {whole} without a wall, {none} without any group, largest error {worst:.0f} units
({worst_name}), at most {ratio:.1f} times the noise ({ratio_name}).

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
        noise = f"{self.noise:.1f}" if math.isfinite(self.noise) else ""
        return f"| {' | '.join([*cells, walls, noise])} |"


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    size = 224 if name.startswith(_FIXED) else 96
    return models.get_model(name, weights=None, **_OPTIONS.get(name, {})), (3, size, size)


def _timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    timm = importlib.import_module("timm")
    model: Any = timm.create_model(name)
    return model, model.default_cfg["input_size"]


def _smallest_of_families() -> list[str]:
    """By number of parameters, of all whose code builds without values."""
    timm = importlib.import_module("timm")

    def count(name: str) -> float:
        try:
            with torch.device("meta"):
                model: nn.Module = timm.create_model(name)
                return sum(one.numel() for one in model.parameters())
        except (RuntimeError, NotImplementedError):
            return math.inf

    families = [timm.list_models(module=module) for module in timm.list_modules()]
    return [min(names, key=count) for names in tqdm(families, unit="family") if names]


@dataclass(frozen=True)
class Library:
    """Where models come from.

    Attributes:
        title: of its page.
        page: its name.
        names: of all that are measured.
        make: a model and the size of one image.
        shown: whether ``trace`` is given an example.
    """

    title: str
    page: str
    names: Callable[[], list[str]]
    make: Callable[[str], tuple[nn.Module, tuple[int, ...]]]
    shown: bool


LIBRARIES = {
    "torchvision": Library(
        "torchvision's classification models",
        "networks.md",
        lambda: models.list_models(module=models),
        _torchvision,
        shown=False,
    ),
    "timm": Library(
        "The smallest model of each family of timm",
        "networks-timm.md",
        _smallest_of_families,
        _timm,
        shown=True,
    ),
}


def build(library: Library, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """Random weights, seed 0, in eval mode; no two channels alike."""
    torch.manual_seed(0)
    model, size = library.make(name)
    model.eval()
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
    return model, size


@torch.no_grad()
def measure(library: Library, name: str, cycles: int) -> Row:
    """Rescale one model and compare."""
    model, size = build(library, name)
    images = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    try:
        plan = enorm.trace(model, images if library.shown else None)
    except enorm.UnsupportedModel as refusal:
        # Without the place, which is one of this machine.
        why = re.sub(r" at \S+:\d+:", ":", str(refusal)).partition(". ")[0]
        return Row(name, 0, 0.0, 0, 0.0, 0.0, math.inf, Counter({f"refused: {why}": 1}))
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
    parser = argparse.ArgumentParser(prog="python -m properties.meta.networks")
    parser.add_argument("--library", choices=LIBRARIES, default="torchvision")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="these only, and no page")
    parser.add_argument("--cycles", type=int, default=100, help="at most (default: 100)")
    options = parser.parse_args()
    library = LIBRARIES[options.library]
    rows = []
    for name in tqdm(options.models or library.names(), unit="model"):
        rows.append(measure(library, name, options.cycles))
        tqdm.write(str(rows[-1]))
    worst = max(rows, key=lambda row: row.error)
    loudest = max(rows, key=lambda row: row.error / row.noise)
    text = PAGE.format(
        title=library.title,
        command="python -m properties.meta.networks"
        + ("" if options.library == "torchvision" else f" --library {options.library}"),
        plan="Plans are traced with an example image." if library.shown else "",
        torch=torch.__version__,
        library=options.library,
        version=version(options.library),
        cycles=options.cycles,
        count=len(rows),
        whole=sum(not row.walls for row in rows),
        none=sum(not row.groups for row in rows),
        worst=worst.error,
        worst_name=worst.name,
        ratio=loudest.error / loudest.noise,
        ratio_name=loudest.name,
        rows="\n".join(map(str, rows)),
    )
    if options.models:
        sys.stdout.write(text)
    else:
        (ROOT / "docs" / library.page).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
