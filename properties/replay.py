"""One failing example again: ``python -m properties.replay FILE::FUNCTION "net=Net(…), p=2.0"``.

The command stands at the end of each failure's output. It needs neither Hypothesis' database nor
its seed: the arguments are Python, and networks are built from their specs.
"""

from __future__ import annotations

import ast
import importlib
import math
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument

from properties.specs import Hidden, Net

# What arguments are written with beside literals.
_KNOWN = {"Net": Net, "Hidden": Hidden, "inf": math.inf, "nan": math.nan}
_CHOICE = ("ENORM_IMPL", "ENORM_IMPL_PATH")


def command(property_id: str, notes: Sequence[str]) -> str | None:
    """The command that replays what Hypothesis noted of a failing example, or None.

    Args:
        property_id: ``file::function``.
        notes: of the exception; one of them holds ``function(name=value, …)``, comments between.
    """
    function = property_id.partition("::")[2]
    for note in notes:
        # The call ends at the first closing bracket that stands alone on its line.
        found = re.search(rf"\b{re.escape(function)}\(\n.*?^\)", note, re.DOTALL | re.MULTILINE)
        if found is not None:
            call = ast.parse(found[0], mode="eval").body
            assert isinstance(call, ast.Call)
            # Unparsing drops the comments, and the line breaks.
            arguments = ", ".join(ast.unparse(keyword) for keyword in call.keywords)
            quoted = shlex.quote(arguments)
            if not set(arguments) & set('"$`\\!'):
                # Reads better where the arguments hold strings.
                quoted = f'"{arguments}"'
            line = f"python -m properties.replay {property_id} {quoted}"
            return implementation_choice() + line
    return None


def implementation_choice() -> str:
    """Environment variables that choose the implementation, as a prefix of a command."""
    chosen = {name: os.environ[name] for name in _CHOICE if os.environ.get(name)}
    return "".join(f"{name}={shlex.quote(value)} " for name, value in chosen.items())


def prepared(property_id: str, arguments: str) -> Callable[[], None]:
    """What runs the property's function on these arguments.

    Raises:
        ValueError: there is no such property.
        SyntaxError, NameError, TypeError: the arguments are no Python, or no network.
    """
    file, _, name = property_id.partition("::")
    path = Path(__file__).with_name(file)
    if not path.is_file():
        raise ValueError(f"{file} is no file of {path.parent.name}/")
    function: Any = getattr(importlib.import_module(f"properties.{path.stem}"), name, None)
    if not hasattr(function, "hypothesis"):
        raise ValueError(f"{file} has no property of drawn examples called {name}")
    values: dict[str, Any] = eval(f"dict({arguments})", dict(_KNOWN))
    # Through Hypothesis, for a property may note events and make assumptions.
    once = settings(max_examples=1, database=None, deadline=None, phases=[Phase.generate])
    drawn = {name: st.just(value) for name, value in values.items()}
    run: Callable[[], None] = once(given(**drawn)(function.hypothesis.inner_test))
    return run


def main(options: Sequence[str]) -> int:
    """0 if the property holds on the example, 1 if it does not, 2 for wrong usage."""
    if len(options) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        example = prepared(*options)
    except (ValueError, SyntaxError, NameError, TypeError) as error:
        print(f"properties.replay: {error}", file=sys.stderr)
        return 2
    try:
        example()
    except AssertionError as error:
        # Outside of pytest a bare assert says nothing.
        line = traceback.extract_tb(error.__traceback__)[-1]
        print(str(error) or f"{line.filename}:{line.lineno}: {line.line}", file=sys.stderr)
        return 1
    except InvalidArgument as error:
        print(f"properties.replay: {error}", file=sys.stderr)
        return 2
    print("the property holds on this example")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
