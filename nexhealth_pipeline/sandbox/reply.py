"""Answers and the envelope around them (API.md C.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import orjson

from .rows import Record

__all__ = ["JSON", "LEGACY_JSON", "ApiError", "Reply", "failure", "many", "one"]

JSON = "application/json"
LEGACY_JSON = "application/vnd.Nexhealth+json;version=2"
"""Content type of the operations that v3 shares with v2 (API.md D.3)."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; `records` is how many records its page holds (for the request log).

    `spoilt`: the page fault that was asked for made it another one.
    """

    status: int
    body: bytes
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()
    records: int = 0
    spoilt: bool = False


class ApiError(Exception):
    """The request gets an error envelope with this status and these messages."""

    def __init__(self, status: int, *messages: str) -> None:
        super().__init__(status, *messages)
        self.status = status
        self.messages = messages


def failure(status: int, messages: Sequence[str], headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """An error envelope: `code` false, `data` null."""
    body = {"code": False, "description": "", "error": list(messages), "data": None}
    return Reply(status, orjson.dumps(body), headers=headers)


def one(data: bytes, description: str, content_type: str, status: int = 200) -> Reply:
    """A single object; `count` is 1, as the spec declares it on every answer that is no cursor page."""
    text = orjson.dumps(description)
    body = b'{"code":true,"description":%b,"error":[],"data":%b,"count":1}' % (text, data)
    return Reply(status, body, content_type, records=1)


def many(
    rows: Iterable[bytes], description: str, content_type: str, *, count: int | None = None, page: Record | None = None
) -> Reply:
    """A list of already encoded records, with the total (`count`) or cursors (`page`)."""
    bodies = list(rows)
    tail = b'"page_info":%b' % orjson.dumps(page) if page is not None else b'"count":%d' % (count or 0)
    text = orjson.dumps(description)
    body = b'{"code":true,"description":%b,"error":[],"data":[%b],%b}' % (text, b",".join(bodies), tail)
    return Reply(200, body, content_type, records=len(bodies))
