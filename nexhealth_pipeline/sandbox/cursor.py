"""Opaque cursors: where a page ended, bound to the filters and sort that it was asked with, and signed.

URL-safe without padding. A cursor of another query, or any other text, is refused (API.md D.1 calls this a
presumption; being strict shows a careless client).
"""

import base64
import binascii
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

import orjson

from .reply import ApiError

__all__ = ["decode_cursor", "encode_cursor", "query_mark"]

_MARK, _SEAL = 6, 5


def query_mark(path: str, parameters: Iterable[tuple[str, str]]) -> bytes:
    """A short fingerprint of everything that decides which rows a list has and in which order."""
    text = orjson.dumps([path, sorted(parameters)])
    return blake2b(text, digest_size=_MARK).digest()


def _seal(secret: bytes, payload: bytes) -> bytes:
    return blake2b(payload, key=secret, digest_size=_SEAL).digest()


def encode_cursor(secret: bytes, mark: bytes, key: tuple[Any, int]) -> str:
    """The cursor of the row whose sort key is `key`."""
    payload = mark + orjson.dumps(key)
    return base64.urlsafe_b64encode(_seal(secret, payload) + payload).decode().rstrip("=")


def decode_cursor(secret: bytes, mark: bytes, text: str) -> tuple[Any, int]:
    """The sort key behind a cursor. Raises ApiError 400 for anything but a cursor of this very query."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise ApiError(400, "Invalid cursor") from None
    payload = raw[_SEAL:]
    if raw[:_SEAL] != _seal(secret, payload):
        raise ApiError(400, "Invalid cursor")
    if payload[:_MARK] != mark:
        raise ApiError(400, "Invalid cursor: it belongs to other filters or another sort")
    key: list[Any] = orjson.loads(payload[_MARK:])
    return key[0], key[1]
