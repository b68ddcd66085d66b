"""Reading a request's body without trusting anything about it: its length, its pace, or that it ever ends."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

__all__ = ["BodyLimits", "Receive", "Room", "Unread", "drain", "read_body"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""ASGI's `receive`."""

_SMALL = 32 << 10
"""Bytes of a body that is small."""


class Unread(Enum):
    """Why a body was not read to its end."""

    TOO_LARGE = "too-large"
    TOO_SLOW = "too-slow"
    NO_ROOM = "no-room"
    """Bodies of all requests together are as large as they may be."""
    GONE = "gone"
    """The sender ended the connection."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What bodies may be."""

    size: int = 1 << 20
    """Bytes of one."""
    seconds: float = 10.0
    """For one, from its headers to its end."""
    all_sizes: int = 64 << 20
    """Bytes of all that are unanswered."""
    drain_seconds: float = 1.0
    """What comes after a refusal is read and dropped so long, so that the sender gets to read the answer."""


class Room:
    """Memory for bodies, shared by all requests. The last quarter is for small ones: events are small, floods large."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0

    def take(self, size: int, held: int = 0) -> bool:
        """Whether there was room for `size` more bytes of a body of which `held` are here; if so it is taken."""
        limit = self._size if held + size <= _SMALL else self._size * 3 // 4
        if self.taken + size > limit:
            return False
        self.taken += size
        return True

    def give_back(self, size: int) -> None:
        """End the use of `size` bytes."""
        self.taken -= size


async def read_body(receive: Receive, limits: BodyLimits, room: Room) -> bytes | Unread:
    """The whole body; its bytes stay taken in `room` until the caller gives them back. Nothing is where it is Unread."""
    parts: list[bytes] = []
    size = 0
    whole: bytes | None = None
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limits.seconds):
                while whole is None:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return Unread.GONE
                    part: bytes = message.get("body", b"")
                    if size + len(part) > limits.size:
                        return Unread.TOO_LARGE
                    if not room.take(len(part), size):
                        return Unread.NO_ROOM
                    size += len(part)
                    parts.append(part)
                    if not message.get("more_body", False):
                        whole = parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        if whole is None:
            room.give_back(size)
    return Unread.TOO_SLOW if whole is None else whole


async def drain(receive: Receive, limits: BodyLimits) -> None:
    """Read and drop what still comes, for a short time: an answer on a connection cut too early is never read."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.drain_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
