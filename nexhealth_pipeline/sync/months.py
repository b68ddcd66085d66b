"""Month slices of windowed collections: fixed keys, and the times each one asks for.

The first month owns everything earlier and the last everything later, so that no row falls between.
Each is read a day wider on both sides, because the API may round a window to a local day.
"""

from datetime import UTC, date, datetime, timedelta

__all__ = [
    "CHANGES",
    "FIRST_MONTH",
    "MONTHS_AHEAD",
    "month_bounds",
    "month_keys",
    "month_window",
    "utc_today",
    "widest_window",
]

FIRST_MONTH = date(2024, 7, 1)
"""Fixed, never relative to now: a partition key must mean the same for ever."""
MONTHS_AHEAD = 24
CHANGES = "changes"
"""Window key of the one change slice per location."""
_EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)
_WIDER = timedelta(days=1)


def utc_today() -> date:
    """The day by which months are counted: the same on every host."""
    return datetime.now(UTC).date()


def month_keys(today: date) -> list[str]:
    """Keys `YYYY-MM` from the first month to 24 months after `today`'s."""
    last = today.year * 12 + today.month - 1 + MONTHS_AHEAD
    first = FIRST_MONTH.year * 12 + FIRST_MONTH.month - 1
    return [f"{index // 12:04d}-{index % 12 + 1:02d}" for index in range(first, last + 1)]


def month_bounds(key: str, today: date) -> tuple[datetime, datetime]:
    """The times that month slice `YYYY-MM` owns: from the first, up to and without the second."""
    year, month = int(key[:4]), int(key[5:7])
    first = datetime(year, month, 1, tzinfo=UTC)
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
    start = _EARLIEST if first.date() <= FIRST_MONTH else first
    end = _LATEST if key >= month_keys(today)[-1] else following
    return start, end


def month_window(key: str, today: date) -> tuple[datetime, datetime]:
    """Start and end to ask for: what the slice owns, and a day on both sides."""
    start, end = month_bounds(key, today)
    return (start if start == _EARLIEST else start - _WIDER), (end if end == _LATEST else end + _WIDER)


def widest_window() -> tuple[datetime, datetime]:
    """The window of the change slice: everything."""
    return _EARLIEST, _LATEST
