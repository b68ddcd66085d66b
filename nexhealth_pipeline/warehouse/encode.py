"""From a record's JSON bytes to one line of COPY text for its collection's stage.

The line holds key and source columns, the raw record, a content hash and which declared keys were
absent (an absent key keeps its old value, an explicit null overwrites it). What cannot be loaded is
noted for quarantine: a bad field becomes null, a record without a usable key is refused whole.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as made_with
from datetime import datetime
from functools import partial
from itertools import groupby, repeat

import msgspec

from nexhealth_pipeline.catalog.collection import Collection, SqlType
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.warehouse.drift import DriftWatch
from nexhealth_pipeline.warehouse.values import CONVERTERS, Converter, json_text

__all__ = ["Encoded", "Note", "RecordEncoder"]

_AS_TEXT, _AS_BIGINT = CONVERTERS[SqlType.TEXT], CONVERTERS[SqlType.BIGINT]
_decode = msgspec.json.Decoder(dict[str, object]).decode
_ABSENT = object()
_ABSENTS = repeat(_ABSENT)
_NULL = "\\N"
_SHAPES = 1000
"""Most shapes of a collection that are remembered; records of a practice have a few dozen."""
_INDEXED_BYTES = 1000
"""Longest text of an indexed column: an entry of two must fit into a third of PostgreSQL's 8 KB page."""
_ID_DIGITS = 19
_FIRST_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"?(\d{1,19})"?\s*[,}]')
_ODD_NUMBERS = tuple(re.compile(one) for one in (rb"e-\d{4}", rb"E-\d{4}", rb"\d{4000}"))
"""Perhaps a number with more than the 16,383 decimals that PostgreSQL's numeric, and so jsonb, holds."""
_COPY_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})


@dataclass(frozen=True, slots=True)
class Note:
    """Why a record (or one field of it) could not be loaded. Holds PHI in `raw`: never log it."""

    record_id: str
    field: str
    rule: str
    loaded: bool
    raw: bytes
    request: Mapping[str, int] = made_with(default_factory=dict)
    """What the request knew of the record and the record does not say: all that is needed to load it later."""
    owner: str = ""
    """The part of it that is in the row's key: the same bytes inside two charges are two records."""
    read_at: datetime | None = None

    @property
    def fingerprint(self) -> bytes:
        """The same for the same fault of the same content, so that a re-read adds no second note."""
        digest = hashlib.blake2b(self.raw, digest_size=16)
        digest.update(f"\0{self.field}\0{self.rule}".encode())
        if self.owner:
            digest.update(f"\0{self.owner}".encode())
        return digest.digest()

    def __repr__(self) -> str:
        return f"Note(field={self.field!r}, rule={self.rule!r}, loaded={self.loaded})"


@dataclass(frozen=True, slots=True)
class _Field:
    """How one column's value is found and written."""

    name: str
    outer: tuple[str, ...]
    """Keys to the object that holds it; the same tuple, not only an equal one, for all columns of one object."""
    key: str
    convert: Converter
    in_key: bool
    """Part of the table's key: without it the record is refused."""
    indexed: bool


@dataclass(frozen=True, slots=True)
class _Shape:
    """How records are written whose values have the same types, column by column."""

    template: str
    """Takes every value, and writes null for those that are null or absent."""
    conversions: tuple[tuple[int, Converter], ...]
    """Values that are not written as they stand."""
    absent: list[str]
    keys: int
    """Keys of the record and of the objects in it where all are declared; -1 = that says not all of it."""


@dataclass(slots=True)
class Encoded:
    """Lines for COPY, and what could not be loaded."""

    lines: list[str] = made_with(repr=False)
    notes: list[Note]
    ids: list[int]
    """Value of `id` per line, where the collection has one (membership, rotation)."""
    hashes: list[str]
    """Fingerprint of the content per line, as hexadecimal digits."""


class RecordEncoder:
    """Encodes records of one collection; made once per slice, cheap per record."""

    def __init__(self, collection: Collection, institution_id: int | None) -> None:
        self._collection = collection
        self._institution = None if institution_id is None else str(institution_id)
        self._fields = _fields(collection)
        # Columns of the same object in a row.
        self._runs = tuple(
            (outer, tuple(field.key for field in run))
            for outer, run in groupby(self._fields, lambda field: field.outer)
        )
        self._outers = tuple({outer for outer, _ in self._runs if outer})
        self._shapes: dict[tuple[type, ...], _Shape | None] = {}
        self._request_columns = collection.from_request
        self._sensitive = tuple((path[-1], path[-1].encode()) for path in collection.sensitive)
        names = [column.name for column in collection.columns]
        self._id_at = names.index("id") if "id" in names else None
        self.drift = DriftWatch(collection)
        """What the records held that is not as declared."""

    @property
    def institution_id(self) -> int | None:
        """The institution of all rows; None where each record names its own."""
        return None if self._institution is None else int(self._institution)

    @property
    def stage_columns(self) -> tuple[str, ...]:
        """Names of the line's columns, in order."""
        return (
            "institution_id",
            *(column.name for column in self._request_columns),
            *(column.name for column in self._collection.columns),
            "raw",
            "source_read_at",
            "row_hash",
            "absent",
        )

    def encode(self, records: list[bytes], read_at: datetime, request: Mapping[str, int]) -> Encoded:
        """Encode one answer's records, read at `read_at`; `request` fills the `from_request` columns."""
        encoded = Encoded([], [], [], [])
        known = [str(request[column.name]) for column in self._request_columns]
        read_text = read_at.isoformat()
        for raw in records:
            try:
                encoded.lines.append(self._line(raw, known, read_text, encoded))
            except RecordRefused as refused:
                encoded.notes.append(
                    Note(_id_of(raw), refused.field, refused.rule, loaded=False, raw=self._blotted(raw))
                )
            except RecursionError:
                encoded.notes.append(Note(_id_of(raw), "", "nested too deep", loaded=False, raw=self._blotted(raw)))
        if encoded.notes:
            of_request = {column.name: request[column.name] for column in self._request_columns}
            owner = ",".join(str(value) for name, value in of_request.items() if name in self._collection.key)
            encoded.notes = [replace(note, request=of_request, owner=owner, read_at=read_at) for note in encoded.notes]
        return encoded

    def _blotted(self, raw: bytes) -> bytes:
        """The bytes of a record that is not even JSON, cut where a key too sensitive to keep begins."""
        ends = [raw.find(b'"%s"' % path[-1].encode()) for path in self._collection.sensitive]
        return raw[: min((end for end in ends if end >= 0), default=len(raw))]

    def _line(self, raw: bytes, known: list[str], read_text: str, encoded: Encoded) -> str:
        record = _parse(raw)
        # What COPY would take for something else can only come of an escape in the JSON; most records have none.
        plain = b"\\" not in raw
        stored, values, shape = self._looked_at(raw, record, plain=plain)
        absent: list[str] = []
        faults: list[RecordRefused] = []
        fields = None if shape is None else _written(values, shape)
        if shape is not None and fields is not None:
            absent = shape.absent
        else:
            texts = self._values(record, absent, faults)
            values = [_NULL if text is None else text if plain else text.translate(_COPY_ESCAPES) for text in texts]
            fields = "\t".join(map(str, values))
        institution = self._institution or self._institution_of(record)
        self.drift.see(record, institution, absent, faults)
        missing = ",".join(absent)
        row_hash = hashlib.blake2b(f"{fields}\0{missing}".encode(), digest_size=16).hexdigest()
        for fault in faults:
            note = Note(_digits(record.get("id")), fault.field, fault.rule, loaded=True, raw=stored.encode())
            encoded.notes.append(note)
        if self._id_at is not None and (identifier := values[self._id_at]) != _NULL:
            encoded.ids.append(int(str(identifier)))
        encoded.hashes.append(row_hash)
        return "\t".join(
            (
                institution,
                *known,
                fields,
                stored if plain and not _is_spread(raw) else stored.translate(_COPY_ESCAPES),
                read_text,
                "\\\\x" + row_hash,
                "{" + missing + "}" if absent else _NULL,
            )
        )

    def _looked_at(
        self, raw: bytes, record: dict[str, object], *, plain: bool
    ) -> tuple[str, list[object], _Shape | None]:
        """The JSON to store, with the values and their shape; the shape is None where each value must be looked at."""
        values, shape = self._shaped(record) if plain else ([], None)
        if shape is not None and self._is_closed(record, shape):
            return raw.decode(), values, shape
        # Before anything is taken from it: a jsonb column may hold the whole object around a dropped key.
        stored = self._stored_text(raw, record)
        return (stored, *self._shaped(record)) if plain else (stored, [], None)

    def _shaped(self, record: dict[str, object]) -> tuple[list[object], _Shape | None]:
        """All values as they are, and how values of these types are written; None where each must be looked at.

        Types are looked at all at once, so that nothing is asked of a value whose type says all: half of the time.
        """
        values: list[object] = []
        for outer, keys in self._runs:
            holder = _at(record, outer)
            if holder.__class__ is not dict:
                return values, None
            values += map(holder.get, keys, _ABSENTS)
        kinds = tuple(map(type, values))
        if kinds not in self._shapes:
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            self._shapes[kinds] = self._shape_of(values)
        return values, self._shapes[kinds]

    def _shape_of(self, values: list[object]) -> _Shape | None:
        """The shape of such values; None where a part of the key is missing."""
        parts: list[str] = []
        conversions: list[tuple[int, Converter]] = []
        absent: list[str] = []
        keys = len(self._outers) if all(len(outer) == 1 for outer in self._outers) else -1
        for at, (field, value) in enumerate(zip(self._fields, values, strict=True)):
            if value is _ABSENT:
                absent.append(field.name)
            if value is None or value is _ABSENT:
                if field.in_key:
                    return None
                parts.append("%.0s" + _NULL)
                continue
            parts.append("%s")
            if field.indexed or field.convert is not _AS_TEXT or value.__class__ is not str:
                checked = field.in_key or (field.indexed and value.__class__ not in (int, bool))
                conversions.append((at, partial(_converted, field) if checked else field.convert))
            if value.__class__ not in (str, bool) and field.convert is not _AS_BIGINT:
                keys = -1
        if keys >= 0:
            keys += len(values) - len(absent)
        return _Shape("\t".join(parts), tuple(conversions), absent, keys)

    def _is_closed(self, record: dict[str, object], shape: _Shape) -> bool:
        """Whether a record has nothing but declared keys with plain values: then nothing in it is to be dropped."""
        found = len(record) - ("institution_id" in record)
        for outer in self._outers:
            found += len(record[outer[0]])  # type: ignore[arg-type]
        return found == shape.keys

    def _values(self, record: dict[str, object], absent: list[str], faults: list[RecordRefused]) -> list[str | None]:
        """Every column's text; notes absent keys, turns a bad value of a plain column into null."""
        values: list[str | None] = []
        outer: tuple[str, ...] = ()
        holder: object = record
        for field in self._fields:
            if field.outer is not outer:
                outer = field.outer
                holder = _at(record, outer)
            value = holder.get(field.key, _ABSENT) if holder.__class__ is dict else holder
            if value is None or value is _ABSENT:
                if value is _ABSENT:
                    absent.append(field.name)
                if field.in_key:
                    raise RecordRefused(field.name, "missing, and it is part of the key")
                values.append(None)
                continue
            try:
                values.append(_converted(field, value, holder))
            except RecordRefused as refused:
                fault = RecordRefused(field.name, refused.rule)
                if field.in_key:
                    raise fault from None
                faults.append(fault)
                values.append(None)
        return values

    def _institution_of(self, record: dict[str, object]) -> str:
        value: object = record
        for key in self._collection.institution_at or ():
            value = value.get(key) if isinstance(value, dict) else None
        text = CONVERTERS[SqlType.BIGINT](value)
        if text is None:
            raise RecordRefused("institution_id", "missing, and it is part of the key")
        return text

    def _stored_text(self, raw: bytes, record: dict[str, object]) -> str:
        """Remove the keys too sensitive to keep from `record`; its JSON without them and without NUL."""
        # The key stands in the bytes as it is, or escaped; most records have neither and need no search.
        names = [name for name, written in self._sensitive if written in raw or b"\\u" in raw]
        dropped = [_drop(record, name) for name in names]
        if any(dropped) or b"\\u0000" in raw or _maybe_odd(raw):
            return json_text(record)
        return raw.decode()


def _id_of(raw: bytes) -> str:
    """The id of a record that is perhaps no JSON, where it comes first, as NexHealth has it; else empty."""
    found = _FIRST_ID.match(raw)
    return found[1].decode() if found else ""


def _digits(value: object) -> str:
    """An id as text; empty for anything else, which may be a person's data."""
    text = str(value)
    return text if len(text) <= _ID_DIGITS and text.isascii() and text.isdigit() else ""


def _parse(raw: bytes) -> dict[str, object]:
    """A record's object; refuses what is no JSON object, NaN, lone surrogates, absurd nesting."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise RecordRefused("", "not a JSON object that can be stored") from None


def _is_spread(raw: bytes) -> bool:
    """Whether JSON is written over lines or with tabs, which COPY takes for its own."""
    return b"\n" in raw or b"\t" in raw or b"\r" in raw


def _maybe_odd(raw: bytes) -> bool:
    """Whether `raw` may hold a number that jsonb refuses; the search is spared where it cannot."""
    small, large, long = _ODD_NUMBERS
    return (
        (b"e-" in raw and small.search(raw) is not None)
        or (b"E-" in raw and large.search(raw) is not None)
        or (len(raw) > 4000 and long.search(raw) is not None)
    )


def _require_short(text: str | None) -> None:
    """Raise RecordRefused for what PostgreSQL could not put into an index (its error would end the load)."""
    if text is not None and len(text) > _INDEXED_BYTES // 4 and len(text.encode()) > _INDEXED_BYTES:
        raise RecordRefused("", f"longer than {_INDEXED_BYTES} bytes in an indexed column")


def _fields(collection: Collection) -> tuple[_Field, ...]:
    indexed = {*collection.key, *(name for index in collection.indexes for name in index)}
    outers: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    return tuple(
        _Field(
            column.name,
            outers.setdefault(column.path[:-1], column.path[:-1]),
            column.path[-1],
            CONVERTERS[column.type],
            column.name in collection.key,
            column.name in indexed,
        )
        for column in collection.columns
    )


def _converted(field: _Field, value: object, holder: object = None) -> str | None:
    """The text of a value that is neither null nor absent. Raises RecordRefused."""
    if value is holder:
        raise RecordRefused("", "the object around it is none")
    text = field.convert(value)
    if field.indexed:
        _require_short(text)
    if text is None and field.in_key:
        raise RecordRefused(field.name, "missing, and it is part of the key")
    return text


def _written(values: list[object], shape: _Shape) -> str | None:
    """The fields of values as COPY takes them; None where one of them is at fault. Puts texts in their place."""
    try:
        for at, convert in shape.conversions:
            text = convert(values[at])
            values[at] = _NULL if text is None else text
    except RecordRefused:
        return None
    return shape.template % tuple(values)


def _at(record: dict[str, object], path: tuple[str, ...]) -> object:
    """The object at `path`; None below a null, _ABSENT where a key is missing, else what stands in its place."""
    value: object = record
    for key in path:
        if value.__class__ is not dict:
            return value
        value = value.get(key, _ABSENT)
        if value == "":  # some practice systems write an empty text for no object
            return None
    return value


def _drop(value: object, name: str) -> bool:
    """Remove the key `name` wherever it stands in `value`, a list in the place of an object included; whether it did."""
    if isinstance(value, list):
        return sum(_drop(item, name) for item in value) > 0  # all of them, not only the first
    if not isinstance(value, dict):
        return False
    found = value.pop(name, _ABSENT) is not _ABSENT
    return sum(_drop(item, name) for item in value.values()) > 0 or found
