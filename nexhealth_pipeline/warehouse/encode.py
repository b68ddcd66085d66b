"""From a record's JSON bytes to one line of COPY text for its collection's stage.

The line holds key and source columns, the raw record, a content hash and which declared keys were
absent (an absent key keeps its old value, an explicit null overwrites it). What cannot be loaded is
noted for quarantine: a bad field becomes null, a record without a usable key is refused whole.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from dataclasses import field as made_with
from datetime import datetime
from hashlib import blake2b

import msgspec

from nexhealth_pipeline.catalog.collection import Collection, SqlType
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.warehouse.drift import DriftWatch
from nexhealth_pipeline.warehouse.sensitive import as_written
from nexhealth_pipeline.warehouse.usual import (
    INDEXED_BYTES,
    Usual,
    UsualRecords,
    arranged,
    id_place,
    is_odd,
    is_too_deep,
    must_be_short,
)
from nexhealth_pipeline.warehouse.values import (
    CONVERTERS,
    COPY_ESCAPES,
    NULL,
    Converter,
    copy_text,
    json_text,
    says_deleted,
    utc_date,
)

__all__ = ["HASH_BEGINS", "Encoded", "Note", "RecordEncoder"]

_decode = msgspec.json.Decoder(dict[str, object]).decode
_ABSENT = object()
_ID_DIGITS = 19
HASH_BEGINS = 2
"""Bytes of a row's hash that tell what it is of, in which order: those of an earlier release begin otherwise."""
_HASH_ENDS = 14
_FIRST_ID = re.compile(rb'\s*\{\s*"id"\s*:\s*"?(\d{1,19})"?\s*[,}]')


@dataclass(frozen=True, slots=True)
class Note:
    """Why a record (or one field of it) could not be loaded. Holds PHI in `raw`: never log it."""

    record_id: str
    field: str
    rule: str
    loaded: bool
    raw: bytes
    request: Mapping[str, int] = made_with(default_factory=dict)
    """What the request knew of the record: all that is needed to load it later, and whose list it stood in."""
    owner: str = ""
    """The part of it that is in the row's key: the same bytes inside two charges are two records."""
    key: str = ""
    """Its own part of the row's key, where the record could be read; counts where it has no id."""
    read_at: datetime | None = None

    @property
    def fingerprint(self) -> bytes:
        """The same for the same fault of the same record, so that a re-read adds no second note.

        Not of its content, where it says which record it is: that has times that move with each look at the practice system.
        """
        which = self.record_id or self.key
        digest = blake2b(f"of\0{which}".encode() if which else self.raw, digest_size=16)
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


@dataclass(slots=True)
class Encoded:
    """Lines for COPY, and what could not be loaded."""

    lines: list[str] = made_with(default_factory=list, repr=False)
    """Of each record, all that a table takes."""
    lacking: list[str] = made_with(default_factory=list)
    """Names of the columns whose key the record has not, as an array."""
    notes: list[Note] = made_with(default_factory=list)
    ids: list[int] = made_with(default_factory=list)
    """Value of `id` per line, where the collection has one (membership, rotation)."""
    hashes: list[str] = made_with(default_factory=list)
    """Fingerprint of the content per line, as hexadecimal digits."""

    def add(self, other: "Encoded") -> None:
        """Append another answer's."""
        self.lines += other.lines
        self.lacking += other.lacking
        self.notes += other.notes
        self.ids += other.ids
        self.hashes += other.hashes

    def staged(self) -> list[str]:
        """Lines as the stage takes them."""
        return [f"{line}\t{lacking}" for line, lacking in zip(self.lines, self.lacking, strict=True)]


class RecordEncoder:
    """Encodes records of one collection; made once per slice, cheap per record."""

    def __init__(self, collection: Collection, institution_id: int | None) -> None:
        self._collection = collection
        self._institution = None if institution_id is None else str(institution_id)
        self._fields = _fields(collection)
        self._usual = UsualRecords(collection)
        self._request_columns = collection.from_request
        columns = (*(column.name for column in collection.from_request), *collection.parent_columns)
        self._noted = tuple(dict.fromkeys(columns))
        """What notes keep of a request."""
        self._sensitive = tuple((path[-1], b'"%s"' % path[-1].encode()) for path in collection.sensitive)
        self._hidden = as_written(frozenset(name for name, _ in self._sensitive))
        self._id_at = id_place(arranged(collection))
        self._version_at = next((at for at, one in enumerate(self._fields) if one.name == collection.version), None)
        self._deleted_at = next((at for at, one in enumerate(self._fields) if one.name == collection.soft_delete), None)
        """Which of the fields is the API's own deletion time."""
        self._deleted_if = collection.deleted_if
        self._deleted = re.compile(rb'"%s"\s*:\s*+(?!false|null)' % (collection.deleted_if or "").encode())
        # What only the request knows is content where the record may move: its bytes are the same in another list.
        self._told_at = [at for at, one in enumerate(self._request_columns) if one.name in collection.list_columns]
        hashed = ",".join((*self.stage_columns, *collection.list_columns))
        self._hash_begins = blake2b(hashed.encode(), digest_size=HASH_BEGINS).hexdigest()
        self.drift = DriftWatch(collection)
        """What the records held that is not as declared."""

    @property
    def institution_id(self) -> int | None:
        """The institution of all rows; None where each record names its own."""
        return None if self._institution is None else int(self._institution)

    @property
    def stage_columns(self) -> tuple[str, ...]:
        """Names of a staged line's columns, in order; the last is not of the table."""
        return (
            "institution_id",
            *(column.name for column in self._request_columns),
            *(field.name for field in self._fields),
            *(("deleted_at",) if self._deleted_if else ()),
            "raw",
            "source_read_at",
            "row_hash",
            "absent",
        )

    def encode(self, records: list[bytes], read_at: datetime, request: Mapping[str, int]) -> Encoded:
        """Encode one answer's records, read at `read_at`; `request` fills the `from_request` columns."""
        encoded = Encoded()
        known = [str(request[column.name]) for column in self._request_columns]
        read_text = read_at.isoformat()
        for raw in records:
            try:
                encoded.lines.append(self._line(raw, known, read_text, encoded))
            except RecordRefused as refused:
                encoded.notes.append(
                    Note(_id_of(raw), refused.field, refused.rule, loaded=False, raw=self.blotted(raw))
                )
            except RecursionError:
                encoded.notes.append(Note(_id_of(raw), "", "nested too deep", loaded=False, raw=self.blotted(raw)))
        if encoded.notes:
            of_request = {name: request[name] for name in self._noted if name in request}
            owner = ",".join(str(value) for name, value in of_request.items() if name in self._collection.key)
            encoded.notes = [replace(note, request=of_request, owner=owner, read_at=read_at) for note in encoded.notes]
        return encoded

    def blotted(self, raw: bytes) -> bytes:
        """The bytes of what is no record that can be read, cut where a key too sensitive to keep begins."""
        found = self._hidden.search(raw)
        return raw if found is None else raw[: found.start()]

    def _line(self, raw: bytes, known: list[str], read_text: str, encoded: Encoded) -> str:
        if is_too_deep(raw):
            raise RecordRefused("", "nested too deep")
        found = None if self._institution is None or self._may_be_deleted(raw) else self._usual.read(raw)
        if found is None or self._institution is None:
            return self._careful_line(raw, known, read_text, encoded)
        self.drift.see_absent(found.absent)
        return self._written(found, self._institution, known, read_text, encoded)

    def _may_be_deleted(self, raw: bytes) -> bool:
        """Whether the flag stands somewhere in the record; most have none."""
        return self._deleted_if is not None and self._deleted.search(raw) is not None

    def _careful_line(self, raw: bytes, known: list[str], read_text: str, encoded: Encoded) -> str:
        """The line of a record each of whose values is looked at."""
        record = _parse(raw)
        # Before anything is taken from it: a jsonb column may hold the whole object around a dropped key.
        stored = self._stored_text(raw, record)
        absent: list[str] = []
        faults: list[RecordRefused] = []
        texts = self._values(record, absent, faults)
        fields = "\t".join([NULL if text is None else copy_text(text, escaped=True) for text in texts])
        institution = self._institution or self._institution_of(record)
        deleted_at = None
        if self._is_deleted(record, faults):
            deleted_at = (None if self._version_at is None else texts[self._version_at]) or read_text
        self.drift.see(record, institution, absent, faults)
        self._usual.learn(record)
        id_ = None if self._id_at is None else texts[self._id_at]
        if faults:
            number = id_ or _digits(record.get("id"))
            key = "\0".join(text or "" for field, text in zip(self._fields, texts, strict=True) if field.in_key)
            encoded.notes += [
                Note(number, fault.field, fault.rule, loaded=True, raw=stored.encode(), key=key) for fault in faults
            ]
        found = Usual(fields, None if id_ is None else int(id_), absent, stored)
        return self._written(found, institution, known, read_text, encoded, deleted_at)

    def _is_deleted(self, record: dict[str, object], faults: list[RecordRefused]) -> bool:
        """What the flag says, in whatever form other flags come; one that says nothing is a fault of the record.

        Or that there was a deletion whose time cannot be read: taken for none, what is deleted would be there.
        """
        if self._deleted_if is None:
            name = self._collection.soft_delete
            return any(fault.field == name for fault in faults) and says_deleted(record.get(name or ""))
        value = record.get(self._deleted_if)
        if value is None:
            return False
        try:
            return CONVERTERS[SqlType.BOOLEAN](value) == "True"
        except RecordRefused as refused:
            faults.append(RecordRefused(self._deleted_if, refused.rule))
            return False

    def _written(
        self,
        found: Usual,
        institution: str,
        known: list[str],
        read_text: str,
        encoded: Encoded,
        deleted_at: str | None = None,
    ) -> str:
        fields, stored, missing = found.fields, found.stored, ",".join(found.absent)
        # That it is deleted, not when: the time may be that of the read, which is another each time.
        deleted = "" if deleted_at is None else "\0deleted"
        told = "".join([f"\0{known[at]}" for at in self._told_at]) if self._told_at else ""
        content = blake2b(f"{fields}\0{missing}{deleted}{told}".encode(), digest_size=_HASH_ENDS)
        row_hash = self._hash_begins + content.hexdigest()
        if self._deleted_if is not None:
            fields = f"{fields}\t{deleted_at or NULL}"
        elif deleted_at is not None and self._deleted_at is not None:
            values = fields.split("\t")
            values[self._deleted_at] = deleted_at
            fields = "\t".join(values)
        if found.id is not None:
            encoded.ids.append(found.id)
        encoded.hashes.append(row_hash)
        encoded.lacking.append("{" + missing + "}" if missing else NULL)
        if _needs_escape(stored):
            stored = stored.translate(COPY_ESCAPES)
        return "\t".join((institution, *known, fields, stored, read_text, "\\\\x" + row_hash))

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
        if any(dropped) or b"\\u0000" in raw or is_odd(raw):
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


def _needs_escape(stored: str) -> bool:
    """Whether JSON holds what COPY takes for its own: an escape, or white space between its parts."""
    return "\\" in stored or "\n" in stored or "\t" in stored or "\r" in stored


def _require_short(text: str | None) -> None:
    """Raise RecordRefused for what PostgreSQL could not put into an index (its error would end the load)."""
    if text is not None and len(text) > INDEXED_BYTES // 4 and len(text.encode()) > INDEXED_BYTES:
        raise RecordRefused("", f"longer than {INDEXED_BYTES} bytes in an indexed column")


def _fields(collection: Collection) -> tuple[_Field, ...]:
    outers: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}
    return tuple(
        _Field(
            column.name,
            outers.setdefault(column.path[:-1], column.path[:-1]),
            column.path[-1],
            utc_date if column.utc else CONVERTERS[column.type],
            column.name in collection.key,
            must_be_short(collection, column),
        )
        for column in arranged(collection)
    )


def _converted(field: _Field, value: object, holder: object) -> str | None:
    """The text of a value that is neither null nor absent. Raises RecordRefused."""
    if value is holder:
        raise RecordRefused("", "the object around it is none")
    text = field.convert(value)
    if field.indexed:
        _require_short(text)
    if text is None and field.in_key:
        raise RecordRefused(field.name, "missing, and it is part of the key")
    return text


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
