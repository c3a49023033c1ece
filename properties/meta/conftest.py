"""The suite is tested with this project's implementation; a run against another leaves this out."""

from __future__ import annotations

import os
from pathlib import Path

from properties.implementation import DEFAULT


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Asked when options are known."""
    is_other = os.environ.get("ENORM_IMPL") not in (None, "", DEFAULT)
    return True if is_other and collection_path.parent == Path(__file__).parent else None
