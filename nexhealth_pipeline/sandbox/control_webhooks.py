"""The administrative routes of webhooks; `control` has the table of all."""

import re
from typing import TYPE_CHECKING, Any

from .events import told_of
from .params import Query, parse_int
from .webhooks import Webhooks

if TYPE_CHECKING:
    from .app import App

__all__ = [
    "RESULTS",
    "answer_webhooks",
    "check_insertion",
    "forget_deliveries",
    "list_deliveries",
    "object_in",
    "objects_in",
    "post_webhooks",
]

RESULTS = ("complete", "failed", "timed_out")
"""How a write through the API can end (API.md F.4, K)."""


def object_in(body: Any) -> dict[str, Any]:
    """The body, which is one object. Raises TypeError."""
    if not isinstance(body, dict):
        raise TypeError("the body is an object")
    return body


def objects_in(body: Any) -> list[dict[str, Any]]:
    """The objects of a body that is one, or a list of them. Raises TypeError."""
    found = body if isinstance(body, list) else [body]
    if not all(isinstance(one, dict) for one in found):
        raise TypeError("the body is an object, or a list of objects")
    return found


def answer_webhooks(app: "App", _parts: list[str], _query: Query, _body: Any) -> Any:
    """What Webhooks.describe says; the waiting of `wait` has been done by the application."""
    return app.webhooks.describe()


def post_webhooks(app: "App", parts: list[str], _query: Query, body: Any) -> Any:
    """`settings` or `send`. Raises LookupError, TypeError or ValueError."""
    match parts:
        case ["settings"]:
            return app.webhooks.configure(**object_in(body)).describe()
        case ["send"]:
            return {"deliveries": [number for one in objects_in(body) for number in _send(app.webhooks, one)]}
    raise LookupError("no such route: /sandbox/webhooks/settings or /sandbox/webhooks/send")


def _send(webhooks: Webhooks, wanted: dict[str, Any]) -> list[int]:
    if "data" in wanted:
        return webhooks.send_data(wanted.get("subdomain", ""), wanted["event"], wanted["data"])
    missing = [name for name in ("collection", "ids", "event") if name not in wanted]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    together = bool(wanted.get("together", False))
    return webhooks.send(wanted["collection"], wanted["ids"], wanted["event"], together=together)


def list_deliveries(app: "App", _parts: list[str], query: Query, _body: Any) -> Any:
    """The log: numbers above `since`, whose event matches the expression `event`, to `endpoint`, with `outcome`."""
    found = app.webhooks.log(parse_int("since", query.get("since") or "0"))
    endpoint, outcome = query.get("endpoint"), query.get("outcome")
    event = re.compile(query.get("event") or ".*")
    return [
        one.describe()
        for one in found
        if event.fullmatch(one.announcement.event)
        and (endpoint is None or one.endpoint_id == parse_int("endpoint", endpoint))
        and outcome in (None, one.outcome)
    ]


def forget_deliveries(app: "App", _parts: list[str], _query: Query, _body: Any) -> Any:
    """Empty the log and the counters."""
    app.webhooks.deliveries.clear()
    return {}


def check_insertion(collection: str, result: str) -> str:
    """The event that tells how a write through the API ended. Raises ValueError where there is none."""
    if collection == "documents":
        raise ValueError("a new document is announced as written by itself: send another outcome by hand")
    if result not in RESULTS:
        raise ValueError(f"insertion is one of {', '.join(RESULTS)}")
    return f"{told_of(collection, 'insertion')}.{result}"
