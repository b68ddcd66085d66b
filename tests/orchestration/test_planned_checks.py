"""Checks that a run of Dagit's plans and never runs: they must not stand where a check's last result does."""

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.assets import PARTITIONS
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.jobs import CHECKS_JOB
from nexhealth_pipeline.orchestration.partitions import partition_tags

from .kit import ISLAND, PIER, House

ASSET = dg.AssetKey("nexhealth_operatories")
FRESH = dg.AssetCheckKey(ASSET, "fresh")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def _backfill(house: House, keys: list[str]) -> dg.ExecuteInProcessResult:
    """A run as a backfill of the asset asks for it: of the job of all assets, with the asset's checks."""
    job = DEFINITIONS.resolve_implicit_global_asset_job_def()
    checks = DEFINITIONS.resolve_asset_graph().get_check_keys_for_assets({ASSET})
    assert FRESH in checks
    return job.get_subset(asset_selection={ASSET}, asset_check_selection=set(checks)).execute_in_process(
        instance=house.instance,
        tags=partition_tags(house.instance, PARTITIONS[Scope.LOCATION], keys),
        run_config=QUIET,
        raise_on_error=False,
    )


def test_a_check_that_failed_is_still_failed_after_a_backfill_of_its_asset(known: House) -> None:
    """Its run plans the check and skips it: skipped would hide the failure, and a failed slice would turn all checks red."""
    job = DEFINITIONS.resolve_job_def(CHECKS_JOB).get_subset(asset_check_selection={FRESH})
    checked = job.execute_in_process(instance=known.instance, run_config=QUIET)
    known.box.faults.add("status", path="/operatories", location_id=348622, status=403)
    for keys, succeeds in (([PIER], True), ([PIER, ISLAND], False)):
        assert _backfill(known, keys).success is succeeds
        last = known.instance.event_log_storage.get_latest_asset_check_execution_by_key([FRESH])[FRESH]
        assert (last.run_id, last.status) == (checked.run_id, AssetCheckExecutionRecordStatus.FAILED)
