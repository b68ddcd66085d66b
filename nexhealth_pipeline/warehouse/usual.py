"""Records as nearly all of them come, read and written in a few calls; every other one is the encoder's to look at.

A struct made from the declaration decodes a record and refuses undeclared keys and values of other types; then
one pattern checks what a type does not say: times, days, amounts, the length of indexed texts. What passes is
written as it stands. What does not is no fault yet: the encoder looks at each of its values, and an undeclared key
is learnt, so that the next record with it passes. Half of the time went into asking each value what its type had
said already (`benchmarks/TRIED.md`).

Where texts, whole numbers and truth values are all there is in it, a record is stored with its keys in the order of
jsonb: a seventh of the server's time for a record went into sorting them.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isinf
from operator import itemgetter
from typing import Annotated, Any

import msgspec

from nexhealth_pipeline.catalog.collection import Collection, Column, SqlType
from nexhealth_pipeline.warehouse.drift import is_plain_name, known_keys
from nexhealth_pipeline.warehouse.values import NULL, copy_text, json_text

__all__ = ["INDEXED_BYTES", "Usual", "UsualRecords", "arranged", "id_place", "is_odd", "is_too_deep", "must_be_short"]

INDEXED_BYTES = 1000
"""Longest text of an indexed column: an entry of two must fit into a third of PostgreSQL's 8 KB page."""

_Key = tuple[tuple[str, ...], str]
"""The object that a key stands in, by the keys to it, and the key."""
_ABSENT = "\x00"
"""Stands for an absent key: no text of a record that is read here holds it."""
_MOST_LEARNT = 50
"""Undeclared keys that are passed over: an object keyed by anything would make a struct a record."""
_ODD_NUMBER, _LONG_NUMBER = re.compile(rb"[\s:,\[]-?\d[\d.]*[eE][+-]?\d{4}"), re.compile(rb"\d{4000}")
"""Perhaps a number with more than the 16,383 decimals that PostgreSQL's numeric, and so jsonb, holds, or a power of ten
that it refuses, were it of zero."""
_ODD_EXPONENT = re.compile(r"[eE][+-]?\d{4}")

_MOST_DEEP = 600
_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)

_BIGINT = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_TYPES: dict[SqlType, Any] = {
    SqlType.TEXT: str,
    SqlType.BIGINT: _BIGINT,
    SqlType.BOOLEAN: bool,
    SqlType.NUMERIC: Any,
    SqlType.DOUBLE: Any,
    SqlType.DATE: str,
    SqlType.TIMESTAMPTZ: str,
    SqlType.JSONB: Any,
}
"""Types of values; whether a text is a number the pattern says.

None of them may be float: :func:`_usual_float`, which keeps out what jsonb refuses, is asked only of numbers in fields
that may be anything. Where a number must be whole the decoder itself refuses any point or exponent (`0e99999` too), but
only while it is strict.
"""
# Written so that whatever matches is in the calendar: asking the calendar itself takes three times as long. February
# 29, the year 2200 and everything that is rarer are looked at by the encoder.
_DAY = (
    r"(?:19|2[01])\d\d-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)"
    r"|(?:0[13578]|1[02])-31)"
)
_NUMBER = r"[+-]?\d{1,30}(?:\.\d{1,30})?"
_LOOKS: dict[SqlType, str] = {
    SqlType.DATE: _DAY,
    SqlType.TIMESTAMPTZ: _DAY + r"T(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,9})?Z",
    SqlType.NUMERIC: _NUMBER,
    SqlType.DOUBLE: _NUMBER,
}
_LOOSE = (SqlType.JSONB, SqlType.NUMERIC, SqlType.DOUBLE)
_PASSED_OVER: dict[str, Any] = {"institution_id": int | str | None}
"""Types of keys that are known and no columns; all others may hold anything."""
_encode = msgspec.json.Encoder().encode
_SHORT = rf"[^\t]{{0,{INDEXED_BYTES // 4}}}"


class Usual(msgspec.Struct, frozen=True, gc=False):
    """What is written of one record. A struct, since one is made for each."""

    fields: str
    """Its columns as COPY takes them, in the order of :func:`arranged`."""
    id: int | None
    """Value of column `id`, where there is one."""
    absent: list[str]
    """Columns whose key the record has not."""
    stored: str
    """The record as JSON."""


@dataclass(frozen=True, slots=True)
class _Object:
    """One object of a record: its struct, and the objects in it by their place among its fields."""

    struct: type[msgspec.Struct]
    inner: "tuple[tuple[int, _Object], ...]"
    width: int
    """Values of it and all that is in it."""

    def values(self, value: object) -> tuple[object, ...]:
        """The values of its fields, then those of the objects in it; of one that is null or absent, that for each."""
        if value.__class__ is not self.struct:
            return (value,) * self.width
        values: tuple[object, ...] = msgspec.structs.astuple(value)
        for at, inner in self.inner:
            values += inner.values(values[at])
        return values


class UsualRecords:
    """Reads the records of one collection. What it has learnt is of one read, so each encoder has its own."""

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._learnt: frozenset[_Key] = frozenset()
        self._reader = _reader(collection, self._learnt)

    def read(self, raw: bytes) -> Usual | None:
        """What is written of `raw`, or None where each of its values must be looked at."""
        return self._reader.read(raw)

    def learn(self, record: Mapping[str, object]) -> None:
        """Pass over the undeclared keys of `record` from now on; those too sensitive to keep must be gone from it."""
        learnt = self._learnt.union(self._reader.undeclared(record))
        if self._learnt < learnt and len(learnt) <= _MOST_LEARNT:
            self._learnt, self._reader = learnt, _reader(self._collection, learnt)


class _Reader:
    """Reads the records of one collection that may have the keys learnt as well; never changes."""

    def __init__(self, collection: Collection, learnt: frozenset[_Key]) -> None:
        self._collection = collection
        self._columns = arranged(collection)
        self._names = [column.name for column in self._columns]
        self._template = "\t".join(["%s"] * len(self._columns))
        self._looks_well = _pattern(collection, self._columns).match
        self._json = [at for at, column in enumerate(self._columns) if column.type is SqlType.JSONB]
        self._id_at = id_place(self._columns)
        self._dropped = {path[-1] for path in collection.sensitive}
        self._sensitive = tuple(b'"%s"' % name.encode() for name in self._dropped)
        # Keys that may stand in an object; one too sensitive to keep may not.
        self._known = {
            place: {*keys, *(key for at, key in learnt if at == place)} - self._dropped
            for place, keys in known_keys(collection).items()
        }
        # What a number too odd for `raw`, or a key too sensitive for it, may stand in.
        self._holds_any = any(column.type in _LOOSE for column in self._columns)
        order: list[Column | None] = []
        self._root = self._object((), order)
        self._decode = msgspec.json.Decoder(self._root.struct, float_hook=_usual_float).decode
        places = [order.index(column) for column in self._columns]
        self._arrange: Any = itemgetter(*places) if len(places) > 1 else tuple

    def read(self, raw: bytes) -> Usual | None:
        """What is written of `raw`, or None where each of its values must be looked at."""
        escaped = b"\\" in raw
        if (self._holds_any and self._is_suspect(raw)) or (escaped and b"\\u0000" in raw):
            return None
        try:
            record = self._decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        values = self._arrange(self._root.values(record))
        if escaped or self._json or NULL in values:
            values = self._written(values, escaped=escaped)
        fields = self._template % values
        if self._looks_well(fields) is None:
            return None
        found = None if self._id_at is None else values[self._id_at]
        id_ = found if found.__class__ is int else None
        stored = (raw if self._holds_any else _encode(record)).decode()
        absent: list[str] = []
        if _ABSENT in fields:
            at = -1
            for _ in range(fields.count(_ABSENT)):
                at = values.index(_ABSENT, at + 1)
                absent.append(self._names[at])
            fields = fields.replace(_ABSENT, NULL)
        return Usual(fields, id_, absent, stored)

    def undeclared(self, record: Mapping[str, object]) -> Iterator[_Key]:
        """Keys of the record that may not stand there, and could be learnt."""
        for place, known in self._known.items():
            value: object = record
            for key in place:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, dict):
                yield from ((place, key) for key in value.keys() - known - self._dropped if is_plain_name(key))

    def _object(self, place: tuple[str, ...], order: list[Column | None]) -> _Object:
        """The object at `place`; appends its fields to `order` as their values come, None for what is no column."""
        depth = len(place)
        own = {column.path[-1]: column for column in self._columns if column.path[:-1] == place}
        below = {
            column.path[depth]
            for column in self._columns
            if len(column.path) > depth + 1 and column.path[:depth] == place
        }
        keys = sorted(self._known[place] | own.keys() | below, key=_as_jsonb_sorts)
        order += [own.get(key) for key in keys]
        inner = {key: self._object((*place, key), order) for key in keys if key in below}
        types = {key: _PASSED_OVER.get(key, Any) for key in keys}
        types |= {key: _TYPES[column.type] for key, column in own.items()}
        types |= {key: one.struct for key, one in inner.items()}
        needed = {key for key, column in own.items() if column.name in self._collection.key}
        needed |= {key for key in inner if self._holds_key((*place, key))}
        self._holds_any |= Any in types.values()
        # Any key may be one of JSON's, and so may not name a field.
        names = {f"f{number}": key for number, key in enumerate(keys)}
        struct = msgspec.defstruct(
            "Usual",
            [
                (name, types[key]) if key in needed else (name, types[key] | None, _ABSENT)
                for name, key in names.items()
            ],
            rename=names,
            forbid_unknown_fields=True,
            kw_only=True,
            omit_defaults=True,
            gc=False,
        )
        found = tuple((keys.index(key), one) for key, one in inner.items())
        return _Object(struct, found, len(keys) + sum(one.width for one in inner.values()))

    def _holds_key(self, place: tuple[str, ...]) -> bool:
        keys = [column for column in self._columns if column.name in self._collection.key]
        return any(column.path[: len(place)] == place for column in keys)

    def _is_suspect(self, raw: bytes) -> bool:
        """Whether what is passed over or kept as JSON may hold something that must not be stored, or cannot be."""
        hidden = self._sensitive and (b"\\u" in raw or any(name in raw for name in self._sensitive))
        return bool(hidden) or _is_long(raw)

    def _written(self, values: tuple[object, ...], *, escaped: bool) -> tuple[object, ...]:
        """Values as COPY takes them, where some of them are not written as they stand."""
        written = list(values)
        for at in self._json:
            if (value := values[at]) is not None and value is not _ABSENT:
                written[at] = json_text(value)
        return tuple([copy_text(one, escaped=escaped) if one.__class__ is str else one for one in written])


@lru_cache(maxsize=200)
def _reader(collection: Collection, learnt: frozenset[_Key]) -> _Reader:
    """Made once for all slices: that takes half a millisecond, as long as 30 records, and most slices of a night hold none."""
    return _Reader(collection, learnt)


def _as_jsonb_sorts(key: str) -> tuple[int, bytes]:
    """The order in which PostgreSQL keeps the keys of an object; where they come so, it need not sort them."""
    written = key.encode()
    return len(written), written


@cache
def arranged(collection: Collection) -> tuple[Column, ...]:
    """The columns in the order they are written in: first those whose text must be looked at."""
    return tuple(sorted(collection.columns, key=lambda column: not _look(collection, column)))


def id_place(columns: Sequence[Column]) -> int | None:
    """Which of the columns is the record's own id, where it has one."""
    return next((at for at, one in enumerate(columns) if one.name == "id" and one.type is SqlType.BIGINT), None)


def must_be_short(collection: Collection, column: Column) -> bool:
    """Whether the column is indexed."""
    return column.name in {*collection.key, *(name for index in collection.indexes for name in index)}


def is_odd(raw: bytes) -> bool:
    """Whether `raw` may hold a number that jsonb refuses; the search is spared where it cannot."""
    may_be = b"e-" in raw or b"E-" in raw or b"0e" in raw or b"0E" in raw  # what is no zero no decoder takes
    return (may_be and _ODD_NUMBER.search(raw) is not None) or _is_long(raw)


def _is_long(raw: bytes) -> bool:
    """Whether `raw` may hold a number that jsonb refuses for its digits; most records are too short to be searched."""
    return len(raw) > 4000 and _LONG_NUMBER.search(raw) is not None


def _usual_float(text: str) -> float:
    """A number with a point or an exponent. Raises ValueError for one that jsonb may refuse.

    Numbers are few: asking each costs less than a search of every record for what they must not be.
    """
    number = float(text)
    if _ODD_EXPONENT.search(text) or isinf(number):
        raise ValueError
    return number


def is_too_deep(raw: bytes) -> bool:
    """Whether objects and lists in `raw` stand in each other deeper than is safe for every parser on its way.

    Python's refuse at a depth that differs with its version, PostgreSQL's at one that differs with its settings.
    """
    # Each needs two brackets, so most records are too short to be looked at, and nearly all others have too few.
    if len(raw) <= 2 * _MOST_DEEP or raw.count(b"{") + raw.count(b"[") <= _MOST_DEEP:
        return False
    depth = 0
    for found in _BRACKET.finditer(raw):
        token = found[0]
        depth += (token in (b"{", b"[")) - (token in (b"}", b"]"))
        if depth > _MOST_DEEP:
            return True
    return False


def _look(collection: Collection, column: Column) -> str:
    """What the text of a column must look like; empty where its type says all."""
    if column.type is SqlType.TEXT:
        return _SHORT if must_be_short(collection, column) else ""
    return _LOOKS.get(column.type, "")


def _pattern(collection: Collection, columns: tuple[Column, ...]) -> re.Pattern[str]:
    """Matches the fields of a record whose texts look as they must."""
    looks = [(column, look) for column in columns if (look := _look(collection, column))]
    parts = [look if column.name in collection.key else f"(?:{look}|{NULL}|{_ABSENT})" for column, look in looks]
    # ASCII: Python takes digits of every script for such, PostgreSQL does not.
    return re.compile("\t".join(parts) + r"(?:\t|\Z)" if parts else "", re.ASCII)
