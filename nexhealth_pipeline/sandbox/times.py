"""Times as the API prints them: UTC, milliseconds, a Z. Two such texts compare as their times do."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

__all__ = ["Clock", "as_time", "parse_time", "stamp", "stamp_at"]

Clock = Callable[[], float]
"""Seconds since 1970; `time.time` or a test's own."""


def stamp(moment: datetime) -> str:
    """`moment` (aware) as the API prints it, cut to milliseconds."""
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def stamp_at(seconds: float) -> str:
    """The API's text of a clock reading."""
    return stamp(datetime.fromtimestamp(seconds, UTC))


def as_time(text: str) -> datetime:
    """The time a stamp means."""
    return datetime.fromisoformat(text)


def parse_time(text: str, zone: tzinfo = UTC) -> str:
    """A date or date-time parameter as a stamp; without an offset it is read in `zone`.

    Rounded up to the next millisecond, so that `stamp >= parsed` is the inclusive comparison of API.md D.4.
    Raises ValueError for anything that is not a date.
    """
    moment = datetime.fromisoformat(text.strip())
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone)
    try:
        if moment.microsecond % 1000:
            moment += timedelta(microseconds=1000 - moment.microsecond % 1000)
        return stamp(moment)
    except OverflowError as error:
        raise ValueError(text) from error
