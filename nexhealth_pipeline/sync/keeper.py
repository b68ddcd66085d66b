"""Keeping what a pass meets, for those passes by which something is judged to be gone.

Those are all passes of a reconcile, reads of lists under rows that come up in turn, and in every mode the passes
that say whom a location lists.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from functools import partial

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.seen import (
    begin_seen,
    complete_seen,
    find_seen,
    forget_seen,
    mark_unreadable,
    record_seen,
    record_staged,
)
from nexhealth_pipeline.warehouse.state import PassKey, PassState

__all__ = ["Keeper", "kept_in_turn"]

_ALONE, _IN_TURN = "alone", "in turn"


def kept_in_turn(key: PassKey) -> PassKey:
    """Where is kept what a read of the lists that are due meets.

    Apart: a reconcile that has read all of them, and waits for its other slices, judges by what it met itself. Where it
    never does, as it was killed, no nightly read takes that place: it stays until the next read of all, or 90 days
    (`warehouse.housekeeping`).
    """
    return replace(key, pass_name=f"{key.pass_name} {_IN_TURN}")


class Keeper:
    """Keeps what one pass meets, if it is one to be kept; every call is the caller's to commit."""

    def __init__(
        self, connection: psycopg.Connection, collection: Collection, key: PassKey, *, membership: bool = False
    ) -> None:
        self._connection = connection
        self._collection = collection
        self._key = key
        self._membership = membership
        self._judged = False
        self._in_turn = False
        self.id: int | None = None
        """Where it is kept; None = it is not."""

    def complete_since(self, after: datetime) -> bool:
        """Whether a pass begun at `after` (database time) or later has met everything."""
        found = find_seen(self._connection, self._key)
        return found is not None and found.complete and found.begun_at >= after

    def take_up(self, state: PassState, mode: Mode) -> bool:
        """Go on keeping what the unfinished pass of `state` meets; whether a read in `mode` may go on with it.

        Whoever goes on with a reconcile's pass keeps on, else it would look complete and lack half.
        """
        if mode is Mode.RECONCILE and state.mode != mode.value:
            return False
        self._judged, self._in_turn = state.mode == Mode.RECONCILE.value, False
        if not (self._judged or self._membership):
            return True
        found = find_seen(self._connection, self._place)
        if found is None or found.complete or found.begun_at != state.begun_at:
            return False
        self.id = found.id
        return True

    def begin(self, begun_at: datetime, mode: Mode, *, in_turn: bool = False) -> None:
        """Begin anew at `begun_at` (database time), forgetting what this pass had met before.

        `in_turn`: lists under rows that are due are read, and judged by whatever the mode.
        """
        reconciles = mode is Mode.RECONCILE and self._collection.scope is not Scope.PRACTICE
        self._judged, self._in_turn = reconciles or in_turn, in_turn
        self.id = None
        if self._judged or self._membership:
            aside = self._judged and self._collection.placed_by_request
            self.id = repeated(partial(begin_seen, self._connection, self._place, begun_at, aside=aside))

    @property
    def when_staged(self) -> Callable[[str], None] | None:
        """What keeps the rows of a stage before they are merged; None where nothing is kept, and no stage needed."""
        return None if self.id is None else partial(record_staged, self._connection, self.id, self._collection)

    def met(self, keys: Iterable[str]) -> None:
        """Keep keys."""
        keys = list(keys)
        if self.id is not None and keys:
            record_seen(self._connection, self.id, keys)

    def unreadable(self, count: int) -> None:
        """Note how many records (or answers that hold such) had a key that could not be read."""
        if self.id is not None and count:
            mark_unreadable(self._connection, self.id)

    def end(self, started_at: datetime | None) -> None:
        """The pass, begun at `started_at` in the API's time, is complete; what is judged at once is forgotten."""
        if self.id is None or started_at is None:
            return
        if self._judged:
            complete_seen(self._connection, self.id, started_at)
        else:
            forget_seen(self._connection, self._place)

    @property
    def _place(self) -> PassKey:
        """What is judged at once is kept apart: a reconcile that goes on may still need what this pass met for it."""
        if self._in_turn:
            return kept_in_turn(self._key)
        return self._key if self._judged else replace(self._key, pass_name=f"{self._key.pass_name} {_ALONE}")
