"""Dagster's database is away for a while: what a run has read is told afterwards, and no run ends for it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import dagster as dg
import pytest
from dagster._core.events.log import EventLogEntry
from dagster_postgres import PostgresEventLogStorage
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import OperationalError

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.orchestration import step
from nexhealth_pipeline.orchestration.webhook_names import EVENTS_ASSET
from tests.webhooks.kit import patient, store, updated

from .kit import ISLAND, NORTH, PIER, House
from .webhook_kit import Post

GONE = OperationalError("INSERT", {}, Exception("server closed the connection unexpectedly"))
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


def test_what_ended_the_work_is_told_and_not_that_this_could_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One server with both databases on it: what to do about the warehouse is the better answer."""

    def fails(*_: object) -> None:
        raise GONE

    monkeypatch.setattr(step, "report", fails)
    context = cast(dg.OpExecutionContext, SimpleNamespace())

    def work() -> None:
        with step.Reporter(context) as reporter:
            reporter.add([dg.AssetObservation("nexhealth_patients")])
            raise WarehouseError("writing nexhealth_patients: PostgreSQL has no room left")

    with pytest.raises(WarehouseError, match="no room left"):
        work()


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
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    said = " ".join(lost)
    assert "making indexes" in said, "a line of the thread that reads"
    assert "1 of 1 slices read" in said, "a line of the step's own"
    assert result.success
