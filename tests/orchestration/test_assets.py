"""Runs of the scopes' jobs: what becomes green, red or nothing, and that every count is told once."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.orchestration import assets, step
from nexhealth_pipeline.orchestration.assets import PARTITIONS, collections_in
from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP, PATIENT_JOB, PATIENT_OP
from nexhealth_pipeline.orchestration.partitions import partition_tags
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.sync.slices import SliceResult

from .kit import CLOSED, DESERT, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, House

MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION
OBSERVED = dg.DagsterEventType.ASSET_OBSERVATION
GREEN, RED = dg.AssetPartitionStatus.MATERIALIZED, dg.AssetPartitionStatus.FAILED


def test_discovery_adds_the_keys_of_active_locations_and_never_deletes_one(house: House) -> None:
    """A key that is taken away takes the history of its partitions along."""
    result = house.run(Scope.PRACTICE)
    assert result.success
    assert house.partitions(result, MATERIALIZED) == {
        ("institutions", None),
        ("locations", None),
        ("sync_status", None),
    }
    assert house.told(result) == house.logged(result)
    active = {NORTH, SOUTH, DESERT, PIER, ISLAND}
    assert set(house.instance.get_dynamic_partitions("nexhealth_locations")) == active
    assert set(house.instance.get_dynamic_partitions("nexhealth_institutions")) == {WILLOW, HARBOR}
    house.box.faults.add("status", path="/locations", status=403)
    failed = house.run(Scope.PRACTICE)
    assert not failed.success
    assert "locations" in house.failure(failed)
    assert set(house.instance.get_dynamic_partitions("nexhealth_locations")) == active
    assert ("institutions", None) in house.partitions(failed, MATERIALIZED)


def test_a_run_materializes_each_slice_with_its_counts_and_the_sync_log_tells_the_same(known: House) -> None:
    """A user who watches Dagit and one who queries the log must not see two stories."""
    result = known.run(Scope.LOCATION, [NORTH, SOUTH])
    names = {collection.name for collection in collections_in(Scope.LOCATION)}
    assert result.success
    assert known.partitions(result, MATERIALIZED) == {(name, key) for name in names for key in (NORTH, SOUTH)}
    assert known.told(result) == known.logged(result)
    assert known.told(result)["inserted"] > 40
    assert known.status("patients") == {NORTH: GREEN, SOUTH: GREEN}
    (event,) = [
        one
        for one in known.events(result, MATERIALIZED)
        if one.partition == NORTH and one.asset_key.path == ["nexhealth_patients"]
    ]
    said = event.event_specific_data.materialization.metadata
    assert said["records_read"].value == known.one(
        "SELECT records_read FROM nexhealth_sync_logs WHERE partition_key = %s AND collection = 'patients'", NORTH
    )
    assert said["location"].value.endswith(f"({NORTH})")
    assert abs(said["as_of"].value - time.time()) < 60


def test_a_failing_location_is_red_alone_and_its_repetition_reads_nothing_else(known: House) -> None:
    """Fifty locations must not wait for one, nor be read again for it."""
    known.box.faults.add("status", path="/operatories", location_id=348513, status=403, message="Jane Doe 555-1234")
    result = known.run(Scope.LOCATION, [NORTH, DESERT, PIER], assets=["operatories", "document_types"])
    assert not result.success
    text = known.failure(result)
    assert text.startswith("1 of 6 slices failed, the others are done:\n")
    assert f"operatories {DESERT}" in text
    assert '"From failure" (not "From asset failure"' in text.splitlines()[-1]
    assert "Jane" not in text
    assert NORTH not in text
    assert known.status("operatories") == {NORTH: GREEN, PIER: GREEN, DESERT: RED}
    assert known.status("document_types") == {NORTH: GREEN, DESERT: GREEN, PIER: GREEN}
    assert known.told(result) == known.logged(result)
    known.box.faults.clear()
    known.box.requests.clear()
    again = known.run(
        Scope.LOCATION,
        [NORTH, DESERT, PIER],
        assets=["operatories", "document_types"],
        tags={
            "dagster/asset_partition_range_start": NORTH,
            "dagster/asset_partition_range_end": NORTH,
            "dagster/parent_run_id": result.run_id,
            "dagster/root_run_id": result.run_id,
            "dagster/is_resume_retry": "true",
        },
    )
    assert again.success
    assert {(one.path, one.param("location_id")) for one in known.box.requests if one.method == "GET"} == {
        ("/operatories", "348513")
    }
    assert known.status("operatories")[DESERT] is GREEN
    known.box.requests.clear()
    assert known.run(Scope.LOCATION, [DESERT], assets=["operatories"]).success
    assert len(known.box.requests.matching("/operatories")) > 0, "a run of its own reads anew"


def test_a_reconcile_tells_what_is_gone_and_fails_where_the_brake_held(known: House) -> None:
    """Nobody reads a log of deletions; a red run with a name in it is looked at."""
    assert known.run(Scope.LOCATION, [DESERT, PIER], assets=["operatories"]).success
    rooms = [row[0] for row in known.rows("SELECT id FROM nexhealth_operatories WHERE location_id = 348513")]
    gone = known.one("SELECT min(id) FROM nexhealth_operatories WHERE location_id = 348621")
    for number in (*rooms, gone):
        known.box.state.delete("operatories", number, hard=True)
    result = known.run(Scope.LOCATION, [DESERT, PIER], assets=["operatories"], mode="reconcile")
    assert f"operatories {DESERT}: absences not marked: the answer was empty" in known.failure(result)
    assert "From failure" not in known.failure(result), "reading it again changes nothing"
    assert known.partitions(result, MATERIALIZED) == {("operatories", DESERT), ("operatories", PIER)}
    assert known.partitions(result, OBSERVED) == {
        ("operatories", DESERT),
        ("operatories", PIER),
        ("sync_status", None),
    }, "whether the offices are online was asked again"
    said = {
        one.partition: one.event_specific_data.asset_observation.metadata["absence"].value
        for one in known.events(result, OBSERVED)
        if one.partition is not None
    }
    assert (said[PIER]["missing"], said[PIER]["tombstoned"], said[PIER]["braked"]) == (1, 1, False)
    assert (said[DESERT]["missing"], said[DESERT]["tombstoned"], said[DESERT]["braked"]) == (5, 0, True)
    assert known.told(result) == known.logged(result)
    assert known.told(result)["tombstoned"] == 1
    allowed = known.run(
        Scope.LOCATION, [DESERT, PIER], assets=["operatories"], mode="reconcile", allow_mass_delete=True
    )
    assert allowed.success, known.failure(allowed)
    assert known.one("SELECT count(*) FROM nexhealth_operatories WHERE deleted_by = 'absence'") == 6


def test_a_filtered_run_materializes_nothing_and_says_what_it_reads(known: House) -> None:
    """A green partition says that the slice is complete; of an ignored filter nobody would know."""
    result = known.run(Scope.LOCATION, [NORTH, PIER], status="active")
    assert result.success, known.failure(result)
    assert known.partitions(result, MATERIALIZED) == set()
    filtered = {name for name, _ in known.partitions(result, OBSERVED)}
    assert {"patients", "document_types"} <= filtered
    assert not {"documents", "operatories"} & filtered
    assert known.status("patients") == {}
    assert known.one("SELECT count(*) FROM nexhealth_sync_state WHERE collection = ANY(%s)", sorted(filtered)) == 0
    refused = known.run(Scope.LOCATION, [NORTH], assets=["documents", "patients"], status="active")
    assert not refused.success
    assert "documents cannot be filtered by status" in known.failure(refused)
    changes = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [NORTH], "updated_since": "2026-01-02"})
    assert changes.success
    assert known.partitions(changes, MATERIALIZED) == set()
    asked = known.box.requests.matching("/appointments")
    assert {one.param("updated_since") for one in asked} == {"2026-01-02T00:00:00+0000"}


def test_months_are_materialized_for_the_partitions_asked_for_only(known: House) -> None:
    """A backfill of some months must touch no other, whether they form a box or not."""
    first, second, third = month_keys(datetime.now(UTC).date())[1:4]
    keys = [f"{PIER}|{first}", f"{PIER}|{third}", f"{ISLAND}|{second}"]
    result = known.run(Scope.LOCATION_MONTH, keys)
    assert result.success, known.failure(result)
    assert known.partitions(result, MATERIALIZED) == {("appointments", key) for key in keys}
    assert known.status("appointments") == dict.fromkeys(keys, GREEN)
    assert known.told(result) == known.logged(result)


def test_a_read_of_a_part_is_observed_and_turns_nothing_green_or_red(known: House) -> None:
    """A window or a dry run says nothing about the slice as a whole, even when it fails."""
    key = f"{PIER}|{month_keys(datetime.now(UTC).date())[2]}"
    month = key[-7:]
    windowed = known.run(Scope.LOCATION_MONTH, [key], start=f"{month}-05", end=f"{month}-06")
    assert windowed.success
    assert known.partitions(windowed, MATERIALIZED) == set()
    assert known.partitions(windowed, OBSERVED) == {("appointments", key)}
    assert known.told(windowed) == known.logged(windowed)
    before = known.one("SELECT count(*) FROM nexhealth_sync_logs")
    dry = known.run(Scope.LOCATION, [PIER, ISLAND], dry_run=True)
    assert dry.success
    assert known.events(dry) == []
    assert known.one("SELECT count(*) FROM nexhealth_sync_logs") == before
    assert known.one("SELECT count(*) FROM nexhealth_patients") == 0
    assert known.status("patients") == {}


def test_a_window_in_the_run_config_narrows_the_months_that_are_chosen(known: House) -> None:
    """Whoever chooses all months of a location and a week in the launchpad means the week."""
    months = month_keys(datetime.now(UTC).date())
    keys = [f"{PIER}|{month}" for month in months]
    week: dict[str, Any] = {"start": f"{months[2]}-10", "end": f"{months[2]}-16"}
    result = known.run(Scope.LOCATION_MONTH, keys, **week)
    assert result.success
    assert known.partitions(result, OBSERVED) == {("appointments", keys[2])}
    known.box.requests.clear()
    outside = known.run(Scope.LOCATION_MONTH, keys[4:], **week)
    text = known.failure(outside)
    assert text.startswith(f"start {months[2]}-10 end {months[2]}-16: none of the chosen partitions is a month of")
    assert known.failure(known.run(Scope.LOCATION, [PIER], assets=["operatories"], **week)).startswith("start")
    assert not known.box.requests.matching("/appointments")
    assert not known.box.requests.matching("/operatories")


def test_the_key_of_an_inactive_location_is_skipped_with_a_reason(known: House) -> None:
    """Keys stay when a location goes; a run over all of them must not fail for that."""
    known.instance.add_dynamic_partitions("nexhealth_locations", [CLOSED, "gone.1"])
    result = known.run(Scope.LOCATION, [PIER, CLOSED, "gone.1"], assets=["operatories"])
    assert result.success
    assert known.partitions(result, MATERIALIZED) == {("operatories", PIER)}
    reasons = {
        event.partition: event.event_specific_data.asset_observation.metadata["skipped"].value
        for event in known.events(result, OBSERVED)
    }
    assert reasons == {
        CLOSED: "its location is inactive",
        "gone.1": "the API key, or NEXHEALTH_SUBDOMAINS, does not reach it",
    }
    assert known.status("operatories") == {PIER: GREEN}


def test_what_no_active_location_can_be_asked_for_is_skipped_with_a_reason(known: House) -> None:
    """Without a word the partition would stay as it was, and nobody knew that it is read no more."""
    known.warehouse.execute("UPDATE nexhealth_locations SET inactive = true WHERE institution_id = 11202")
    known.warehouse.execute(
        "UPDATE nexhealth_institutions SET raw = raw || '{\"appointment_types_location_scoped\": true}' WHERE id = 11202"
    )
    result = known.run(Scope.INSTITUTION, [HARBOR], assets=["appointment_types", "providers"])
    assert result.success, known.failure(result)
    assert known.partitions(result, MATERIALIZED) == {("providers", HARBOR)}
    (event,) = known.events(result, OBSERVED)
    assert (event.asset_key.path[-1], event.partition) == ("nexhealth_appointment_types", HARBOR)
    reason = event.event_specific_data.asset_observation.metadata["skipped"].value
    assert reason == "none of its locations is active"
    alone = known.run(Scope.INSTITUTION, [HARBOR], assets=["appointment_types"])
    lines = [entry.user_message for entry in known.instance.all_logs(alone.run_id) if entry.dagster_event is None]
    assert f"1 partitions skipped: {HARBOR} ({reason})" in lines, lines


def test_changed_months_are_materialized_and_the_change_read_itself_is_observed(known: House) -> None:
    """41,000 months a night that did not change would be two minutes of writing nothing."""
    keys = [f"{key}|{month}" for key in (PIER, ISLAND) for month in month_keys(datetime.now(UTC).date())]
    assert known.run(Scope.LOCATION_MONTH, keys).success
    appointment, pier = known.rows(
        "SELECT id, to_char(start_time AT TIME ZONE 'UTC', 'YYYY-MM') FROM nexhealth_appointments"
        " WHERE location_id = 348621 AND NOT cancelled"
        " AND start_time BETWEEN now() - interval '60 days' AND now() + interval '60 days' ORDER BY id LIMIT 1"
    )[0]
    known.box.state.update("appointments", appointment, {"note": "changed"})
    result = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [PIER, ISLAND]})
    assert result.success
    assert known.partitions(result, MATERIALIZED) == {("appointments", f"{PIER}|{pier}")}
    observed = known.events(result, OBSERVED)
    assert len(observed) == 2
    assert known.told(result) == known.logged(result)
    assert known.told(result)["updated"] == 1
    before = known.one("SELECT count(*) FROM nexhealth_sync_logs")
    dry = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [PIER], "dry_run": True})
    assert dry.success
    assert (known.events(dry), known.one("SELECT count(*) FROM nexhealth_sync_logs")) == ([], before)


def test_a_change_read_of_no_location_is_refused_and_names_those_it_leaves_out(house: House) -> None:
    """Green without a request would look like changes that were read."""
    assert "nexhealth_practice" in house.failure(house.job(CHANGES_JOB, CHANGES_OP))
    assert house.run(Scope.PRACTICE).success
    mistyped = house.job(CHANGES_JOB, CHANGES_OP, config={"partitions": ["348621"]})
    assert house.failure(mistyped).startswith(
        "partition '348621': the API key, or NEXHEALTH_SUBDOMAINS, reaches nothing"
    )
    house.instance.add_dynamic_partitions("nexhealth_locations", ["gone.1"])
    some = house.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [PIER, CLOSED, "gone.1"]})
    assert some.success
    read = "SELECT partition_key FROM nexhealth_sync_logs WHERE run_id = %s"
    assert house.rows(read, some.run_id) == [(f"{PIER}|changes",)]
    lines = [entry.user_message for entry in house.instance.all_logs(some.run_id) if entry.dagster_event is None]
    gone = "gone.1 (the API key, or NEXHEALTH_SUBDOMAINS, does not reach it)"
    assert f"2 partitions skipped: {gone}, {CLOSED} (its location is inactive)" in lines, lines


def test_days_typed_for_a_read_of_changes_are_refused(known: House) -> None:
    """Dropped unsaid, changes of all days would be taken for those of a week."""
    days = {"start": "2026-01-05", "end": "2026-01-11"}
    result = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [PIER], **days})
    assert known.failure(result).startswith("start 2026-01-05 end 2026-01-11: changes are read of appointments of all")
    assert not known.box.requests.matching("/appointments")


def test_one_patient_is_observed_with_what_it_cost(known: House) -> None:
    """A partial read completes nothing, but is history like any other."""
    assert known.run(Scope.LOCATION, [PIER], assets=["patients"]).success
    patient = known.one("SELECT min(id) FROM nexhealth_patients")
    result = known.job(PATIENT_JOB, PATIENT_OP, config={"patient_id": patient})
    assert result.success
    assert known.partitions(result, MATERIALIZED) == set()
    assert {name for name, _ in known.partitions(result, OBSERVED)} >= {"patients", "documents", "appointments"}
    assert known.told(result) == known.logged(result)
    missing = known.job(PATIENT_JOB, PATIENT_OP, config={"patient_id": 999_999_999})
    assert known.failure(missing) == "patient 999999999: no institution that the key reaches has it"


@pytest.mark.parametrize("key", ["", "wrong-key"])
def test_without_a_key_a_run_fails_with_one_line_that_says_what_to_do(
    house: House, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """A newcomer who clicks Materialize must not be met by a traceback."""
    monkeypatch.setenv("NEXHEALTH_API_KEY", key)
    result = house.run(Scope.PRACTICE)
    assert not result.success
    text = house.failure(result)
    if key:
        assert "key" in text
        assert key not in text
    else:
        assert "NEXHEALTH_API_KEY" in text
        assert "nexhealth dev" in text
        assert "\n" not in text
    assert {one.path for one in house.box.requests} == ({"/authenticates"} if key else set())


def test_a_run_that_could_only_read_nothing_is_refused(house: House) -> None:
    """Green and empty would look like done."""
    house.instance.add_dynamic_partitions("nexhealth_locations", [PIER])
    assert "nexhealth_practice" in house.failure(house.run(Scope.LOCATION, [PIER]))
    house.run(Scope.PRACTICE)
    text = house.failure(house.run(Scope.LOCATION, [], assets=["operatories"]))
    assert text.startswith("no partition is chosen")


def test_a_run_that_breaks_off_is_failed_in_the_warehouse_as_well(
    known: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an error has stopped must not look as if somebody had."""

    def breaks_off(*_: object) -> Iterator[SliceResult]:
        raise WarehouseError("writing nexhealth_patients: PostgreSQL has no room left")

    monkeypatch.setattr(assets, "run_slices", breaks_off)
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    assert known.failure(result) == "writing nexhealth_patients: PostgreSQL has no room left"
    assert known.rows("SELECT status FROM nexhealth_runs WHERE run_id = %s", result.run_id) == [("failed",)]


class Terminated:
    """Runs that are sent a signal when their first slice has been read."""

    def __init__(self, known: House) -> None:
        self._known = known

    def run(
        self, *, before: Callable[[], object] = lambda: None, tags: Mapping[str, str] | None = None
    ) -> dg.DagsterRun:
        """Patients and documents of two locations; `before` is called before the signal."""

        def terminate(_: object) -> None:
            before()
            os.kill(os.getpid(), signal.SIGTERM)

        keys = [PIER, ISLAND]
        tags = {**partition_tags(self._known.instance, PARTITIONS[Scope.LOCATION], keys), **(tags or {})}
        with step.listen(terminate):
            result = self._known.run(
                Scope.LOCATION, keys, assets=["patients", "documents"], tags=tags, concurrency=1, batch_pages=1
            )
        run = self._known.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def assert_on_a_committed_page(self, run: dg.DagsterRun) -> None:
        """What the warehouse says of the run, whatever Dagster calls its end."""
        assert self._known.rows("SELECT status FROM nexhealth_runs WHERE run_id = %s", run.run_id) == [("cancelled",)]
        logged = self._known.rows("SELECT DISTINCT status FROM nexhealth_sync_logs WHERE run_id = %s", run.run_id)
        assert {row[0] for row in logged} <= {"succeeded", "cancelled"}


@pytest.fixture
def terminated(known: House) -> Terminated:
    """Each document takes a moment, so that a signal comes in the middle of them."""
    known.box.faults.add("hang", path="/patients/[0-9]+/documents", seconds=0.1)
    return Terminated(known)


def test_a_command_that_is_stopped_ends_its_run_as_canceled(known: House, terminated: Terminated) -> None:
    """What Ctrl-C does; nothing of it may look failed."""
    run = terminated.run(tags=COMMAND_TAGS)
    assert run.status is dg.DagsterRunStatus.CANCELED
    terminated.assert_on_a_committed_page(run)
    assert RED not in {colour for name in ("patients", "documents") for colour in known.status(name).values()}


def test_a_run_that_is_terminated_in_dagit_is_canceled(known: House, terminated: Terminated) -> None:
    """Dagit tells Dagster before it sends the signal; the daemon must not begin anew what a person has ended."""

    def cancel() -> None:
        for run in known.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
            known.instance.report_run_canceling(run)

    run = terminated.run(before=cancel)
    assert run.status is dg.DagsterRunStatus.CANCELED
    assert "dagster/will_retry" not in run.tags
    terminated.assert_on_a_committed_page(run)
    assert RED not in {colour for name in ("patients", "documents") for colour in known.status(name).values()}


def test_a_run_whose_host_goes_down_is_repeated_and_goes_on_where_it_ended(
    known: House, terminated: Terminated
) -> None:
    """A node that is drained sends the same signal as Dagit; nobody wanted the night to end there."""
    run = terminated.run()
    assert run.status is dg.DagsterRunStatus.FAILURE
    assert run.tags["dagster/will_retry"] == "true"
    terminated.assert_on_a_committed_page(run)
    read = {f"/patients/{row[0]}/documents" for row in known.rows("SELECT patient_id FROM nexhealth_child_reads")}
    known.box.faults.clear()
    known.box.requests.clear()
    keys = [PIER, ISLAND]
    again = known.run(
        Scope.LOCATION,
        keys,
        assets=["patients", "documents"],
        tags={
            **partition_tags(known.instance, PARTITIONS[Scope.LOCATION], keys),
            "dagster/parent_run_id": run.run_id,
            "dagster/root_run_id": run.run_id,
            "dagster/retry_number": "1",
        },
    )
    assert again.success
    assert not read & {one.path for one in known.box.requests}
    patients = known.one("SELECT count(*) FROM nexhealth_patients WHERE deleted_at IS NULL")
    assert known.one("SELECT count(*) FROM nexhealth_child_reads WHERE collection = 'documents'") == patients
    assert known.status("documents") == {PIER: GREEN, ISLAND: GREEN}


def test_a_line_of_ours_reaches_the_run_with_its_fields(known: House) -> None:
    """`extra` is lost in Dagster's own log; without ids and counts a line says nothing."""
    known.box.faults.add("status", path="/operatories", location_id=348621, status=403)
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    lines = [entry.user_message for entry in known.instance.all_logs(result.run_id) if entry.dagster_event is None]
    assert any("slice read" in line and f"slice=operatories {PIER}" in line for line in lines), lines
