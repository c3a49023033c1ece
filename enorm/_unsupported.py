"""What cannot be rescaled is refused, with a way out."""

from __future__ import annotations


class UnsupportedModel(ValueError):  # noqa: N818 - the name is part of the public contract
    """The model, or with ``strict=True`` a part of it, cannot be rescaled; the message says why."""


# Where the forward code cannot be followed, its author still can.
ESCAPE = (
    "Where layers follow each other there, say so: enorm.plan_from_layers(model, [names of layers])"
)
