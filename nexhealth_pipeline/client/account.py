"""Page accounting: every page of a pass once, each asked with its predecessor's cursor (promise 2).

A server that repeats a page, a cursor that does not move, an empty page that claims more, numbered pages
whose rows go or come meanwhile: each would end as missing or doubled rows, or as a loop without end. A small
object remembers what this pass has seen and says what is wrong with the next page.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from nexhealth_pipeline.catalog.paging import Paging

if TYPE_CHECKING:
    from nexhealth_pipeline.client.page import Page

__all__ = ["PageAccount", "fingerprint", "id_of"]

_REMEMBERED = 65_536
"""Pages whose cursor and content are remembered: 65 million records at 1000 a page, a few MB."""
_LOOKED_AT = 16
"""Records of a page that stand for all of it."""


class PageAccount:
    """Judges the pages of one pass, in order."""

    def __init__(
        self, paging: Paging, cursor: str, previous: Iterable[str] = (), *, records_at: tuple[str, ...] = ()
    ) -> None:
        """`previous` are the fingerprints of the pages before `cursor`, which an earlier run read."""
        self._paging = paging
        self._counted = paging in (Paging.NONE, Paging.PAGE) and not records_at
        """Whether what the API counts is the records of all pages, which are one where it keeps to its contract."""
        self._nested = bool(records_at)
        """Whether the records lie in the elements of a page, of which a page may hold some without any."""
        self._asked = cursor
        self._held = 0
        self._was_empty = False
        self._total: int | None = None
        """What the API counted when it first said so."""
        self._seen = _Memory()
        for one in previous:
            self._seen.add(one)
        if cursor:
            self._seen.add(_digest([cursor.encode()]))

    def told(self, page: "Page") -> "Page":
        """The page, and whether more follow: numbered pages do not say, and may hold fewer records than were asked for.

        Where one says so all the same, with a cursor, this list is read by cursors from there on.
        """
        if self._paging is not Paging.PAGE or page.end_cursor or self._asked:
            return page
        held = self._held + len(page.records)
        more = bool(page.records) if page.total is None else held < page.total
        return replace(page, has_next=more or page.has_next)

    def problem(self, page: "Page") -> str | None:
        """What contradicts the paging contract, or None."""
        # Elements that hold no record make one empty page, not one after the other for ever.
        if page.has_next and not page.records and not (self._nested and page.end_cursor and not self._was_empty):
            return "an empty page claims that more follow"
        held = self._held + len(page.records)
        if self._counted and not page.has_next and page.total is not None and page.total > held:
            told = "its pages held" if self._held else "its one answer holds"
            return f"the API counts {page.total} records, {told} {held}: rows are missing"
        if self._paging is Paging.PAGE and None not in (self._total, page.total) and page.total != self._total:
            # A row that went moved those after it one place up: one of them to a page that was read before.
            return f"the API counts {page.total} records, and {self._total} a page before: rows may be missing"
        if page.has_next and (self._paging is not Paging.PAGE or page.end_cursor):
            if not page.end_cursor:
                return "more pages are claimed without a cursor to them"
            if page.end_cursor == self._asked:
                return "the cursor does not move"
            if _digest([page.end_cursor.encode()]) in self._seen:
                return "the cursor leads back to a page already read"
        if page.records and page.fingerprint in self._seen:
            return "the page repeats one already read"
        return None

    def accept(self, page: "Page") -> None:
        """Remember a page that is handed on, just judged to have no problem."""
        self._asked = page.end_cursor
        self._was_empty = not page.records
        self._held += len(page.records)
        self._total = page.total if self._total is None else self._total
        if page.records:
            self._seen.add(page.fingerprint)
        if page.end_cursor:
            self._seen.add(_digest([page.end_cursor.encode()]))


def fingerprint(records: list[bytes]) -> str:
    """What tells a page from others: how many records, and which versions of the first, the last and some between.

    Not the bytes: the same records may come escaped differently, or with a field that moves with every
    answer. Not all records either: a list names each record once, so two pages that have only these few in
    common, each at the same place, contradict each other just as two equal ones do; and a repeated page has them in common.
    Records without an id stand for themselves and may be equal: where there is one, all count.
    """
    if not records:
        return ""
    identities = [_identity(record) for record in _some_of(records)]
    if None in identities:
        identities = [_identity(record) for record in records]
        return _digest([identity or record for identity, record in zip(identities, records, strict=True)])
    return _digest([b"%d records" % len(records), *filter(None, identities)])


def _some_of(records: list[bytes]) -> list[bytes]:
    """The first, the last and some between, evenly spread; all of a short page."""
    last = len(records) - 1
    return records if last < _LOOKED_AT else [records[n * last // (_LOOKED_AT - 1)] for n in range(_LOOKED_AT)]


class _Identity(msgspec.Struct):
    id: msgspec.Raw
    updated_at: msgspec.Raw = msgspec.Raw(b"")


_IDENTITY = msgspec.json.Decoder(_Identity)


def _identity(record: bytes) -> bytes | None:
    """Id and version of a record; None where it has no id or cannot be read."""
    try:
        found = _IDENTITY.decode(record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return bytes(found.id) + b"@" + bytes(found.updated_at)


def id_of(record: bytes) -> str:
    """The id of a record as text, without quotes; empty where there is none."""
    try:
        return bytes(_IDENTITY.decode(record).id).decode().strip('"')
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return ""


class _Memory:
    """A set that forgets its oldest members."""

    def __init__(self) -> None:
        self._order: deque[str] = deque()
        self._members: set[str] = set()

    def __contains__(self, member: str) -> bool:
        return member in self._members

    def add(self, member: str) -> None:
        if member not in self._members:
            self._members.add(member)
            self._order.append(member)
        if len(self._order) > 2 * _REMEMBERED:
            self._members.discard(self._order.popleft())


def _digest(parts: list[bytes]) -> str:
    """A short hash of a page's records, or of a cursor (one part; a cursor is never a record)."""
    return blake2b(b"\0".join(parts), digest_size=12).hexdigest()
