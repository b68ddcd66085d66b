"""The sandbox with a test in between, which sees every request and may lose, alter or refuse answers."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlencode

from nexhealth_pipeline.sandbox.app import App
from nexhealth_pipeline.sandbox.routes_webhooks import owner_of
from nexhealth_pipeline.sandbox.server import build_app
from tests.client.stub import Reply, Seen, Stub, running

KEY, OTHER_KEY, NARROW_KEY = "key-of-all", "key-of-harbor", "key-of-willow"
SEALING_KEY = "sealing-key-of-the-tests-0123456789"
WILLOW, HARBOR = (11201, "willow-dental"), (11202, "harbor-smiles")
KEYS: dict[str, tuple[str, ...] | None] = {KEY: None, OTHER_KEY: (HARBOR[1],), NARROW_KEY: (WILLOW[1],)}
DONE = Reply(raw=b"")
"""The answer got lost."""


class Vendor:
    """NexHealth at `url`; `meddle` may answer instead (before anything is done), `lose` may keep an answer (after)."""

    def __init__(self, box: App, stub: Stub) -> None:
        self.box, self.stub, self.url = box, stub, stub.url
        self._one_at_a_time = threading.Lock()
        self._first = dict(box.webhooks.registry._last)
        stub.authenticate = stub.answer = self._answer
        self.forget()

    def forget(self) -> None:
        """As it was at first: nothing is registered, nobody meddles."""
        registry = self.box.webhooks.registry
        for endpoint in registry.endpoints:
            registry.remove_endpoint(endpoint.id)
        registry._last.update(self._first)
        self.stub.seen.clear()
        self.meddle: Callable[[Seen], Reply | None] = lambda seen: None
        self.lose: Callable[[Seen], bool] = lambda seen: False
        self.alter: Callable[[Seen, Any], Any] = lambda seen, data: data

    @property
    def asked(self) -> list[str]:
        """Method and path of each request so far, tokens left out; forgotten once they were asked for."""
        seen = [f"{one.method} {one.path}" for one in self.stub.data_requests]
        self.stub.seen.clear()
        return seen

    def changes(self) -> list[str]:
        """Of these, what is no GET."""
        return [one for one in self.asked if not one.startswith("GET")]

    def endpoints(self) -> dict[int, Any]:
        """As the sandbox has them."""
        return {one.id: one for one in self.box.webhooks.registry.endpoints}

    def topics(self, endpoint_id: int) -> list[tuple[int | None, str]]:
        """What an endpoint is actively subscribed to, doubles included."""
        rows = [one for one in self.box.webhooks.registry.subscriptions if one.webhook_endpoint_id == endpoint_id]
        return sorted((one.institution_id or 0, one.event) for one in rows if one.active)

    def make(self, url: str) -> int:
        """An endpoint that somebody made by hand."""
        return self.box.webhooks.registry.add_endpoint(owner_of(KEY), url).id

    def change(self, endpoint_id: int, **fields: Any) -> None:
        """Change an endpoint by hand."""
        self.box.webhooks.registry.change_endpoint(endpoint_id, **fields)

    def _answer(self, seen: Seen) -> Reply:
        instead = self.meddle(seen)
        if instead is not None:
            return instead
        with self._one_at_a_time:
            status, content = _asked(self.box, seen)
        if self.lose(seen):
            return DONE
        if status < 300 and content and seen.path != "/authenticates":
            envelope = json.loads(content)
            content = json.dumps(envelope | {"data": self.alter(seen, envelope["data"])}).encode()
        return Reply(status, content)


def _asked(box: App, seen: Seen) -> tuple[int, bytes]:
    """Status and body of the sandbox's answer; its application never waits for these requests."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": seen.body}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.lower().encode(), text.encode()) for name, text in seen.headers.items()]
    scope = {"type": "http", "method": seen.method, "path": seen.path, "headers": headers}
    answering = box(scope | {"query_string": urlencode(seen.query).encode()}, receive, send)
    with suppress(StopIteration):
        answering.send(None)
        raise AssertionError("the sandbox waits")
    return sent[0]["status"], sent[1]["body"]


@contextmanager
def vendor() -> Iterator[Vendor]:
    """A vendor with two institutions and three keys."""
    box = build_app(patients=1, appointments_per_patient=0, limits=False, api_keys=KEYS)
    with running(Stub()) as stub:
        yield Vendor(box, stub)


def without_secrets(seen: Seen, data: Any) -> Any:
    """For `alter`: lists do not show secrets, as some say that NexHealth does."""
    if seen.method == "GET" and seen.path == "/webhook_endpoints":
        return [{name: value for name, value in one.items() if name != "secret_key"} for one in data]
    return data


def only_once(matches: Callable[[Seen], bool]) -> Callable[[Seen], bool]:
    """True for the first request that matches."""
    left = [1]

    def first(seen: Seen) -> bool:
        return bool(matches(seen) and left and left.pop())

    return first
