"""Documentation shows what the code does: its examples run and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields
from pathlib import Path

import pytest

from properties.implementation import Capabilities

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "name", ["README.md", "docs/plans.md", "docs/loops.md", "docs/adapters.md"]
)
def test_examples_print_what_the_page_says(name: str) -> None:
    blocks = BLOCK.findall((ROOT / name).read_text())
    variables: dict[str, object] = {}
    printed = io.StringIO()
    checked = 0
    for kind, content in blocks:
        if kind == "python":
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(content, name, "exec"), variables)
        else:
            assert printed.getvalue() == content
            checked += 1
    assert checked == sum(kind == "text" for kind, _ in blocks)
    assert blocks


def test_every_capability_is_documented() -> None:
    """In the order in which they are declared."""
    page = (ROOT / "docs/adapters.md").read_text()
    table = page[page.index("| capability |") :]
    documented = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert documented == [field.name for field in fields(Capabilities)]
