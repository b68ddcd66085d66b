"""A pooler before the tests' server, in transaction or in session mode, as PgBouncer is with its defaults."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import cycle

from psycopg.conninfo import conninfo_to_dict

_SSL_REQUEST, _GSS_REQUEST, _CANCEL = 80877103, 80877104, 80877102
_ASKS = (b"Q", b"S")
"""Messages of a client after which the server says that it is ready."""
_NOT_ITS_OWN = b"K" + struct.pack("!iii", 12, 2_000_000_001, 1)
"""Number and key to cancel with, as a client of a pooler is given them."""


@contextmanager
def pooler(server_url: str, *, sessions: bool, many: int = 1) -> Iterator[str]:
    """Address of the database of `server_url` by way of a pooler, which keeps `sessions` or gives them away.

    Or of so many, whose turn it is one after the other.
    """
    given = conninfo_to_dict(server_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        path = f"{given['host']}/.s.PGSQL.{given.get('port', 5432)}"
        made = [_Pooler(path, str(given["user"]), str(given["dbname"]), sessions=sessions) for _ in range(many)]
        threading.Thread(target=_accept, args=(listener, made), daemon=True).start()
        try:
            yield f"postgresql://{given['user']}@127.0.0.1:{listener.getsockname()[1]}/{given['dbname']}?sslmode=disable"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for each in made:
                each.close()


def _accept(listener: socket.socket, poolers: "list[_Pooler]") -> None:
    with suppress(OSError):
        for each in cycle(poolers):
            each.serve(listener.accept()[0])


class _Pooler:
    def __init__(self, path: str, user: str, database: str, *, sessions: bool) -> None:
        self._path, self._sessions, self._lock = path, sessions, threading.Lock()
        options = f"user\0{user}\0database\0{database}\0\0".encode()
        self._startup = struct.pack("!ii", len(options) + 8, 196608) + options
        self._idle: list[socket.socket] = []
        self._open: list[socket.socket] = []

    def serve(self, client: socket.socket) -> None:
        self._open.append(client)
        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, struct.error):
            if not self._welcome(client):
                return
            held: socket.socket | None = None
            while (message := _message(client))[:1] not in (b"X", b""):
                held = held or self._taken()
                held.sendall(message)
                if message[:1] not in _ASKS:
                    continue
                ready = _answer(held, client)
                if ready[-1:] == b"I" and not self._sessions:
                    self._idle.append(held)  # the last one is the next one's, and before the client may go on
                    held = None
                client.sendall(ready)

    def _welcome(self, client: socket.socket) -> bool:
        """Let anybody in, with what the server says of itself."""
        while True:
            (length,) = struct.unpack("!i", _exactly(client, 4))
            (code,) = struct.unpack("!i", _exactly(client, length - 4)[:4])
            if code == _CANCEL:
                return False
            if code not in (_SSL_REQUEST, _GSS_REQUEST):
                break
            client.sendall(b"N")
        server, said = self._new()
        self._idle.append(server)
        client.sendall(b"".join(_NOT_ITS_OWN if one[:1] == b"K" else one for one in said))
        return True

    def _taken(self) -> socket.socket:
        with self._lock:
            return self._idle.pop() if self._idle else self._new()[0]

    def _new(self) -> tuple[socket.socket, list[bytes]]:
        server = socket.socket(socket.AF_UNIX)
        self._open.append(server)
        server.connect(self._path)
        server.sendall(self._startup)
        said = [_message(server)]
        while said[-1][:1] != b"Z":
            said.append(_message(server))
        return server, said


def _answer(server: socket.socket, client: socket.socket) -> bytes:
    """Hand on what the server says until it is ready; that last message, which ends with whether in a transaction."""
    while (message := _message(server))[:1] != b"Z":
        client.sendall(message)
    return message


def _message(source: socket.socket) -> bytes:
    head = _exactly(source, 5)
    return head + _exactly(source, struct.unpack("!i", head[1:])[0] - 4)


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = source.recv(count - len(parts))
        if not part:
            raise OSError("closed")
        parts += part
    return parts
