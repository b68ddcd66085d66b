"""Asset events that are written many at a time: what Dagster knows of an asset afterwards."""

import dagster as dg
import pytest

from nexhealth_pipeline.orchestration.step import Event, report

ASSET = dg.AssetKey("nexhealth_patients")


def _reported(instance: dg.DagsterInstance, events: list[Event]) -> dg.ExecuteInProcessResult:
    """A run that reports `events` in one batch."""

    @dg.op
    def told(context: dg.OpExecutionContext) -> None:
        report(context, events)

    @dg.job
    def telling() -> None:
        told()

    return telling.execute_in_process(instance=instance)


@pytest.mark.parametrize("kinds", ["mo", "om", "mmo", "momoo"])
def test_an_observation_does_not_hide_the_materialization_before_it(instance: dg.DagsterInstance, kinds: str) -> None:
    """One slice was complete and the next was not: Dagit would show the asset's last materialization of last night."""
    events: list[Event] = [
        (dg.AssetMaterialization if kind == "m" else dg.AssetObservation)(ASSET, partition=f"acme.{number}")
        for number, kind in enumerate(kinds)
    ]
    _reported(instance, [dg.AssetMaterialization(ASSET, partition="of an earlier run")])
    result = _reported(instance, events)
    (record,) = instance.get_asset_records([ASSET])
    last = record.asset_entry.last_materialization_record
    assert last is not None
    assert (last.run_id, last.partition_key) == (result.run_id, f"acme.{kinds.rindex('m')}")
    assert record.asset_entry.last_run_id == result.run_id
