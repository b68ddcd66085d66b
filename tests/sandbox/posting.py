"""A sandbox that posts webhooks: who hears of what, and what was sent."""

import base64
import hashlib
import hmac
from collections.abc import Callable
from functools import partial

from nexhealth_pipeline.sandbox import EVENTS, Delivery, SandboxServer
from tests import waiting

from .receiving import Got

FAST = 1e-7
"""Two days in 17 ms."""
until = partial(waiting.until, pause=0.002)


def hear(server: SandboxServer, url: str, *events: str, home: int = 11201) -> int:
    """An endpoint that hears of these events, or of all."""
    registry = server.webhooks.registry
    endpoint = registry.add_endpoint("tests", url)
    for resource, names in EVENTS.items():
        for name in names:
            if not events or name in events:
                registry.add_subscription(endpoint.id, home, resource, name)
    return endpoint.id


def settled(server: SandboxServer) -> list[Delivery]:
    assert server.webhooks.wait_idle(30)
    return server.webhooks.log()


def secret_of(server: SandboxServer) -> bytes:
    return server.webhooks.endpoints[0].secret_key.encode()


def expected(secret: bytes, got: Got, encode: Callable[[bytes], bytes] = base64.b64encode) -> str:
    """The vendor's formula (API.md F.4), written out once more."""
    message = got.headers["timestamp"].encode() + b"." + encode(got.body)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def mine(server: SandboxServer, collection: str, number: int = 0) -> int:
    rows = server.state.store(collection).rows.values()
    return sorted(row.id for row in rows if row.institution_id == 11201 and not row.facts.get("deleted_at"))[number]


def email(server: SandboxServer, text: str = "new@example.com", number: int = 0) -> int:
    """Change one patient."""
    patient = mine(server, "patients", number)
    server.state.update("patients", patient, {"email": text})
    return patient
