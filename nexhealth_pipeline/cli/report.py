"""What `nexhealth status` knows: read from the warehouse in a few queries, changes nothing."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    from nexhealth_pipeline.warehouse.check_results import FailedCheck
    from nexhealth_pipeline.warehouse.webhook_health import WebhookState

__all__ = ["Fresh", "Problem", "Reading", "Report", "Run", "read_report"]


@dataclass(frozen=True, slots=True)
class Fresh:
    """How fresh one collection is at one location (or of a whole institution)."""

    place: str
    """Location key, or the subdomain."""
    name: str
    collection: str
    complete_through: datetime | None
    last_full_at: datetime | None
    last_change_at: datetime | None
    source_read_status: str | None
    source_read_status_at: datetime | None
    closed: bool
    """Whether it need not get any fresher: the place is inactive or deleted, or NexHealth does not offer the list there.

    Lists of an institution are read although none of its locations is active.
    """


@dataclass(frozen=True, slots=True)
class Reading:
    """A slice that is being read."""

    slice: str
    run_id: str
    started_at: datetime
    pages: int
    records: int
    alive: bool
    """False: its process is gone; the next sync goes on where it stopped."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A slice whose latest read did not end well."""

    slice: str
    status: str
    at: datetime
    error: str | None


@dataclass(frozen=True, slots=True)
class Run:
    """One of the runs that began last, or that have not ended, with its sums; a sync is several runs side by side."""

    run_id: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    slices: int
    done: int
    records: int
    inserted: int
    updated: int
    requests: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything `status` shows, as of the database's clock."""

    now: datetime
    kind: str | None
    runs: list[Run]
    """The latest first."""
    reading: list[Reading]
    problems: list[Problem]
    fresh: list[Fresh]
    open_notes: int
    """Records, or fields of them, in quarantine."""
    checks: "list[FailedCheck]" = field(default_factory=list)
    """Those that failed when they were run last."""
    webhooks: "WebhookState | None" = None
    """Endpoints and events; None where there is nothing to tell."""

    @property
    def has_news(self) -> bool:
        """Whether a check found something that nobody has acknowledged."""
        return any(check.is_new for check in self.checks)


_FRESH = """
SELECT CASE WHEN f.location_id <> 0 THEN concat_ws('.', i.subdomain, f.location_id)
            ELSE coalesce(i.subdomain, 'everything') END,
       coalesce(l.name, i.name, ''), f.collection, f.complete_through, f.last_full_at, f.last_change_at,
       f.source_read_status, f.source_read_status_at,
       coalesce(l.inactive, false) OR l.deleted_at IS NOT NULL OR i.deleted_at IS NOT NULL OR refused.since IS NOT NULL
FROM nexhealth_freshness f
LEFT JOIN nexhealth_institutions i ON i.id = f.institution_id
LEFT JOIN nexhealth_locations l ON l.institution_id = f.institution_id AND l.id = f.location_id
LEFT JOIN nexhealth_capabilities refused ON refused.institution_id = f.institution_id
    AND refused.location_id = f.location_id AND refused.collection = f.collection
    AND refused.status IN ('not_enabled', 'unsupported')
ORDER BY f.institution_id, f.location_id, f.collection
"""

_READING = """
SELECT concat_ws(' ', g.collection, g.partition_key), g.run_id, g.started_at, g.pages, g.records_read
FROM nexhealth_sync_logs g WHERE g.status = 'running' ORDER BY g.id
"""

# In two steps, so that of a week's rows, 200,000 of a thousand locations, only those of places with any failure are sorted.
# Not by a join of the failures with what came after them: planned while all was well, it might go through a collection's
# week for each failure of an outage.
_FAILED_AT = """
SELECT DISTINCT coalesce(location_id, 0) FROM nexhealth_sync_logs
WHERE status IN ('failed', 'interrupted') AND started_at > statement_timestamp() - interval '7 days'
"""
_PROBLEMS = """
SELECT slice, status, at, error FROM (
    SELECT DISTINCT ON (collection, institution_id, location_id, partition_key)
           concat_ws(' ', collection, partition_key) AS slice, status, coalesce(finished_at, started_at) AS at, error
    FROM nexhealth_sync_logs WHERE started_at > statement_timestamp() - interval '7 days'
        AND coalesce(location_id, 0) = ANY(%s::bigint[])
    ORDER BY collection, institution_id, location_id, partition_key, id DESC) latest
WHERE status IN ('failed', 'interrupted') ORDER BY at DESC
"""

# Runs that only applied events would soon be all that is shown. Those that have not ended are shown however many have
# begun since: who waits for them before an upgrade waits until none is left here. A run's rows are younger than the run, so
# that months before it are not searched; a day, as a clock may be put back.
_RUNS = """
SELECT r.run_id, r.status, r.started_at, r.finished_at, count(g.id), count(g.id) FILTER (WHERE g.status <> 'running'),
       coalesce(sum(g.records_read), 0)::bigint, coalesce(sum(g.inserted), 0)::bigint,
       coalesce(sum(g.updated), 0)::bigint, coalesce(sum(g.requests), 0)::bigint
FROM (SELECT run_id, status, started_at, finished_at FROM nexhealth_runs WHERE finished_at IS NULL
      UNION
      (SELECT run_id, status, started_at, finished_at FROM nexhealth_runs WHERE status <> 'succeeded' OR EXISTS (
          SELECT FROM nexhealth_sync_logs s WHERE s.run_id = nexhealth_runs.run_id AND s.mode NOT IN ('webhook', 'replay')
              AND s.started_at > nexhealth_runs.started_at - interval '1 day')
      ORDER BY started_at DESC LIMIT 5)) r
LEFT JOIN nexhealth_sync_logs g ON g.run_id = r.run_id AND g.started_at > r.started_at - interval '1 day'
GROUP BY r.run_id, r.status, r.started_at, r.finished_at ORDER BY r.started_at DESC
"""

_HELD = """
SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
WHERE locktype = 'advisory' AND objsubid = 1 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def read_report(connection: "psycopg.Connection") -> Report:
    """The state of the warehouse behind `connection` (autocommit). Raises WarehouseError."""
    from nexhealth_pipeline.warehouse.check_results import failed_checks
    from nexhealth_pipeline.warehouse.connect import driver_errors
    from nexhealth_pipeline.warehouse.state import database_time
    from nexhealth_pipeline.warehouse.webhook_health import webhook_state

    with driver_errors("reading the warehouse's status"):
        now = database_time(connection)
        kind = connection.execute("SELECT kind FROM nexhealth_warehouse").fetchone()
        held = {row[0] for row in connection.execute(_HELD)}
        webhooks = webhook_state(connection)
        return Report(
            now=now,
            kind=kind[0] if kind else None,
            runs=[_run(row, held) for row in connection.execute(_RUNS)],
            reading=[_reading(row, held) for row in connection.execute(_READING)],
            problems=_problems(connection),
            fresh=[Fresh(*row) for row in connection.execute(_FRESH)],
            open_notes=_open_notes(connection),
            checks=failed_checks(connection),
            webhooks=webhooks if webhooks.in_use else None,
        )


def _problems(connection: "psycopg.Connection") -> list[Problem]:
    places = [place for (place,) in connection.execute(_FAILED_AT)]
    if not places:
        return []
    # A plan for whatever places would go through a thousand of them for each row.
    return [Problem(*row) for row in connection.execute(_PROBLEMS, (places,), prepare=False)]


def _open_notes(connection: "psycopg.Connection") -> int:
    row = connection.execute("SELECT count(*) FROM nexhealth_quarantine WHERE resolved_at IS NULL").fetchone()
    return int(row[0]) if row else 0


def _reading(row: tuple[Any, ...], held: set[int]) -> Reading:
    piece, run_id, started_at, pages, records = row
    return Reading(piece, run_id, started_at, pages, records, _alive(run_id, held))


def _run(row: tuple[Any, ...], held: set[int]) -> Run:
    run_id, status, *rest = row
    return Run(run_id, "interrupted" if status == "running" and not _alive(run_id, held) else status, *rest)


def _alive(run_id: str, held: set[int]) -> bool:
    """Whether the run's lock is held: a process that was killed leaves its rows saying running."""
    from nexhealth_pipeline.warehouse.runs import lock_key

    return lock_key("run", run_id) in held
