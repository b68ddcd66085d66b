"""Checks that a run of Dagit's plans and never runs: they must not stand where a check's last result does."""

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration import housekeeping
from nexhealth_pipeline.orchestration.assets import PARTITIONS
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.housekeeping import keep_house_daily
from nexhealth_pipeline.orchestration.names import CHECKS_JOB
from nexhealth_pipeline.orchestration.partitions import partition_tags
from nexhealth_pipeline.orchestration.retention import remove_void_checks
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.migrate import upgrade

from .kit import ISLAND, PIER, House

ASSET = dg.AssetKey("nexhealth_operatories")
FRESH = dg.AssetCheckKey(ASSET, "fresh")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _checks_alone() -> dg.JobDefinition:
    return DEFINITIONS.resolve_job_def(CHECKS_JOB).get_subset(asset_check_selection={FRESH})


def _reading_job() -> dg.JobDefinition:
    job = DEFINITIONS.resolve_implicit_global_asset_job_def()
    checks = DEFINITIONS.resolve_asset_graph().get_check_keys_for_assets({ASSET})
    assert FRESH in checks
    return job.get_subset(asset_selection={ASSET}, asset_check_selection=set(checks))


def _backfill(house: House, keys: list[str]) -> dg.ExecuteInProcessResult:
    """A run as a backfill of the asset asks for it: of the job of all assets, with the asset's checks."""
    return _reading_job().execute_in_process(
        instance=house.instance,
        tags=partition_tags(house.instance, PARTITIONS[Scope.LOCATION], keys),
        run_config=QUIET,
        raise_on_error=False,
    )


def test_a_check_that_failed_is_still_failed_after_a_backfill_of_its_asset(known: House) -> None:
    """Its run plans the check and skips it: skipped would hide the failure, and a failed slice would turn all checks red."""
    checked = _checks_alone().execute_in_process(instance=known.instance, run_config=QUIET)
    known.box.faults.add("status", path="/operatories", location_id=348622, status=403)
    for keys, succeeds in (([PIER], True), ([PIER, ISLAND], False)):
        assert _backfill(known, keys).success is succeeds
        assert _last(known.instance) == (checked.run_id, AssetCheckExecutionRecordStatus.FAILED)


def _last(instance: dg.DagsterInstance) -> tuple[str, AssetCheckExecutionRecordStatus]:
    last = instance.event_log_storage.get_latest_asset_check_execution_by_key([FRESH])[FRESH]
    return last.run_id, last.status


def _waiting(house: House, job: dg.JobDefinition) -> dg.DagsterRun:
    """A run that waits for its turn; what it is to do is planned."""
    return house.instance.create_run_for_job(
        job,
        status=dg.DagsterRunStatus.NOT_STARTED,
        asset_selection=job.asset_selection,
        tags=partition_tags(house.instance, PARTITIONS[Scope.LOCATION], [PIER]) if job.asset_selection else {},
    )


def test_nor_does_one_that_is_canceled_before_it_starts(known: House, environment: dict[str, str]) -> None:
    """It never comes to forget what was planned for it; whoever keeps house does, each time and not once a day only."""
    places = environment["DATABASE_URL"], environment["DAGSTER_DATABASE_URL"]
    checked = _checks_alone().execute_in_process(instance=known.instance, run_config=QUIET)
    run = _waiting(known, _reading_job())
    planned = (run.run_id, AssetCheckExecutionRecordStatus.PLANNED)
    keep_house_daily(load_settings(), *places)
    assert _last(known.instance) == planned, "its turn may come"
    known.instance.report_run_canceled(run)
    assert _last(known.instance) == planned
    keep_house_daily(load_settings(), *places)
    assert _last(known.instance) == (checked.run_id, AssetCheckExecutionRecordStatus.FAILED)


def test_that_checks_did_not_run_is_not_forgotten(known: House, dagster_database_url: str) -> None:
    run = _waiting(known, _checks_alone())
    known.instance.report_run_failed(run)
    assert remove_void_checks(dagster_database_url) == 0
    assert _last(known.instance) == (run.run_id, AssetCheckExecutionRecordStatus.PLANNED)


def test_a_database_that_is_not_dagsters_has_none(database_url: str) -> None:
    """An instance may keep its records elsewhere, and every sync keeps house."""
    assert remove_void_checks(database_url) == 0


def test_that_they_cannot_be_removed_ends_no_look(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog keeps house first, and fills holes then."""
    lines: list[str] = []
    monkeypatch.setattr(housekeeping._LOG, "warning", lambda text, **_: lines.append(text))
    upgrade(database_url)
    keep_house_daily(load_settings(), database_url, None)  # what is old, once a day
    keep_house_daily(load_settings(), database_url, "postgresql://nobody@127.0.0.1:1/nothing")
    assert lines == ["checks planned in vain could not be removed"]
