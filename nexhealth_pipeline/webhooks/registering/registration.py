"""Registers this pipeline with NexHealth: one endpoint an API key, and a subscription to every event that is declared.

    with SyncSession(settings, url) as session:
        done = set_up(session, "https://hooks.example.com/api/nexhealth-webhook")

Everything is looked up before it is made, so that a second set-up changes nothing and one that was killed is gone on
with. A secret is stored before anything is subscribed: no event is ever signed with one that we do not have.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from dataclasses import replace as changed
from typing import Any

import msgspec

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import (
    ApiError,
    BadRequest,
    InvalidSetting,
    KeyRefused,
    MissingSetting,
    NoAccess,
    ServerFailed,
)
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.endpoints import alone, known_endpoints, record_deleted, record_removed, reseal
from nexhealth_pipeline.webhooks.registering.checking import KEY_GONE
from nexhealth_pipeline.webhooks.registering.one_key import Institutions, KeySetUp, KeyWork, Order, Progress
from nexhealth_pipeline.webhooks.registering.remote import Remote
from nexhealth_pipeline.webhooks.registering.subscribing import declared_topics
from nexhealth_pipeline.webhooks.sealing import Sealer
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH, needs_proxy, usable_url

__all__ = ["Removal", "SetUp", "remove", "set_up"]


@dataclass(slots=True)
class SetUp:
    """How a set-up ended."""

    url: str
    dry_run: bool
    keys: list[KeySetUp] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(institution, or API key; why)"""

    @property
    def exit_status(self) -> int:
        """1 where something was refused, or kept failing."""
        return 1 if self.failures else 0

    @property
    def warnings(self) -> list[str]:
        """What may keep events away although everything was set up."""
        if not needs_proxy(self.url):
            return []
        return [f"the receiver answers 404 to any path but {WEBHOOK_PATH}: your proxy has to pass this one on as that"]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        failures = [{"what": what, "reason": reason} for what, reason in self.failures]
        rest = {"failures": failures, "warnings": self.warnings, "exit_status": self.exit_status}
        return {"url": self.url, "dry_run": self.dry_run, "keys": [asdict(one) for one in self.keys]} | rest


@dataclass(slots=True)
class Removal:
    """What was deleted at NexHealth, or forgotten."""

    removed: list[tuple[int, str]] = field(default_factory=list)
    """(endpoint id, URL)"""
    forgotten: list[tuple[int, str]] = field(default_factory=list)
    """(endpoint id, URL) of those that NexHealth may still have."""
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def exit_status(self) -> int:
        """1 where something was refused."""
        return 1 if self.failures else 0

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs."""
        return {
            "removed": [{"endpoint_id": number, "url": url} for number, url in self.removed],
            "forgotten": [{"endpoint_id": number, "url": url} for number, url in self.forgotten],
            "failures": [{"what": what, "reason": reason} for what, reason in self.failures],
            "exit_status": self.exit_status,
        }


def set_up(
    session: SyncSession,
    url: str,
    *,
    prune: bool = False,
    rotate: bool = False,
    replace: bool = False,
    dry_run: bool = False,
    sealer: Sealer | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SetUp:
    """Let NexHealth post every declared event of every institution to `url`.

    `prune` deletes what is ours and no longer wanted; `rotate` gives each endpoint a successor with another secret;
    `replace` deletes another's endpoint with this URL whose secret nobody knows, after its subscriptions have moved;
    `dry_run` asks and changes nothing. `on_progress` is told of subscriptions settled and planned, from any thread.

    Raises InvalidSetting for a URL that cannot be used or that another's endpoint has, and with `prune` for a name in
    NEXHEALTH_SUBDOMAINS that is not known; MissingSetting without a key to seal with, ApiError where nothing can be done with
    the only API key, WarehouseError, Cancelled.
    """
    url = usable_url(url)
    sealer = sealer or Sealer.of(session.settings)
    with driver_errors("registering webhooks"), session.pool.connection() as connection:
        topics, counter = declared_topics(), Progress(on_progress)
        order = Order(
            *(session, connection, sealer, url, topics, counter),
            prune=prune,
            rotate=rotate,
            replace=replace,
            dry_run=dry_run,
        )
        done = SetUp(url, dry_run, failures=order.failures)
        with alone(connection, session.stop), connection.transaction(force_rollback=True) if dry_run else nullcontext():
            reseal(connection, sealer)
            _fill(order, done)
    return done


def remove(session: SyncSession, url: str | None, *, forget: bool = False) -> Removal:
    """Delete our endpoints with `url`, or all (None), and with them their subscriptions.

    `forget` deletes nothing: endpoints whose API key is not among the settings, and those alone, count as removed here,
    since nobody can delete them at NexHealth any more.

    Raises InvalidSetting where none has that URL, WarehouseError, Cancelled; what the API refuses is in the result.
    """
    wanted = None if url is None else usable_url(url)
    done = Removal()
    with driver_errors("removing webhooks"), session.pool.connection() as connection, alone(connection, session.stop):
        known = known_endpoints(connection)
        # As it was given, too: an earlier release may have registered it so.
        chosen = [one for one in known if wanted is None or one.target_url in (wanted, url)]
        if wanted is not None and not chosen:
            choices = ", ".join(sorted({one.target_url for one in known})) or "none is registered"
            raise InvalidSetting(f"no endpoint of ours has the URL {wanted}; use one of: {choices}")
        names = session.client.names_by_hash()
        for endpoint in chosen:
            name = names.get(endpoint.key_hash)
            if forget:
                if name is None:
                    record_removed(connection, endpoint)
                    done.forgotten.append((endpoint.endpoint_id, endpoint.target_url))
                continue
            if name is None:
                done.failures.append((endpoint.label, KEY_GONE))
                continue
            try:
                Remote(session.client, name).delete(endpoint.endpoint_id)
            except ApiError as error:
                done.failures.append((endpoint.label, str(error)))
                continue
            record_deleted(connection, endpoint)
            done.removed.append((endpoint.endpoint_id, endpoint.target_url))
    return done


def _fill(order: Order, done: SetUp) -> None:
    """One key after the other."""
    by_key = _by_key(order)
    if not any(by_key.values()) and not order.failures:
        only = ", ".join(order.session.settings.subdomains)
        limited = f" among NEXHEALTH_SUBDOMAINS ({only})" if only else ""
        raise InvalidSetting(f"the API key reaches no institution{limited}: correct it, or ask the vendor")
    if order.prune:
        _require_known(order)
    order.counter.planned = len(order.topics) * sum(len(several) for several in by_key.values())
    unwanted = _unwanted(order, by_key) if order.prune else set()
    for name, institutions in by_key.items():
        with _own_failure(order, name):
            if institutions:
                done.keys.append(KeyWork(order, name, institutions).run())
            elif name in unwanted and (ended := KeyWork(order, name, []).end()).changes:
                done.keys.append(ended)


def _require_known(order: Order) -> None:
    """Refuse to prune by a list with a name that is not known: whom it means would be taken for one that nobody wants."""
    missing = sorted(set(order.session.settings.subdomains) - set(order.subdomains.values()))
    if missing:
        failed = "".join(f"; {whose}: {why}" for whose, why in order.failures)
        raise InvalidSetting(
            f"NEXHEALTH_SUBDOMAINS: no institution {', '.join(map(repr, missing))} is known yet, and pruning would delete what"
            " is subscribed to for it: correct it (subdomains are case-sensitive), or run"
            f" `nexhealth sync --resource institutions --resource locations` first{failed}"
        )


def _unwanted(order: Order, by_key: Mapping[str, Institutions]) -> set[str]:
    """Names of keys that reach institutions, as is known, and none that is wanted: not those of which nothing is known."""
    client = order.session.client
    names = {client.key_hash(name): name for name in by_key}
    found = set()
    for subdomain in order.subdomains.values():
        with suppress(MissingSetting):
            found.add(names[client.key_hash(subdomain)])
    return {name for name in found if not by_key[name]}


def _by_key(order: Order) -> dict[str, Institutions]:
    """What is wanted, by the name of the key that reaches it: what the warehouse knows, else what NexHealth lists."""
    client, only = order.session.client, order.session.settings.subdomains
    names = client.names_by_hash()
    found: dict[str, Institutions] = {name: [] for name in names.values()}
    known = [(one.id, one.subdomain) for one in load_practices(order.connection).institutions]
    for number, subdomain in dict.fromkeys(known or _listed(order)):
        order.subdomains[number] = subdomain
        if only and subdomain not in only:
            continue
        try:
            found[names[client.key_hash(subdomain)]].append((number, subdomain))
        except MissingSetting as missing:
            order.failures.append((subdomain, str(missing)))
    return found


def _listed(order: Order) -> Institutions:
    """What each key reaches."""
    collection, client = COLLECTIONS["institutions"], order.session.client
    asked = ApiRequest(collection.path, paging=collection.paging, legacy_accept=collection.legacy_accept)
    found: list[_Institution] = []
    for name in client.key_names():
        with _own_failure(order, name):
            for page in client.pages(changed(asked, key_name=name)):
                found += [msgspec.json.decode(record, type=_Institution, strict=False) for record in page.records]
    return [(one.id, one.subdomain) for one in found if one.subdomain]


class _Institution(msgspec.Struct):
    id: int
    subdomain: str | None = None


@contextmanager
def _own_failure(order: Order, name: str) -> Iterator[None]:
    """A key that is refused, or that the API keeps failing at, spoils its own institutions alone, if there are others."""
    try:
        yield
    except (KeyRefused, NoAccess, BadRequest, ServerFailed) as error:
        if len(order.session.client.key_names()) == 1:
            raise
        order.failures.append((f"the key of {name}" if name else "NEXHEALTH_API_KEY", str(error)))
