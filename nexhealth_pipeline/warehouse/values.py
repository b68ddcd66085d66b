"""From one JSON value to the text PostgreSQL's COPY takes, strictly.

PostgreSQL accepts 'now', 'yesterday' and 'infinity' as dates, and quotes rejected values in its
errors; so every value is checked here and nothing is left for the server to refuse.
A converter returns text, or None for null, or raises RecordRefused with the rule that was broken.
"""

import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal

import msgspec

from nexhealth_pipeline.catalog.collection import SqlType
from nexhealth_pipeline.errors import RecordRefused

__all__ = [
    "CONVERTERS",
    "COPY_ESCAPES",
    "NULL",
    "YEARS",
    "Converter",
    "copy_text",
    "json_text",
    "replace_nul",
    "says_deleted",
    "utc_date",
]

NULL = "None"
"""Null in COPY's text: what Python writes for None, so that nothing must be asked whether it is null."""
COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})

YEARS = range(1900, 2201)
"""Those that a day or a time of a practice may be of; any other is a slip, or stands for none."""
Converter = Callable[[object], str | None]

_NUL, _NUL_SIGN = "\x00", "\u2400"
_LEAST_BIGINT, _MOST_BIGINT = -(2**63), 2**63 - 1
# ASCII: Python takes digits of every script for \d, PostgreSQL does not and would quote them in its error.
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,30}(\.\d{1,30})?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_CLOCK = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?"
# Offsets up to 15:59, the widest that PostgreSQL takes.
_ZONE = r" ?(Z|UTC|[+-](0\d|1[0-5])(:?[0-5]\d)?)"
_TIME = re.compile(_CLOCK + _ZONE, re.ASCII)
_TIME_OF_A_DAY = re.compile(f"{_CLOCK}(?P<zone>{_ZONE})?", re.ASCII)
# Of a day written in whatever order, or as 20240915 with or without a time.
_YEAR = re.compile(r"(?<!\d)\d{4}(?=\d{4}(?:\d{6})?(?!\d)|(?!\d))", re.ASCII)
_TRUE = ("true", "t", "yes", "y", "1")
_EPOCH = re.compile(r"\d{9,13}", re.ASCII)
_SECONDS_BEGIN = 100_000_000
"""1973 since 1970: fewer are a flag, a count or a day."""
_SECONDS_END = 7_289_654_400
"""The end of 2200 since 1970."""
_THOUSANDTHS_BEGIN = 315_532_800_000
"""1980 in thousandths: fewer are seconds, among them those up to the end of 9999, which stands for never."""
_encode_json = msgspec.json.Encoder().encode


def replace_nul(text: str) -> str:
    """NUL, which PostgreSQL's text cannot hold, as the sign for it."""
    return text.replace(_NUL, _NUL_SIGN) if _NUL in text else text


def _text(value: object) -> str | None:
    if isinstance(value, str):
        return replace_nul(value)
    if value is None:
        return None
    return replace_nul(_encode_json(value).decode())


def _bigint(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif value is None or value == "":
        return None
    elif isinstance(value, str) and _INTEGER.fullmatch(value):
        number = int(value)
    else:
        raise RecordRefused("", "not an integer")
    if not _LEAST_BIGINT <= number <= _MOST_BIGINT:
        raise RecordRefused("", "integer outside the range of bigint")
    return str(number)


def _boolean(value: object) -> str | None:
    if value is True:
        return "True"
    if value is False:
        return "False"
    if value is None or value == "":
        return None
    if value in ("true", "false"):
        return str(value).capitalize()
    raise RecordRefused("", "not true or false")


def _numeric(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and _NUMBER.fullmatch(str(value)):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f") if abs(value) < 1e30 else _refuse_number()
    return _refuse_number()


def _refuse_number() -> str:
    raise RecordRefused("", "not a decimal number of up to 30 digits")


def _double(value: object) -> str | None:
    if isinstance(value, float) and math.isfinite(value):
        return repr(value)
    return _numeric(value)


def _date(value: object) -> str | None:
    """A day; of a time its day as written, with a zone or without one.

    Midnight of whatever zone it is, as that of a birthday: moved, it is another's.
    """
    if isinstance(value, str) and (time := _TIME_OF_A_DAY.fullmatch(value)):
        _timestamptz(value if time["zone"] else value + "Z")
        value = value[: len("YYYY-MM-DD")]
    return _day(value)


def _day(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _DATE.fullmatch(value):
        raise RecordRefused("", "not a date of the form YYYY-MM-DD")
    try:
        year = date.fromisoformat(value).year
    except ValueError:
        raise RecordRefused("", "no such day in the calendar") from None
    if year not in YEARS:
        raise RecordRefused("", "year outside 1900-2200")
    return value


def utc_date(value: object) -> str | None:
    """A day that NexHealth describes as one of UTC (API.md E.0); of a time its day there, where it says its zone.

    The vendor's file has these as days where they are read, and as times where they are written.
    """
    if isinstance(value, str) and _TIME.fullmatch(value) and (moment := _timestamptz(value)) is not None:
        value = datetime.fromisoformat(moment).astimezone(UTC).date().isoformat()
    return _day(value)


def _timestamptz(value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise RecordRefused("", "not an ISO 8601 time with a zone")
    text = value
    if not value.endswith("Z") or value[-2] == " ":
        text = value.replace(" UTC", "Z").replace("UTC", "Z").replace(" Z", "Z").replace(" +", "+").replace(" -", "-")
    try:
        year = datetime.fromisoformat(text).year
    except ValueError:
        raise RecordRefused("", "no such moment") from None
    if year not in YEARS:
        raise RecordRefused("", "year outside 1900-2200")
    return text


def says_deleted(value: object) -> bool:
    """Whether what stands where the time of a deletion belongs says that there was one, as a time or not.

    A day of a year that records can be of does, in whatever order, as do the seconds or thousandths since 1970, and `true`.
    Nothing else: practice systems write 00/00/0000, 12/31/9999 or n/a for never, and taken for deletions, all would be gone.
    """
    if isinstance(value, str) and _EPOCH.fullmatch(value):
        value = int(value)
    if isinstance(value, int) and 10_000_000 <= value < _SECONDS_BEGIN:
        value = str(value)  # a day as 20240915
    if isinstance(value, int | float):
        return value == 1 or _SECONDS_BEGIN <= value < _SECONDS_END or _THOUSANDTHS_BEGIN <= value < _SECONDS_END * 1000
    if not isinstance(value, str):
        return False
    return value.strip().lower() in _TRUE or any(int(year) in YEARS for year in _YEAR.findall(value))


def copy_text(text: str, *, escaped: bool) -> str:
    """A text as COPY takes it; `escaped` = it may hold what must be escaped."""
    if text == NULL:
        return "\\" + NULL
    return text.translate(COPY_ESCAPES) if escaped else text


def json_text(value: object) -> str:
    """`value` as JSON that jsonb takes: NUL in texts and keys replaced."""
    encoded = _encode_json(value)
    if b"\\u0000" in encoded:
        encoded = _encode_json(_without_nul(value))
    return encoded.decode()


def _without_nul(value: object) -> object:
    if isinstance(value, str):
        return replace_nul(value)
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    if isinstance(value, dict):
        return {replace_nul(key): _without_nul(item) for key, item in value.items()}
    return value


def _jsonb(value: object) -> str | None:
    return None if value is None else json_text(value)


CONVERTERS: dict[SqlType, Converter] = {
    SqlType.TEXT: _text,
    SqlType.BIGINT: _bigint,
    SqlType.BOOLEAN: _boolean,
    SqlType.NUMERIC: _numeric,
    SqlType.DOUBLE: _double,
    SqlType.DATE: _date,
    SqlType.TIMESTAMPTZ: _timestamptz,
    SqlType.JSONB: _jsonb,
}
"""How each column type is written."""
