"""Webhooks of the sandbox: who hears of what, what a change announces, and sending it.

Endpoints and subscriptions are made through the API (see routes_webhooks) or here; every change of State is
announced to the active subscriptions of its institution. Deliveries go out between start and stop.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson

from .deliveries import Deliveries, Delivery
from .endpoints import Endpoint, Registry, Subscription
from .events import Announcement, data_of, events_of, resource_of
from .mischief import DeliverySettings
from .rows import Row
from .state import Change, State

__all__ = ["Webhooks", "settings_of"]

logger = logging.getLogger(__name__)

_SHOWN = 200
"""Queued deliveries that the description lists."""


class Webhooks:
    """The webhook side of one world. Safe to use from any thread."""

    def __init__(self, state: State, now: Callable[[float], str], settings: DeliverySettings) -> None:
        self._state = state
        self._now = now
        self.registry = Registry(lambda: now(0.0), state.keep, state.kept)
        self.deliveries = Deliveries(self.registry, settings, now, state.world.seed)
        state.listener = self._changed

    @property
    def endpoints(self) -> list[Endpoint]:
        """Every endpoint, secrets included."""
        return self.registry.endpoints

    @property
    def subscriptions(self) -> list[Subscription]:
        """Every subscription."""
        return self.registry.subscriptions

    @property
    def settings(self) -> DeliverySettings:
        """How deliveries go, and go wrong."""
        return self.deliveries.settings

    def configure(self, **wanted: Any) -> DeliverySettings:
        """Change settings (see DeliverySettings) from the next event or attempt on. Raises ValueError."""
        self.deliveries.settings = self.settings.changed(wanted)
        return self.settings

    def start(self) -> None:
        """Let deliveries go out; until then they are queued."""
        self.deliveries.start()

    def stop(self) -> None:
        """End all deliveries; no thread is left."""
        self.deliveries.stop()

    def wait_idle(self, timeout: float = 10.0) -> bool:
        """Wait until nothing is queued or on its way, retries included; false if that took over `timeout` seconds."""
        return self.deliveries.wait_idle(timeout)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued or on its way."""
        return self.deliveries.idle

    def log(self, since: int = 0) -> list[Delivery]:
        """Deliveries numbered above `since`, oldest first."""
        return self.deliveries.log(since)

    def describe(self) -> dict[str, Any]:
        """Settings, endpoints without their secrets, counters and the queue (its first 200)."""
        heard = Counter(one.webhook_endpoint_id for one in self.subscriptions)
        shown = [
            {name: value for name, value in one.record().items() if name != "secret_key"}
            | {"subscriptions": heard[one.id]}
            for one in self.endpoints
        ]
        waiting = self.deliveries.waiting()
        queue = [
            {"number": one.number, "event": one.announcement.event, "endpoint_id": one.endpoint_id, "due_in": seconds}
            for seconds, one in waiting[:_SHOWN]
        ]
        counters = dict(sorted(self.deliveries.counters.items())) | {"queue": len(waiting)}
        return {
            "settings": self.settings.describe(),
            "endpoints": shown,
            "counters": counters,
            "queue": queue,
            "idle": self.idle,
        }

    def send(self, collection: str, ids: Iterable[int], event: str, *, together: bool = False) -> list[int]:
        """Announce rows by hand, whether they changed or not: one event each, or with `together` one per institution.

        `event` may have a suffix (`appointment_insertion.complete`). Returns the numbers of the deliveries. Raises
        NoSuchRowError for an unknown row, ValueError for an unknown event.
        """
        resource_of(event.partition(".")[0])
        with self._state.lock:
            rows = [self._state.row(collection, number) for number in ids]
            groups = [[row] for row in rows]
            if together:
                homes = sorted({row.institution_id for row in rows})
                groups = [[row for row in rows if row.institution_id == home] for home in homes]
            told = [self._announcement(collection, event, group, self._now(0.0)) for group in groups]
        return [number for one in told for number in self.deliveries.add(one)]

    def send_data(self, subdomain: str, event: str, data: Any) -> list[int]:
        """Announce any `data` (an object to be encoded): what no row could say. Raises as `send` does."""
        resource_of(event.partition(".")[0])
        with self._state.lock:
            home = self._state.institution(subdomain).id if subdomain else None
        told = Announcement(event, home, subdomain, "", (), self._now(0.0), orjson.dumps(data))
        return self.deliveries.add(told)

    def _changed(self, change: Change, old: Row | None, new: Row | None) -> None:
        """Announce a change; called by State, under its lock, and never raises."""
        if not self.settings.enabled:
            return
        try:
            for event in events_of(change, old, new):
                if self.registry.hearing(change.institution_id, event.partition(".")[0]):
                    self._announce(change, event, old, new)
        except Exception:  # a record broken on purpose may not be told; the change itself must be made
            logger.exception("a change could not be announced", extra={"nexhealth": {"collection": change.collection}})

    def _announce(self, change: Change, event: str, old: Row | None, new: Row | None) -> None:
        row = new or old
        if row is None:
            return
        told = self._announcement(change.collection, event, [row], change.at)
        self.deliveries.add(told, self._version_before(change, event, old) if old and new else None)

    def _version_before(self, change: Change, event: str, old: Row) -> Announcement | None:
        """The row as it was, as an update told at its own time; None where nobody hears of updates."""
        event = event.replace("_deleted", "_updated")
        if not self.registry.hearing(change.institution_id, event):
            return None
        at = old.updated if old.updated[:1].isdigit() else change.at
        return self._announcement(change.collection, event, [old], at)

    def _announcement(self, collection: str, event: str, rows: list[Row], at: str) -> Announcement:
        home = rows[0].institution_id
        subdomain = self._state.row("institutions", home).facts["subdomain"]
        data = data_of(self._state, collection, event, rows, owners=self.settings.document_owner)
        return Announcement(event, home, subdomain, collection, tuple(row.id for row in rows), at, data)


def settings_of(wanted: Mapping[str, Any] | None, time_scale: float | None) -> DeliverySettings:
    """The settings a sandbox begins with. Raises ValueError."""
    given = dict(wanted or {})
    return DeliverySettings().changed(given if time_scale is None else given | {"time_scale": time_scale})
