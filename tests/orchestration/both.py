"""Two assets of one step over a range of slices, the last of which fails for one of them."""

from collections.abc import Iterator

import dagster as dg

LOCATIONS = dg.DynamicPartitionsDefinition(name="test_locations")


@dg.multi_asset(
    specs=[dg.AssetSpec("one", skippable=True), dg.AssetSpec("two", skippable=True)],
    partitions_def=LOCATIONS,
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def two_assets(context: dg.AssetExecutionContext) -> Iterator[dg.AssetMaterialization]:
    """Reads every slice of asset `one`, fails at the last of asset `two`."""
    keys = context.partition_keys
    context.log.info("reading %d slices", len(keys))
    for key in keys:
        yield dg.AssetMaterialization("one", partition=key, metadata={"rows": 1})
        if key != keys[-1]:
            yield dg.AssetMaterialization("two", partition=key, metadata={"rows": 1})
    raise dg.Failure("the last slice of two")


BOTH = dg.Definitions(
    assets=[two_assets], jobs=[dg.define_asset_job("both", selection="*")], executor=dg.in_process_executor
).resolve_job_def("both")


def run_both(instance: dg.DagsterInstance, partitions: int) -> dg.ExecuteInProcessResult:
    """A run over so many slices, events of which are planned before it begins."""
    keys = [f"demo.{number}" for number in range(partitions)]
    instance.add_dynamic_partitions("test_locations", keys)
    return BOTH.execute_in_process(
        instance=instance,
        tags={"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]},
        raise_on_error=False,
    )
