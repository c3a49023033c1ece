"""Planted bugs: ``python -m properties.meta.mutants`` shows which property kills each.

A mutant is one replacement in the source of ``enorm``. It is planted in a copy of the project,
where the named property then has to fail on the examples of the ci profile.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from properties.meta import project

PAGE = project.ROOT / "docs" / "mutants.md"


@dataclass(frozen=True)
class Mutant:
    """A bug, and the property that must not survive it.

    Attributes:
        name: what is wrong.
        file: of ``enorm/``.
        old: text that stands in the file exactly once.
        new: what replaces it.
        killer: ``file::function`` of the property.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str


_FUNCTION = "test_function.py::test_cycles_keep_the_function"
_SOLVER_FUNCTION = "test_function.py::test_balance_keeps_the_function"
_ENERGY = "test_energy.py::test_energy_never_rises_over_cycles"
_EQUAL = "test_reference.py::test_cycles_equal_algorithm_1"
_EXTREME = "test_reference.py::test_extreme_scales_equal_the_reference"
_IGNORE = "test_reference.py::test_ignoring_batchnorm_is_the_published_rule"
_MINIMUM = "test_minimum.py::test_cycles_converge_to_scipys_minimum"
_SOLVERS = "test_minimum.py::test_solvers_end_at_scipys_minimum"
_EARLY = "test_energy.py::test_stopping_early_never_raises_the_energy"
_BITS = "test_function.py::test_powers_of_two_keep_every_bit"
_POWERS = "test_energy.py::test_powers_of_two_converge_without_raising_the_energy"
_MOMENTUM = "test_optimizer_state.py::test_state_commutes_with_cycles"
_DEAD = "test_edges.py::test_dead_units_are_left_alone"
_STAY = "test_edges.py::test_parameters_stay_themselves"
_BIASES = "test_precondition.py::test_biases_learn_as_if_never_rescaled"
_RATE = "test_rate.py::test_linear_rate_is_youngs"

MUTANTS = (
    Mutant(
        "wrong exponent: d² instead of d",
        "_cycle.py",
        "exponent = 0.5 / self._problem.p",
        "exponent = 1.0 / self._problem.p",
        _RATE,
    ),
    Mutant(
        "p ignored: always the 2-norm",
        "_stepper.py",
        "build_problem(self.plan, p, c)",
        "build_problem(self.plan, 2.0, c)",
        _ENERGY,
    ),
    Mutant(
        "c inverted",
        "_solve.py",
        "power * (plan.depth - layer.depth) * math.log2(c)",
        "-power * (plan.depth - layer.depth) * math.log2(c)",
        _ENERGY,
    ),
    Mutant(
        "c applied twice",
        "_solve.py",
        "power * (plan.depth - layer.depth) * math.log2(c)",
        "2 * power * (plan.depth - layer.depth) * math.log2(c)",
        _ENERGY,
    ),
    Mutant(
        "c not raised to p",
        "_solve.py",
        "power * (plan.depth - layer.depth) * math.log2(c)",
        "(plan.depth - layer.depth) * math.log2(c)",
        _MINIMUM,
    ),
    Mutant(
        "stale norms: Jacobi in place of Algorithm 1",
        "_solve.py",
        'source = before if order == "jacobi" else self.z',
        "source = before",
        _EQUAL,
    ),
    Mutant(
        "Jacobi sees groups already updated",
        "_solve.py",
        'source = before if order == "jacobi" else self.z',
        "source = self.z",
        _EQUAL,
    ),
    Mutant(
        "sweep order reversed",
        "_cycle.py",
        "for group in self._groups:",
        "for group in reversed(self._groups):",
        _EQUAL,
    ),
    Mutant(
        "last pair left out",
        "_walk.py",
        "return tuple(groups), tuple(skipped)",
        "return tuple(groups[:-1] or groups), tuple(skipped)",
        _MINIMUM,
    ),
    Mutant(
        "bias not scaled",
        "_apply.py",
        "for name in (producer.weight, producer.bias)",
        "for name in (producer.weight,)",
        _FUNCTION,
    ),
    Mutant(
        "bias scaled inversely",
        "_apply.py",
        "Job(target, tensors[target.name]) for",
        'Job(target, tensors[target.name], -1 if "bias" in target.name else 1) for',
        _FUNCTION,
    ),
    Mutant(
        "columns not divided",
        "_apply.py",
        "target.column_vector(z, 0.0) * -power",
        "target.column_vector(z, 0.0) * 0",
        _SOLVER_FUNCTION,
    ),
    Mutant(
        "columns multiplied",
        "_apply.py",
        "target.column_vector(z, 0.0) * -power",
        "target.column_vector(z, 0.0) * power",
        _SOLVER_FUNCTION,
    ),
    Mutant(
        "kernel positions but the first left out of the norm",
        "_masses.py",
        "        ones = powers.new_ones(entries)\n",
        "        ones = (torch.arange(entries) == 0).to(powers)\n",
        _EQUAL,
    ),
    Mutant(
        "rows' scales taken inversely in the columns' norms",
        "_masses.py",
        "exponents = z * self.p\n",
        "exponents = z * -self.p\n",
        _SOLVERS,
    ),
    Mutant(
        "flatten's blocks in channel-last order",
        "_apply.py",
        ".repeat_interleave(part.block)",
        ".repeat(part.block)",
        _FUNCTION,
    ),
    Mutant(
        "momentum untouched",
        "_followers.py",
        'optim.SGD: {"momentum_buffer": -1}',
        "optim.SGD: {}",
        _MOMENTUM,
    ),
    Mutant(
        "momentum scaled like the weight",
        "_followers.py",
        'optim.SGD: {"momentum_buffer": -1}',
        'optim.SGD: {"momentum_buffer": 1}',
        _MOMENTUM,
    ),
    Mutant(
        "second moments scaled like first ones",
        "_followers.py",
        '"exp_avg_sq": -2}',
        '"exp_avg_sq": -1}',
        _MOMENTUM,
    ),
    Mutant(
        "dead unit not guarded",
        "_solve.py",
        "step.nan_to_num_(0.0, 0.0, 0.0)",
        "step.nan_to_num_(0.0, 30.0, -30.0)",
        _DEAD,
    ),
    Mutant(
        "norms accumulated in half precision",
        "_masses.py",
        "        weight = weight.detach()\n",
        "        weight = weight.detach().bfloat16()\n",
        _EQUAL,
    ),
    Mutant(
        "float32 sums whatever their range",
        "_cycle.py",
        "            if not holds(self._dtype, low.item(), high.item(), self._problem.p):\n",
        "            if False:\n",
        _EXTREME,
    ),
    Mutant(
        "norms without absolute values",
        "_masses.py",
        "powers.copy_(weight).abs_()",
        "powers.copy_(weight)",
        _EQUAL,
    ),
    Mutant(
        "largest entry in place of the norm",
        "_masses.py",
        "return torch.mv(matrix, factors)",
        "return (matrix * factors).amax(1)",
        _EQUAL,
    ),
    Mutant(
        "in place on a copy",
        "_cycle.py",
        "flattened(target.view(tensor.detach()), target.groups)",
        "flattened(target.view(tensor.detach().clone()), target.groups)",
        _MINIMUM,
    ),
    Mutant(
        "columns not divided in the plain cycle",
        "_cycle.py",
        "            for view, groups, times in group.columns:\n",
        "            for view, groups, times in []:\n",
        _FUNCTION,
    ),
    Mutant(
        "scales rounded to half precision",
        "_apply.py",
        "torch.exp2(self.exponents * power).to(dtype)",
        "torch.exp2(self.exponents * power).bfloat16().to(dtype)",
        _FUNCTION,
    ),
    Mutant(
        "BatchNorm looked through where the function is to be kept",
        "_walk.py",
        'if self.batchnorm == "ignore" and',
        "if True and",
        _FUNCTION,
    ),
    Mutant(
        "BatchNorm's bias not scaled",
        "_walk.py",
        "return Signal((self._units(name, bias, features),), axis, dimensions)",
        "return Signal((self._units(name, None, features),), axis, dimensions)",
        _FUNCTION,
    ),
    Mutant(
        "BatchNorm's statistics rescaled",
        "_stepper.py",
        "        self.log2_scales = tuple(z)\n",
        "        self.log2_scales = tuple(z)\n"
        "        for name, buffer in self._model.named_buffers():\n"
        '            if name.endswith("mean"):\n'
        "                buffer.mul_(1.5)\n",
        _STAY,
    ),
    Mutant(
        "BatchNorm ends a group under the published rule too",
        "_walk.py",
        'if self.batchnorm == "ignore" and',
        "if False and",
        _IGNORE,
    ),
    Mutant(
        "train mode switched on",
        "_stepper.py",
        "        self.log2_scales = tuple(z)\n",
        "        self.log2_scales = tuple(z)\n        self._model.train()\n",
        _STAY,
    ),
    Mutant(
        "every cycle over-relaxed",
        "_solve.py",
        "if omegas is not None and not self.power_of_two:",
        "if (omegas := [1.4] * len(self.z)) and not self.power_of_two:",
        _EQUAL,
    ),
    Mutant(
        "over-relaxation beyond 2",
        "_relax.py",
        "omega = 2 / (1 + math.sin(",
        "omega = 4 / (1 + math.sin(",
        _EARLY,
    ),
    Mutant(
        "powers of two over-relaxed",
        "_solve.py",
        "if omegas is not None and not self.power_of_two:",
        "if omegas is not None:",
        _BITS,
    ),
    Mutant(
        "Newton's last step is taken for granted",
        "_descent.py",
        "moved = remaining = scales.residual()",
        "moved = remaining = 0.0",
        _SOLVERS,
    ),
    Mutant(
        "powers of two rounded up at the half and beyond",
        "_solve.py",
        "torch.ceil(step.abs() - (0.5 + 1e-9))",
        "torch.ceil(step.abs())",
        _POWERS,
    ),
    Mutant(
        "convergence declared a thousand times too early",
        "_solve.py",
        "largest = torch.cat(steps).abs().amax() * math.log(2)",
        "largest = torch.cat(steps).abs().amax() * math.log(2) * 1e-5",
        _SOLVERS,
    ),
    Mutant(
        "bias gradient multiplied by a, not by a²",
        "_precondition.py",
        "gradient.double() * a * a",
        "gradient.double() * a",
        _BIASES,
    ),
    Mutant(
        "only the last cycle's scales counted for a",
        "_precondition.py",
        "log2_a += step",
        "log2_a.copy_(step)",
        _BIASES,
    ),
    Mutant(
        "momentum of preconditioned biases scaled as any other",
        "_stepper.py",
        "            () if preconditioner is None else preconditioner.names,\n",
        "            () if True else preconditioner.names,\n",
        _BIASES,
    ),
)


def plant(mutant: Mutant, folder: Path) -> None:
    """Copy the project to ``folder``, with the bug.

    Raises:
        ValueError: the text to be replaced does not stand in the file exactly once.
    """
    project.copy_to(folder)
    file = folder / "enorm" / mutant.file
    file.write_text(replaced(mutant, file.read_text()))


def replaced(mutant: Mutant, source: str) -> str:
    """``source`` with the bug.

    Raises:
        ValueError: the text to be replaced does not stand there exactly once.
    """
    if source.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.old!r} is not once in {mutant.file}")
    return source.replace(mutant.old, mutant.new)


def run(mutant: Mutant) -> tuple[bool, float, str]:
    """Whether the property kills the mutant, in how many seconds, and what was printed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plant(mutant, folder)
        start = time.perf_counter()
        done = project.run_suite(folder, "-x", f"properties/{mutant.killer}")
        # 1: a test failed. Anything else, such as an error while collecting, is no kill.
        return done.returncode == 1, time.perf_counter() - start, done.stdout


def main() -> int:
    """Run the mutants, write the page; 1 if one survives."""
    parser = argparse.ArgumentParser(prog="python -m properties.meta.mutants")
    parser.add_argument("--only", metavar="TEXT", default="", help="mutants whose name holds TEXT")
    parser.add_argument("--show", action="store_true", help="print what the suite says")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.name]
    rows, survivors = [], []
    # One per core, each with one thread: networks this small gain nothing from more.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        started = {pool.submit(run, mutant): mutant for mutant in chosen}
        for future in tqdm(as_completed(started), total=len(chosen), unit="mutant"):
            tqdm.write(f"{'killed' if future.result()[0] else 'SURVIVES'}: {started[future].name}")
    runs = [future.result() for future in started]
    for mutant, (killed, seconds, output) in zip(chosen, runs, strict=True):
        name = mutant.killer.split("::")[1]
        verdict = f"`{name}`" if killed else "**survives**"
        rows.append(f"| {mutant.name} | `{mutant.file}` | {verdict} | {seconds:.0f} |")
        if not killed:
            survivors.append(f"{mutant.name} survives {mutant.killer}")
        if options.show:
            print(output)
    if not options.only:
        head = (
            "# Planted bugs\n\nMade by `python -m properties.meta.mutants`: each bug is planted in "
            "a copy of `enorm/`, and the named\nproperty has to fail in the ci profile. "
            f"{len(chosen) - len(survivors)} of {len(chosen)} are killed.\n\n"
            "| bug | file | killed by | seconds |\n| --- | --- | --- | --- |\n"
        )
        PAGE.write_text(head + "\n".join(rows) + "\n")
        print(f"written: {PAGE}")
    for survivor in survivors:
        print(survivor, file=sys.stderr)
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
