"""``python -m asv_benchmarks.convergence``: cycles to the minimum, and scipy beside them.

The networks are the report's, in float64, from He-uniform weights and from the same rescaled unit
by unit by ``exp(3 N(0, 1))``, c = 1. The residual is the largest ``|log d²|`` that one more cycle
would apply. Needs the ``repro`` extra for the plot and scipy.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import enorm
from asv_benchmarks import scipy_peers
from asv_benchmarks.suite.networks import build
from enorm._descent import SOLVERS, Solver
from repro.options import illustrated, within

LABELS = {
    "jacobi": "Jacobi",
    "cyclic": "Algorithm 1",
    "sor": "over-relaxed",
    "newton": "Newton",
}
SPREAD = 3.0
RESIDUAL = 1e-10


def network(depth: int, spread: float = 0.0) -> nn.Module:
    """Float64, its hidden units rescaled by ``exp(spread N(0, 1))``."""
    model = build(f"fc-{depth}").double()
    generator = torch.Generator().manual_seed(0)
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for one, other in itertools.pairwise(linears):
            normal = torch.randn(one.out_features, generator=generator, dtype=torch.float64)
            d = torch.exp(spread * normal)
            one.weight.mul_(d[:, None])
            other.weight.div_(d)
    return model


def predicted(solver: Solver, depth: int) -> float:
    """Young's rate for a chain of ``q = depth + 2`` weights, but for Newton."""
    angle = math.pi / (depth + 2)
    rates: dict[Solver, float] = {
        "jacobi": math.cos(angle),
        "cyclic": math.cos(angle) ** 2,
        "sor": 2 / (1 + math.sin(angle)) - 1,
    }
    return rates[solver]


def measured(residuals: Sequence[float]) -> float:
    """Factor per cycle over the second half of the way."""
    tail = residuals[len(residuals) // 2 :]
    return float((tail[-1] / tail[0]) ** (1 / (len(tail) - 1)))


def solve(model: nn.Module, solver: Solver) -> list[enorm.Progress]:
    """Every cycle to the residual; fails if it was not reached."""
    seen: list[enorm.Progress] = []
    result = enorm.balance_(
        model, solver=solver, tol=RESIDUAL / 2, max_cycles=100_000, callback=seen.append
    )
    if not result.converged:
        raise RuntimeError(f"{solver} ended at a residual of {result.residual}")
    return seen


def convergence_table(
    depths: Sequence[int],
) -> tuple[list[str], dict[tuple[int, Solver], list[enorm.Progress]]]:
    """Markdown lines, and all residuals from He initialisation."""
    lines = [
        "| depth | q | solver | cycles, He | cycles, spread | factor per cycle | predicted |",
        "|---|---|---|---|---|---|---|",
    ]
    curves = {}
    for depth in depths:
        for solver in SOLVERS:
            curve = curves[depth, solver] = solve(network(depth), solver)
            spread = solve(network(depth, SPREAD), solver)
            counts = [
                f"{len(one)}"
                if solver != "newton"
                else f"{sum(not step.newton for step in one)} + {sum(s.newton for s in one)} steps"
                for one in (curve, spread)
            ]
            rates = ["", ""]
            if solver != "newton":
                found = measured([step.residual for step in curve])
                rates = [f"{found:.4f}", f"{predicted(solver, depth):.4f}"]
            cells = [str(depth), str(depth + 2), LABELS[solver], *counts, *rates]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr)
    return lines, curves


def scipy_table(depths: Sequence[int], rounds: int = 3) -> list[str]:
    """Iterations, residual and time of scipy's methods, as multiples of the over-relaxed solve."""
    lines = [
        "| depth | method | iterations | residual | time ÷ over-relaxed |",
        "|---|---|---|---|---|",
    ]
    for depth in depths:
        times: dict[str, list[float]] = {}
        told: dict[str, tuple[int, float]] = {}
        for _ in range(rounds):
            for name in ["sor", "newton", *scipy_peers.METHODS]:
                # A dense Hessian of all scales is out of proportion for deeper networks.
                if name == "trust-exact" and depth > 3:
                    continue
                model = network(depth)
                start = time.perf_counter()
                if name in LABELS:
                    count = len(solve(model, name))  # type: ignore[arg-type]
                    times.setdefault(name, []).append(time.perf_counter() - start)
                else:
                    count, apply = scipy_peers.minimise(model, name)
                    times.setdefault(name, []).append(time.perf_counter() - start)
                    apply()
                told[name] = count, 2 * enorm.residual(model)
        for name, (count, left) in told.items():
            pairs = zip(times[name], times["sor"], strict=True)
            ratio = statistics.median(one / sor for one, sor in pairs)
            label = LABELS.get(name, f"scipy {name}")
            lines.append(f"| {depth} | {label} | {count} | {left:.0e} | {ratio:.1f} |")
            print(lines[-1], file=sys.stderr)
    return lines


def plot(curves: dict[tuple[int, Solver], list[enorm.Progress]], depth: int, file: Path) -> None:
    """Residual per cycle, with the predicted slopes behind."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    colours = dict(zip(SOLVERS, ["#0072b2", "#009e73", "#d55e00", "#cc79a7"], strict=True))
    for solver in SOLVERS:
        steps = curves[depth, solver]
        cycles = [step.cycle for step in steps]
        residuals = [2 * step.residual for step in steps]
        axes.loglog(cycles, residuals, color=colours[solver], label=LABELS[solver])
        if solver == "newton":
            marked = [k for k, step in enumerate(steps) if step.newton]
            axes.loglog(
                [cycles[k] for k in marked],
                [residuals[k] for k in marked],
                "o",
                ms=4,
                color=colours[solver],
            )
            continue
        rate = predicted(solver, depth)
        axes.loglog(
            cycles,
            [residuals[-1] * rate ** (cycle - cycles[-1]) for cycle in cycles],
            color=colours[solver],
            ls=":",
            lw=1.2,
        )
    axes.set_ylim(RESIDUAL / 10, 10)
    axes.set_xlabel("cycles")
    axes.set_ylabel("residual, largest |log d²|")
    axes.set_title(
        f"Depth {depth}, He-uniform weights; dotted: predicted rate, dots: Newton steps",
        fontsize=10,
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


PAGE = """\
# To the minimum, in how many cycles

Made by `python -m asv_benchmarks.convergence --depths {depths} --rounds {rounds} --out docs` with
torch {torch}, {threads} threads.
The networks are the report's (3072–500, depth × 500–500, 500–10, float64, c = 1); cycles to a
residual, the largest `|log d²|` that one more cycle would apply, of {residual:g}. *He* is
He-uniform initialisation; *spread* is the same network with every hidden unit rescaled by
`exp(3 N(0, 1))`, which has the same minimum. Predicted are Young's rates for a chain of q weights:
cos(π/q) for Jacobi, its square for Algorithm 1, ω − 1 with ω = 2 / (1 + sin(π/q)) when
over-relaxed. Newton begins with over-relaxed cycles: cycles + Newton steps.

{convergence}

![Residual per cycle]({plot})

Groups that form no chain learn ω from their own cycles
(`enorm/tests/test_relaxation.py` compares with the best ω of a tree).

## Beside `scipy.optimize`

The same problem from He initialisation, energy, gradient and Hessian given to scipy; medians of
{rounds} rounds in which all take turns. The time is a multiple of the over-relaxed solve's, of the
whole call, so for ours with looking for the groups and writing the weights. An iteration of ours
and of scipy's is not the same work: a Newton step takes the cube of the width, one of Newton-CG
many products with the Hessian. Scipy's methods end where the energy in float64 no longer tells
which of two points is lower, at residuals of 1e-9 to 1e-6; cycles and Newton steps here look at
norms and at differences of the energy without cancellation, and go on to rounding.

{scipy}
"""


def main() -> None:
    """Print the tables; with ``--out`` write page and plot."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.convergence")
    number = within(1)
    parser.add_argument("--depths", type=number, nargs="+", default=[3, 9, 19])
    parser.add_argument("--rounds", type=number, default=3, help="of timings (default: 3)")
    parser.add_argument(
        "--out", type=illustrated, help="folder for convergence.md and convergence.svg"
    )
    options = parser.parse_args()
    lines, curves = convergence_table(options.depths)
    peers = scipy_table(options.depths, options.rounds)
    text = PAGE.format(
        depths=" ".join(map(str, options.depths)),
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        residual=RESIDUAL,
        convergence="\n".join(lines),
        plot="convergence.svg",
        rounds=options.rounds,
        scipy="\n".join(peers),
    )
    if options.out is None:
        print(text)
        return
    plot(curves, max(options.depths), options.out / "convergence.svg")
    (options.out / "convergence.md").write_text(text)


if __name__ == "__main__":
    main()
