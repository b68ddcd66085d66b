"""A NexHealth of a few lines: real HTTP on loopback, every answer chosen by the test."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.http_servers import QuietHandler, serving

KEY = "sk-canary-key-5550100"


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Reply:
    """What to answer. `raw` sends the bytes as they are, headers included, and closes."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    chunks: list[bytes] | None = None
    pause: float = 0.0


Handler = Callable[[Seen], Reply]


def envelope(data: Any, **rest: Any) -> Reply:
    """A good answer."""
    return Reply(body=json.dumps({"code": True, "description": "", "error": [], "data": data} | rest).encode())


def refusal(status: int, *errors: str, **headers: str) -> Reply:
    """A failed answer with the standard envelope."""
    body = {"code": False, "description": "", "error": list(errors), "data": None}
    return Reply(status, json.dumps(body).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


def listing(ids: list[int], end_cursor: str | None, *, more: bool, **rest: Any) -> Reply:
    """One cursor page of records `{"id": n}`."""
    info = {"has_previous_page": False, "has_next_page": more, "start_cursor": "", "end_cursor": end_cursor}
    return envelope([{"id": number} for number in ids], page_info=info, **rest)


def jwt(lifetime: float = 3600.0, serial: int = 0) -> str:
    """A token with the claims of the vendor's sample."""
    now = time.time()
    parts = [{"alg": "HS256"}, {"sub": "1", "scp": "api_user", "iat": now, "exp": now + lifetime, "jti": str(serial)}]
    return ".".join([*(base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=").decode() for p in parts), "sig"])


class Stub:
    """Answers `/authenticates` by itself (unless told otherwise) and everything else with `answer`."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.tokens: list[str] = []
        self.lifetime = 3600.0
        self.answer: Handler = lambda seen: envelope([])
        self.authenticate: Handler = self.issue
        self.url = ""
        self._lock = threading.Lock()

    def script(self, *replies: Reply) -> None:
        """Answer with `replies` in turn; the last one stays."""
        left = list(replies)

        def answer(seen: Seen) -> Reply:
            with self._lock:
                return left.pop(0) if len(left) > 1 else left[0]

        self.answer = answer

    def issue(self, seen: Seen) -> Reply:
        """A new token, 201 as documented."""
        with self._lock:
            self.tokens.append(jwt(self.lifetime, len(self.tokens)))
            reply = envelope({"token": self.tokens[-1]}, description="Authenticated")
        reply.status = 201
        return reply

    @property
    def data_requests(self) -> list[Seen]:
        """Everything but `/authenticates`."""
        return [seen for seen in self.seen if seen.path != "/authenticates"]

    def reply_to(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
        return self.authenticate(seen) if seen.path == "/authenticates" else self.answer(seen)


@contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    """Serve `stub` on a free port."""

    class HandlerClass(QuietHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = stub.reply_to(Seen(self.command, parts.path, query, dict(self.headers.items()), body))
            self.send(reply)

        do_POST = do_PATCH = do_DELETE = do_GET

        def send(self, reply: Reply) -> None:
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, text in reply.headers.items():
                self.send_header(name, text)
            if "Content-Length" not in reply.headers and reply.chunks is None:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            for chunk in reply.chunks or [reply.body]:
                self.wfile.write(chunk)
                time.sleep(reply.pause)
            self.close_connection = reply.chunks is not None or "Content-Length" in reply.headers

        def send_response(self, code: int, message: str | None = None) -> None:
            self.send_response_only(code, message)
            self.send_header("Date", self.date_time_string())

    with serving(HandlerClass) as stub.url:
        yield stub
