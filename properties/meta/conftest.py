"""The suite is tested with this project's implementation; a run against another leaves this out."""

from __future__ import annotations

import os

from properties.implementation import DEFAULT

collect_ignore_glob = (
    ["test_*.py"] if os.environ.get("ENORM_IMPL") not in (None, "", DEFAULT) else []
)
