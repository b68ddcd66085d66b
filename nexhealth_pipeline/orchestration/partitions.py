"""The partitions of the assets, and the only place where Dagster is given a new key.

A key is what a slice says it is (`sync.slices`); here those that Dagster cannot bear are refused. Locations and
institutions are dynamic: discovery adds keys and nothing ever deletes one (a deleted key throws away the work of runs
that use it). Appointments are split by location and by the month of their start, in UTC. A key may hold letters,
digits, `_`, `.` and `-` only: Dagster joins two dimensions with `|`, and accepts a key with `|` in it only to fail
later for every location.
"""

import re
from collections.abc import Iterable, Sequence
from itertools import product

from dagster import (
    DagsterInstance,
    DynamicPartitionsDefinition,
    MonthlyPartitionsDefinition,
    MultiPartitionKey,
    MultiPartitionsDefinition,
    PartitionsDefinition,
)
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sync.months import FIRST_MONTH, MONTHS_AHEAD

__all__ = [
    "INSTITUTIONS",
    "LOCATIONS",
    "LOCATION_MONTHS",
    "MONTHS",
    "add_keys",
    "keys_between",
    "location_month_key",
    "partition_tags",
]

LOCATIONS = DynamicPartitionsDefinition(name="nexhealth_locations")
"""One key a location: `<subdomain>.<location_id>`."""
INSTITUTIONS = DynamicPartitionsDefinition(name="nexhealth_institutions")
"""One key an institution: its subdomain."""
MONTHS = MonthlyPartitionsDefinition(
    start_date=f"{FIRST_MONTH:%Y-%m}", fmt="%Y-%m", timezone="UTC", end_offset=MONTHS_AHEAD + 1
)
"""One key a month: `2024-07`. The offset counts the current month, too."""
LOCATION_MONTHS = MultiPartitionsDefinition({"location": LOCATIONS, "month": MONTHS})
"""One key a location and month: `<subdomain>.<location_id>|2024-07`."""

_KEY = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_NAMED = 5


def location_month_key(location: str, month: str) -> MultiPartitionKey:
    """The partition key of one month (`2024-07`) of the location with key `location`."""
    return MultiPartitionKey({"location": location, "month": month})


def add_keys(instance: DagsterInstance, definition: DynamicPartitionsDefinition, keys: Iterable[str]) -> list[str]:
    """Add the `keys` that `definition` does not have yet; returns those.

    Raises InvalidSetting for those that cannot be keys, when the others are there: one institution's name must not
    keep another's locations out.
    """
    name = str(definition.name)
    known = set(instance.get_dynamic_partitions(name))
    new = [key for key in dict.fromkeys(keys) if key not in known]
    good = [key for key in new if _KEY.fullmatch(key)]
    if good:
        instance.add_dynamic_partitions(name, good)
    if len(good) < len(new):
        bad = [key for key in new if not _KEY.fullmatch(key)]
        raise InvalidSetting(
            f"{_impossible(bad)}; all others are added. Leave that institution out: name the others in NEXHEALTH_SUBDOMAINS"
        )
    return good


def partition_tags(
    instance: DagsterInstance, definition: PartitionsDefinition[str] | None, keys: Sequence[str]
) -> dict[str, str]:
    """Tags that tell Dagster which partitions a run is about, as far as tags can.

    They hold one contiguous range (of two dimensions: a box). Any other choice is tagged with its first key
    and planned in full by the step: without a tag Dagster refuses a run whose upstream is partitioned.
    """
    if definition is None or not keys:
        return {}
    with partition_loading_context(dynamic_partitions_store=instance):
        first, last = _box(definition, set(keys)) or (keys[0], keys[0])
    return {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}


def keys_between(
    instance: DagsterInstance, definition: PartitionsDefinition[str], first: str, last: str
) -> set[str] | None:
    """The keys from `first` to `last` (of two dimensions: of the box); None where an end is none."""
    with partition_loading_context(dynamic_partitions_store=instance):
        if not isinstance(definition, MultiPartitionsDefinition):
            return set(_between(definition.get_partition_keys(), first, last)) or None
        ends = zip(first.partition("|")[::2], last.partition("|")[::2], strict=True)
        sides = [
            _between(dimension.partitions_def.get_partition_keys(), *pair)
            for dimension, pair in zip(definition.partitions_defs, ends, strict=True)
        ]
    return {"|".join(pair) for pair in product(*sides)} or None


def _between(known: Sequence[str], first: str, last: str) -> Sequence[str]:
    """Those of `known` from `first` to `last`; none where one of these is not there."""
    if first not in known or last not in known:
        return ()
    return known[known.index(first) : known.index(last) + 1]


def _box(definition: PartitionsDefinition[str], wanted: set[str]) -> tuple[str, str] | None:
    """First and last of `wanted` if they are all between those, of two dimensions in each; else None.

    Dagster's own listing of a box makes an object a key, which took seconds of a tick at 1,000 locations.
    """
    if not isinstance(definition, MultiPartitionsDefinition):
        return _range(definition.get_partition_keys(), wanted)
    pairs = [key.split("|") for key in wanted]
    outer, inner = ({pair[place] for pair in pairs} for place in (0, 1))
    if len(outer) * len(inner) != len(wanted):
        return None
    ranges = [
        _range(dimension.partitions_def.get_partition_keys(), chosen)
        for dimension, chosen in zip(definition.partitions_defs, (outer, inner), strict=True)
    ]
    if ranges[0] is None or ranges[1] is None:
        return None
    first, last = zip(*ranges, strict=True)
    return "|".join(first), "|".join(last)


def _range(known: Sequence[str], wanted: set[str]) -> tuple[str, str] | None:
    """First and last of `wanted` if they follow each other without a gap in `known`, else None."""
    places = [place for place, key in enumerate(known) if key in wanted]
    whole = len(places) == len(wanted) and places[-1] - places[0] == len(places) - 1
    return (known[places[0]], known[places[-1]]) if whole else None


def _impossible(keys: Sequence[str]) -> str:
    named = ", ".join(repr(key) for key in keys[:_NAMED])
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"partition key {named}{more}: only letters, digits, '_', '.' and '-' are possible (1 to 200)"
