"""Every refused request leaves a trace, and a flood of them leaves few rows.

Of one sender and reason, the first refusals of a minute get a row each; the rest are counted in the
`repeats` of one more row. All senders together get so many rows a minute; what is beyond them is counted in one
row a reason, which names no sender. The answer does not wait for any of it: bad requests must not slow good ones.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from psycopg.rows import TupleRow

from nexhealth_pipeline.errors import ValueRefused, WarehouseError
from nexhealth_pipeline.webhooks.receiving.event_rows import INSERT, EventRow, columns_of
from nexhealth_pipeline.webhooks.receiving.sources import Buckets

__all__ = ["Audit"]

_LOG = logging.getLogger(__name__)
_MINUTE = 60.0
_BATCH = 200
_ROWS_OF_ALL = 120
"""Rows that all senders and reasons together get a minute, twice as many in a burst."""
_ADD = """
UPDATE nexhealth_webhook_events AS row SET repeats = row.repeats + given.more::integer
FROM unnest(%(ids)s::bigint[], %(more)s::bigint[]) AS given (id, more) WHERE row.id = given.id
"""


class _Writes(Protocol):
    async def execute(self, statement: str, values: dict[str, Any]) -> list[TupleRow]: ...


@dataclass(slots=True)
class _Tally:
    """The refusals of one sender for one reason within a minute."""

    began: float
    rows: int = 0
    more: int = 0
    """Not written down yet."""
    row: EventRow | None = None
    """Stands for the rest."""
    row_id: int | None = None


class Audit:
    """Refusals that are not written down yet; bounded, whatever comes.

    `rows` is how many a minute get a row of their own, for one sender and reason; `most` how many senders and reasons
    are told apart, and how many rows may wait. What comes beyond is counted without a source.
    """

    def __init__(self, *, rows: int = 60, most: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows, self._most, self._clock = rows, most, clock
        self._room = Buckets(_ROWS_OF_ALL / _MINUTE, _ROWS_OF_ALL, clock=clock)
        self._tallies: dict[tuple[str | None, str], _Tally] = {}  # sender None = all that get no row
        self._waiting: deque[tuple[float, EventRow]] = deque()

    def note(self, sender: str, row: EventRow) -> None:
        """Remember the refusal `row` of `sender`."""
        now = self._clock()
        key = (sender, row.verdict)
        tally = self._current(key, now)
        if tally is None or tally.row is None:  # one more row is wanted
            tally = self._with_room(key, tally, now) or self._shared(row, now)
        if tally.row is None and tally.rows < self._rows and len(self._waiting) < self._most:
            tally.rows += 1
            self._waiting.append((now, row))
            return
        tally.more += 1
        if tally.row is None:
            tally.row = row

    async def write(self, link: _Writes) -> None:
        """Write down what was noted. Raises WarehouseError; what was not written is kept for the next time.

        What of a row the warehouse cannot hold is dropped with a warning, and the row counted without it: it would hold
        up all others for good.
        """
        now = self._clock()
        reasons: Counter[str] = Counter()
        while self._waiting:
            await self._write_next(link, _BATCH, now, reasons)
        await self._write_rest(link, reasons)
        self._forget(now)
        if reasons:
            _LOG.info("webhooks were refused", extra={"nexhealth": dict(reasons)})

    async def _write_next(self, link: _Writes, most: int, now: float, reasons: Counter[str]) -> None:
        """Write the next rows of their own."""
        batch = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        for at, row in batch:
            row.age = f"{now - at:.3f}"
        try:
            await link.execute(INSERT, columns_of([row for _, row in batch]))
        except ValueRefused as error:
            if len(batch) == 1:
                self._shared(batch[0][1], now).more += 1
                _tell(batch[0][1], error)
                return
            self._waiting.extendleft(reversed(batch))
            for _ in batch:
                await self._write_next(link, 1, now, reasons)
        except WarehouseError:
            self._waiting.extendleft(reversed(batch))
            raise
        else:
            reasons.update(row.verdict for _, row in batch)

    async def _write_rest(self, link: _Writes, reasons: Counter[str]) -> None:
        """The rows that count: new ones, then what is added to those there are."""
        added = [tally for tally in self._tallies.values() if tally.more and tally.row_id is not None]
        new = [tally for tally in self._tallies.values() if tally.more and tally.row_id is None]
        for start in range(0, len(new), _BATCH):
            await self._begin_rest(link, new[start : start + _BATCH], reasons)
        if added:
            counts = [tally.more for tally in added]
            await link.execute(_ADD, {"ids": [tally.row_id for tally in added], "more": counts})
            for tally, count in zip(added, counts, strict=True):
                _written(tally, count, reasons)

    async def _begin_rest(self, link: _Writes, tallies: list[_Tally], reasons: Counter[str]) -> None:
        rows, counts = [], [tally.more for tally in tallies]
        for tally, count in zip(tallies, counts, strict=True):
            assert tally.row is not None
            tally.row.repeats, tally.row.age = str(count), "0"
            rows.append(tally.row)
        try:
            stored = await link.execute(INSERT, columns_of(rows))
        except ValueRefused as error:
            if len(tallies) == 1:
                tallies[0].row = _bare(rows[0])
                _tell(rows[0], error)
                return
            for tally in tallies:
                await self._begin_rest(link, [tally], reasons)
            return
        for tally, count, row in zip(tallies, counts, stored, strict=True):
            tally.row_id = int(row[0])
            _written(tally, count, reasons)

    def _with_room(self, key: tuple[str, str], tally: _Tally | None, now: float) -> _Tally | None:
        """`tally` of `key`, or a new one; None where it may have no more rows."""
        if (key not in self._tallies and len(self._tallies) >= self._most) or not self._room.take(""):
            return None
        if tally is None:
            tally = self._tallies[key] = _Tally(now)
        return tally

    def _shared(self, row: EventRow, now: float) -> _Tally:
        """Of all that get no row, for the reason of `row`."""
        key = (None, row.verdict)
        tally = self._current(key, now)
        if tally is None:
            tally = self._tallies[key] = _Tally(now, row=_bare(row))
        return tally

    def _current(self, key: tuple[str | None, str], now: float) -> _Tally | None:
        """The tally of this minute; an older one is only ended once all of it is written down."""
        tally = self._tallies.get(key)
        return None if tally is not None and now - tally.began >= _MINUTE and not tally.more else tally

    def _forget(self, now: float) -> None:
        self._tallies = {
            key: tally for key, tally in self._tallies.items() if tally.more or now - tally.began < _MINUTE
        }


def _written(tally: _Tally, count: int, reasons: Counter[str]) -> None:
    tally.more -= count
    if tally.row is not None:
        reasons[tally.row.verdict] += count


def _bare(row: EventRow) -> EventRow:
    """Of `row` what our own words say."""
    return EventRow(row.verdict, row.status)


def _tell(row: EventRow, error: ValueRefused) -> None:
    seen = {"reason": row.verdict, "error": str(error)}
    _LOG.warning("a refusal could not be written down as it came", extra={"nexhealth": seen})
