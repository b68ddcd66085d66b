"""Keys of partitions: each says of which place it is, and none can break Dagster's own."""

from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from hypothesis import given
from hypothesis import strategies as st

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration import partitions
from nexhealth_pipeline.orchestration.assets import add_partitions
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.slices import Slice, place_of

SUBDOMAIN = st.from_regex(r"[A-Za-z0-9_.-]{1,40}", fullmatch=True)


def location_of(subdomain: str, location_id: int) -> Location:
    institution = Institution(1, subdomain, "Acme", frozenset())
    return Location(location_id, "North", institution, inactive=False, owner_id=location_id, shared=False)


@given(subdomain=SUBDOMAIN, location_id=st.integers(min_value=0, max_value=2**63))
def test_a_key_says_of_which_location_it_is_with_a_month_and_without(subdomain: str, location_id: int) -> None:
    """A subdomain may hold dots, and the schedules ask of each month whether its location is known."""
    location = location_of(subdomain, location_id)
    month = Slice(COLLECTIONS["appointments"], location.institution, location, "2026-02").partition_key
    assert month == str(partitions.location_month_key(location.key, "2026-02"))
    assert place_of(month) == place_of(location.key) == f"{subdomain}.{location_id}"


@pytest.mark.parametrize("subdomain", ["", "a|b", "a b", "a...b,c", "ä", "a\n", "x" * 201])
def test_a_subdomain_that_dagster_would_stumble_over_is_refused_by_name(subdomain: str) -> None:
    """A key with `|` is accepted by Dagster and then breaks the schedule of every location."""
    location = location_of(subdomain, 1)
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(InvalidSetting, match=r"^partition key") as caught:
            add_partitions(instance, Practices((location.institution,), (location,)))
        assert repr(subdomain) in str(caught.value)
        assert not instance.get_dynamic_partitions("nexhealth_institutions")


@pytest.mark.parametrize("today", ["2024-07-01", "2026-11-23", "2026-12-31"])
def test_months_are_those_that_the_sync_reads(today: str) -> None:
    """A month that only one side knows would never be read, or never be shown."""
    now = datetime.fromisoformat(today).replace(tzinfo=UTC)
    with partition_loading_context(effective_dt=now):
        keys = list(partitions.MONTHS.get_partition_keys())
    assert keys == month_keys(now.date())
    assert keys[0] == "2024-07"


def test_keys_are_added_once_and_one_that_cannot_be_a_key_keeps_no_other_out() -> None:
    """Discovery runs at every sync; one institution's name must not hide all new locations of the others."""
    with dg.DagsterInstance.ephemeral() as instance:
        assert partitions.add_keys(instance, partitions.LOCATIONS, ["a.1", "a.2", "a.1"]) == ["a.1", "a.2"]
        assert partitions.add_keys(instance, partitions.LOCATIONS, ["a.2", "a.3"]) == ["a.3"]
        with pytest.raises(InvalidSetting, match=r"^partition key 'a\|5', 'b c\.6': only letters") as caught:
            partitions.add_keys(instance, partitions.LOCATIONS, ["a.4", "a|5", "b c.6", "d.7"])
        assert "NEXHEALTH_SUBDOMAINS" in str(caught.value)
        assert list(instance.get_dynamic_partitions("nexhealth_locations")) == ["a.1", "a.2", "a.3", "a.4", "d.7"]


@pytest.mark.parametrize(
    ("keys", "box"),
    [
        (["a.2|2024-08"], True),
        (["a.3|2024-09", "a.2|2024-08", "a.2|2024-09", "a.3|2024-08"], True),
        (["a.1|2024-08", "a.2|2024-08", "a.3|2024-08"], True),
        (["a.1|2024-08", "a.3|2024-08"], False),
        (["a.1|2024-08", "a.1|2024-10"], False),
        (["a.1|2024-08", "a.2|2024-09"], False),
        (["a.1|2024-08", "a.9|2024-08"], False),
    ],
)
def test_tags_hold_a_box_of_months_exactly_where_dagster_reads_the_same_keys_out_of_them(
    keys: list[str], box: bool
) -> None:
    """A range that covers more than was asked for would paint slices that nobody reads."""
    with dg.DagsterInstance.ephemeral() as instance:
        partitions.add_keys(instance, partitions.LOCATIONS, ["a.1", "a.2", "a.3"])
        tags = partitions.partition_tags(instance, partitions.LOCATION_MONTHS, keys)
        first, last = tags["dagster/asset_partition_range_start"], tags["dagster/asset_partition_range_end"]
        with partition_loading_context(dynamic_partitions_store=instance):
            told = partitions.LOCATION_MONTHS.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
    assert set(told) == (set(keys) if box else {keys[0]})
