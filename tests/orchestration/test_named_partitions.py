"""Partitions that are named in a run's config, where Dagster looks at none of them."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.assets import PARTITIONS
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP
from nexhealth_pipeline.orchestration.partitions import MONTHS, partition_tags
from nexhealth_pipeline.sync.months import month_keys

from .kit import CLOSED, HARBOR, ISLAND, PIER, House


@pytest.fixture
def month(few_months: None) -> str:
    """One of those that are read."""
    return month_keys(datetime.now(UTC).date())[1]


def test_what_is_no_partition_is_refused_by_name_and_colours_nothing(known: House, month: str) -> None:
    """A mistyped month was green with the reason that its location is not reached, and a partition that nobody has."""
    named = {
        Scope.INSTITUTION: (HARBOR, [PIER, f"{HARBOR}|{month}", "willow", ""]),
        Scope.LOCATION: (PIER, [HARBOR, f"{PIER}|{month}", f"{HARBOR}.1", "348621"]),
        Scope.LOCATION_MONTH: (
            f"{PIER}|{month}",
            [PIER, f"{PIER}|{month[:5]}1", f"{PIER}|2024-06", f"{HARBOR}|{month}", f"{PIER}|changes"],
        ),
    }
    for scope, (key, texts) in named.items():
        tags = partition_tags(known.instance, PARTITIONS[scope], [key])
        for text in texts:
            result = known.run(scope, [key, text], tags=tags)
            assert known.failure(result).startswith(f"partition {text!r}: "), known.failure(result)
            assert known.events(result) == []
            planned = known.partitions(result, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
            assert {partition for _, partition in planned} <= {key}
    assert "<subdomain>.<location id>|<year>-<month>, 2024-07 to " in known.failure(result)


def test_a_month_that_is_none_is_not_laid_to_the_api_key(known: House, month: str) -> None:
    """The location is right; whoever reads that the key does not reach it looks in the wrong place."""
    months = MONTHS.get_partition_keys()
    there = f"write <subdomain>.<location id>|<year>-<month>, {months[0]} to {months[-1]}"
    none = "its month is missing, or none that there is"
    reached = "the API key, or NEXHEALTH_SUBDOMAINS, reaches nothing of that name"
    for scope, text, reason in (
        (Scope.LOCATION_MONTH, f"{PIER}|2024-7", f"{none}; {there}"),
        (Scope.LOCATION_MONTH, PIER, f"{none}; {there}"),
        (Scope.LOCATION_MONTH, f"{HARBOR}|{month}", f"{reached}; {there}"),
        (Scope.LOCATION, f"{PIER}|{month}", "nothing of this job is kept by month; write <subdomain>.<location id>"),
        (Scope.LOCATION, HARBOR, f"{reached}; write <subdomain>.<location id>"),
    ):
        assert known.failure(known.run(scope, [text], tags={})) == f"partition {text!r}: {reason}"


def test_the_read_of_changes_refuses_them_as_well(known: House) -> None:
    """One good location beside them, and the run was green though nothing of the other was read."""
    for text in (HARBOR, f"{HARBOR}.1", "348621"):
        result = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [PIER, text]})
        assert known.failure(result) == (
            f"partition {text!r}: the API key, or NEXHEALTH_SUBDOMAINS, reaches nothing of that name; write "
            "<subdomain>.<location id>"
        )
        assert known.events(result) == []


def test_what_can_no_longer_be_read_is_a_partition_all_the_same(known: House, month: str) -> None:
    """Keys stay when a location goes or another setting leaves it out, and a run over all of them must not fail for that."""
    known.instance.add_dynamic_partitions("nexhealth_locations", ["gone.1"])
    months = [f"{place}|{month}" for place in (ISLAND, CLOSED, "gone.1")]
    tags = partition_tags(known.instance, PARTITIONS[Scope.LOCATION_MONTH], months[:1])
    result = known.run(Scope.LOCATION_MONTH, months, tags=tags)
    assert result.success, known.failure(result)
    observed = known.partitions(result, dg.DagsterEventType.ASSET_OBSERVATION)
    assert observed == {("appointments", key) for key in months[1:]}


def test_the_keys_of_who_was_renamed_say_so(known: House, month: str) -> None:
    """Risk: the night that a practice gets another subdomain, whoever looks for the reason looks at API key and settings."""
    number = PIER.rpartition(".")[2]
    known.instance.add_dynamic_partitions("nexhealth_locations", [f"old.{number}", "gone.1"])
    result = known.run(Scope.LOCATION, [PIER, f"old.{number}", "gone.1"], assets=["operatories"])
    assert result.success, known.failure(result)
    reasons = {
        event.partition: event.event_specific_data.asset_observation.metadata["skipped"].value
        for event in known.events(result, dg.DagsterEventType.ASSET_OBSERVATION)
    }
    assert reasons == {
        f"old.{number}": f"its institution is called {HARBOR} now",
        "gone.1": "the API key, or NEXHEALTH_SUBDOMAINS, does not reach it",
    }
    for scope, more in ((Scope.LOCATION, ""), (Scope.LOCATION_MONTH, f"|{month}")):
        alone = known.run(scope, [f"old.{number}{more}"])
        assert known.failure(alone) == (
            f"partition 'old.{number}{more}': its institution is called {HARBOR} now; write {PIER}{more}"
        )
    alone = known.job(CHANGES_JOB, CHANGES_OP, config={"partitions": [f"old.{number}"]})
    assert f"its institution is called {HARBOR} now" in known.failure(alone)
