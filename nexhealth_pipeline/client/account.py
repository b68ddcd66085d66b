"""Page accounting: every page of a pass once, each asked with its predecessor's cursor (promise 2).

A server that repeats a page, a cursor that does not move, an empty page that claims more: each
would end as missing or doubled rows, or as a loop without end. A small object remembers what this
pass has seen and says what is wrong with the next page.
"""

from collections import deque
from hashlib import blake2b

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.page import Page

__all__ = ["PageAccount"]

_REMEMBERED = 65_536
"""Pages whose cursor and content are remembered: 65 million records at 1000 a page, a few MB."""


class PageAccount:
    """Judges the pages of one pass, in order."""

    def __init__(self, paging: Paging, cursor: str) -> None:
        self._paging = paging
        self._asked = cursor
        self._content = b""
        self._seen = _Memory()
        if cursor:
            self._seen.add(_digest([cursor.encode()]))

    def problem(self, page: Page) -> str | None:
        """What contradicts the paging contract, or None."""
        if page.has_next and not page.records:
            return "an empty page claims that more follow"
        if self._paging is Paging.CURSOR and page.has_next:
            if not page.end_cursor:
                return "more pages are claimed without a cursor to them"
            if page.end_cursor == self._asked:
                return "the cursor does not move"
            if _digest([page.end_cursor.encode()]) in self._seen:
                return "the cursor leads back to a page already read"
        self._content = _digest(page.records)
        if page.records and self._content in self._seen:
            return "the page repeats one already read"
        return None

    def accept(self, page: Page) -> None:
        """Remember a page that is handed on, just judged to have no problem."""
        self._asked = page.end_cursor
        if page.records:
            self._seen.add(self._content)
        if page.end_cursor:
            self._seen.add(_digest([page.end_cursor.encode()]))


class _Memory:
    """A set that forgets its oldest members."""

    def __init__(self) -> None:
        self._order: deque[bytes] = deque()
        self._members: set[bytes] = set()

    def __contains__(self, member: bytes) -> bool:
        return member in self._members

    def add(self, member: bytes) -> None:
        if member not in self._members:
            self._members.add(member)
            self._order.append(member)
        if len(self._order) > 2 * _REMEMBERED:
            self._members.discard(self._order.popleft())


def _digest(parts: list[bytes]) -> bytes:
    """A short hash of a page's records, or of a cursor (one part; a cursor is never a record)."""
    return blake2b(b"\0".join(parts), digest_size=12).digest()
