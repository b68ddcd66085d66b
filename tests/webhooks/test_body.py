"""Reading bodies: what is taken of the shared memory is given back, and floods leave some to events."""

import asyncio
from collections.abc import Iterable
from typing import Any

from nexhealth_pipeline.webhooks.receiving.body import BodyLimits, Receive, Room, Unread, read_body


def receiving(*parts: bytes, ends: bool = True) -> Receive:
    messages: Iterable[dict[str, Any]] = [
        {"type": "http.request", "body": part, "more_body": not (ends and k == len(parts) - 1)}
        for k, part in enumerate(parts)
    ]
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        for message in waiting:
            return message
        return {"type": "http.disconnect"}

    return receive


def read(room: Room, *parts: bytes, ends: bool = True, **limits: Any) -> bytes | Unread:
    return asyncio.run(read_body(receiving(*parts, ends=ends), BodyLimits(**limits), room))


def test_a_body_keeps_its_room_until_it_is_answered() -> None:
    room = Room(1000)
    assert read(room, b"ab", b"c") == b"abc"
    assert room.taken == 3
    room.give_back(3)
    assert read(room, b"") == b""


def test_a_body_that_is_not_read_keeps_nothing() -> None:
    """Else a thousand broken requests later nothing is taken any more."""
    room = Room(1000)
    assert read(room, b"a" * 50, b"b" * 51, size=100) is Unread.TOO_LARGE
    assert read(room, b"a" * 50, ends=False) is Unread.GONE
    assert read(room, b"a" * 1001) is Unread.NO_ROOM
    assert room.taken == 0


def test_large_bodies_leave_room_for_events() -> None:
    """Slow senders of large bodies may fill memory for ten seconds at a time."""
    room = Room(1 << 20)
    large = [b"x" * 65_536] * 15
    assert read(room, *large) is Unread.NO_ROOM
    assert isinstance(read(room, *large[:12]), bytes)
    assert read(room, *large[:1]) is Unread.NO_ROOM
    assert isinstance(read(room, b"x" * 2000), bytes)
