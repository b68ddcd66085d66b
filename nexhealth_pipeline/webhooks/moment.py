"""Times as a sender may write them: NexHealth documents neither the form of the `timestamp` header nor of `event_time`.

Taken are ISO 8601 with or without fraction and zone (none = UTC), and seconds or milliseconds since 1970
(API.md F.4). What is read here decides about freshness and order only; the signature is always over the
header's bytes as they came.
"""

import re
from datetime import UTC, datetime, timedelta

__all__ = ["moment_of"]

_NUMBER = re.compile(r"\d{1,14}(\.\d{1,9})?")
_FRACTION = re.compile(r"[.,](\d{1,20})")
_SPACED_ZONE = re.compile(r"\s+(?=(?:[+-]\d\d:?\d\d|Z|UTC)$)")
_MILLISECONDS_FROM = 1e11
"""A number this large counts milliseconds: as seconds it would be the year 5138."""
_EARLIEST, _LATEST = 1900, 2200
"""Years outside are nobody's clock."""


def moment_of(text: str) -> datetime | None:
    """The moment (UTC) that `text` names, None where it names none."""
    text = text.strip()
    if len(text) > 64 or not text.isascii():
        return None
    try:
        found = _since_epoch(float(text)) if _NUMBER.fullmatch(text) else _iso(text)
    except (ValueError, OverflowError):
        return None
    return found if _EARLIEST <= found.year <= _LATEST else None


def _since_epoch(number: float) -> datetime:
    seconds = number / 1000 if number >= _MILLISECONDS_FROM else number
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=seconds)


def _iso(text: str) -> datetime:
    """ISO 8601; fractions of any length, `UTC` as a zone and a space before the zone are taken too."""
    if ":" not in text and "T" not in text:
        raise ValueError("a day is no moment")
    text = _SPACED_ZONE.sub("", text)
    if text.endswith("UTC"):
        text = text.removesuffix("UTC") + "Z"
    text = _FRACTION.sub(lambda match: "." + match.group(1)[:6].ljust(6, "0"), text, count=1)
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
