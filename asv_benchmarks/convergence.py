"""``python -m asv_benchmarks.convergence``: cycles to the minimum, from He initialisation.

The residual is the largest ``|log d²|`` that one more cycle would apply.
"""

from __future__ import annotations

import argparse
import math

import enorm
from asv_benchmarks.common import build


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.convergence")
    parser.add_argument("--depths", type=int, nargs="+", default=[3, 9, 19])
    parser.add_argument("--residual", type=float, default=1e-10)
    options = parser.parse_args()
    print(f"{'depth':>5} {'q':>3} {'jacobi':>7} {'cyclic':>7} {'sor':>7}   cos²(π/q)")
    for depth in options.depths:
        cycles = []
        for solver in ("jacobi", "cyclic", "sor"):
            model = build(depth, "cpu").double()
            result = enorm.balance_(
                model, solver=solver, tol=options.residual / 2, max_cycles=100_000
            )
            cycles.append(f"{result.cycles:7}" if result.converged else f"{'none':>7}")
        rate = math.cos(math.pi / (depth + 2)) ** 2
        print(f"{depth:5} {depth + 2:3} {' '.join(cycles)}   {rate:.4f}")


if __name__ == "__main__":
    main()
