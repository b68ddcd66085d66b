"""The webhook part of the API: endpoints per API key, and subscriptions to events of its institutions (F.1, F.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import orjson

from .auth import Access
from .call import FORBIDDEN
from .endpoints import Endpoint, Registry, Subscription
from .events import EVENTS
from .params import Query, parse_bool, parse_int
from .reply import JSON, LEGACY_JSON, ApiError, Reply, many, one
from .rows import Record
from .state import NoSuchRowError, State

__all__ = ["ENDPOINTS_PATH", "WebhookRoutes", "owner_of"]

ENDPOINTS_PATH = "/webhook_endpoints"
"""Everything of this part lies below it."""

_ACCOUNT_WIDE = frozenset({"Onboarding"})
"""Resources that belong to no institution: a subdomain is refused there (F.2)."""

_EVENT_NAMES = frozenset(event for events in EVENTS.values() for event in events)


def owner_of(api_key: str) -> str:
    """What is kept of an API key to know its endpoints again."""
    return sha256(b"webhooks:" + api_key.encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Asked:
    """A request to this part, as far as it is understood."""

    query: Query
    body: Record
    access: Access
    ids: list[int]

    @property
    def owner(self) -> str:
        return owner_of(self.access.api_key)


class WebhookRoutes:
    """Answers requests for endpoints and subscriptions.

    `on_silenced` is told the number of an endpoint or of a subscription whose queued deliveries must not go out.
    """

    def __init__(self, registry: Registry, state: State, on_silenced: Callable[[int | None, int | None], None]) -> None:
        self._registry = registry
        self._state = state
        self._silence = on_silenced

    def answer(self, method: str, path: str, raw_query: str, body: bytes, access: Access) -> Reply:
        """Answer one request. Raises ApiError."""
        pattern, ids = _pattern(path)
        handler = self._handlers().get((method, pattern))
        if handler is None:
            known = pattern in {known for _, known in self._handlers()}
            raise ApiError(405 if known else 404, f"No route matches {method} {path}")
        sent = _decoded(body) if method in ("POST", "PATCH") else {}
        return handler(_Asked(Query.parse(raw_query), sent, access, ids))

    def _handlers(self) -> dict[tuple[str, str], Callable[[_Asked], Reply]]:
        one_endpoint, all_subscriptions = "/{}", "/{}/webhook_subscriptions"
        one_subscription = all_subscriptions + "/{}"
        return {
            ("GET", ""): self._list_endpoints,
            ("POST", ""): self._create_endpoint,
            ("PATCH", one_endpoint): self._change_endpoint,
            ("DELETE", one_endpoint): self._delete_endpoint,
            ("GET", all_subscriptions): self._list_subscriptions,
            ("POST", all_subscriptions): self._create_subscription,
            ("PATCH", one_subscription): self._change_subscription,
            ("DELETE", one_subscription): self._delete_subscription,
        }

    def _list_endpoints(self, asked: _Asked) -> Reply:
        text = asked.query.get("active")
        active = None if text is None else parse_bool("active", text)
        mine = [one for one in self._registry.endpoints if one.owner == asked.owner]
        shown = [orjson.dumps(one.record()) for one in mine if active is None or one.active == active]
        return many(shown, _ignored(asked.query, "active"), LEGACY_JSON, count=len(shown))

    def _create_endpoint(self, asked: _Asked) -> Reply:
        fields = _endpoint_fields(asked.body)
        if "target_url" not in fields:
            raise ApiError(400, "Missing parameter target_url")
        made = self._registry.add_endpoint(asked.owner, **fields)
        return one(orjson.dumps(made.record()), _ignored(asked.query), LEGACY_JSON, 201)

    def _change_endpoint(self, asked: _Asked) -> Reply:
        number = self._endpoint(asked).id
        made = self._registry.change_endpoint(number, **_endpoint_fields(asked.body))
        if not made.active:
            self._silence(number, None)
        return one(orjson.dumps(made.record()), _ignored(asked.query), LEGACY_JSON)

    def _delete_endpoint(self, asked: _Asked) -> Reply:
        number = self._endpoint(asked).id
        self._registry.remove_endpoint(number)
        self._silence(number, None)
        return Reply(204, b"")

    def _list_subscriptions(self, asked: _Asked) -> Reply:
        number = self._endpoint(asked).id
        wanted: Record = {"webhook_endpoint_id": number}
        if asked.query.get("subdomain"):
            wanted["institution_id"] = self._institution(asked)
        for name, allowed in (("resource_type", EVENTS.keys()), ("event", _EVENT_NAMES)):
            text = asked.query.get(name)
            if text is not None:
                wanted[name] = _among(name, text, allowed)
        found = [one.record() for one in self._registry.subscriptions if one.webhook_endpoint_id == number]
        shown = [orjson.dumps(row) for row in found if all(row[name] == value for name, value in wanted.items())]
        return many(shown, _ignored(asked.query, "subdomain", "resource_type", "event"), JSON, count=len(shown))

    def _create_subscription(self, asked: _Asked) -> Reply:
        missing = [f"Missing parameter {name}" for name in ("resource_type", "event") if not asked.body.get(name)]
        account_wide = asked.body.get("resource_type") in _ACCOUNT_WIDE
        if not asked.query.get("subdomain") and not account_wide:
            missing.insert(0, "Missing parameter subdomain")
        if missing:
            raise ApiError(400, *missing)
        resource = _among("resource_type", asked.body["resource_type"], EVENTS.keys())
        event = _among("event", asked.body["event"], _EVENT_NAMES)
        if event not in EVENTS[resource]:
            raise ApiError(400, f"event {event} is not an event of {resource}")
        if account_wide and asked.query.get("subdomain"):
            raise ApiError(400, f"subdomain must not be given for {resource}")
        home = None if account_wide else self._institution(asked)
        number = self._endpoint(asked).id
        made = self._registry.add_subscription(number, home, resource, event, active=_flag(asked.body, default=True))
        return one(orjson.dumps(made.record()), _ignored(asked.query, "subdomain"), JSON, 201)

    def _change_subscription(self, asked: _Asked) -> Reply:
        if not asked.query.get("subdomain"):
            raise ApiError(400, "Missing parameter subdomain")
        old = self._subscription(asked)
        fields: Record = {"active": _flag(asked.body, default=old.active)}
        if asked.body.get("new_endpoint_id") is not None:
            target = self._mine(asked, _whole("new_endpoint_id", asked.body["new_endpoint_id"]))
            fields["webhook_endpoint_id"] = target.id
        made = self._registry.change_subscription(old.id, **fields)
        if not made.active:
            self._silence(None, old.id)
        return one(orjson.dumps(made.record()), _ignored(asked.query, "subdomain"), JSON)

    def _delete_subscription(self, asked: _Asked) -> Reply:
        number = self._subscription(asked).id
        self._registry.remove_subscription(number)
        self._silence(None, number)
        return Reply(204, b"")

    def _endpoint(self, asked: _Asked) -> Endpoint:
        return self._mine(asked, asked.ids[0])

    def _mine(self, asked: _Asked, number: int) -> Endpoint:
        """An endpoint of this API key. Raises ApiError 404."""
        found = self._registry.endpoint(number)
        if found is None or found.owner != asked.owner:
            raise ApiError(404, f"Webhook endpoint with id {number} not found")
        return found

    def _subscription(self, asked: _Asked) -> Subscription:
        """The subscription of the path, of the institution that the request names if it does. Raises ApiError 403, 404."""
        home = self._institution(asked) if asked.query.get("subdomain") else None
        endpoint, found = self._endpoint(asked), self._registry.subscription(asked.ids[1])
        elsewhere = found is not None and None not in (home, found.institution_id) and found.institution_id != home
        if found is None or elsewhere or found.webhook_endpoint_id != endpoint.id:
            raise ApiError(404, f"Webhook subscription with id {asked.ids[1]} not found")
        return found

    def _institution(self, asked: _Asked) -> int:
        """The institution of `subdomain`. Raises ApiError 403 where the key does not reach it."""
        subdomain = asked.query.get("subdomain") or ""
        if asked.access.subdomains is not None and subdomain not in asked.access.subdomains:
            raise ApiError(403, FORBIDDEN)
        try:
            with self._state.lock:
                return self._state.institution(subdomain).id
        except NoSuchRowError:
            raise ApiError(403, FORBIDDEN) from None


def _pattern(path: str) -> tuple[str, list[int]]:
    """The path below `/webhook_endpoints` with numbers replaced, and those numbers."""
    parts = path.removeprefix(ENDPOINTS_PATH).split("/")
    ids = [int(part) for part in parts if part.isdecimal()]
    return "/".join("{}" if part.isdecimal() else part for part in parts), ids


def _decoded(body: bytes) -> Record:
    try:
        sent = orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        raise ApiError(400, "The request body is not valid JSON") from None
    if not isinstance(sent, dict):
        raise ApiError(400, "The request body is not a JSON object")
    return sent


def _endpoint_fields(body: Record) -> Record:
    fields: Record = {}
    if body.get("target_url") is not None:
        fields["target_url"] = _target(body["target_url"])
    if body.get("active") is not None:
        fields["active"] = _flag(body, default=True)
    return fields


def _target(url: Any) -> str:
    """An address to send to: https, or http on this machine. Raises ApiError 400."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ApiError(400, "target_url is invalid") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ApiError(400, "target_url is invalid")
    if parts.scheme == "http" and not _loopback(host):
        raise ApiError(400, "target_url must use HTTPS")
    return str(url)


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _flag(body: Record, *, default: bool) -> bool:
    value = body.get("active")
    if value is None or isinstance(value, bool):
        return default if value is None else value
    return parse_bool("active", str(value))


def _whole(name: str, value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else parse_int(name, str(value))


def _among(name: str, value: Any, allowed: Any) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ApiError(400, f"{name} does not have a valid value")
    return value


def _ignored(query: Query, *known: str) -> str:
    others = sorted(set(query.values) - set(known))
    return f"Ignored unknown parameters: {', '.join(others)}" if others else ""
