"""Holes in the stream of events: what may have changed unheard while an endpoint was off is read from the API.

Every slice goes on from its own watermark, as at night, so a read that begins after the endpoint was switched on
again brings what the lost events would have told, whoever makes it: that slice is not read for the hole again.

But for documents: a patient's list is read because the patient has changed, and a document that was uploaded need not
change its patient. Those are left to the nightly rotation, which reads every list once in thirty nights.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AnySet
from dataclasses import replace
from datetime import date, datetime
from functools import partial

import psycopg

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.orchestration.assets import events_of
from nexhealth_pipeline.orchestration.jobs import change_events
from nexhealth_pipeline.orchestration.step import Event, read
from nexhealth_pipeline.orchestration.worker import Context
from nexhealth_pipeline.sync.months import CHANGES, utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import due_slices, is_fresh, was_read
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.state import PassKey, database_time, load_fresh
from nexhealth_pipeline.webhooks.endpoints import Endpoint, filled, known_endpoints

__all__ = ["fill_holes"]

_TOLD = [one for one in DECLARED if one.events is not None]
_NAMES = [one.name for one in _TOLD]
_BAD = (Status.FAILED, Status.CANCELLED)


def fill_holes(context: Context, session: SyncSession) -> list[int]:
    """Read what endpoints that are active again may have missed; ids of those whose hole is closed now.

    A hole stays open where a slice of an institution subscribed there could not be read: the next look tries that
    slice again. And where no institution is called as one subscribed there, until a set-up has noted its name of now.
    Raises WarehouseError.
    """
    with driver_errors("looking for lost events"), session.pool.connection() as connection:
        known = known_endpoints(connection)
        # Whose events an endpoint lost that has no subscriptions is not known yet: a set-up was killed, or goes on.
        holes = [one for one in known if one.hole_since is not None and one.active and one.subscriptions]
        if not holes:
            return []
        over = max(one.seen_active_at or database_time(connection) for one in holes)
        fresh = load_fresh(connection, _NAMES, over)
        unknown = _unknown(connection, {name for one in holes for name in _subdomains(one)})
    slices = _slices(session, {name for one in holes for name in _subdomains(one)} - unknown, fresh)
    context.log.info(f"events of {len(holes)} endpoints may be missing: reading {len(slices)} slices since")
    if unknown:
        context.log.warning(
            f"no institution is called {', '.join(sorted(unknown))}: what its endpoint has missed is read once"
            " `nexhealth webhooks setup URL` has noted what it is called now"
        )
    options = replace(SyncOptions.of(session.settings), fresh_after=over)
    results = read(context, session, lambda: run_slices(session, slices, options), len(slices), partial(_told, session))
    if session.stop.is_set():
        return []
    closed = [one for one in holes if not _failed(results, _subdomains(one)) and unknown.isdisjoint(_subdomains(one))]
    with driver_errors("closing a hole"), session.pool.connection() as connection:
        return [one.endpoint_id for one in closed if filled(connection, one)]


def _subdomains(endpoint: Endpoint) -> set[str]:
    return {one.subdomain for one in endpoint.subscribed}


def _unknown(connection: psycopg.Connection, subdomains: AnySet[str]) -> set[str]:
    """Those that no institution has: it is called otherwise now. One that has left, as somebody has said, has its own."""
    rows = connection.execute(
        "SELECT subdomain FROM nexhealth_institutions WHERE subdomain = ANY(%s)", (list(subdomains),)
    )
    return set(subdomains) - {name for (name,) in rows}


def _slices(session: SyncSession, subdomains: set[str], fresh: AnySet[PassKey]) -> list[Slice]:
    """Slices of what events tell about that were not read since, as far as they ever were: the rest is read whole anyway."""
    allowed = set(session.settings.subdomains)
    wanted = subdomains & allowed if allowed else subdomains
    if not wanted:
        return []
    watermarks, today = session.watermarks(_NAMES), utc_today()
    due = due_slices(_TOLD, session.practices(wanted), watermarks, SyncOptions(), today)
    return [piece for piece in due if _is_known(piece, watermarks, today) and not is_fresh(piece, fresh, today)]


def _is_known(piece: Slice, watermarks: Mapping[PassKey, datetime], today: date) -> bool:
    if piece.window_key == CHANGES:
        return True  # planned only where a month was read: from its own watermark, else from the earliest month's begin
    return was_read(piece, watermarks, today)


def _told(session: SyncSession, result: SliceResult) -> Iterable[Event]:
    return change_events(session, result) if result.slice.window_key == CHANGES else events_of(result)


def _failed(results: Iterable[SliceResult], subdomains: set[str]) -> bool:
    return any(
        result.status in _BAD and (result.slice.subdomain is None or result.slice.subdomain in subdomains)
        for result in results
    )
