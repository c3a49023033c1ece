"""Hidden units while their uses are being collected, and where they stand in a traced value."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from enorm._plan import Consumer, Producer, Skip


@dataclass(eq=False)
class Units:
    """Units that must share one scale vector: a set in a forest of disjoint sets.

    Only the root of a set, :meth:`root`, holds what is known of it.

    Attributes:
        size: how many; 0 for unknown.
        producers: weights that make them, in call order of the first.
        consumers: weights that read them.
        walls: why they may not be rescaled.
        ends: the same where no weight follows, worth a word only if there are consumers as well.
        pinned: whether they may not be rescaled for a reason told elsewhere.
    """

    size: int
    producers: list[Producer] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    walls: list[Skip] = field(default_factory=list)
    ends: list[Skip] = field(default_factory=list)
    pinned: bool = False
    _parent: Units | None = None

    def root(self) -> Units:
        """The set these units belong to."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def join(self, other: Units) -> None:
        """From now on both share their scales."""
        mine, its = self.root(), other.root()
        if mine is its:
            return
        mine.producers += its.producers
        mine.consumers += its.consumers
        mine.walls += its.walls
        mine.ends += its.ends
        mine.pinned |= its.pinned
        its._parent = mine


UNCERTAIN = 0


@dataclass(frozen=True)
class Signal:
    """Where units stand in a traced value.

    Attributes:
        parts: units one after the other along the axis; several behind a concatenation.
        axis: negative, counted from the last.
        dimensions: number of axes, batch included. None: nothing says otherwise than ``(N,
            features)`` or ``(N, channels, *positions)``. ``UNCERTAIN``: something may.
        flattened: whether each unit has a block of entries there, as behind a flatten.
    """

    parts: tuple[Units, ...]
    axis: int
    dimensions: int | None
    flattened: bool = False

    @property
    def size(self) -> int:
        """How many units."""
        return sum(part.size for part in self.parts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many units of each part."""
        return tuple(part.size for part in self.parts)

    def roots(self) -> Iterator[Units]:
        """The sets, each as often as it stands there."""
        return (part.root() for part in self.parts)

    def live(self) -> dict[int, Units]:
        """The sets that may be rescaled as far as is known, by where they begin."""
        found, start = {}, 0
        for part in self.parts:
            if not part.root().pinned:
                found[start] = part.root()
            start += part.size
        return found
