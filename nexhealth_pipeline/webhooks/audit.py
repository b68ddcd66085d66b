"""Every refused request leaves a trace, and a flood of them leaves few rows.

Of one sender and reason, the first refusals of a minute get a row each; the rest are counted in the
`repeats` of one more row. The answer does not wait for any of it: bad requests must not slow good ones.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from psycopg.rows import TupleRow

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.webhooks.rows import INSERT, Row, columns_of

__all__ = ["Audit"]

_LOG = logging.getLogger(__name__)
_MINUTE = 60.0
_BATCH = 200
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
    row: Row | None = None
    """Stands for the rest."""
    row_id: int | None = None


class Audit:
    """Refusals that are not written down yet; bounded, whatever comes.

    `rows` is how many a minute get a row of their own, for one sender and reason; `most` how many senders and
    reasons are told apart (what comes beyond is counted without a source), and how many rows may wait.
    """

    def __init__(self, *, rows: int = 60, most: int = 1000, clock: Callable[[], float] = time.monotonic) -> None:
        self._rows, self._most, self._clock = rows, most, clock
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._waiting: deque[tuple[float, Row]] = deque()

    def note(self, sender: str, row: Row) -> None:
        """Remember the refusal `row` of `sender`."""
        now = self._clock()
        tally = self._tally(sender, row, now)
        if tally.rows < self._rows and len(self._waiting) < self._most:
            tally.rows += 1
            self._waiting.append((now, row))
        else:
            tally.more += 1
            if tally.row is None:
                tally.row = row if (sender, row.verdict) in self._tallies else Row(row.verdict, row.status)

    async def write(self, link: _Writes) -> None:
        """Write down what was noted. Raises WarehouseError; what was not written is kept for the next time."""
        now = self._clock()
        reasons: Counter[str] = Counter()
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            for at, row in batch:
                row.age = f"{now - at:.3f}"
            try:
                await link.execute(INSERT, columns_of([row for _, row in batch]))
            except WarehouseError:
                self._waiting.extendleft(reversed(batch))
                raise
            reasons.update(row.verdict for _, row in batch)
        await self._write_rest(link, reasons)
        self._forget(now)
        if reasons:
            _LOG.info("webhooks were refused", extra={"nexhealth": dict(reasons)})

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
        stored = await link.execute(INSERT, columns_of(rows))
        for tally, count, row in zip(tallies, counts, stored, strict=True):
            tally.row_id = int(row[0])
            _written(tally, count, reasons)

    def _tally(self, sender: str, row: Row, now: float) -> _Tally:
        key = (sender, row.verdict)
        if key not in self._tallies and len(self._tallies) >= self._most:
            key = ("", row.verdict)
        tally = self._tallies.get(key)
        if tally is None or (now - tally.began >= _MINUTE and not tally.more):
            tally = self._tallies[key] = _Tally(now, rows=0 if key[0] or not sender else self._rows)
        return tally

    def _forget(self, now: float) -> None:
        self._tallies = {
            key: tally for key, tally in self._tallies.items() if tally.more or now - tally.began < _MINUTE
        }


def _written(tally: _Tally, count: int, reasons: Counter[str]) -> None:
    tally.more -= count
    if tally.row is not None:
        reasons[tally.row.verdict] += count
