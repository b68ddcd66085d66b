"""Servers at their worst: every read of them ends in bounded time and memory, with an error that says why."""

import gzip
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import ServerFailed, Unreachable
from tests.client.stub import Reply, Stub, envelope, refusal, running

ONE = ApiRequest("/patients/7", (), "demo")
GOOD = envelope([{"id": 1}])
MEGABYTE = 1024 * 1024
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(piece: bytes, pause: float, times: int) -> list[bytes | float]:
    """A piece and a pause, so many times."""
    return [piece, pause] * times


@contextmanager
def wire(stub: Stub, *steps: bytes | float, for_ever: bool = False) -> Iterator[list[int]]:
    """A server that gives a token, then these bytes with these pauses, as raw as they come.

    Yields the bytes that it could send per connection.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    sent: list[int] = []
    done = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = connection.recv(65536)
            if b"/authenticates" in asked:
                token = stub.issue(None).body  # type: ignore[arg-type]
                connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(token) + token)
                asked = connection.recv(65536)
            if not asked:
                return
            sent.append(0)
            number = len(sent) - 1
            while not done.is_set():
                for step in steps:
                    if isinstance(step, float):
                        done.wait(step)
                    else:
                        connection.sendall(step)
                        sent[number] += len(step)
                if not for_ever:
                    break

    def serve() -> None:
        while not done.is_set():
            with suppress(TimeoutError):
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=answer, args=(connection,), daemon=True))
                threads[-1].start()

    threads = [threading.Thread(target=serve, daemon=True)]
    listener.settimeout(0.05)
    threads[0].start()
    stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield sent
    finally:
        done.set()
        for thread in threads:
            thread.join()
        listener.close()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


SLOW: dict[str, tuple[list[bytes | float], bool]] = {
    "says nothing": ([5.0], False),
    "stops in the middle of the headers": ([HEAD, 5.0], False),
    "stops in the middle of the body": ([HEAD + b'Content-Length: 900\r\n\r\n{"code":true', 5.0], False),
    "stops in the middle of a chunk": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n50\r\n{", 5.0], False),
    "drips its status line": ([b"H", 0.02], True),
    "drips one header": ([b"HTTP/1.1 200 OK\r\nX-Long: ", *drip(b"x", 0.02, 500)], False),
    "drips headers": ([b"HTTP/1.1 200 OK\r\n", *drip(b"X: y\r\n", 0.02, 500)], False),
    "says for ever that it goes on": ([b"HTTP/1.1 100 Continue\r\n\r\n", 0.02], True),
    "drips its body": ([HEAD + b"Content-Length: 9000\r\n\r\n", *drip(b" ", 0.02, 500)], False),
    "drips chunks": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *drip(b"1\r\n \r\n", 0.02, 500)], False),
    "drips one chunk's length": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *drip(b"0", 0.02, 500)], False),
    "drips what is packed": (
        [HEAD + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"")[:10], *drip(b"\0", 0.02, 500)],
        False,
    ),
}


@pytest.mark.parametrize(("steps", "for_ever"), SLOW.values(), ids=SLOW)
def test_an_answer_that_does_not_end_is_given_up(
    make_client: Callable, stub: Stub, steps: list[bytes | float], for_ever: bool
) -> None:
    """A byte now and then resets every timeout of a socket; a run would stand still for hours."""
    with wire(stub, *steps, for_ever=for_ever):
        client = make_client(retry={"attempts": 1})
        client.authenticate()  # the token may take its time, on a busy machine too
        client._transport._timeout, client._transport._answer_seconds = (0.1, 0.1), 0.25
        with at_most(4), pytest.raises((Unreachable, ServerFailed)) as caught:
            client.get(ONE)
    assert "GET /patients/7 (subdomain demo)" in str(caught.value)


def test_a_connection_in_use_before_has_the_same_deadline(make_client: Callable, stub: Stub) -> None:
    """Kept alive, it must neither have what was left of the last answer's time nor have no limit."""
    with wire(stub, HEAD + b"Content-Length: 900\r\n\r\n", *drip(b" ", 0.02, 500)):
        client = make_client(retry={"attempts": 1})
        client.authenticate()  # as above
        client._transport._answer_seconds = 1.0
        time.sleep(0.5)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="too long"):
            client.get(ONE)
        assert 0.99 < time.monotonic() - began < 8


BIG = 100 * MEGABYTE
CHUNK = b"100000\r\n" + b" " * MEGABYTE + b"\r\n"
# What may be sent: the limit, and what lies in the kernel's buffers.
TOO_BIG: dict[str, tuple[list[bytes], int]] = {
    "with its length": ([HEAD + b"Content-Length: %d\r\n\r\n" % BIG, *[b" " * MEGABYTE] * 100], 8),
    "without a length": ([HEAD + b"Connection: close\r\n\r\n", *[b" " * MEGABYTE] * 100], 80),
    "in chunks": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[CHUNK] * 100], 80),
    "with a wrong length": ([HEAD + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n", *[b" " * MEGABYTE] * 100], 80),
    "of headers": ([b"HTTP/1.1 200 OK\r\n", *[b"X: " + b"y" * 60_000 + b"\r\n"] * 2000], 24),
    "in one header": ([b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * MEGABYTE] * 100], 24),
}


@pytest.mark.parametrize(("steps", "megabytes"), TOO_BIG.values(), ids=TOO_BIG)
def test_a_hundred_megabytes_are_not_taken_in(
    make_client: Callable, stub: Stub, steps: list[bytes], megabytes: int
) -> None:
    """DESIGN 7: 64 MB a page. More would end the process, and with it every other slice."""
    with wire(stub, *steps) as sent, at_most(8), pytest.raises((ServerFailed, Unreachable)):
        make_client(retry={"attempts": 1}).get(ONE)
    assert sent[0] <= megabytes * MEGABYTE


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_gzip_bomb_is_not_unpacked(make_client: Callable, stub: Stub, layers: int) -> None:
    """100 MB of blanks are 100 kB, packed twice 400 bytes; the limit counts what comes out."""
    bomb = b" " * BIG
    for _ in range(layers):
        bomb = gzip.compress(bomb, 1 if len(bomb) > MEGABYTE else 9)
    stub.script(Reply(200, bomb, {"Content-Encoding": ", ".join(["gzip"] * layers)}))
    client = make_client(body_limit=2 * MEGABYTE, retry={"attempts": 1})
    tracemalloc.start()
    try:
        with pytest.raises(ServerFailed), at_most(5):
            client.get(ONE)
        assert tracemalloc.get_traced_memory()[1] < 12 * MEGABYTE
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("of_the_token", [False, True])
def test_no_redirect_takes_key_or_token_to_another_host(
    make_client: Callable, stub: Stub, status: int, of_the_token: bool
) -> None:
    """307 and 308 would repeat the request as it is, credential included."""
    with running(Stub()) as other:
        away = refusal(status, Location=f"{other.url}/steal")
        if of_the_token:
            stub.authenticate = lambda seen: away
        stub.script(away)
        with pytest.raises(ServerFailed, match="redirect"):
            make_client(retry={"attempts": 1}).get(ONE)
        assert other.seen == []


@pytest.mark.parametrize("address", ["http://[bad", "http://host:port", "//", "\xff", ""])
def test_a_redirect_to_nowhere_is_one_like_any_other(make_client: Callable, stub: Stub, address: str) -> None:
    """Risk: nobody goes there, yet an address that cannot be read ends all slices of a run."""
    stub.script(Reply(302, b"", {"Location": address}))
    with pytest.raises(ServerFailed, match=r"redirect.*status 302"):
        make_client(retry={"attempts": 1}).get(ONE)


def test_the_body_of_a_redirect_is_not_taken_in_either(make_client: Callable, stub: Stub) -> None:
    head = b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nConnection: close\r\n\r\n"
    with wire(stub, head, *[b" " * MEGABYTE] * 100) as sent, at_most(8):
        client = make_client(body_limit=2 * MEGABYTE, retry={"attempts": 1})
        with pytest.raises(ServerFailed, match="larger than the client accepts"):
            client.get(ONE)
    assert sent[0] <= 24 * MEGABYTE  # what lies in the sockets' buffers


def test_after_a_broken_answer_the_next_one_is_read_from_its_beginning(client, stub: Stub) -> None:
    """What is left of a refused body must not become the head of the next answer."""
    late = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]"
    stub.script(Reply(raw=HEAD + b"Content-Length: 999999999\r\n\r\n" + late * 3), GOOD)
    assert client.get(ONE).records == [b'{"id": 1}']
