"""``python -m asv_benchmarks.table``: what a cycle costs, as ratios from one process.

Every time is a multiple of the floor, one pass that reads the weights and one that reads and writes
them. ``--authors`` and ``--notebook`` measure the other two implementations from checkouts.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

import enorm
from asv_benchmarks import steps
from asv_benchmarks.suite.common import (
    Call,
    cycle,
    interleaved,
    memory_pass,
    training_step,
)
from asv_benchmarks.suite.networks import build
from asv_benchmarks.suite.training import batch_of
from properties.adapters import authors, notebook
from properties.implementation import Implementation

C = 1.2


def measure(
    net: str, device: str, peers: Mapping[str, Implementation], rounds: int
) -> dict[str, float]:
    """Seconds of each part, all in turn."""
    batch = batch_of(net)
    calls: dict[str, Call] = {
        "floor": memory_pass(build(net, device)),
        "cycle": cycle(net, device),
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
    return interleaved(calls, device, rounds)


def rows(times: Mapping[str, float]) -> dict[str, str]:
    """Cells of the table, by heading."""
    floor, added = times["floor"], times.get("bn", float("nan")) - times["plain"]

    def over(name: str, unit: float) -> str:
        return f"{times[name] / unit:.2f}" if name in times and unit > 0 else "–"

    return {
        "floor (ms)": f"{1e3 * floor:.2f}",
        "ours": over("cycle", floor),
        "authors'": over("authors", floor),
        "notebook's": over("notebook", floor),
        "BN adds": f"{added / floor:.2f}" if added > 0 else "–",
        "ours ÷ authors'": over("cycle", times.get("authors", 0)),
        "ours ÷ notebook's": over("cycle", times.get("notebook", 0)),
        "ours ÷ BN adds": over("cycle", added),
        "step ENorm ÷ BN": over("enorm", times.get("bn", 0)),
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.table", description=__doc__)
    default = ["fc-1", "fc-9", "fc-19", "vgg", "resnet18"]
    parser.add_argument("--nets", nargs="+", default=default)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=60, help="medians over so many (default: 60)")
    parser.add_argument(
        "--authors", type=Path, metavar="CHECKOUT", help="of facebookresearch/enorm"
    )
    parser.add_argument(
        "--notebook", type=Path, metavar="CHECKOUT", help="of jeromepl/enorm-reproducibility"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write BatchNorm's share there")
    options = parser.parse_args()
    peers: dict[str, Implementation] = {}
    if options.authors is not None:
        peers["authors"] = authors.load(options.authors)
    if options.notebook is not None:
        peers["notebook"] = notebook.load(options.notebook)
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(
        f"enorm {enorm.__version__}, torch {torch.__version__}, {where}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds} interleaved rounds\n"
    )
    shares: dict[int, float] = {}
    for place, net in enumerate(options.nets):
        times = measure(net, options.device, peers, options.rounds)
        cells = {"net": net, **rows(times)}
        if place == 0:
            print(f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}")
        print(f"| {' | '.join(cells.values())} |", flush=True)
        if net.startswith("fc"):
            # The report's claim: which part of a training step with BatchNorm is BatchNorm's.
            depth = int(net.removeprefix("fc-"))
            shares[depth] = 100 * (1 - times["plain"] / times["bn"])
    print(f"\n{steps.table([1, 9, 19], options.device, options.rounds)}")
    if options.json is not None:
        content = {"torch": torch.__version__, "where": where, "bn_percent_of_step": shares}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
