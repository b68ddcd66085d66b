"""Dagster's database is away for a while: what a run has read is told afterwards, and no run ends for it."""

import logging
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster_postgres import PostgresEventLogStorage
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import DataError, InternalError, OperationalError, ProgrammingError

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.orchestration import event_log, step
from nexhealth_pipeline.orchestration.names import EVENTS_ASSET
from tests.webhooks.kit import patient, store, updated

from .kit import ISLAND, NORTH, PIER, House
from .webhook_kit import Post

GONE = OperationalError("INSERT", {}, Exception("server closed the connection unexpectedly"))
READ_ONLY = InternalError("INSERT", {}, Exception("cannot execute INSERT in a read-only transaction"))
REFUSED = [
    ProgrammingError("INSERT", {}, Exception("permission denied for table event_logs")),
    DataError("INSERT", {}, Exception("invalid byte sequence")),
]
MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION
TOLD = (MATERIALIZED, dg.DagsterEventType.ASSET_OBSERVATION)
Away = Callable[[int], list[Exception]]


@pytest.fixture(params=[GONE, DagsterPostgresException("too many retries for DB connection")], ids=["lost", "refused"])
def away(request: pytest.FixtureRequest, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> Away:
    """Called with how often: as many tries to store what is told of assets fail from then on; they are in the list."""
    storage, failed = instance.event_log_storage, list[Exception]()
    one, many = storage.store_event, storage.store_event_batch

    def away(times: int) -> list[Exception]:
        def fail(entry: EventLogEntry) -> None:
            if entry.dagster_event and entry.dagster_event.event_type in TOLD and len(failed) < times:
                failed.append(request.param)
                raise request.param

        def store_event(event: EventLogEntry) -> None:
            fail(event)
            one(event)

        def store_event_batch(events: list[EventLogEntry]) -> None:
            fail(events[0])
            many(events)

        monkeypatch.setattr(storage, "store_event", store_event)
        monkeypatch.setattr(storage, "store_event_batch", store_event_batch)
        return failed

    return away


def test_what_was_read_meanwhile_is_told_when_it_is_there_again(known: House, away: Away) -> None:
    """A restart of another server's PostgreSQL must not cost the hours after it, nor a slice its colour."""
    failed = away(2)  # a batch, and the first of it by itself
    keys = [NORTH, PIER, ISLAND]
    result = known.run(Scope.LOCATION, keys, assets=["operatories", "document_types"])
    assert result.success
    assert len(failed) == 2
    told = [(event.asset_key.path[-1], event.partition) for event in known.events(result, MATERIALIZED)]
    assert sorted(told) == sorted(
        (f"nexhealth_{name}", key) for name in ("operatories", "document_types") for key in keys
    )


def test_where_it_does_not_come_back_the_run_fails(known: House, away: Away) -> None:
    """Green without its materializations would look as if nothing had been read."""
    away(1000)
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    assert not result.success
    assert known.status("operatories") == {PIER: dg.AssetPartitionStatus.FAILED}


def test_events_that_are_applied_meanwhile_are_told_too(post: Post, away: Away) -> None:
    """Their rows are committed, so nobody would apply them again only to tell of them."""
    store(post.db, *(updated(patient(number, 5)) for number in range(1, 4)))
    failed = away(2)
    result = post.apply()
    assert (result.success, post.statuses(), len(failed)) == (True, {"applied": 3}, 2)
    told = {event.asset_key.path[-1] for event in post.told(result.run_id)}
    assert told == {"nexhealth_patients", EVENTS_ASSET}


@pytest.mark.parametrize("error", [GONE, *REFUSED], ids=["lost", "right", "value"])
def test_what_ended_the_work_is_told_and_not_that_this_could_not_be(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One server with both databases on it: what to do about the warehouse is the better answer."""
    errors = iter([GONE, error])

    def fails(*_: object) -> None:
        raise next(errors)

    monkeypatch.setattr(step, "report", fails)
    context = cast(dg.OpExecutionContext, SimpleNamespace())

    def work() -> None:
        with step.Reporter(context) as reporter:
            reporter.add([dg.AssetObservation("nexhealth_patients")])
            raise WarehouseError("writing nexhealth_patients: PostgreSQL has no room left")

    with pytest.raises(WarehouseError, match="no room left"):
        work()
    assert not [*errors]


class Clock:
    """What a module of ours takes for the time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("error", [GONE, READ_ONLY], ids=["lost", "a standby"])
def test_while_it_is_away_it_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Each try takes Dagster twenty seconds, in which nobody looks whether the run is to stop."""
    tries, written, clock = list[int](), list[object](), Clock()

    def report(_: object, events: list[object]) -> None:
        tries.append(len(events))
        if len(tries) < 3:
            raise error
        written.extend(events)

    monkeypatch.setattr(step, "report", report)
    monkeypatch.setattr(step, "time", clock)
    events = [dg.AssetObservation(f"nexhealth_{number}") for number in range(5)]
    with step.Reporter(cast(dg.OpExecutionContext, SimpleNamespace())) as reporter:
        for event, seconds in zip(events, (10, 19, 1, 31, 0), strict=True):
            reporter.add([event])
            clock.sleep(seconds)
        assert tries == [1, 4, 5]
    assert written == events


@pytest.mark.parametrize("refused", REFUSED, ids=["right", "value"])
def test_what_it_refuses_is_no_outage(
    refused: Exception, monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance
) -> None:
    """An event that can never be stored would keep all later ones waiting, and no time brings back a right that is missing."""

    def fails(*_: object) -> None:
        raise refused

    monkeypatch.setattr(step, "report", fails)
    reporter = step.Reporter(cast(dg.OpExecutionContext, SimpleNamespace()))
    with pytest.raises(type(refused)):
        reporter.add([dg.AssetObservation("nexhealth_patients")])
    monkeypatch.setattr(PostgresEventLogStorage, "store_event", fails)
    with pytest.raises(type(refused)):
        instance.event_log_storage.store_event(_line())


def _line() -> EventLogEntry:
    return EventLogEntry(
        error_info=None, level=logging.INFO, user_message="said", run_id="a run", timestamp=time.time()
    )


@pytest.fixture
def lines(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> "Lines":
    return Lines(instance, monkeypatch, caplog)


class Lines:
    """A log that cannot be written until it is told so, and the time there."""

    def __init__(
        self, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        self._store, self._caplog, self.clock = instance.event_log_storage, caplog, Clock()
        self.away, self.tries = True, 0
        stored = PostgresEventLogStorage.store_event

        def store_event(store: PostgresEventLogStorage, event: EventLogEntry) -> None:
            self.tries += 1
            if self.away:
                raise GONE
            stored(store, event)

        monkeypatch.setattr(PostgresEventLogStorage, "store_event", store_event)
        monkeypatch.setattr(event_log, "time", self.clock)

    def say(self, lines: int) -> int:
        """Say so many; how often that asked the database."""
        before = self.tries
        for _ in range(lines):
            self._store.store_event(_line())
        return self.tries - before

    def told(self) -> list[str]:
        """What was told of it since the last time."""
        found = [record.getMessage() for record in self._caplog.records]
        self._caplog.clear()
        return found


def test_lines_that_are_lost_are_counted(lines: Lines) -> None:
    """A log with a hole must not look like one in which nothing happened; nor must each line of it have one elsewhere."""
    assert lines.say(3) == 1
    assert lines.told() == ["Dagster's database is away (OperationalError): lines of its runs' logs are lost"]
    lines.clock.sleep(11)
    assert lines.say(2) == 1
    assert lines.told() == []
    lines.away = False
    assert lines.say(1) == 0
    lines.clock.sleep(11)
    assert lines.say(2) == 2
    assert lines.told() == ["Dagster's database is there again: 6 lines of its runs' logs were lost"]


def test_any_event_that_is_stored_ends_the_silence(lines: Lines, instance: dg.DagsterInstance) -> None:
    """Nothing may be said any more after it."""
    lines.say(2)
    lines.away = False
    instance.report_engine_event("here", job_name="a job", run_id="a run")
    assert lines.told()[1:] == ["Dagster's database is there again: 2 lines of its runs' logs were lost"]
    assert lines.say(1) == 1


def test_a_line_that_cannot_be_stored_ends_no_run(known: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads says lines, in threads of its own: it must not fail for that, least of all with all the others."""
    stored, lost = PostgresEventLogStorage.store_event, list[str]()

    def store_event(storage: PostgresEventLogStorage, event: EventLogEntry) -> None:
        told = event.dagster_event
        if told is None or "writing logger call" in (told.message or ""):  # what Dagster stores in a line's place
            lost.append(event.user_message)
            raise GONE
        stored(storage, event)

    monkeypatch.setattr(PostgresEventLogStorage, "store_event", store_event)
    monkeypatch.setattr(event_log, "_SILENT_SECONDS", 0)
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    said = " ".join(lost)
    assert "making indexes" in said, "a line of the thread that reads"
    assert "1 of 1 slices read" in said, "a line of the step's own"
    assert result.success
