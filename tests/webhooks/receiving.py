"""A running receiver, a sender that signs, and a way to the database that can be frozen or cut."""

import contextlib
import http.client
import json
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import psycopg
import uvicorn

from nexhealth_pipeline.sandbox.posting import sign
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.webhooks.receiving import serving
from nexhealth_pipeline.webhooks.sealing import Sealer
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH

SECRET = "secret-of-the-tests-that-no-log-may-hold"


def settings(**given: str) -> Settings:
    """Settings with one known secret."""
    return load_settings({"NEXHEALTH_WEBHOOK_SECRETS": SECRET} | given, environ={}, env_file=None)


def event(number: int, note: str = "") -> bytes:
    """A patient's event; another number is another event."""
    record = {"id": number, "updated_at": "2026-11-23T10:00:00.000Z", "note": note}
    wrapped = {"resource_type": "Patient", "event_name": "patient_updated", "subdomain": "practice"}
    return json.dumps(wrapped | {"event_time": "2026-11-23T10:00:01Z", "data": {"patients": [record]}}).encode()


@dataclass(frozen=True)
class Answer:
    status: int
    word: str
    headers: dict[str, str]


def signed(body: bytes, secret: str = SECRET, stamp: str = "") -> dict[str, str]:
    """The headers that NexHealth sends."""
    stamp = stamp or f"{time.time():.3f}"
    return {"content-type": "application/json", "timestamp": stamp, "signature": sign(secret, stamp, body)}


@dataclass
class Running:
    """One receiver."""

    port: int
    server: uvicorn.Server | None = None
    """None where it is another process."""

    def ask(
        self, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST", path: str = WEBHOOK_PATH
    ) -> Answer:
        """One request, signed unless headers are given."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body, signed(body) if headers is None else headers)
            response = connection.getresponse()
            return Answer(response.status, response.read().decode(), dict(response.getheaders()))

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def lines(self, path: str) -> dict[str, float]:
        """The metrics."""
        text = self.ask(method="GET", path=path, headers={}).word
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in text.splitlines())
            if name[:1] != "#"
        }


@contextmanager
def receiver(
    url: str, given: Settings | None = None, plan: serving.Plan | None = None, sealer: Sealer | None = None
) -> Iterator[Running]:
    """A receiver in a thread."""
    ready = threading.Event()
    servers: list[uvicorn.Server] = []
    listener = serving.bind("127.0.0.1", 0)
    port = listener.getsockname()[1]
    thread = threading.Thread(
        target=serving.serve,
        args=(url, given or settings(), sealer, listener),
        kwargs={"on_ready": ready.set, "on_server": servers.append, "plan": plan},
    )
    thread.start()
    try:
        assert ready.wait(20)
        yield Running(port, servers[0])
    finally:
        servers[0].should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def events(url: str, where: str = "true") -> list[dict[str, Any]]:
    """Rows of the table, oldest first."""
    with psycopg.connect(url, row_factory=psycopg.rows.dict_row) as connection:
        return connection.execute(f"SELECT * FROM nexhealth_webhook_events WHERE {where} ORDER BY id").fetchall()


@dataclass
class Detour:
    """A TCP port that leads to the server of `url`, and can be frozen (nothing moves) or cut (nothing connects)."""

    url: str
    frozen: bool = False
    _pairs: dict[socket.socket, socket.socket] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._stopped = False
        self._selector = selectors.DefaultSelector()
        self._listener = _hold(0)
        self.port = self._listener.getsockname()[1]
        self._listen()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        self._thread.join()
        self.cut()
        self._listener.close()
        self._selector.close()

    @property
    def way(self) -> str:
        """The address of the database by this detour."""
        parts = urlsplit(self.url)
        return f"postgresql://{parts.username}@127.0.0.1:{self.port}{parts.path}"

    def cut(self) -> None:
        """End every connection and take no new one."""
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._listener)
        self._listener.close()
        self._listener = _hold(self.port)
        for one in list(self._pairs):
            self._close(one)

    def mend(self) -> None:
        """Let everything through again."""
        self.frozen = False
        if self._listener not in self._selector.get_map():
            self._listen()

    def _listen(self) -> None:
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)

    def _run(self) -> None:
        while not self._stopped:
            if self.frozen:
                time.sleep(0.02)
                continue
            for key, _ in self._selector.select(0.02):
                with contextlib.suppress(OSError, KeyError, ValueError):
                    self._move(key.fileobj)

    def _move(self, source: Any) -> None:
        if source is self._listener:
            near, _ = self._listener.accept()
            far = socket.socket(socket.AF_UNIX)
            query = parse_qs(urlsplit(self.url).query)
            far.connect(f"{query['host'][0]}/.s.PGSQL.{query.get('port', ['5432'])[0]}")
            self._pairs |= {near: far, far: near}
            for one in (near, far):
                self._selector.register(one, selectors.EVENT_READ)
            return
        data = source.recv(1 << 16)
        if data:
            self._pairs[source].sendall(data)
        else:
            self._close(source)

    def _close(self, one: socket.socket) -> None:
        other = self._pairs.pop(one, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(one)
        one.close()
        if other is not None:
            self._close(other)


def _hold(port: int) -> socket.socket:
    """A port (0: any) that is taken: nothing connects to it until it is listened at, and nobody else gets it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", port))
    return held
