"""The watchdog's look at our endpoints: are they there, does NexHealth post to them, since when may events be missing.

NexHealth switches an endpoint off after 48 hours of errors and tells nobody (API.md F.5). What was lost until it is
switched on again is read by polling: `hole_since` says since when.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

import psycopg

from nexhealth_pipeline.errors import ApiError, InvalidSetting
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.endpoints import (
    Endpoint,
    alone,
    known_endpoints,
    note_secret,
    record_active,
    record_deleted,
    record_inactive,
    record_removed,
)
from nexhealth_pipeline.webhooks.registering.remote import Remote, RemoteEndpoint
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["KEY_GONE", "CheckedEndpoint", "EndpointVerdict", "check_endpoints", "delete_if_due", "learn_secret"]

KEY_GONE = (
    "its API key is not among the settings: add it; or, with the key that replaced it, run `nexhealth webhooks setup URL`;"
    " or forget it with `nexhealth webhooks remove URL --forget`"
)
"""Why nothing can be done about an endpoint whose key is not set (any more)."""


class EndpointVerdict(StrEnum):
    """What a look at an endpoint found."""

    OK = "ok"
    REACTIVATED = "reactivated"
    """It was inactive; NexHealth posts events to it again."""
    INACTIVE = "inactive"
    """It is inactive, and could not be changed: see the reason."""
    MISSING = "missing"
    """NexHealth has it no more: run `nexhealth webhooks setup URL`."""
    RETIRING = "retiring"
    """Another one has taken its place; it is deleted when its time is over."""
    OVERDUE = "overdue"
    """Its time is over, but it is still subscribed to: see the reason."""
    REMOVED = "removed"
    """It was retiring, and was deleted just now."""
    UNKNOWN = "unknown"
    """NexHealth could not be asked: see the reason."""


@dataclass(frozen=True, slots=True)
class CheckedEndpoint:
    """One endpoint of ours, as it was found."""

    endpoint_id: int
    target_url: str
    verdict: EndpointVerdict
    hole_since: datetime | None
    """Since when events may be missing."""
    reason: str = ""

    @property
    def fine(self) -> bool:
        """Whether nobody has to do anything."""
        return self.verdict not in {
            EndpointVerdict.INACTIVE,
            EndpointVerdict.MISSING,
            EndpointVerdict.OVERDUE,
            EndpointVerdict.UNKNOWN,
        }


def check_endpoints(session: SyncSession, sealer: Sealer) -> list[CheckedEndpoint]:
    """Ask NexHealth about each endpoint, switch on what is off, delete what has retired; by endpoint id.

    Sends nothing where nothing is registered. An API that cannot be asked is a verdict; raises WarehouseError, Cancelled.
    """
    with driver_errors("checking webhook endpoints"), session.pool.connection() as connection:
        if not known_endpoints(connection):
            return []
        with alone(connection, session.stop):
            known = known_endpoints(connection)
            names = session.client.names_by_hash()
            states: list[CheckedEndpoint] = []
            for key_hash in dict.fromkeys(one.key_hash for one in known):
                mine = [one for one in known if one.key_hash == key_hash]
                remote = Remote(session.client, names[key_hash]) if key_hash in names else None
                states += _check_key(connection, remote, sealer, mine)
            return sorted(states, key=lambda state: state.endpoint_id)


def _check_key(
    connection: psycopg.Connection, remote: Remote | None, sealer: Sealer, known: Iterable[Endpoint]
) -> list[CheckedEndpoint]:
    if remote is None:
        return [_state(one, EndpointVerdict.UNKNOWN, KEY_GONE) for one in known]
    try:
        listed = {one.id: one for one in remote.endpoints()}
    except ApiError as error:
        return [_state(one, EndpointVerdict.UNKNOWN, str(error)) for one in known]
    return [_check(connection, remote, sealer, one, listed.get(one.endpoint_id)) for one in known]


def _check(
    connection: psycopg.Connection, remote: Remote, sealer: Sealer, known: Endpoint, found: RemoteEndpoint | None
) -> CheckedEndpoint:
    if found is not None:
        learn_secret(connection, sealer, known, found.secret)
    if known.retire_at is not None and not known.subscriptions:
        return _check_retired(connection, remote, known, found)
    if found is None:
        hole = record_inactive(connection, known)
        return _state(known, EndpointVerdict.MISSING, _missing(known), hole)
    state = _kept_active(connection, remote, known, found)
    if known.retire_at is None:
        return state
    # Events are still posted to it alone.
    if state.fine and known.due:
        return replace(state, verdict=EndpointVerdict.OVERDUE, reason=_overdue(known))
    return replace(state, verdict=EndpointVerdict.RETIRING) if state.verdict is EndpointVerdict.OK else state


def _kept_active(
    connection: psycopg.Connection, remote: Remote, known: Endpoint, found: RemoteEndpoint
) -> CheckedEndpoint:
    """Switch it on again if it is off."""
    if found.active:
        record_active(connection, known)
        return _state(known, EndpointVerdict.OK)
    hole = record_inactive(connection, known)
    try:
        remote.activate(known.endpoint_id)
    except ApiError as error:
        return _state(known, EndpointVerdict.INACTIVE, str(error), hole)
    record_active(connection, known)
    return _state(known, EndpointVerdict.REACTIVATED, "", hole)


def _check_retired(
    connection: psycopg.Connection, remote: Remote, known: Endpoint, found: RemoteEndpoint | None
) -> CheckedEndpoint:
    """One that nothing is posted to any more."""
    if found is None:
        record_deleted(connection, known)
        return _state(known, EndpointVerdict.REMOVED)
    try:
        removed = delete_if_due(connection, remote, known)
    except ApiError as error:
        return _state(known, EndpointVerdict.RETIRING, str(error))
    return _state(known, EndpointVerdict.REMOVED if removed else EndpointVerdict.RETIRING)


def _missing(known: Endpoint) -> str:
    return f"{_named(known)} had subscriptions there: {_set_up(known)}" if known.subscribed else _set_up(known)


def _overdue(known: Endpoint) -> str:
    return f"its secret stays valid, since {_named(known)} may still be subscribed to it: {_set_up(known)}"


def _named(known: Endpoint) -> str:
    return ", ".join(sorted({one.subdomain for one in known.subscribed}))


def _set_up(known: Endpoint) -> str:
    return (
        f"run `nexhealth webhooks setup {known.target_url}`; if an institution has left, or may have no webhooks, leave it "
        "out of NEXHEALTH_SUBDOMAINS and add --prune"
    )


def delete_if_due(connection: psycopg.Connection, remote: Remote, known: Endpoint) -> bool:
    """Delete a retired endpoint whose time is over and whose subscriptions have moved; whether it did."""
    if not known.due or known.subscriptions:
        return False
    remote.delete(known.endpoint_id)
    record_removed(connection, known)
    return True


def learn_secret(connection: psycopg.Connection, sealer: Sealer, known: Endpoint, shown: str | None) -> bool:
    """Take over the secret that NexHealth shows, keeping the one before for a while; whether we have one now.

    What is a part of the one before, or much shorter, is what is shown instead of it: its last characters, say.
    """
    stored: str | None = None
    with suppress(InvalidSetting):
        stored = sealer.open(known.secret)
    if shown and shown != stored and not (stored and _abridged(shown, stored)):
        note_secret(connection, known, sealer.seal(shown), keep_old=stored is not None)
    return bool(shown or stored)


def _abridged(shown: str, stored: str) -> bool:
    return 2 * len(shown) < len(stored) or stored.startswith(shown) or stored.endswith(shown)


def _state(
    known: Endpoint, verdict: EndpointVerdict, reason: str = "", hole: datetime | None = None
) -> CheckedEndpoint:
    return CheckedEndpoint(known.endpoint_id, known.target_url, verdict, hole or known.hole_since, reason)
