"""A sync out of one command, recorded in Dagster: the command line's door.

The jobs of a sync run side by side in forked children that share one start-up. A first child reads the
practice collections and plans the rest, because a parent that is to fork must hold no connection; while
the others run, the parent looks into `nexhealth_sync_logs` to show how far they are; a dry run has no rows there, so
its children count into memory that they share with the parent.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import Cancelled, ConfigurationError, PipelineError, TryLater, WarehouseError
from nexhealth_pipeline.orchestration.fork import Outcome, run_side_by_side
from nexhealth_pipeline.orchestration.forked import KINDS, catch_up, discover, execute, finish
from nexhealth_pipeline.orchestration.housekeeping import keep_house_beside
from nexhealth_pipeline.orchestration.request import SyncRequest
from nexhealth_pipeline.orchestration.tally import Tally
from nexhealth_pipeline.settings import INTERNAL_PREFIX, Settings
from nexhealth_pipeline.sync.explain import floor_seconds
from nexhealth_pipeline.warehouse.connect import DAGSTER_DATABASE, WAREHOUSE_DATABASE, connect
from nexhealth_pipeline.warehouse.connect import dagster_url as find_dagster_url
from nexhealth_pipeline.warehouse.connect import warehouse_url as find_warehouse_url
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = [
    "CollectionSummary",
    "Progress",
    "SyncRequest",
    "SyncSummary",
    "pass_on",
    "raise_unless_answered",
    "run_sync",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sync is."""

    label: str
    """The slice that moved last."""
    pages: int
    records: int
    done: int
    """Slices ended."""
    planned: int
    """0 where nobody knows how many there will be, as of one patient."""
    by_page: bool = True
    """Whether pages and records are counted as they come; else a slice's when it ends, as in a dry run."""


@dataclass(slots=True)
class CollectionSummary:
    """What came of one collection."""

    name: str
    slices: int = 0
    succeeded: int = 0
    failed: int = 0
    skipped: int = 0
    counts: Counts = field(default_factory=Counts)
    seconds: float = 0.0


@dataclass(slots=True)
class SyncSummary:
    """What came of a sync."""

    run_ids: list[str]
    collections: list[CollectionSummary]
    failures: list[tuple[str, str]]
    """Label and reason of each failed slice; of a run that broke off, with slices unread, `run` and why; of a list of
    locations that holds none, as of one that failed."""
    new_notes: int
    seconds: float
    floor_seconds: float
    """Seconds that the rate limits in force allow the requests made in, at an even rate."""
    exit_status: int
    absences: list[dict[str, Any]] = field(default_factory=list)
    """Of a reconcile: what each judgement found, its place (`label`) and, where nothing could be marked, why."""

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON can hold it."""
        return asdict(self)


def run_sync(
    settings: Settings,
    request: SyncRequest,
    *,
    kind: Literal["real", "sandbox"],
    warehouse_database: str = WAREHOUSE_DATABASE,
    dagster_database: str = DAGSTER_DATABASE,
    on_progress: Callable[[Progress], None] | None = None,
    look_seconds: float = 0.5,
) -> SyncSummary:
    """Run a sync and wait for its end. Must be called before any thread or connection is open.

    How far it is `on_progress` learns each `look_seconds`: a look sums up all slices of the sync.

    Raises ConfigurationError and WarehouseError for what stops it before anything is read; Cancelled.
    """
    began = time.monotonic()
    url = find_warehouse_url(settings, database_name=warehouse_database)
    dagster_url = find_dagster_url(settings, database_name=dagster_database)
    pass_on(DATABASE_URL=url, DAGSTER_DATABASE_URL=dagster_url, NEXHEALTH_DATA_KIND=kind)
    first = run_side_by_side([partial(discover, settings, url, request, kind)])[0]
    raise_unless_answered(first, dry_run=request.dry_run)
    plan: dict[str, Any] = first.result
    beside = [] if request.dry_run else [partial(keep_house_beside, settings, url, dagster_url)]
    outcomes = _execute(url, plan, on_progress, look_seconds, beside)
    if plan["catch_up"] is not None and _undisturbed(outcomes):
        second = run_side_by_side([partial(catch_up, settings, url, request, plan["catch_up"])])[0]
        raise_unless_answered(second)
        plan["jobs"] += second.result["jobs"]
        outcomes += _execute(url, second.result, on_progress, look_seconds)
    stopped = any(map(_was_stopped, outcomes))
    results = plan["results"] + [row for outcome in outcomes if outcome.result for row in outcome.result["results"]]
    if plan["sweep"] is not None and _undisturbed(outcomes):
        finish(url, plan["sweep"])
    summary = _summarise(settings, request, plan, results, outcomes, time.monotonic() - began)
    if stopped:
        summary.exit_status = Cancelled.exit_status
    return summary


def _execute(
    url: str,
    plan: dict[str, Any],
    on_progress: Callable[[Progress], None] | None,
    look_seconds: float,
    beside: Sequence[Callable[[], Any]] = (),
) -> list[Outcome]:
    """Execute the runs of a plan side by side; with what else is to be done `beside` them, which has no outcome.

    Raises Cancelled where only that was left to be stopped.
    """
    runs = [partial(execute, job) for job in plan["jobs"]]
    tally = None
    if plan.get("dry_run"):
        tally = Tally(len(runs))
        runs = [partial(execute, job, partial(tally.count, place)) for place, job in enumerate(plan["jobs"])]
    with _Watch(url, plan, on_progress, tally) as watch:
        outcomes = run_side_by_side([*runs, *beside], tick=watch.tick, every=look_seconds)
    if not runs:
        for outcome in filter(_was_stopped, outcomes):
            raise_unless_answered(outcome)
    return outcomes[: len(runs)]


def _undisturbed(outcomes: list[Outcome]) -> bool:
    """Whether every run came to its end by itself, with failed slices or without."""
    return not any(_was_stopped(outcome) or _broken_by(outcome) for outcome in outcomes)


def _was_stopped(outcome: Outcome) -> bool:
    return outcome.status == Cancelled.exit_status or bool(outcome.result and outcome.result["stopped"])


def _broken_by(outcome: Outcome, *, dry_run: bool = False) -> dict[str, Any] | None:
    """What a run broke off by, as `message` and `exit_status`, with slices unread.

    None where it came to its end, or was stopped.
    """
    if outcome.result is not None:
        failure: dict[str, Any] | None = outcome.result["failure"]
        return failure
    if outcome.status == Cancelled.exit_status:
        return None
    if outcome.status < 0:
        return {"message": _killed(outcome, dry_run=dry_run), "exit_status": PipelineError.exit_status}
    return {"message": outcome.message or f"ended with status {outcome.status}", "exit_status": outcome.status}


def _killed(outcome: Outcome, *, dry_run: bool) -> str:
    kept = "a dry run keeps nothing" if dry_run else "what it has committed stays"
    return f"the run was ended by signal {-outcome.status}: {kept}, run it again"


def pass_on(**choices: str) -> None:
    """Make Dagster's storage and the resource, which read the settings themselves, see the same."""
    for name, value in choices.items():
        os.environ[INTERNAL_PREFIX + name] = value


def raise_unless_answered(outcome: Outcome, *, dry_run: bool = False) -> None:
    """Raise what ended a child that returned nothing; of one that was stopped, even when it had returned.

    `dry_run`: it commits nothing, so that nothing is promised to stay.
    """
    if outcome.status == Cancelled.exit_status:
        raise Cancelled(f"stopped; {'a dry run keeps nothing' if dry_run else 'what was committed stays'}")
    if outcome.result is not None:
        return
    if outcome.status < 0:
        raise PipelineError(_killed(outcome, dry_run=dry_run))
    kind = KINDS.get(outcome.status, PipelineError)
    raise kind(outcome.message or f"the first step ended with status {outcome.status}")


class _Watch:
    """Tells how far the runs are, from the log they keep; those of a dry run, which keep none, from their `tally`.

    Over one connection of its own, made at the first look, when everything is forked; closed with the context, before
    anything else is.
    """

    def __init__(
        self,
        url: str,
        plan: dict[str, Any],
        on_progress: Callable[[Progress], None] | None,
        tally: Tally | None = None,
    ) -> None:
        self._url, self._plan, self._on_progress, self._tally = url, plan, on_progress, tally
        self._runs = [job["run_id"] for job in plan["jobs"]]
        self._connection: psycopg.Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def tick(self) -> None:
        """Called by the waiting parent now and then. A look that fails is left out: the runs go on.

        They do so as well where it cannot be shown, because nobody reads it or the disk is full; then no more are.
        """
        if self._on_progress is None:
            return
        try:
            self._on_progress(self._look())
        except (PipelineError, psycopg.Error):
            self._close()  # the next look makes a new one
        except (OSError, ValueError):
            self._on_progress = None
            self._close()

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _look(self) -> Progress:
        if self._tally is not None:
            done, pages, records = self._tally.sums()
            # A run may read lists beside those planned: all of its lists at each of its places.
            return Progress("", pages, records, min(done, self._plan["planned"]), self._plan["planned"], by_page=False)
        if self._connection is None:
            self._connection = connect(self._url, autocommit=True, application_name="nexhealth progress")
        row = self._connection.execute(
            "SELECT count(*) FILTER (WHERE status <> 'running'), coalesce(sum(pages), 0),"
            " coalesce(sum(records_read), 0) FROM nexhealth_sync_logs WHERE run_id = ANY(%s)",
            (self._runs,),
        ).fetchone()
        last = self._connection.execute(
            "SELECT collection || coalesce(' ' || partition_key, '') FROM nexhealth_sync_logs"
            " WHERE run_id = ANY(%s) AND status = 'running' ORDER BY id DESC LIMIT 1",
            (self._runs,),
        ).fetchone()
        done, pages, records = row or (0, 0, 0)
        # Judging absences has log rows of its own.
        done = min(done, self._plan["planned"])
        return Progress(last[0] if last else "", int(pages), int(records), done, self._plan["planned"])


def _summarise(
    settings: Settings,
    request: SyncRequest,
    plan: dict[str, Any],
    results: list[dict[str, Any]],
    outcomes: list[Outcome],
    seconds: float,
) -> SyncSummary:
    by_name: dict[str, CollectionSummary] = {}
    for row in results:
        summary = by_name.setdefault(row["collection"], CollectionSummary(row["collection"]))
        if row["absence"] is None:
            summary.slices += 1
            summary.succeeded += row["status"] == "succeeded"
            summary.failed += row["status"] == "failed"
            summary.skipped += row["status"] == "skipped"
        summary.counts.add(Counts(**row["counts"]))
        summary.seconds += row["seconds"]
    requests: Counter[str] = Counter()
    for name, summary in by_name.items():
        requests[COLLECTIONS[name].path] += summary.counts.requests
    failures = [(row["label"], row["reason"]) for row in results if row["status"] == "failed"]
    failures += plan["troubles"]
    ends = [_broken_by(outcome, dry_run=request.dry_run) for outcome in outcomes]
    broken = [one for one in ends if one is not None]
    failures += [("run", one["message"]) for one in broken]
    new_notes = sum(row["new_notes"] for row in results)
    return SyncSummary(
        run_ids=[plan["run_id"], *(job["run_id"] for job in plan["jobs"])],
        collections=sorted(by_name.values(), key=lambda one: list(COLLECTIONS).index(one.name)),
        failures=failures,
        new_notes=new_notes,
        seconds=seconds,
        floor_seconds=floor_seconds(requests, settings.rate_share),
        exit_status=_exit_status(request, results, [one["exit_status"] for one in broken], failures, new_notes),
        absences=_absences(results),
    )


def _absences(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"collection": row["collection"], "label": row["label"], "reason": row["reason"], **row["absence"]}
        for row in results
        if row["absence"] is not None
    ]


def _judged(request: SyncRequest, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The slices that tell whether anything could be read: of what was named, else of all but the practice's own lists.

    Those are read by every sync, to plan the rest.
    """
    slices = [row for row in results if row["absence"] is None]
    if request.resources:
        return [row for row in slices if row["collection"] in request.resources]
    return [row for row in slices if row["scope"] != Scope.PRACTICE]


def _exit_status(
    request: SyncRequest,
    results: list[dict[str, Any]],
    broken: list[int],
    failures: list[tuple[str, str]],
    new_notes: int,
) -> int:
    """0 done, 1 something new to look at, 3 nothing could be read, 4 the database could not be used.

    A run that broke off by anything else, as one that was killed, tells nothing of the API.
    """
    for decisive in (WarehouseError.exit_status, ConfigurationError.exit_status):
        if decisive in broken:
            return decisive
    if PipelineError.exit_status in broken:
        return PipelineError.exit_status
    if failures and not any(map(_was_read, _judged(request, results))):
        statuses = [row["exit_status"] for row in results if row["exit_status"]]
        return statuses[0] if statuses else TryLater.exit_status
    return 1 if failures or new_notes else 0


def _was_read(row: dict[str, Any]) -> bool:
    """Whether the API answered for a slice, or had answered since the sync that is gone on with began."""
    return bool(row["counts"]["pages"]) or (row["status"] == "skipped" and not row["exit_status"])
