"""One reader per slice at a time, over all processes that share the database."""

import logging
import threading

import psycopg

from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.runs import lock_key

__all__ = ["Held", "SliceLock"]

_log = logging.getLogger(__name__)
_POLL_SECONDS = 0.5


class Held(Exception):
    """Another run reads the slice just now, and is not to be waited for."""


class SliceLock:
    """Holds a session advisory lock on `connection` while in context.

    Waits for another reader; where it is not to (`waits`), raises Held instead.
    """

    def __init__(
        self, connection: psycopg.Connection, piece: Slice, stop: threading.Event, *, waits: bool = True
    ) -> None:
        self._connection = connection
        self._waits = waits
        self._label = piece.label
        self._stop = stop
        self._key = lock_key("slice", piece.collection.name, piece.institution_id, piece.location_id, piece.window_key)

    def __enter__(self) -> "SliceLock":
        if not self._try():
            if not self._waits:
                raise Held(self._label)
            _log.info("waiting for another run that reads this slice", extra={"nexhealth": {"slice": self._label}})
            while not self._try():
                if self._stop.wait(_POLL_SECONDS):
                    raise Cancelled(f"{self._label}: stopped while waiting for another run")
        return self

    def __exit__(self, *error: object) -> None:
        if not self._connection.closed and not self._connection.broken:
            self._connection.execute("SELECT pg_advisory_unlock(%s)", (self._key,))

    def _try(self) -> bool:
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", (self._key,)).fetchone()
        return bool(row and row[0])
