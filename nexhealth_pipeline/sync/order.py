"""In which order slices are read, and which of them side by side: what waits for what, and in which lane it goes.

A lane is what one of the API's minute limits holds back. Were all slices in one line, those that wait for the
patients' limit would keep the others from using theirs. Lists under rows have a lane of their own, one slice
at a time, because each reads several rows at once.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nexhealth_pipeline.catalog.limits import RateClass, rate_classes
from nexhealth_pipeline.sync.slices import Slice

__all__ = ["Lane", "Order", "lane_of"]

_Mark = tuple[object, ...]
"""What others wait for: all slices of a collection at an institution, or a single slice."""


class Lane(StrEnum):
    """Slices that are read side by side."""

    PATIENTS = "patients"
    OTHER = "other"
    UNDER_ROWS = "under rows"


def lane_of(piece: Slice) -> Lane:
    """The lane of a slice."""
    if piece.collection.per:
        return Lane.UNDER_ROWS
    return Lane.PATIENTS if RateClass.PATIENTS in rate_classes(piece.collection.path) else Lane.OTHER


@dataclass(slots=True)
class _Blocked:
    """A slice that waits for so many marks."""

    piece: Slice
    by: int


class Order:
    """Hands out slices once what they wait for has been read, or was not among them.

    A sibling waits for its database's owner. A list under rows waits for all lists of those rows at its
    institution, since any of them may bring rows that are filed under its location.
    """

    def __init__(self, slices: Sequence[Slice]) -> None:
        self._left: Counter[_Mark] = Counter(mark for piece in slices for mark in _marks(piece))
        """Slices not read yet, by what waits for them."""
        self._waiting: dict[_Mark, list[_Blocked]] = {}
        self._ready: list[Slice] = []
        for piece in slices:
            needs = [mark for mark in _needs(piece) if self._left[mark]]
            if not needs:
                self._ready.append(piece)
            blocked = _Blocked(piece, len(needs))
            for mark in needs:
                self._waiting.setdefault(mark, []).append(blocked)

    def ready(self) -> list[Slice]:
        """Slices that may be read now, each handed out once; first those that others wait for."""
        ready, self._ready = self._ready, []
        return sorted(ready, key=lambda piece: not any(mark in self._waiting for mark in _marks(piece)))

    def done(self, piece: Slice) -> None:
        """Note that a slice has been read, whatever came of it."""
        for mark in _marks(piece):
            self._left[mark] -= 1
            if not self._left[mark]:
                for blocked in self._waiting.pop(mark, ()):
                    blocked.by -= 1
                    if not blocked.by:
                        self._ready.append(blocked.piece)


def _marks(piece: Slice) -> tuple[_Mark, ...]:
    own = (piece.collection.name, piece.institution_id)
    return own, (*own, piece.location_id, piece.window_key)


def _needs(piece: Slice) -> Iterable[_Mark]:
    if piece.collection.per:
        return [(name, piece.institution_id) for name in piece.collection.after]
    location = piece.location
    if location is None or location.is_owner:
        return []
    return [(piece.collection.name, piece.institution_id, location.owner_id, piece.window_key)]
