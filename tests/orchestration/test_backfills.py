"""Backfills of assets of several scopes: what is chosen of one location, or fails there, is nothing to the others."""

import time
from collections.abc import Iterator

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
from dagster._core.definitions.assets.graph.asset_graph_subset import AssetGraphSubset
from dagster._core.definitions.events import AssetKeyPartitionKey
from dagster._core.execution.asset_backfill import AssetBackfillData

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration.assets import PARTITIONS
from nexhealth_pipeline.sync.slices import place_of

# Dagster's own backfill calls what it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Function `AssetSelection.sources` is deprecated:DeprecationWarning")
GRAPH = defs.resolve_asset_graph()
LOCATIONS = ["acme.1", "acme.2", "bond.3"]
PATIENTS, APPOINTMENTS = dg.AssetKey("nexhealth_patients"), dg.AssetKey("nexhealth_appointments")
PARTITIONED = [one for one in DECLARED if one.is_asset and one.scope is not Scope.PRACTICE]
CROSSING = [
    (one, COLLECTIONS[name])
    for one in PARTITIONED
    for name in one.upstream
    if COLLECTIONS[name] in PARTITIONED and COLLECTIONS[name].scope is not one.scope
]
"""Assets, each with one that it follows and that has other partitions."""


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("nexhealth_institutions", ["acme", "bond"])
        instance.add_dynamic_partitions("nexhealth_locations", LOCATIONS)
        yield instance


def _keys(collection: Collection) -> list[str]:
    definition = PARTITIONS[collection.scope]
    assert definition is not None
    return list(definition.get_partition_keys())


def _of_one_place(one: str, other: str) -> bool:
    """Whether two keys are of one location, or of an institution and one of its locations."""
    return (
        place_of(one) == place_of(other)
        or place_of(one).partition(".")[0] == place_of(other)
        or (place_of(other).partition(".")[0] == place_of(one))
    )


@pytest.mark.parametrize(("child", "parent"), CROSSING, ids=lambda one: one.name)
def test_no_partition_points_to_one_of_another_location(
    child: Collection, parent: Collection, instance: dg.DagsterInstance
) -> None:
    """Dagster would launch it along, and leave it out where the other one fails."""
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        first = _keys(parent)[0]
        found = GRAPH.get_child_partition_keys_of_parent(first, dg.AssetKey(parent.table), dg.AssetKey(child.table))
        assert [key for key in found if not _of_one_place(key, first)] == []


def test_a_backfill_of_one_location_is_of_no_other_however_many_assets_are_chosen(
    instance: dg.DagsterInstance,
) -> None:
    """Of patients and appointments Dagit lets one choose partitions of patients, and follows them: it was every month."""
    found = AssetBackfillData.from_asset_partitions(
        asset_graph=GRAPH,
        partition_names=["acme.1"],
        asset_selection=[PATIENTS, APPOINTMENTS],
        dynamic_partitions_store=instance,
        backfill_start_timestamp=time.time(),
        all_partitions=False,
    )
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        target = found.target_subset.iterate_asset_partitions()
        assert {(one.asset_key, place_of(str(one.partition_key))) for one in target} == {(PATIENTS, "acme.1")}


def test_what_fails_at_one_location_keeps_nothing_of_another_from_being_read(instance: dg.DagsterInstance) -> None:
    """One inactive location, whose partitions are skipped for good, was the end of each backfill of everything."""
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        failed = AssetGraphSubset.from_asset_partition_set({AssetKeyPartitionKey(PATIENTS, "acme.1")}, GRAPH)
        without = GRAPH.bfs_filter_subsets(lambda *_: True, failed).iterate_asset_partitions()
        assert {place_of(str(one.partition_key)) for one in without} == {"acme.1"}


def test_a_backfill_of_everything_begins_with_every_scope(instance: dg.DagsterInstance) -> None:
    """What no partition points to must not be left out for that: Dagster asks for it with the first."""
    keys = [dg.AssetKey(one.table) for one in PARTITIONED]
    whole = AssetBackfillData.from_asset_partitions(
        asset_graph=GRAPH,
        partition_names=None,
        asset_selection=keys,
        dynamic_partitions_store=instance,
        backfill_start_timestamp=time.time(),
        all_partitions=True,
    )
    view = AssetGraphView.for_test(defs, instance)
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        first = whole.get_target_root_asset_graph_subset(view)
        for key in (dg.AssetKey("nexhealth_providers"), PATIENTS, APPOINTMENTS):
            assert first.get_asset_subset(key) == whole.target_subset.get_asset_subset(key)
