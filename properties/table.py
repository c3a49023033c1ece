"""``python -m properties.table REPORT…``: implementation × property, as a page.

A report is what ``pytest properties --enorm-report=FILE`` wrote.
"""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

from properties.known_failures import known_failures

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "conformance.md"
_SIGNS = {"passed": "holds", "failed": "FAILS", "not applicable": "–", "known failure": "fails"}
_HEAD = """# Which implementation has which property

Made by `python -m properties.table` from a run of each implementation in the ci profile:

    CI=1 pytest properties --enorm-report=ours.json
    CI=1 pytest properties --enorm-impl=properties.adapters.authors:load \\
        --enorm-impl-path=CHECKOUT --enorm-report=authors.json
    CI=1 pytest properties --enorm-impl=properties.adapters.notebook:load \\
        --enorm-impl-path=CHECKOUT --enorm-report=notebook.json

A property is tried on the networks that an implementation declares to accept; where it declares
nothing that the property could be tried on, it is not applicable (–). `fails` is a known failure,
whose reason stands below.
"""


def properties() -> dict[str, str]:
    """Every property of the suite, ``file::function``, with the first line of its docstring."""
    found = {}
    for path in sorted(HERE.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.get_docstring(node) or node.name
                found[f"{path.name}::{node.name}"] = text.splitlines()[0].rstrip(".")
    return found


def render(reports: list[dict[str, Any]]) -> str:
    """The page.

    Raises:
        ValueError: a report is not one of the suite as it is.
    """
    described = properties()
    for report in reports:
        if set(report["outcomes"]) != set(described):
            missing = sorted(set(described) - set(report["outcomes"]))
            if missing:
                part = f"lacks {len(missing)} of {len(described)} properties, as {missing[0]}"
            else:
                part = f"has others, as {sorted(set(report['outcomes']) - set(described))[0]}"
            raise ValueError(
                f"the report of {report['implementation']} {part}: run the whole suite, as it is"
            )
    names = [f"{report['implementation']} {report['version']}" for report in reports]
    lines = [_HEAD, "## Declared", "", _row(["", *names]), _row(["---"] * (len(names) + 1))]
    for capability in reports[0]["capabilities"]:
        cells = [_value(capability, report["capabilities"][capability]) for report in reports]
        lines.append(_row([capability, *cells]))
    lines += ["", "## Properties", "", _row(["property", *names]), _row(["---"] * (len(names) + 1))]
    for name, text in described.items():
        title = name.split("::")[1].removeprefix("test_").replace("_", " ")
        signs = [_SIGNS[report["outcomes"][name]] for report in reports]
        lines.append(_row([f"**{title}**: {text}", *signs]))
    for sign in dict.fromkeys(_SIGNS.values()):
        counts = [
            sum(_SIGNS[outcome] == sign for outcome in report["outcomes"].values())
            for report in reports
        ]
        if any(counts):
            lines.append(_row([f"count of “{sign}”", *map(str, counts)]))
    lines += ["", "## Known failures", ""]
    shown = {report["implementation"] for report in reports}
    for entry in known_failures():
        if entry.implementation not in shown:
            continue
        title = entry.property.split("::")[1].removeprefix("test_").replace("_", " ")
        lines.append(f"- [{entry.implementation}]({entry.link}), {title}: {entry.reason}.")
    return "\n".join(lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _value(name: str, value: Any) -> str:
    if name == "p" and value is None:
        return "any"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "none"


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m properties.table", description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    try:
        page = render([json.loads(path.read_text()) for path in options.reports])
    except (OSError, ValueError) as error:
        parser.error(str(error))
    options.out.write_text(page)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
