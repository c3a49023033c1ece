"""``python -m asv_benchmarks.table``: a cycle's cost as ratios, everything measured in one process.

``dense`` is a cycle that multiplies by dense diagonal matrices, as the report's notebook does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import enorm
from asv_benchmarks.common import build, interleaved, memory_pass, training_step


def dense_cycle(model: nn.Module, c: float = 1.2) -> Callable[[], None]:
    """Algorithm 1 with every scale vector as a diagonal matrix: two full products per pair."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]

    @torch.no_grad()
    def cycle() -> None:
        for producer, consumer in itertools.pairwise(weights):
            d = torch.sqrt(consumer.norm(dim=0) / (c * producer.norm(dim=1)))
            producer.copy_(torch.diag(d) @ producer)
            consumer.copy_(consumer @ torch.diag(1 / d))

    return cycle


def measure(depth: int, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of each part, and its ratios, for one depth."""
    model = build(depth, device)
    seconds = interleaved(
        {
            "pass": memory_pass(model),
            "cycle": enorm.ENorm(build(depth, device), c=1.2).step,
            "dense": dense_cycle(build(depth, device)),
            "step": training_step(depth, device, "none"),
            "bn": training_step(depth, device, "bn"),
            "enorm": training_step(depth, device, "enorm"),
        },
        device,
        rounds,
    )
    added = seconds["bn"] - seconds["step"]
    return {
        "pass ms": 1e3 * seconds["pass"],
        "cycle ms": 1e3 * seconds["cycle"],
        "dense ms": 1e3 * seconds["dense"],
        "step ms": 1e3 * seconds["step"],
        "BN adds ms": 1e3 * added,
        "cycle ÷ pass": seconds["cycle"] / seconds["pass"],
        "cycle ÷ BN adds": seconds["cycle"] / added,
        "dense ÷ cycle": seconds["dense"] / seconds["cycle"],
        "ENorm step ÷ BN step": seconds["enorm"] / seconds["bn"],
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.table", description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=[9, 19])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write BatchNorm's share there")
    parser.add_argument("--rounds", type=int, default=60, help="medians over so many (default: 60)")
    options = parser.parse_args()
    columns = [measure(depth, options.device, options.rounds) for depth in options.depths]
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(
        f"enorm {enorm.__version__}, torch {torch.__version__}, {where}, "
        f"{torch.get_num_threads()} threads, medians of {options.rounds} interleaved rounds"
    )
    print(f"{'depth':22}" + "".join(f"{depth:>10}" for depth in options.depths))
    for name in columns[0]:
        print(f"{name:22}" + "".join(f"{column[name]:10.2f}" for column in columns))
    if options.json is not None:
        # The report's claim: which part of a training step with BatchNorm is BatchNorm's.
        shares = {
            depth: 100 * column["BN adds ms"] / (column["step ms"] + column["BN adds ms"])
            for depth, column in zip(options.depths, columns, strict=True)
        }
        content = {"torch": torch.__version__, "where": where, "bn_percent_of_step": shares}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
