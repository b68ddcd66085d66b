"""The sandbox's own routes under `/sandbox/`: change data, make faults, read the request log and the truth.

| route | does |
|---|---|
| GET /sandbox/stats | rows per collection, requests by status, peaks of each rate limit |
| GET, DELETE /sandbox/requests | the request log (`path` = regular expression, `status`, `since` = number) |
| GET, POST, DELETE /sandbox/faults | rules in force, a new rule, no rules; DELETE /sandbox/faults/{id} one |
| GET, POST /sandbox/changes | changes made; make one (or a list of them) |
| POST /sandbox/rebalance | claim totals and balances made equal to the ledger again; the changes that took |
| GET /sandbox/truth/{collection} | every row as JSON lines, hidden ones too |
| POST /sandbox/settings | `token_seconds`, `limits` (bool), `retry_after`; `revoke_tokens` ends all tokens |
| GET /sandbox/webhooks | endpoints without secrets, settings, counters, queue; `wait=5`: when idle, 5 s at most |
| POST /sandbox/webhooks/settings | how deliveries go wrong, by name (see mischief.DeliverySettings) |
| POST /sandbox/webhooks/send | events of rows by hand: `collection`, `ids`, `event`, `together`; or `event`, `subdomain`, `data` |
| GET, DELETE /sandbox/deliveries | log of deliveries (`since` = number, `event` = expression, `endpoint`, `outcome`) |

A change may ask for the event of a write through the API: `"insertion": "complete"`, `failed` or `timed_out`.

No key is asked: the data is made up. Bind the sandbox to a loopback address.
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

from .control_webhooks import (
    answer_webhooks,
    check_insertion,
    forget_deliveries,
    list_deliveries,
    object_in,
    objects_in,
    post_webhooks,
)
from .faults import RETRY_FORMS, FaultRule
from .params import Query
from .reply import ApiError, Reply, failure
from .state import Change, State
from .truth import truth

if TYPE_CHECKING:
    from .app import App

__all__ = ["apply_change", "control"]


def control(app: "App", method: str, path: str, raw_query: str, body: bytes) -> Reply:
    """Answer an administrative request."""
    parts = path.strip("/").split("/")[1:]
    handler = _HANDLERS.get((method, parts[0] if parts else ""))
    if handler is None:
        return failure(404, [f"No route matches {method} {path}"])
    try:
        return handler(app, parts[1:], Query.parse(raw_query), orjson.loads(body) if body else {})
    except LookupError as error:
        return failure(404, [str(error)])
    except (ValueError, TypeError) as error:
        return failure(400, [str(error)])
    except OverflowError as error:
        return failure(400, [f"a number is too great: {error}"])
    except re.error as error:
        return failure(400, [f"{error.pattern!r} is no regular expression: {error}"])
    except ApiError as error:
        return failure(error.status, error.messages)


def apply_change(state: State, change: dict[str, Any]) -> Change:
    """Make one change given as JSON: `operation`, `collection`, `id`, `fields`, and for a creation `subdomain`.

    `enable` and `disable` take a location's `id` and a `capability` (finance, alerts). Other keys are passed on:
    `about`, `drop`, `touch`, `parents` of an update, `days` or `start_time` of a move, `hard`, `flagged` or
    `listed` of a deletion, `location_ids` and the like of a creation. Raises NoSuchRowError, TypeError or ValueError.
    """
    rest = dict(change)
    for name in ("fields", "about"):
        if not isinstance(rest.get(name, {}), dict):
            raise TypeError(f"{name} is an object")
    operation = rest.pop("operation", "update")
    match operation:
        case "update":
            return state.update(rest.pop("collection"), rest.pop("id"), rest.pop("fields", {}), **rest)
        case "create":
            return state.create(rest.pop("collection"), rest.pop("fields", {}), **rest)
        case "delete":
            return state.delete(rest.pop("collection"), rest.pop("id"), **rest)
        case "cancel":
            return state.cancel(rest["id"])
        case "move":
            rest.pop("collection", None)
            return state.move(rest.pop("id"), **rest)
        case "enable" | "disable":
            return state.enable(rest["id"], rest.get("capability", "finance"), on=operation == "enable")
    raise ValueError(f"no operation {operation!r}: update, create, delete, cancel, move, enable or disable")


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(value))


def _stats(app: "App", _parts: list[str], _query: Query, _body: Any) -> Reply:
    origin = app.state.world
    world = {"seed": origin.seed, "base": origin.base.isoformat(), "rows": app.state.counts()}
    peaks = list(app.requests.peaks().values())
    settings = {"limits": app.limits.enabled, "token_seconds": app.auth.token_seconds}
    return _json({"world": world, "settings": settings, "peaks": peaks} | app.requests.summary())


def _requests(app: "App", _parts: list[str], query: Query, _body: Any) -> Reply:
    status = query.get("status")
    entries = app.requests.matching(
        query.get("path") or ".*", status=int(status) if status else None, since=int(query.get("since") or 0)
    )
    return _json(app.requests.dump(entries))


def _forget_requests(app: "App", _parts: list[str], _query: Query, _body: Any) -> Reply:
    app.requests.clear()
    return _json({})


def _faults(app: "App", _parts: list[str], _query: Query, _body: Any) -> Reply:
    return _json(app.faults.describe())


def _add_faults(app: "App", _parts: list[str], _query: Query, body: Any) -> Reply:
    rules = [FaultRule(**{"kind": "", **rule}) for rule in objects_in(body)]  # all of them are right, or none is made
    made = [app.faults.add(rule) for rule in rules]
    return _json([{"id": rule.id, "kind": rule.kind} for rule in made], 201)


def _remove_faults(app: "App", parts: list[str], _query: Query, _body: Any) -> Reply:
    if parts:
        app.faults.remove(int(parts[0]))
    else:
        app.faults.clear()
    return _json({})


def _changes(app: "App", _parts: list[str], _query: Query, _body: Any) -> Reply:
    return _json([asdict(change) for change in app.state.changes])


def _change(app: "App", _parts: list[str], _query: Query, body: Any) -> Reply:
    return _json([asdict(_made(app, dict(change))) for change in objects_in(body)], 201)


def _made(app: "App", wanted: dict[str, Any]) -> Change:
    insertion = wanted.pop("insertion", None)
    event = None if insertion is None else check_insertion(wanted.get("collection", "appointments"), insertion)
    change = apply_change(app.state, wanted)
    if event:
        app.webhooks.send(change.collection, [change.id], event)
    return change


def _rebalance(app: "App", _parts: list[str], _query: Query, _body: Any) -> Reply:
    return _json([asdict(change) for change in app.state.rebalance()], 201)


def _truth(app: "App", parts: list[str], _query: Query, _body: Any) -> Reply:
    lines = [orjson.dumps(line) for line in truth(app.state, parts[0] if parts else "")]
    return Reply(200, b"".join(line + b"\n" for line in lines), "application/x-ndjson")


def _settings(app: "App", _parts: list[str], _query: Query, body: Any) -> Reply:
    wanted = object_in(body)
    for name, value in wanted.items():
        if name not in _SETTINGS:
            raise ValueError(f"no setting {name!r}: one of {', '.join(_SETTINGS)}")
        allowed, words = _SETTINGS[name]
        if not allowed(value):
            raise ValueError(f"{name} is {words}")
    app.auth.token_seconds = float(wanted.get("token_seconds", app.auth.token_seconds))
    app.limits.enabled = wanted.get("limits", app.limits.enabled)
    app.limits.retry_after = wanted.get("retry_after", app.limits.retry_after)
    if wanted.get("revoke_tokens"):
        app.auth.revoke()
    return _json({"limits": app.limits.enabled, "token_seconds": app.auth.token_seconds})


_SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "token_seconds": (lambda value: type(value) in (int, float) and value > 0, "a number above 0"),
    "limits": (lambda value: isinstance(value, bool), "true or false"),
    "retry_after": (lambda value: value in RETRY_FORMS, "seconds, date or none"),
    "revoke_tokens": (lambda value: isinstance(value, bool), "true or false"),
}
"""What each setting may be, and how that is said."""


def _json_of(tell: Callable[["App", list[str], Query, Any], Any]) -> "_Handler":
    """A handler around a function that returns plain objects."""
    return lambda app, parts, query, body: _json(tell(app, parts, query, body))


_Handler = Callable[["App", list[str], Query, Any], Reply]

_HANDLERS: dict[tuple[str, str], _Handler] = {
    ("GET", "stats"): _stats,
    ("GET", "requests"): _requests,
    ("DELETE", "requests"): _forget_requests,
    ("GET", "faults"): _faults,
    ("POST", "faults"): _add_faults,
    ("DELETE", "faults"): _remove_faults,
    ("GET", "changes"): _changes,
    ("POST", "changes"): _change,
    ("POST", "rebalance"): _rebalance,
    ("GET", "truth"): _truth,
    ("POST", "settings"): _settings,
    ("GET", "webhooks"): _json_of(answer_webhooks),
    ("POST", "webhooks"): _json_of(post_webhooks),
    ("GET", "deliveries"): _json_of(list_deliveries),
    ("DELETE", "deliveries"): _json_of(forget_deliveries),
}
