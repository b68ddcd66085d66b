"""What the warehouse remembers of our endpoints at NexHealth (table `nexhealth_webhooks`).

Times are the database's clock. Secrets are sealed here and opened for the receiver alone.
"""

import logging
import threading
from collections.abc import Collection as AnyCollection
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg.rows import class_row

from nexhealth_pipeline.errors import Cancelled, InvalidSetting
from nexhealth_pipeline.warehouse.runs import lock_key
from nexhealth_pipeline.warehouse.state import database_time
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = [
    "OVERLAP",
    "SECRETS_CHANNEL",
    "Endpoint",
    "LiveSecret",
    "Subscription",
    "adopt",
    "alone",
    "filled",
    "known_endpoints",
    "live_secrets",
    "note_secret",
    "record_active",
    "record_deleted",
    "record_inactive",
    "record_removed",
    "record_subscriptions",
    "reseal",
    "retire",
    "store",
]

SECRETS_CHANNEL = "nexhealth_webhooks"
"""Notified when a secret has been stored."""
OVERLAP = timedelta(hours=49)
"""How long an old secret is taken, or an old endpoint kept: NexHealth repeats a delivery for 48 hours (API.md F.5)."""

_POLL_SECONDS = 0.2
_LOG = logging.getLogger(__name__)
_COLUMNS = (
    "key_hash, endpoint_id, target_url, active, secret, old_secret, subscriptions, registered_at, checked_at,"
    " seen_active_at, hole_since, retire_at, coalesce(retire_at <= clock_timestamp(), false) AS due"
)


class Subscription(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event of one institution that an endpoint is told of."""

    id: int
    subdomain: str
    resource_type: str
    event: str
    active: bool
    since: datetime | None = None
    """When it was first noted; None = by an earlier release, so that it counts from the endpoint's registration."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint of ours that was not removed. Times are null until they happen."""

    key_hash: str
    """Which API key it belongs to."""
    endpoint_id: int
    target_url: str
    active: bool
    secret: bytes = field(repr=False)
    """Sealed."""
    old_secret: bytes | None = field(repr=False)
    """Sealed; the secret before this one."""
    subscriptions: list[dict[str, object]] = field(repr=False)
    """As :class:`Subscription`, undecoded; :attr:`subscribed` has them."""
    registered_at: datetime
    checked_at: datetime
    seen_active_at: datetime | None
    """When it was last found active; while a hole is open, when it was first found so again."""
    hole_since: datetime | None
    """Since when events may be missing."""
    retire_at: datetime | None
    """When it is to be deleted, another one having taken its place."""
    due: bool
    """Whether that time has come."""

    @property
    def subscribed(self) -> tuple[Subscription, ...]:
        """What it was subscribed to when NexHealth was last asked."""
        return msgspec.convert(tuple(self.subscriptions), tuple[Subscription, ...])

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"endpoint {self.endpoint_id}"


@dataclass(frozen=True, slots=True)
class LiveSecret:
    """A secret that events may be signed with now."""

    endpoint_id: int | None
    """None for a secret from the settings."""
    secret: str = field(repr=False)


def live_secrets(connection: psycopg.Connection, sealer: Sealer) -> list[LiveSecret]:
    """Secrets of the endpoints that were not removed, old ones while they are still taken; newest endpoint first.

    A secret that cannot be opened stops only itself and is logged. Raises InvalidSetting where none of several can.
    """
    rows = connection.execute(
        "SELECT endpoint_id, secret, CASE WHEN old_secret_until > clock_timestamp() THEN old_secret END"
        " FROM nexhealth_webhooks WHERE removed_at IS NULL ORDER BY endpoint_id DESC"
    ).fetchall()
    sealed = [(number, one) for number, *both in rows for one in both if one is not None]
    opened: list[LiveSecret] = []
    refusal: InvalidSetting | None = None
    for number, one in sealed:
        try:
            opened.append(LiveSecret(number, sealer.open(bytes(one), f"the secret of endpoint {number}")))
        except InvalidSetting as error:
            refusal = error
            _tell_once(sealer, number, bytes(one))
    if refusal is not None and not opened:
        raise refusal
    return opened


def _tell_once(sealer: Sealer, endpoint_id: int, sealed: bytes) -> None:
    """The receiver asks every few seconds; one line is enough."""
    if sealed not in sealer.unopened:
        sealer.unopened.add(sealed)
        _LOG.error("a webhook secret cannot be opened", extra={"nexhealth": {"endpoint_id": endpoint_id}})


def known_endpoints(connection: psycopg.Connection, key_hashes: AnyCollection[str] | None = None) -> list[Endpoint]:
    """Our endpoints, those of some keys or all, by id."""
    with connection.cursor(row_factory=class_row(Endpoint)) as cursor:
        return cursor.execute(
            f"SELECT {_COLUMNS} FROM nexhealth_webhooks WHERE removed_at IS NULL"  # noqa: S608 - constants
            " AND (%(any)s OR key_hash = ANY(%(hashes)s)) ORDER BY endpoint_id, key_hash",
            {"any": key_hashes is None, "hashes": list(key_hashes or ())},
        ).fetchall()


def adopt(connection: psycopg.Connection, key_hash: str, endpoint_ids: Iterable[int], present: Iterable[str]) -> None:
    """Take over, for a key that lists these endpoints, those that a key had which is not among the `present` ones.

    An account whose API key was replaced has the same endpoints as before, with the secrets that are stored here.
    Those that count as removed are no less ours.
    """
    connection.execute(
        "UPDATE nexhealth_webhooks w SET key_hash = %(key_hash)s FROM"
        " (SELECT DISTINCT ON (endpoint_id) key_hash, endpoint_id FROM nexhealth_webhooks"
        "  WHERE endpoint_id = ANY(%(ids)s) AND key_hash <> ALL(%(present)s)"
        "  ORDER BY endpoint_id, removed_at DESC NULLS FIRST) lost"
        " WHERE w.key_hash = lost.key_hash AND w.endpoint_id = lost.endpoint_id"
        " AND NOT EXISTS (SELECT FROM nexhealth_webhooks other"
        "  WHERE other.key_hash = %(key_hash)s AND other.endpoint_id = w.endpoint_id)",
        {"key_hash": key_hash, "ids": list(endpoint_ids), "present": list(present)},
    )


def store(
    connection: psycopg.Connection, key_hash: str, endpoint_id: int, *, target_url: str, active: bool, secret: bytes
) -> None:
    """Remember an endpoint whose sealed `secret` has just been learnt, as if it had never been removed."""
    connection.execute(
        "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, seen_active_at)"
        " VALUES (%(key_hash)s, %(endpoint_id)s, %(target_url)s, %(active)s, %(secret)s,"
        " CASE WHEN %(active)s THEN clock_timestamp() END)"
        " ON CONFLICT (key_hash, endpoint_id) DO UPDATE SET target_url = excluded.target_url,"
        " secret = excluded.secret, removed_at = NULL, retire_at = NULL, checked_at = clock_timestamp()",
        {
            "key_hash": key_hash,
            "endpoint_id": endpoint_id,
            "target_url": target_url,
            "active": active,
            "secret": secret,
        },
    )
    _tell_receivers(connection)


def _tell_receivers(connection: psycopg.Connection) -> None:
    """Once this is committed, receivers look for new secrets at once: the first events may follow within moments."""
    connection.execute("SELECT pg_notify(%s, '')", (SECRETS_CHANNEL,))


def note_secret(connection: psycopg.Connection, endpoint: Endpoint, secret: bytes, *, keep_old: bool) -> None:
    """Put the sealed `secret` in place of the stored one, which with `keep_old` is taken for :data:`OVERLAP` more."""
    _update(
        connection,
        endpoint,
        "secret = %(secret)s, old_secret = CASE WHEN %(keep)s THEN secret ELSE old_secret END, old_secret_until ="
        " CASE WHEN %(keep)s THEN clock_timestamp() + %(overlap)s ELSE old_secret_until END",
        secret=secret,
        keep=keep_old,
        overlap=OVERLAP,
    )
    _tell_receivers(connection)


def record_active(connection: psycopg.Connection, endpoint: Endpoint) -> None:
    """NexHealth says that it posts events to this endpoint.

    While a hole is open, when it was first found active again is kept: what was read since then has filled its part.
    """
    _update(
        connection,
        endpoint,
        "active = true, checked_at = clock_timestamp(), seen_active_at ="
        " CASE WHEN active AND hole_since IS NOT NULL THEN seen_active_at ELSE clock_timestamp() END",
    )


def record_inactive(connection: psycopg.Connection, endpoint: Endpoint) -> datetime:
    """NexHealth does not post events to it, or has it no more; returns since when events may be missing.

    That is :data:`OVERLAP` before it was last seen active: what failed then was to be repeated, and nobody says that
    it will be. A hole that is open already moves a little, so that a read that began before does not close it.
    """
    since: datetime = _update(
        connection,
        endpoint,
        "active = false, checked_at = clock_timestamp(), hole_since = CASE"
        " WHEN hole_since IS NULL THEN greatest(registered_at, coalesce(seen_active_at, registered_at) - %(overlap)s)"
        " WHEN active THEN hole_since - interval '1 microsecond' ELSE hole_since END",
        overlap=OVERLAP,
    )
    return since


def record_subscriptions(
    connection: psycopg.Connection, endpoint: Endpoint, subscriptions: Iterable[Subscription]
) -> None:
    """Remember what it is subscribed to, and since when: what is known there already keeps its time."""
    noted = {one.id: one.since for one in _noted(connection, endpoint)}
    now = database_time(connection)
    told = [msgspec.structs.replace(one, since=noted.get(one.id, now)) for one in subscriptions]
    as_json = msgspec.json.encode(told).decode()
    _update(connection, endpoint, "subscriptions = %(subscriptions)s::jsonb", subscriptions=as_json)


def _noted(connection: psycopg.Connection, endpoint: Endpoint) -> tuple[Subscription, ...]:
    """What is noted of it now: `endpoint` may have been read before that changed."""
    row = connection.execute(
        "SELECT subscriptions FROM nexhealth_webhooks WHERE key_hash = %s AND endpoint_id = %s",
        (endpoint.key_hash, endpoint.endpoint_id),
    ).fetchone()
    return msgspec.convert(tuple(row[0]) if row else (), tuple[Subscription, ...])


def retire(connection: psycopg.Connection, endpoint: Endpoint, *, heir: Endpoint) -> None:
    """Let it be deleted after :data:`OVERLAP`: until then repeats of what it was sent still come.

    An open hole passes to the key's other endpoints, and to the `heir`, which takes its subscriptions over. It stays open
    here as well for those that it still has: what is noted of them says whom the hole is about.
    """
    with connection.transaction():
        hole = _update(connection, endpoint, "retire_at = clock_timestamp() + %(overlap)s", overlap=OVERLAP)
        _pass_on(connection, endpoint, hole, heir)
        _update(connection, endpoint, "hole_since = CASE WHEN subscriptions <> '[]' THEN hole_since END")


def record_deleted(connection: psycopg.Connection, endpoint: Endpoint) -> None:
    """Somebody, or we, deleted it at NexHealth, and with it the events that it was still to be sent again.

    Nobody minds those of one that is retiring and has no subscriptions: it had 49 hours for them.
    """
    with connection.transaction():
        if endpoint.retire_at is None or endpoint.subscriptions:
            record_inactive(connection, endpoint)
        record_removed(connection, endpoint)


def record_removed(connection: psycopg.Connection, endpoint: Endpoint) -> None:
    """It is gone at NexHealth: its secrets count no more. An open hole passes to the key's other endpoints."""
    with connection.transaction():
        hole = _update(connection, endpoint, "removed_at = clock_timestamp(), active = false")
        _pass_on(connection, endpoint, hole)


def _pass_on(
    connection: psycopg.Connection, endpoint: Endpoint, hole: datetime | None, heir: Endpoint | None = None
) -> None:
    """Let the key's other endpoints have a hole: those with subscriptions, and the `heir`; all where there is no such.

    It would never be closed at one of which a killed set-up has noted nothing, and which nobody goes on with.
    It ends now for those that are active: they may have been so long before it began, and nothing read then fills it.
    One that is open there already moves a little, so that a read that began before does not close it.
    """
    connection.execute(
        "UPDATE nexhealth_webhooks SET hole_since = least(hole_since - interval '1 microsecond', %(hole)s), seen_active_at ="
        " CASE WHEN active THEN clock_timestamp() ELSE seen_active_at END WHERE key_hash = %(key_hash)s"
        " AND removed_at IS NULL AND retire_at IS NULL AND %(hole)s::timestamptz IS NOT NULL"
        " AND (subscriptions <> '[]' OR endpoint_id = %(heir)s OR NOT EXISTS (SELECT FROM nexhealth_webhooks other"
        "  WHERE other.key_hash = %(key_hash)s AND other.removed_at IS NULL AND other.retire_at IS NULL"
        "  AND (other.subscriptions <> '[]' OR other.endpoint_id = %(heir)s)))",
        {"key_hash": endpoint.key_hash, "hole": hole, "heir": heir and heir.endpoint_id},
    )


def filled(connection: psycopg.Connection, endpoint: Endpoint) -> bool:
    """The changes since `endpoint.hole_since` were read: close the hole unless it has grown since; whether it did."""
    done = connection.execute(
        "UPDATE nexhealth_webhooks SET hole_since = NULL WHERE key_hash = %s AND endpoint_id = %s AND hole_since = %s",
        (endpoint.key_hash, endpoint.endpoint_id, endpoint.hole_since),
    )
    return done.rowcount > 0


def reseal(connection: psycopg.Connection, sealer: Sealer) -> int:
    """Seal with the first key what an older one has sealed; returns how many endpoints that concerned."""
    done = 0
    for endpoint in known_endpoints(connection):
        sealed = [endpoint.secret, endpoint.old_secret]
        with suppress(InvalidSetting):  # what no key opens stays as it is: setup asks NexHealth
            fresh = [one and (one if sealer.is_current(one) else sealer.seal(sealer.open(one))) for one in sealed]
            if fresh != sealed:
                assignments: LiteralString = "secret = %(secret)s, old_secret = %(old)s"
                _update(connection, endpoint, assignments, secret=fresh[0], old=fresh[1])
                done += 1
    return done


@contextmanager
def alone(connection: psycopg.Connection, stop: threading.Event) -> Iterator[None]:
    """Let nobody else change endpoints meanwhile: two set-ups at once would make two. Raises Cancelled."""
    key = (lock_key("webhook endpoints"),)
    while not _true(connection.execute("SELECT pg_try_advisory_lock(%s)", key)):
        if stop.wait(_POLL_SECONDS):
            raise Cancelled("stopped while waiting for another process that changes webhook endpoints")
    try:
        yield
    finally:
        if not connection.closed and not connection.broken:
            connection.execute("SELECT pg_advisory_unlock(%s)", key)


def _true(answer: psycopg.Cursor[Any]) -> bool:
    row = answer.fetchone()
    return bool(row and row[0])


def _update(connection: psycopg.Connection, endpoint: Endpoint, assignments: LiteralString, **values: object) -> Any:
    """Change one row; returns its `hole_since`."""
    row = connection.execute(
        f"UPDATE nexhealth_webhooks SET {assignments} WHERE key_hash = %(key_hash)s"  # noqa: S608 - literals
        " AND endpoint_id = %(endpoint_id)s RETURNING hole_since",
        {"key_hash": endpoint.key_hash, "endpoint_id": endpoint.endpoint_id} | values,
    ).fetchone()
    return row[0] if row else None
