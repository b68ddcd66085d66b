"""Peers that ask and never read what they are answered: two of them could hold every connection."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from nexhealth_pipeline.webhooks.receiving import connections, serving
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from tests.waiting import until
from tests.webhooks.receiving import Running, receiver

ASK = b"GET /metrics HTTP/1.1\r\nhost: here\r\n\r\n"
LAST = ASK.replace(b"host", b"connection: close\r\nhost")
BROKEN = b"nonsense\r\n\r\n"


@contextmanager
def asking(running: Running, requests: bytes, end: bytes) -> Iterator[socket.socket]:
    """A peer that sends `requests` and a moment later `end`, or as much as is taken, and reads nothing."""
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        peer.connect(("127.0.0.1", running.port))

        def ask() -> None:
            with suppress(OSError):
                peer.sendall(requests)
                time.sleep(0.4)
                peer.sendall(end)

        sender = threading.Thread(target=ask)
        sender.start()
        yield peer
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        sender.join(20)


@pytest.mark.parametrize("end", [b"", LAST, BROKEN], ids=["waiting", "closing", "malformed"])
@pytest.mark.parametrize("much", [True, False], ids=["held up", "buffered"])
def test_who_does_not_read_his_answers_is_sent_away(
    no_events: str, monkeypatch: pytest.MonkeyPatch, end: bytes, *, much: bool
) -> None:
    """Whether the answers wait for room, or have been given to the connection, which then waits to be closed."""
    guards: list[connections.Guard] = []
    made = connections._Guarded.connection_made

    def noted(self: connections._Guarded, transport: Any) -> None:
        made(self, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        if not much:
            transport.set_write_buffer_limits(high=1 << 30)
        guards.append(self.guard)

    monkeypatch.setattr(connections._Guarded, "connection_made", noted)
    monkeypatch.setattr(serving, "_KEEP_ALIVE_SECONDS", 1)
    with receiver(no_events, plan=Plan(header_seconds=0.5)) as running, asking(running, 200 * ASK, end):
        until(lambda: guards)
        until(lambda: not guards[0].peers, seconds=15)


def test_who_reads_late_but_in_time_gets_all(no_events: str) -> None:
    """A slow line is no attack."""
    with receiver(no_events, plan=Plan(header_seconds=5)) as running, asking(running, 300 * ASK, LAST) as peer:
        time.sleep(0.5)
        peer.settimeout(10)
        taken = b"".join(iter(lambda: peer.recv(1 << 16), b""))
    assert taken.count(b"HTTP/1.1 200") == 301
