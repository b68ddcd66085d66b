"""Sending one webhook: the signature, and an HTTP POST over connections that are kept (API.md F.4)."""

import base64
import hmac
import http.client
import select
import socket
import time
from hashlib import sha256
from urllib.parse import urlsplit

__all__ = ["NotDelivered", "Poster", "sign"]

_READ_MOST = 65_536
"""An answer longer than this is not read to its end: its connection is closed instead."""

_KEEP_SECONDS = 1.0
"""How long an unused connection is trusted: servers close theirs after some seconds."""


class NotDelivered(Exception):
    """No answer came; the text says why in a word or two."""


def sign(secret: str, timestamp: str, body: bytes, *, urlsafe: bool = False) -> str:
    """HMAC-SHA256 in lower-case hex over timestamp, a dot, and the body in base64 (API.md F.4)."""
    encoded = base64.urlsafe_b64encode(body) if urlsafe else base64.b64encode(body)
    return hmac.new(secret.encode(), timestamp.encode() + b"." + encoded, sha256).hexdigest()


class Poster:
    """One worker's connection. `abort` may be called from any thread, the rest only from the worker's."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._home = ("", "")
        self._used = 0.0
        self._ended = False

    def post(self, url: str, body: bytes, headers: dict[str, str], timeout: float) -> int:
        """The status of the answer; redirects are not followed. Raises NotDelivered."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection = self._connect(parts.scheme, parts.netloc.rpartition("@")[2], timeout)
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(_READ_MOST)
            if answer.isclosed():
                self._used = time.monotonic()
            else:
                self.close()
        except TimeoutError as error:
            self.close()
            raise NotDelivered("timeout") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise NotDelivered(_reason(error)) from error
        return answer.status

    def close(self) -> None:
        """Close the connection, if one is open."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def abort(self) -> None:
        """End the request that is under way and all later ones: they raise NotDelivered."""
        self._ended = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # ended by itself

    def _connect(self, scheme: str, netloc: str, timeout: float) -> http.client.HTTPConnection:
        kept = self._connection
        if kept is not None and (self._home != (scheme, netloc) or not self._alive(kept)):
            self.close()
        if self._connection is None:
            maker = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
            self._connection, self._home = maker(netloc, timeout=timeout), (scheme, netloc)
            self._connection.connect()
        if self._ended:
            raise ConnectionAbortedError
        self._connection.sock.settimeout(timeout)
        return self._connection

    def _alive(self, connection: http.client.HTTPConnection) -> bool:
        """Whether a kept connection is fresh, and the other side has not closed it (nothing may be readable)."""
        if connection.sock is None or time.monotonic() - self._used > _KEEP_SECONDS:
            return False
        readable, _, _ = select.select([connection.sock], [], [], 0)
        return not readable


def _reason(error: Exception) -> str:
    return "refused" if isinstance(error, ConnectionRefusedError) else type(error).__name__
