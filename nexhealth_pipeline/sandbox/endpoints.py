"""Webhook endpoints and subscriptions as NexHealth keeps them: per API key, until they are deleted (API.md F.1, F.2).

Not checked here: who asks, and whether the values make sense (see routes_webhooks). Kept in the state folder's
journal like every change, so a later start has them.
"""

import secrets
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .rows import Record

__all__ = ["KEPT_COLLECTIONS", "Endpoint", "Registry", "Subscription"]

_ENDPOINTS, _SUBSCRIPTIONS = "webhook_endpoints", "webhook_subscriptions"
KEPT_COLLECTIONS = frozenset({_ENDPOINTS, _SUBSCRIPTIONS})
"""What the journal calls these rows."""

_FIRST_ENDPOINT, _FIRST_SUBSCRIPTION = 16_001, 51_601
"""Ids begin where those of real accounts were seen (API.md G)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where events are sent, for one API key (`owner` is a hash of it)."""

    id: int
    owner: str = field(repr=False)
    target_url: str
    secret_key: str = field(repr=False)
    active: bool
    created_at: str
    updated_at: str

    def record(self) -> Record:
        """The entity of the API, secret included (API.md F.1)."""
        return {name: value for name, value in asdict(self).items() if name != "owner"}


@dataclass(frozen=True, slots=True)
class Subscription:
    """One event of one institution (None = of the account) that an endpoint hears of."""

    id: int
    webhook_endpoint_id: int
    institution_id: int | None
    resource_type: str
    event: str
    active: bool
    created_at: str
    updated_at: str

    def record(self) -> Record:
        """The entity of the API."""
        return asdict(self)


class Registry:
    """All endpoints and subscriptions. Safe to use from any thread.

    `keep` writes a journal entry, `kept` are those of earlier starts, `now` the API's stamp of this moment.
    """

    def __init__(
        self, now: Callable[[], str], keep: Callable[[dict[str, Any]], None], kept: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._now = now
        self._keep = keep
        self._lock = threading.Lock()
        self._endpoints: dict[int, Endpoint] = {}
        self._subscriptions: dict[int, Subscription] = {}
        self._heard: dict[tuple[int | None, str], set[int]] = {}
        self._last = {_ENDPOINTS: _FIRST_ENDPOINT - 1, _SUBSCRIPTIONS: _FIRST_SUBSCRIPTION - 1}
        for entry in kept:
            self._replay(entry)

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, oldest first."""
        with self._lock:
            return list(self._endpoints.values())

    @property
    def subscriptions(self) -> list[Subscription]:
        """Every subscription, oldest first."""
        with self._lock:
            return list(self._subscriptions.values())

    def endpoint(self, number: int) -> Endpoint | None:
        """One endpoint."""
        return self._endpoints.get(number)

    def subscription(self, number: int) -> Subscription | None:
        """One subscription."""
        return self._subscriptions.get(number)

    def add_endpoint(self, owner: str, target_url: str, *, active: bool = True) -> Endpoint:
        """Another endpoint with a secret of its own; the same address twice makes two."""
        with self._lock:
            now = self._now()
            made = Endpoint(
                self._next(_ENDPOINTS),
                owner,
                target_url,
                secrets.token_urlsafe(24),
                active,
                created_at=now,
                updated_at=now,
            )
            self._put_endpoint(made)
        return made

    def change_endpoint(self, number: int, **fields: Any) -> Endpoint:
        """Set `target_url` or `active`. Raises KeyError for an unknown id."""
        with self._lock:
            made = replace(self._endpoints[number], updated_at=self._now(), **fields)
            self._put_endpoint(made)
        return made

    def remove_endpoint(self, number: int) -> None:
        """Forget an endpoint and its subscriptions."""
        with self._lock:
            for subscription in [one for one in self._subscriptions.values() if one.webhook_endpoint_id == number]:
                self._drop_subscription(subscription)
            del self._endpoints[number]
            self._keep({"op": "remove", "collection": _ENDPOINTS, "id": number})

    def add_subscription(
        self, endpoint_id: int, institution_id: int | None, resource_type: str, event: str, *, active: bool = True
    ) -> Subscription:
        """Another subscription; an identical one makes a second row, and every event then comes twice [guess]."""
        with self._lock:
            now = self._now()
            made = Subscription(
                *(self._next(_SUBSCRIPTIONS), endpoint_id, institution_id, resource_type, event, active, now, now)
            )
            self._put_subscription(made)
        return made

    def change_subscription(self, number: int, **fields: Any) -> Subscription:
        """Set `webhook_endpoint_id` or `active`. Raises KeyError for an unknown id."""
        with self._lock:
            made = replace(self._subscriptions[number], updated_at=self._now(), **fields)
            self._put_subscription(made)
        return made

    def remove_subscription(self, number: int) -> None:
        """Forget a subscription."""
        with self._lock:
            self._drop_subscription(self._subscriptions[number])

    def hearing(self, institution_id: int | None, event: str) -> list[Subscription]:
        """The active subscriptions to an event, oldest first, those of inactive endpoints too."""
        numbers = self._heard.get((institution_id, event))
        if not numbers:
            return []
        with self._lock:
            found = (self._subscriptions[number] for number in sorted(numbers))
            return [one for one in found if one.active]

    def _next(self, name: str) -> int:
        self._last[name] += 1
        return self._last[name]

    def _put_endpoint(self, made: Endpoint) -> None:
        self._endpoints[made.id] = made
        self._keep({"op": "put", "collection": _ENDPOINTS, "id": made.id, "record": asdict(made)})

    def _put_subscription(self, made: Subscription) -> None:
        self._index(made)
        self._keep({"op": "put", "collection": _SUBSCRIPTIONS, "id": made.id, "record": asdict(made)})

    def _index(self, made: Subscription) -> None:
        self._subscriptions[made.id] = made
        self._heard.setdefault((made.institution_id, made.event), set()).add(made.id)

    def _drop_subscription(self, old: Subscription) -> None:
        del self._subscriptions[old.id]
        self._heard[old.institution_id, old.event].discard(old.id)
        self._keep({"op": "remove", "collection": _SUBSCRIPTIONS, "id": old.id})

    def _replay(self, entry: Mapping[str, Any]) -> None:
        name, number = entry["collection"], entry["id"]
        self._last[name] = max(self._last[name], number)
        if entry["op"] == "put" and name == _ENDPOINTS:
            self._endpoints[number] = Endpoint(**entry["record"])
        elif entry["op"] == "put":
            self._index(Subscription(**entry["record"]))
        elif name == _ENDPOINTS:
            self._endpoints.pop(number, None)
        else:
            gone = self._subscriptions.pop(number, None)
            if gone is not None:
                self._heard[gone.institution_id, gone.event].discard(number)
