"""A receiver of webhooks on loopback, and a client of the endpoints' and subscriptions' routes."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests

from tests.http_servers import QuietHandler, serving

from .calls import WILLOW, Caller

ENDPOINTS = "/webhook_endpoints"


@dataclass
class Got:
    """One delivery as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        decoded: dict[str, Any] = json.loads(self.body)
        return decoded

    @property
    def name(self) -> str:
        return str(self.json["event_name"])


@dataclass
class Receiver:
    """Keeps what it gets; `answer` decides each status from the number of the delivery, 0 = hang up."""

    url: str
    got: list[Got] = field(default_factory=list)
    answer: Callable[[int], int] = lambda _number: 200
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.got]

    def take(self, one: Got) -> int:
        with self.lock:
            self.got.append(one)
            number = len(self.got)
        return self.answer(number)


@contextmanager
def receiver() -> Iterator[Receiver]:
    class Handler(QuietHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = kept.take(Got(self.path, headers, body))
            if status:
                self.wfile.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok" % status)
            self.close_connection = not status

    with serving(Handler) as url:
        kept = Receiver(f"{url}/api/nexhealth-webhook")
        yield kept


class Hooks:
    """What a client does with endpoints and subscriptions."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> requests.Response:
        if "Authorization" not in self.caller.session.headers:
            self.caller.authenticate()
        url = self.caller.server.url + path
        return self.caller.session.request(method, url, json=body, params=params, timeout=5)

    def endpoint(self, url: str = "https://hooks.example.com/in", **fields: Any) -> dict[str, Any]:
        answer = self.ask("POST", ENDPOINTS, {"target_url": url, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json()["data"])

    def subscribe(self, endpoint: int, resource: str, event: str, subdomain: str = WILLOW) -> dict[str, Any]:
        body = {"resource_type": resource, "event": event}
        answer = self.ask("POST", f"{ENDPOINTS}/{endpoint}/webhook_subscriptions", body, subdomain=subdomain)
        assert answer.status_code == 201, answer.text
        return dict(answer.json()["data"])
