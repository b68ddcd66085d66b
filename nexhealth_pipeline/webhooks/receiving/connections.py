"""Connections that uvicorn would keep for ever: whose request never begins, whose headers never end, whose answer is not read.

uvicorn bounds idle connections between requests, not the time or the size of headers, nor the time to read an answer. The
classes here add that, and how many connections there may be, of all peers and of one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Guard", "protocol_class"]


@dataclass(slots=True)
class Guard:
    """What all connections of one server may take together."""

    connections: int
    of_one_peer: int
    """A peer for which `is_proxy` says so may have all of them."""
    header_seconds: float
    """From the first moment a request is awaited to the end of its headers; and for a peer that does not read to go on."""
    is_proxy: Callable[[str], bool]
    header_bytes: int = 64 << 10
    peers: Counter[str] = field(default_factory=Counter)


class _Guarded(HttpToolsProtocol):
    """A connection under its server's guard."""

    guard: Guard
    _peer = ""
    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _pending = 0
    """Bytes received while no request was complete in its headers."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._peer = self.client[0] if self.client else ""
        self.guard.peers[self._peer] += 1
        if self._is_one_too_many():
            transport.abort()
        else:
            self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._was_read()
        self.guard.peers[self._peer] -= 1
        if self.guard.peers[self._peer] <= 0:
            del self.guard.peers[self._peer]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            self._disarm()
            self._must_be_read()
        elif not self._is_idle():
            self._disarm()
            self._pending = 0
        else:
            self._arm()
            self._pending += len(data)
            if self._pending > self.guard.header_bytes:
                self.send_400_response("Headers too large.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._must_be_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # else the rest of the last answer must be read as well
            self._was_read()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._must_be_read()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # closing would wait until what is left of the answers was read

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer after the body would otherwise join the headers, which have been checked by then.
        if self.cycle is None or self.cycle.scope is not self.scope:
            super().on_header(name, value)

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _is_one_too_many(self) -> bool:
        guard = self.guard
        if len(self.connections) > guard.connections:
            return True
        return guard.peers[self._peer] > guard.of_one_peer and not guard.is_proxy(self._peer)

    def _arm(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.guard.header_seconds, self._too_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _must_be_read(self) -> None:
        if self._unread is None:
            self._unread = self.loop.call_later(self.guard.header_seconds, self.transport.abort)

    def _was_read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _too_late(self) -> None:
        self._timer = None
        if self._is_idle():
            self.transport.abort()


def protocol_class(guard: Guard) -> type[asyncio.Protocol]:
    """Each connection of a server, under `guard`."""
    return type("GuardedProtocol", (_Guarded,), {"guard": guard})
