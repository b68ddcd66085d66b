"""Dagster's event log: no event lost or misplaced, and none read or sent that nobody looks at."""

from typing import Any

import dagster as dg
import pytest
from dagster._core.storage.event_log.base import EventLogConnection
from dagster_postgres import PostgresEventLogStorage
from dagster_shared.record import copy

from nexhealth_pipeline.orchestration.event_log import PooledEventLogStorage

from .both import BOTH, run_both

pytestmark = pytest.mark.usefixtures("batches_by_default")


def test_a_run_over_partitions_colours_exactly_the_slices_that_were_read(instance: dg.DagsterInstance) -> None:
    """Events are written in bulk: none may be lost, doubled, or put to another asset's account."""
    result = run_both(instance, 40)
    assert not result.success
    one, two = dg.AssetKey("one"), dg.AssetKey("two")
    assert instance.get_materialized_partitions(one) == {f"demo.{number}" for number in range(40)}
    assert instance.get_materialized_partitions(two) == {f"demo.{number}" for number in range(39)}
    unread = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations
    assert unread(one) == {}
    assert [(key, run) for key, (run, _) in unread(two).items()] == [("demo.39", result.run_id)]
    counts = {
        kind: len(instance.get_records_for_run(result.run_id, of_type=kind, limit=1000).records)
        for kind in (dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, dg.DagsterEventType.ASSET_MATERIALIZATION)
    }
    assert list(counts.values()) == [80, 79]
    for record in instance.get_asset_records([one, two]):
        assert record.asset_entry.last_run_id == result.run_id
        assert record.asset_entry.last_materialization is not None


def test_a_run_s_log_is_given_by_pieces_without_rows_of_planned_events(instance: dg.DagsterInstance) -> None:
    """The page of a night's run shows no planned event, and had to be sent 22,000 of them before the first that it shows.

    Those of partitions that are not one range are planned by the step, after the run's own first events.
    """
    result = run_both(instance, 4)
    planned = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
    at_first = instance.get_records_for_run(result.run_id).records
    late = [record.event_log_entry for record in at_first if record.event_log_entry.dagster_event_type == planned]
    instance.event_log_storage.store_event_batch(late)
    instance.report_engine_event("the end", instance.get_run_by_id(result.run_id))
    all_of_it = instance.get_records_for_run(result.run_id).records
    expected = [record for record in all_of_it if record.event_log_entry.dagster_event_type != planned]
    assert len(all_of_it) - len(expected) == 2 * len(late) == 16
    assert any(record.event_log_entry.dagster_event is None for record in expected), "a line of the log is in it"
    found: list[dg.EventLogRecord] = []
    cursor, more = None, True
    while more:
        piece = instance.get_records_for_run(result.run_id, cursor=cursor, limit=3)
        found, cursor, more = [*found, *piece.records], piece.cursor, piece.has_more
    assert found == expected
    assert len(instance.get_records_for_run(result.run_id, of_type=planned, limit=100).records) == 16
    last = instance.get_records_for_run(result.run_id, limit=1, ascending=False).records
    assert last == all_of_it[-1:]


def test_a_run_that_has_only_been_planned_is_read_on_from_there(instance: dg.DagsterInstance) -> None:
    """Who waits for its first events reads on from there."""
    instance.add_dynamic_partitions("test_locations", ["demo.0"])
    run = instance.create_run_for_job(BOTH, tags={"dagster/partition": "demo.0"})
    first = instance.get_records_for_run(run.run_id, limit=100)
    assert (first.records, first.has_more) == ([], False)
    assert len(instance.get_records_for_run(run.run_id).records) == 2, "they are there"
    instance.report_engine_event("started", run)
    after = instance.get_records_for_run(run.run_id, cursor=first.cursor, limit=100).records
    assert [record.event_log_entry.dagster_event_type for record in after] == [dg.DagsterEventType.ENGINE_EVENT]


@pytest.mark.parametrize(
    "kinds",
    [
        None,
        dg.DagsterEventType.ASSET_MATERIALIZATION,
        {dg.DagsterEventType.ASSET_MATERIALIZATION, dg.DagsterEventType.ASSET_OBSERVATION},
        {dg.DagsterEventType.ASSET_OBSERVATION},
    ],
)
def test_assets_of_a_run_are_told_without_reading_their_partitions(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, kinds: Any
) -> None:
    """The page of a night's run asked Dagster for them, which read 22,000 partitions for two dozen names."""
    result = run_both(instance, 3)
    events = instance.event_log_storage
    dagsters = PostgresEventLogStorage.get_asset_keys_for_run(events, result.run_id, kinds)
    monkeypatch.setattr(PooledEventLogStorage, "get_asset_partitions_for_run", lambda *_: pytest.fail("reads them"))
    assert instance.get_asset_keys_for_run(result.run_id, kinds) == set(dagsters)
    assert bool(dagsters) == (kinds != {dg.DagsterEventType.ASSET_OBSERVATION})


@pytest.mark.parametrize("steps", [None, ["two_assets"], ["none of them"]])
def test_times_of_steps_are_told_without_reading_what_they_materialized(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, steps: list[str] | None
) -> None:
    """The page of a night's run asked Dagster for them, which read 22,000 events for a time or two."""
    result = run_both(instance, 3)
    events = instance.event_log_storage
    dagsters = PostgresEventLogStorage.get_step_stats_for_run(events, result.run_id, steps)  # type: ignore[arg-type]  # ours, typed as any storage
    read: list[object] = []
    records_of = PooledEventLogStorage.get_records_for_run

    def counted(self: PooledEventLogStorage, *given: Any, **options: Any) -> EventLogConnection:
        found = records_of(self, *given, **options)
        read.extend(found.records)
        return found

    monkeypatch.setattr(PooledEventLogStorage, "get_records_for_run", counted)
    ours = instance.get_run_step_stats(result.run_id, steps)
    assert [one.materialization_events for one in ours] == [[]] * len(dagsters)
    assert ours == [copy(one, materialization_events=[]) for one in dagsters]
    assert bool(ours) == (steps != ["none of them"])
    assert 0 < len(read) < 10
