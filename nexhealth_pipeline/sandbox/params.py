"""Query parameters: reading them, the types they may have, and what each filter keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from .reply import ApiError
from .rows import Row
from .times import parse_time

__all__ = ["Filter", "Query", "parse_bool", "parse_int", "same", "updated_since"]

_TRUE, _FALSE = frozenset({"true", "1"}), frozenset({"false", "0"})


@dataclass(frozen=True, slots=True)
class Query:
    """A request's query string, decoded; a blank value counts as absent."""

    values: Mapping[str, list[str]]

    @classmethod
    def parse(cls, raw: str) -> "Query":
        """Decode a query string."""
        values: dict[str, list[str]] = {}
        for name, value in parse_qsl(raw, keep_blank_values=True):
            values.setdefault(name, []).append(value)
        return cls(values)

    def get(self, name: str) -> str | None:
        """The last value of `name`, None where absent or blank."""
        found = self.values.get(name)
        return found[-1] or None if found else None

    def all(self, name: str) -> list[str]:
        """Every value of a repeated parameter, blanks left out."""
        return [value for value in self.values.get(name, ()) if value]


def parse_bool(name: str, text: str) -> bool:
    """`true` or `false`. Raises ApiError 400."""
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise ApiError(400, f"{name} is invalid")


def parse_int(name: str, text: str) -> int:
    """A whole number. Raises ApiError 400."""
    try:
        return int(text)
    except ValueError:
        raise ApiError(400, f"{name} is invalid") from None


def _parse_ints(name: str, texts: list[str]) -> frozenset[int]:
    return frozenset(parse_int(name, part) for text in texts for part in text.split(","))


def _parse_time(name: str, text: str, zone: str | None) -> str:
    try:
        return parse_time(text, ZoneInfo(zone)) if zone else parse_time(text)
    except (ValueError, ZoneInfoNotFoundError, OSError):
        raise ApiError(400, f"{name} is invalid") from None


@dataclass(frozen=True, slots=True)
class Filter:
    """One query parameter that selects rows.

    `kind` is bool, int, ints, text, time or choice; `default` applies when the parameter is absent, and is what
    hides rows (API.md E.1); `choices` are the values of a choice; `most` is the greatest number of ids. A `local`
    time without an offset is read in the request's `timezone`, any other in UTC.
    """

    kind: str
    keep: Callable[[Row, Any], bool]
    default: Any = None
    choices: tuple[str, ...] = ()
    most: int = 1000
    local: bool = False

    def read(self, name: str, query: Query) -> Any:
        """The parameter's value, or the default. Raises ApiError 400 for a value of another type."""
        if self.kind == "ints":
            return self._ids(name, query.all(name))
        text = query.get(name)
        if text is None:
            return self.default
        if self.kind == "bool":
            return parse_bool(name, text)
        if self.kind == "int":
            return parse_int(name, text)
        if self.kind == "time":
            return _parse_time(name, text, query.get("timezone") if self.local else None)
        if self.kind == "choice" and text not in self.choices:
            raise ApiError(400, f"{name} does not have a valid value")
        return text

    def _ids(self, name: str, texts: list[str]) -> frozenset[int] | None:
        ids = _parse_ints(name, texts)
        if len(ids) > self.most:
            raise ApiError(400, f"{name} accepts up to {self.most} ids")
        return ids or None


def same(kind: str, fact: str, default: Any = None) -> Filter:
    """A filter that compares a field with the parameter."""
    if kind == "ints":
        return Filter(kind, lambda row, wanted: row.value(fact) in wanted)
    return Filter(kind, lambda row, wanted: row.value(fact) == wanted, default)


updated_since = Filter("time", lambda row, since: row.updated >= since)
"""Inclusive, to the millisecond (API.md D.4)."""
