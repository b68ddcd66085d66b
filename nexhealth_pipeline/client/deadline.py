"""One deadline for a whole answer, its status line and headers included.

A socket's timeout bounds one silence. A server that sends a byte now and then resets it for ever, so
each read of a connection made here waits no longer than what is left until the deadline.
"""

import http.client
import io
import socket
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connectionpool import ConnectionPool, HTTPConnectionPool

__all__ = ["BoundedAdapter", "Deadline"]


class Deadline:
    """When the exchange that a session is busy with must have ended; None = never."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._at: float | None = None

    def start(self, seconds: float) -> None:
        """Begin an exchange that may take `seconds`."""
        self._at = self._monotonic() + seconds

    def left(self) -> float | None:
        """Seconds left, never negative; None where none is set."""
        return None if self._at is None else max(0.0, self._at - self._monotonic())

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return self.left() == 0.0


class _Reader(io.RawIOBase):
    """What a socket receives, until the deadline."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase, deadline: Deadline) -> None:
        self._socket, self._raw, self._deadline = sock, raw, deadline
        self._silence = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left, silence = self._deadline.left(), self._silence
        if left == 0.0:
            raise TimeoutError("timed out")
        self._socket.settimeout(left if silence is None else silence if left is None else min(left, silence))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: Deadline, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        # `fp` is a buffer over the socket; detached, its raw end can be put under a buffer of ours.
        self.fp = io.BufferedReader(_Reader(sock, self.fp.detach(), deadline))


class BoundedAdapter(HTTPAdapter):
    """An adapter with one connection, whose answers end at `deadline`."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def get_connection_with_tls_context(
        self,
        request: requests.PreparedRequest,
        verify: bool | str | None,
        proxies: Mapping[str, str] | None = None,
        cert: Any = None,
    ) -> ConnectionPool:
        """The pool for a request, with connections that know the deadline."""
        pool = super().get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        if isinstance(pool, HTTPConnectionPool) and not isinstance(pool.ConnectionCls, partial):
            pool.ConnectionCls = partial(_connection, pool.ConnectionCls, self._deadline)  # type: ignore[assignment]  # a class to urllib3, which only calls it
        return pool


def _connection(make: Callable[..., Any], deadline: Deadline, **options: Any) -> Any:
    connection = make(**options)
    connection.response_class = partial(_Response, deadline=deadline)
    return connection
