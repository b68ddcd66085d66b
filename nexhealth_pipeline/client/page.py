"""From the bytes of an answer to the bytes of its records.

NexHealth wraps everything in one envelope (API.md C.1) whose types vary: `description` and
`error` are text, list or null; `data` is a list, an object or null. Records are kept as the bytes
received: their meaning is the loader's business, and `raw jsonb` wants them unchanged.
"""

import codecs
import json
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from nexhealth_pipeline.client.split import split_envelope
from nexhealth_pipeline.client.words import vendor_words
from nexhealth_pipeline.errors import ServerFailed

__all__ = [
    "NO_CONTENT",
    "BodyMalformed",
    "Envelope",
    "Page",
    "decode_envelope",
    "fields_of",
    "kept_page",
    "records_of",
]


_Json = bytes  # a page has a field of that name


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a list (or the only one), with what it cost to get."""

    number: int
    """1-based within the pass."""
    records: list[bytes] = field(repr=False)
    """Raw JSON of each record, as received."""
    end_cursor: str
    """Where the next page begins; "" where there is none."""
    has_next: bool
    requested_at: datetime
    """API time (UTC) when the request was made."""
    requests: int
    retries: int
    throttled_seconds: float
    bytes: int
    warning: str | None
    """The vendor's words about a parameter it ignored, without anything that may be a record's value."""
    total: int | None
    """`count`, where the API gives one."""
    fingerprint: str = ""
    """Which versions of which records it holds (`account.fingerprint`)."""
    garbled: bool = False
    """Some of it is not text, or no JSON that a strict parser takes."""
    ignored: frozenset[str] = frozenset()
    """Parameters of the request that the answer says it ignored."""
    whole: _Json = field(default=b"", repr=False)
    """The one object that the answer is, with whatever lies around the records; nothing of a list."""


def kept_page(record: bytes, read_at: datetime) -> Page:
    """A record that was kept since `read_at`, as the answer it came in; it costs nothing."""
    return Page(
        number=1,
        records=[record],
        end_cursor="",
        has_next=False,
        requested_at=read_at,
        requests=0,
        retries=0,
        throttled_seconds=0.0,
        bytes=0,
        warning=None,
        total=None,
    )


class BodyMalformed(ValueError):
    """The body is not a NexHealth answer. Says why in fixed words: it carries no part of it."""


class _PageInfo(msgspec.Struct, frozen=True):
    has_next_page: bool
    end_cursor: str | int | None = None


class _Frame(msgspec.Struct, frozen=True):
    """The envelope without its data."""

    code: bool
    description: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    count: int | None = None
    page_info: _PageInfo | None = None


class _Wire(_Frame, frozen=True):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _ListWire(_Frame, frozen=True, kw_only=True):
    data: list[msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Envelope:
    """A decoded answer; `data` are the JSON bytes of its elements."""

    ok: bool
    """The envelope's `code`."""
    data: list[bytes] = field(repr=False)
    is_list: bool
    """Whether `data` was a list (an object counts as one element, null as none)."""
    words: str
    """`error` (where not ok) or `description`, reduced to the vendor's own words."""
    total: int | None
    has_next: bool | None
    """None where the answer has no `page_info`."""
    end_cursor: str
    garbled: bool = False
    """Some of it is not text, or no JSON that a strict parser takes."""
    description: tuple[str, ...] = field(default=(), repr=False)
    """What an answer that succeeded says besides, as received: never to be shown."""


_PIECE = 128 * 1024
"""Bytes decoded at once to see whether they are text: small enough to be dropped in the processor's cache. A page as one
text is megabytes of fresh memory, which took six times as long (measured with a page of 1.1 MB)."""

NO_CONTENT = Envelope(ok=True, data=[], is_list=False, words="", total=None, has_next=None, end_cursor="")
"""What a 204 says."""

_NO_ENVELOPE, _NO_JSON = "JSON that is no envelope", "no JSON"

_WIRE = msgspec.json.Decoder(_Wire)
_LIST_WIRE = msgspec.json.Decoder(_ListWire)
_LIST = msgspec.json.Decoder(list[msgspec.Raw])
_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


def decode_envelope(body: bytes) -> Envelope:
    """The envelope of `body`. Raises BodyMalformed for anything that is none."""
    try:
        wire, data = _decode_strict(body)
        garbled = not _is_text(body)
    except msgspec.ValidationError:
        raise BodyMalformed(_NO_ENVELOPE) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        wire, data = _decode_tolerant(body)
        garbled = True
    info, texts = wire.page_info, _texts(wire.description if wire.code else wire.error)
    return Envelope(
        ok=wire.code,
        data=data if isinstance(data, list) else [data] if data else [],
        is_list=isinstance(data, list),
        words=vendor_words(texts),
        total=wire.count,
        has_next=None if info is None else info.has_next_page,
        end_cursor="" if info is None or info.end_cursor is None else str(info.end_cursor),
        garbled=garbled,
        description=tuple(texts) if wire.code else (),
    )


def _is_text(body: bytes) -> bool:
    """Whether all of it is UTF-8: the parser passes over strings that it need not decode."""
    if body.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(body), _PIECE):
            decoder.decode(body[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


_BY_ITSELF = {"id", "institution_id"}
"""Keys of a record that stands where one was to be that holds a list of such records, and has no institution itself."""
_OF_AN_INSTITUTION = "subdomain"
"""A key of one, which holds the records."""


def records_of(envelope: Envelope, path: tuple[str, ...], *, of_list: bool = False) -> list[bytes]:
    """The records of an answer, descending into the nested lists of `path`.

    Of a list (`of_list`), one that has no nested lists holds the records themselves, or is another answer: without any
    it would say that a practice has no location. Raises BodyMalformed.
    """
    found: list[bytes] = envelope.data
    for name in path:
        nested = [_children(parent, name, of_list=of_list) for parent in found]
        if of_list and nested and all(one is None for one in nested):
            raise BodyMalformed("a list of things that neither hold the records asked for nor are some")
        found = [record for records in nested if records for record in records]
    return list(found)


def _children(parent: bytes, name: str, *, of_list: bool) -> list[bytes] | None:
    """The records within one; None where it has none, and looks neither like one of them nor like what may have none."""
    try:
        fields = _OBJECT.decode(parent)
        if name in fields:
            return _elements_in(bytes(fields[name]).strip())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BodyMalformed("an element that is no object where one belongs that holds records") from None
    if of_list and fields.keys() >= _BY_ITSELF:
        return [parent]
    return [] if of_list and _holds_nothing(fields) else None


def _holds_nothing(fields: dict[str, msgspec.Raw]) -> bool:
    """Whether it is an institution that has none of the records: nor anything else in it that they could be."""
    if _OF_AN_INSTITUTION not in fields or "institution_id" in fields:
        return False
    return not any(one[:1] == b"{" for value in fields.values() for one in _elements_in(bytes(value).strip()))


def _elements_in(value: bytes) -> list[bytes]:
    """The records in a record's field: a list's elements, else the value itself. Raises msgspec.DecodeError for bad JSON.

    None where there is null, or an empty text, which some practice systems write for nothing. What else is no object is a
    record that cannot be read.
    """
    if value[:1] == b"[":
        return [bytes(raw) for raw in _LIST.decode(value)]
    return [] if value in (b"null", b'""') else [value]


def _decode_strict(body: bytes) -> tuple[_Frame, list[bytes] | bytes]:
    """A list, which nearly every answer is, in one walk over the body."""
    try:
        wire = _LIST_WIRE.decode(body)
    except msgspec.ValidationError:
        return _decode_other(body)
    return wire, list(map(bytes, wire.data)) if wire.code else b""


def _decode_other(body: bytes) -> tuple[_Frame, list[bytes] | bytes]:
    """An answer whose data are no list, in two walks."""
    wire = _WIRE.decode(body)
    if not wire.code:
        return wire, b""
    if wire.data is msgspec.UNSET:
        raise BodyMalformed("an envelope without data")
    return wire, _elements(bytes(wire.data))


def _elements(data: bytes) -> list[bytes] | bytes:
    """A list's elements, an object as it is, b"" for null."""
    data = data.strip()
    if data[:1] == b"[":
        return [bytes(raw) for raw in _LIST.decode(data)]
    if data[:1] == b"{":
        return data
    if data == b"null":
        return b""
    raise BodyMalformed("data that is neither a list nor an object")


def _decode_tolerant(body: bytes) -> tuple[_Frame, list[bytes] | bytes]:
    """For pages where one record holds NaN, a lone surrogate or absurd nesting.

    One such record must not stop the other 999 (promise 7), yet a garbled page must be asked for
    again. So the page has to be JSON for Python's tolerant parser; then it is cut by brackets
    alone, and the loader finds the bad record.
    """
    try:
        json.loads(body, strict=False)  # a line's end within a text is the fault of its record
    except RecursionError:
        pass  # nested too deep for any parser: the cut below needs none
    except ValueError:
        raise BodyMalformed(_NO_JSON) from None
    parts = split_envelope(body)
    if parts is None:
        raise BodyMalformed(_NO_ENVELOPE)
    try:
        wire = _WIRE.decode(parts.rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BodyMalformed(_NO_ENVELOPE) from None
    return wire, parts.elements if parts.is_list else parts.elements[0]


def fields_of(record: bytes) -> dict[str, msgspec.Raw]:
    """Values of one record, undecoded, by key. Raises ServerFailed where it is no JSON object."""
    try:
        return msgspec.json.decode(record, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ServerFailed("the answer about one record is no JSON object; run again later") from None


def _texts(raw: msgspec.Raw | msgspec.UnsetType) -> list[str]:
    """The texts of a field that is text, list of texts or null."""
    if raw is msgspec.UNSET:
        return []
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BodyMalformed(_NO_JSON) from None
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
