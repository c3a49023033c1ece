"""``python -m asv_benchmarks.table``: what a cycle costs, as ratios from one process.

Every time is a multiple of the floor, one pass that reads the weights and one that reads and writes
them. ``--authors`` and ``--notebook`` measure the other two implementations from checkouts.
``--out`` writes the page ``cost.md``, or ``cost-cuda.md`` for a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from asv_benchmarks import steps
from asv_benchmarks.suite.common import (
    Call,
    cycle,
    excess,
    in_turn,
    memory_pass,
    training_step,
)
from asv_benchmarks.suite.networks import NETS, build
from asv_benchmarks.suite.training import batch_of
from repro.options import file, folder, within

if TYPE_CHECKING:
    from properties.implementation import Implementation

C = 1.2

PAGE = """\
# What a cycle costs

Made by `python -m asv_benchmarks.table {options} --out docs` on
{where}, torch {torch}, {threads} threads: medians of {rounds} rounds in which all parts take turns,
so that each finds the caches as the others left them, as in training; the smallest and the largest
of {passes} passes over all networks, minutes apart. Only ratios mean something on another machine.

`fc-DEPTH` are the report's networks (3072–500, depth × 500–500, 500–10; 3.8 million weights at
depth 9, 6.3 million at 19), `vgg` is a VGG-11 with biases for 32 × 32 images, `resnet18`
torchvision's.

* **floor**: one pass that reads the weights and one that reads and writes them; the columns from
  *ours* to *BN adds* are multiples of it;
* **ours**: one cycle, `ENorm(model, c=1.2).step()`; **compiled**: the same with `compile=True`;
* **authors'**, **notebook's**: `facebookresearch/enorm` and `jeromepl/enorm-reproducibility`, which
  take the fully connected networks only; the authors' leaves the last pair of layers out,
  one of two groups at depth 1;
* **BN adds**: a training step with BatchNorm less one without, round by round, batch 256
  (convolutional 16).

{table}

{how} `compile=True` makes one graph of it and writes each weight once.
`ENorm(..., every=k)` divides the cost by k. How many cycles the minimum takes, and how few with
over-relaxation or Newton steps: [convergence.md](convergence.md).

## The training step of the experiment

A step of `python -m repro.figure2` (forward, backward, SGD, cycle; batch 256, float32) as a
multiple of the matrix products in it alone:

{steps}

`asv run` records the same costs over the history, per commit and machine.
"""

PAGES = {"cpu": "cost.md", "cuda": "cost-cuda.md"}
HOW = {
    "cpu": """\
A cycle works on the weights themselves: it reads a weight for its column sums, divides its columns,
reads its row sums and multiplies its rows while it is in the caches, and looks at the sums of each
group before it writes.""",
    "cuda": """\
A cycle sums powers of the weights in float64, finds the scales of all groups from these sums alone,
and then writes each weight; nothing in it waits for the device.""",
}


def measure(
    net: str, device: str, peers: Mapping[str, Implementation], rounds: int
) -> dict[str, float]:
    """Seconds of each part, all in turn; ``added`` are those that BatchNorm adds to a step."""
    batch = batch_of(net)
    calls: dict[str, Call] = {
        "floor": memory_pass(build(net, device)),
        "cycle": cycle(net, device),
        "compiled": cycle(net, device, compile=True),
        "plain": training_step(net, device, "none", batch),
        "enorm": training_step(net, device, "enorm", batch),
    }
    # ResNet-18 always has BatchNorm, so there is no step without it to compare with.
    if net != "resnet18":
        calls["bn"] = training_step(net, device, "bn", batch)
    for name, peer in peers.items():
        model = build(net, device)
        # Both take fully connected chains; the authors' other kind is convolutions alone.
        if net.startswith("fc") and isinstance(model, nn.Sequential):
            calls[name] = peer.stepper(
                model, None, p=2.0, c=C, order=peer.capabilities.orders[0], batchnorm="ignore"
            )
    seconds = in_turn(calls, device, rounds, warm_up=5)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    if "bn" in seconds:
        times["added"] = excess(seconds, "bn", "plain")
    return times


def rows(times: Mapping[str, float]) -> dict[str, float]:
    """Numbers of the table, by heading; NaN where there is none."""
    none = float("nan")
    floor, added = times["floor"], times.get("added", none)

    def over(name: str, unit: float) -> float:
        return times.get(name, none) / unit if unit > 0 else none

    def quotient(one: str, other: str) -> float:
        return over(one, times.get(other, none))

    return {
        "floor (ms)": 1e3 * floor,
        "ours": over("cycle", floor),
        "compiled": over("compiled", floor),
        "authors'": over("authors", floor),
        "notebook's": over("notebook", floor),
        "BN adds": added / floor,
        "authors' ÷ ours": quotient("authors", "cycle"),
        "notebook's ÷ ours": quotient("notebook", "cycle"),
        "ours ÷ BN adds": over("cycle", added),
        "step ENorm ÷ BN": quotient("enorm", "bn"),
    }


def cell(values: Sequence[float]) -> str:
    """The smallest and the largest of all passes."""
    if any(math.isnan(value) for value in values):
        return "–"
    ends = [f"{end:.1f}" if end >= 10 else f"{end:.2f}" for end in (min(values), max(values))]
    return " … ".join(dict.fromkeys(ends))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.table", description=__doc__)
    usual = ["fc-1", "fc-9", "fc-19", "vgg", "resnet18"]
    parser.add_argument("--nets", nargs="+", default=usual, metavar="NET")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    number = within(1)
    parser.add_argument(
        "--rounds", type=number, default=60, help="medians over so many (default: 60)"
    )
    parser.add_argument("--passes", type=number, default=1, help="over all networks (default: 1)")
    parser.add_argument(
        "--authors", type=Path, metavar="CHECKOUT", help="of facebookresearch/enorm"
    )
    parser.add_argument(
        "--notebook", type=Path, metavar="CHECKOUT", help="of jeromepl/enorm-reproducibility"
    )
    parser.add_argument("--out", type=folder, metavar="DIR", help="write the page there")
    parser.add_argument("--json", type=file, metavar="FILE", help="write BatchNorm's share there")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here")
    peers: dict[str, Implementation] = {}
    if unknown := set(options.nets) - set(NETS):
        parser.error(f"--nets: {min(unknown)!r} is none of {', '.join(NETS)}")
    if options.json is not None and not any(net.startswith("fc") for net in options.nets):
        parser.error("--json needs a fully connected network in --nets")
    try:
        # Adapters belong to the property suite, which needs more than a benchmark does.
        if options.authors is not None:
            peers["authors"] = import_module("properties.adapters.authors").load(options.authors)
        if options.notebook is not None:
            peers["notebook"] = import_module("properties.adapters.notebook").load(options.notebook)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    where = torch.cuda.get_device_name() if options.device == "cuda" else _processor()
    found: dict[str, list[dict[str, float]]] = {net: [] for net in options.nets}
    shares: dict[int, list[float]] = {}
    for net in tqdm(options.nets * options.passes, unit="net"):
        times = measure(net, options.device, peers, options.rounds)
        found[net].append(rows(times))
        if net.startswith("fc"):
            # The report's claim: which part of a training step with BatchNorm is BatchNorm's.
            depth = int(net.removeprefix("fc-"))
            shares.setdefault(depth, []).append(100 * times["added"] / times["bn"])
    heads = ["net", *next(iter(found.values()))[0]]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for net, passes in found.items():
        cells = [cell([one[head] for one in passes]) for head in heads[1:]]
        lines.append(f"| {' | '.join([net, *cells])} |")
    page = PAGE.format(
        options=" ".join(
            ([] if options.nets == usual else [f"--nets {' '.join(options.nets)}"])
            + [f"--passes {options.passes}", f"--rounds {options.rounds}"]
            + [f"--device {options.device}"]
            + [f"--{name} CHECKOUT" for name in peers]
        ),
        where=where,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        rounds=options.rounds,
        passes=options.passes,
        table="\n".join(lines),
        how=HOW[options.device],
        steps=steps.table([1, 9, 19], options.device, options.rounds),
    )
    print(page)
    if options.out is not None:
        (options.out / PAGES[options.device]).write_text(page)
    if options.json is not None:
        percent = {depth: statistics.median(values) for depth, values in shares.items()}
        content = {"torch": torch.__version__, "where": where, "bn_percent_of_step": percent}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _processor() -> str:
    """Its name, where the system tells."""
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if (info.exists())
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.machine()


if __name__ == "__main__":
    main()
