"""Nothing grows without end: what is old is removed from the warehouse, in small transactions.

A copy of a practice is as large as the practice. What is beside it (logs, events, changes, versions) is kept for
as long as the settings say; docs/operations.md lists every table with its bound. Whoever watches or syncs first on
a day removes what is due, so that no daemon is needed. Other processes are never kept waiting for more than half a
second.
"""

import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import ClocksDiffer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse import changes, history, sync_log
from nexhealth_pipeline.warehouse.runs import lock_key
from nexhealth_pipeline.warehouse.state import database_time

__all__ = ["claim", "expunge", "make_partitions", "note_done", "remove_old", "require_clock"]

_log = logging.getLogger(__name__)
_BATCH = 1000
_LOCK = lock_key("housekeeping")
_CLOCKS_DIFFER = timedelta(days=1)
"""What is old is told by the database's clock. One that is so far from this host's is not believed: history, payloads and the
change feed cannot be had again."""
_Place = tuple[datetime, int]
_PARKED_TIMES = 10
"""Payloads of parked events are kept so many times as long: somebody may still mend and replay them."""
_REFUSAL_DAYS = 31
"""So long refused webhooks are kept, whatever the settings say: anybody on the internet can add some."""
_SUMS_MONTHS = 24
"""So long the sync log's sums a day are kept."""

_RULES = {
    # They take no part in telling repetitions.
    "webhook_refusals": """
        DELETE FROM nexhealth_webhook_events WHERE id IN (
            SELECT id FROM nexhealth_webhook_events
            WHERE status = 'rejected' AND received_at < statement_timestamp() - %(refusal_days)s * interval '1 day'
            ORDER BY received_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED)""",
    # The audit rows of events whose payload is gone, where a setting says so. Their hash tells repetitions, which come within days.
    "webhook_events": """
        DELETE FROM nexhealth_webhook_events WHERE id IN (
            SELECT id FROM nexhealth_webhook_events
            WHERE payload IS NULL AND status <> 'pending'
                AND received_at < statement_timestamp() - %(webhook_event_days)s * interval '1 day'
            ORDER BY received_at LIMIT %(batch)s FOR UPDATE SKIP LOCKED)""",
    "quarantine": """
        DELETE FROM nexhealth_quarantine WHERE id IN (
            SELECT id FROM nexhealth_quarantine
            WHERE resolved_at < statement_timestamp() - %(quarantine_days)s * interval '1 day' LIMIT %(batch)s)""",
    # Of runs that found nothing to do, which are most of the watchdog's, nobody wants to read for ever.
    "runs": """
        DELETE FROM nexhealth_runs WHERE run_id IN (
            SELECT run_id FROM nexhealth_runs r
            WHERE finished_at < statement_timestamp() - CASE status WHEN 'succeeded' THEN interval '7 days'
                    ELSE %(sync_log_months)s * interval '1 month' END
                AND NOT EXISTS (SELECT FROM nexhealth_sync_logs g WHERE g.run_id = r.run_id)
            LIMIT %(batch)s)""",
    "sweeps": """
        DELETE FROM nexhealth_sweeps WHERE id IN (
            SELECT id FROM nexhealth_sweeps WHERE started_at < statement_timestamp() - interval '30 days' LIMIT %(batch)s)""",
    "log_sums": """
        DELETE FROM nexhealth_sync_log_days WHERE ctid IN (
            SELECT ctid FROM nexhealth_sync_log_days
            WHERE day < (statement_timestamp() - %(sums_months)s * interval '1 month')::date LIMIT %(batch)s)""",
    # Fields that came otherwise than declared, once each list of the institution was read whole a month after that: who
    # asks for changes only does not meet what stands unchanged. Lists under rows are read in turn, which takes a month of
    # nights in which the office is online. A location that is read no more keeps nothing for ever.
    # A list inside records is read with them, and of key-wide lists the state names no institution.
    "drift": """
        DELETE FROM nexhealth_schema_drift WHERE ctid IN (
            SELECT ctid FROM nexhealth_schema_drift d
            WHERE kind <> 'missing' AND last_seen_at < (
                SELECT min(before) FROM (
                    SELECT min(CASE WHEN %(in_turn)s::jsonb ? s.collection THEN s.fresh_at - interval '90 days'
                        ELSE coalesce(s.full_at, '-infinity') - interval '31 days' END)
                        FILTER (WHERE s.window_key <> 'changes') AS before
                    FROM nexhealth_sync_state s
                    WHERE s.collection = coalesce(%(around)s::jsonb ->> d.collection, d.collection)
                        AND s.institution_id IN (d.institution_id, 0)
                        AND NOT coalesce(%(twice)s::jsonb -> s.collection ? s.pass, false)
                    GROUP BY s.location_id HAVING max(s.fresh_at) FILTER (WHERE s.fresh_at <= statement_timestamp())
                        > statement_timestamp() - interval '90 days') place)
            LIMIT %(batch)s FOR UPDATE SKIP LOCKED)""",
    # A check that is asked no more (an earlier release's, of an institution that is left out) would fail for ever. What was
    # asked later than now was by a clock that was ahead: counted from there, all that was asked since would go.
    "check_results": """
        DELETE FROM nexhealth_check_results WHERE ctid IN (
            SELECT ctid FROM nexhealth_check_results
            WHERE checked_at < (SELECT max(checked_at) FILTER (WHERE checked_at <= statement_timestamp())
                FROM nexhealth_check_results) - interval '31 days'
            LIMIT %(batch)s)""",
}
"""What removes the next old rows of a table, by what they are called in the log.

By `statement_timestamp()`: with a volatile clock no index is asked, and the last batch looks at every younger row.
"""

# What was met by reads that nobody judged or began anew: of a location that is left out, a collection read no more. All
# of a read at once, as half of it would look like the whole; one so old is begun anew by whoever comes back to it.
_OLD_READ = """
    WITH old AS (
        DELETE FROM nexhealth_seen_passes WHERE judged_at IS NULL AND begun_at < now() - interval '90 days' AND id = (
            SELECT id FROM nexhealth_seen_passes WHERE judged_at IS NULL AND begun_at < now() - interval '90 days'
            LIMIT 1 FOR UPDATE SKIP LOCKED)
        RETURNING id),
    met AS (DELETE FROM nexhealth_seen WHERE pass_id = (SELECT id FROM old))
    SELECT id FROM old"""

# What was met by reads that were judged, kept to tell where rows are listed, and that nobody made again either. The read
# stays, without it: it says when was judged last.
_OLD_KEYS = """
    WITH old AS (
        SELECT id FROM nexhealth_seen_passes p
        WHERE judged_at IS NOT NULL AND begun_at < now() - interval '90 days'
            AND (SELECT true FROM nexhealth_seen s WHERE s.pass_id = p.id LIMIT 1)
        LIMIT 1 FOR UPDATE SKIP LOCKED),
    met AS (DELETE FROM nexhealth_seen WHERE pass_id = (SELECT id FROM old))
    SELECT id FROM old"""

# The last superseded version of a row stays: it says since when the present one holds. `now`, as a volatile clock would
# have the months searched that are too young.
_OLD_VERSIONS = """
    WITH old AS (
        SELECT collection, institution_id, key, version, recorded_to FROM nexhealth_history h
        WHERE recorded_to < now() - %(months)s * interval '1 month'
            AND (collection, institution_id, key, version, recorded_to) > (%(collection)s, %(institution_id)s, %(key)s::jsonb, %(version)s, %(recorded_to)s::timestamptz)
            AND EXISTS (
                SELECT FROM nexhealth_history n WHERE n.collection = h.collection
                    AND n.institution_id = h.institution_id AND n.key = h.key AND n.version > h.version)
        ORDER BY 1, 2, 3, 4, 5 LIMIT %(batch)s),
    gone AS (
        DELETE FROM nexhealth_history g USING old
        WHERE g.collection = old.collection AND g.institution_id = old.institution_id AND g.key = old.key
            AND g.version = old.version AND g.recorded_to = old.recorded_to
        RETURNING 1)
    SELECT (SELECT count(*) FROM gone), collection, institution_id, key::text, version, recorded_to
    FROM old ORDER BY 2 DESC, 3 DESC, old.key DESC, 5 DESC, 6 DESC LIMIT 1"""


def require_clock(connection: psycopg.Connection) -> None:
    """Raise ClocksDiffer where the database's clock is so far from this host's that it cannot be told what is old."""
    theirs, ours = database_time(connection), datetime.now(UTC)
    if abs(theirs - ours) > _CLOCKS_DIFFER:
        raise ClocksDiffer(
            f"by the clock of database {connection.info.dbname} it is {theirs.astimezone(UTC):%Y-%m-%d %H:%M} UTC and by this"
            f" host's {ours:%Y-%m-%d %H:%M} UTC, so what is old cannot be told: set the wrong one right"
        )


def claim(connection: psycopg.Connection) -> bool:
    """Whether nobody has removed what is old for 20 hours, nor does so now; who is told so does it, on this connection.

    It holds for an hour, and for as long as the connection lives, until `note_done` is called: whoever failed or was killed
    has not done it. Autocommit, or the caller commits.
    """
    if connection.execute("SELECT pg_try_advisory_lock(%s)", (_LOCK,)).fetchone() != (True,):
        return False
    row = connection.execute(
        "INSERT INTO nexhealth_housekeeping AS h (begun_at) VALUES (clock_timestamp() - interval '19 hours')"
        " ON CONFLICT (only_row) DO UPDATE SET begun_at = excluded.begun_at"
        " WHERE h.begun_at < clock_timestamp() - interval '20 hours' OR h.begun_at > clock_timestamp() RETURNING true"  # the clock was ahead then
    ).fetchone()
    return row is not None


def note_done(connection: psycopg.Connection) -> None:
    """Note on the connection of the claim that what is old has been removed by now, which is enough for a day."""
    connection.execute("UPDATE nexhealth_housekeeping SET begun_at = clock_timestamp()")
    connection.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))


def make_partitions(connection: psycopg.Connection) -> None:
    """Make the partitions of the days and months to come. `connection` must be in autocommit mode."""
    for make in (changes.make_partitions, history.make_partitions, sync_log.make_partitions):
        with connection.transaction():
            make(connection)


def remove_old(
    connection: psycopg.Connection, settings: Settings, stop: threading.Event | None = None
) -> dict[str, int]:
    """Remove what is older than the settings keep; how many of each, where there were any.

    `connection` must be in autocommit mode: each batch is a transaction. Once `stop` is set, the rest is left. Raises
    psycopg.Error; what one table does not allow keeps no other from being cleared.
    """
    stop = stop or threading.Event()
    months = settings.history_months
    steps: dict[str, Callable[[], int]] = {
        "payloads": lambda: expunge(connection, settings.webhook_payload_days, stop),
        "days_of_changes": lambda: _pruned(connection, changes.prune, settings.changes_days),
        "months_of_log": lambda: _pruned(connection, sync_log.prune, settings.sync_log_months),
        **{
            name: partial(_in_batches, connection, statement, _limits(settings), stop)
            for name, statement in _RULES.items()
        },
        "reads": lambda: _forget_reads(connection, stop),
        "versions": lambda: 0 if months is None else _forget_versions(connection, months, stop),
    }
    removed: dict[str, int] = {}
    failure: psycopg.Error | None = None
    for name, step in steps.items():
        try:
            removed[name] = step()
        except psycopg.Error as error:
            if connection.broken:
                raise
            failure = failure or error
            _log.warning("some old rows stay", extra={"nexhealth": {"rows": name, "sqlstate": error.sqlstate}})
    if failure is not None:
        raise failure
    return {name: count for name, count in removed.items() if count}


def _pruned(connection: psycopg.Connection, prune: Callable[[psycopg.Connection, int], list[str]], keep: int) -> int:
    with connection.transaction():
        return len(prune(connection, keep))


def _limits(settings: Settings) -> dict[str, int | str | None]:
    return {
        "around": json.dumps({one.name: one.inside for one in DECLARED if one.inside}),
        "batch": _BATCH,
        "in_turn": json.dumps([one.name for one in DECLARED if one.per]),
        "quarantine_days": settings.quarantine_days,
        "refusal_days": _REFUSAL_DAYS,
        "sums_months": _SUMS_MONTHS,
        "sync_log_months": settings.sync_log_months,
        # Passes that are not made by every read of a list, or load no record.
        "twice": json.dumps(
            {one.name: [*one.second_looks, *(each.name for each in one.passes if each.membership)] for one in DECLARED}
        ),
        "webhook_event_days": settings.webhook_event_days,
    }


def _in_batches(
    connection: psycopg.Connection, statement: str, limits: dict[str, int | str | None], stop: threading.Event
) -> int:
    removed, last = 0, _BATCH
    while last == _BATCH and not stop.is_set():
        last = connection.execute(statement.encode(), limits).rowcount
        removed += last
    return removed


def _forget_reads(connection: psycopg.Connection, stop: threading.Event) -> int:
    removed = 0
    for statement in (_OLD_READ, _OLD_KEYS):
        while not stop.is_set() and connection.execute(statement).fetchone():
            removed += 1
    return removed


def _forget_versions(connection: psycopg.Connection, months: int, stop: threading.Event) -> int:
    """Each thousand is looked for behind the one before, as most of what is passed over stays for ever."""
    place: tuple[Any, ...] = ("", 0, "{}", 0, "-infinity")
    names = ("collection", "institution_id", "key", "version", "recorded_to")
    removed = 0
    while not stop.is_set():
        given = {"months": months, "batch": _BATCH, **dict(zip(names, place, strict=True))}
        found = connection.execute(_OLD_VERSIONS, given, prepare=False).fetchone()
        if found is None:
            break
        removed, place = removed + found[0], found[1:]
    return removed


_OLD_PAYLOADS = """
    SELECT id FROM nexhealth_webhook_events WHERE payload IS NOT NULL AND status <> 'pending'
    AND received_at < statement_timestamp() - %(days)s * interval '1 day'
    AND (status <> 'parked' OR received_at < statement_timestamp() - %(parked)s * interval '1 day')
    AND (%(received)s::timestamptz IS NULL OR (received_at, id) > (%(received)s, %(id)s))
    ORDER BY received_at, id LIMIT %(batch)s FOR UPDATE SKIP LOCKED"""


def expunge(connection: psycopg.Connection, days: int, stop: threading.Event | None = None) -> int:
    """Remove the payloads of webhook events that are done with and older than `days`; returns how many.

    They are records of patients. Pending events keep theirs, audit rows stay. `connection` must be in autocommit
    mode: each thousand is a transaction. Once `stop` is set, the rest is left.
    """
    removed, last = 0, None
    while (stop is None or not stop.is_set()) and (found := _expunge_some(connection, days, last)):
        removed, last = removed + len(found), max(found)
    return removed


def _expunge_some(connection: psycopg.Connection, days: int, after: _Place | None) -> list[_Place]:
    """Expunge the next ones after a place in the order of arrival; the places of those that were."""
    return connection.execute(
        "UPDATE nexhealth_webhook_events SET payload = NULL, expunged_at = clock_timestamp()"  # noqa: S608 - a constant
        f" WHERE id IN ({_OLD_PAYLOADS}) RETURNING received_at, id",
        {
            "days": days,
            "parked": days * _PARKED_TIMES,
            "batch": _BATCH,
            "received": after and after[0],
            "id": after and after[1],
        },
    ).fetchall()
