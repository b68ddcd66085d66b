"""Discovery in Dagster: what it makes partitions of, and what it says where something of the settings is not there."""

from datetime import UTC, datetime

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP
from nexhealth_pipeline.sync.months import month_keys

from .kit import DESERT, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, House
from .practices import add_locations


def _keys(house: House) -> set[str]:
    return {*house.instance.get_dynamic_partitions("nexhealth_locations")}


def test_a_chosen_institution_that_the_key_does_not_reach_fails_the_nights_discovery(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistyped, or renamed at NexHealth: under the daemon it would silently never be copied. The others are."""
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", f"{WILLOW},gone")
    result = house.run(Scope.PRACTICE)
    assert not result.success
    text = house.failure(result)
    assert text.startswith("NEXHEALTH_SUBDOMAINS: the key reaches no institution 'gone'; ")
    assert house.one("SELECT count(*) FROM nexhealth_institutions WHERE subdomain = %s", WILLOW) == 1
    assert _keys(house) == {NORTH, SOUTH, DESERT}
    assert house.run(Scope.LOCATION, [NORTH], assets=["operatories"]).success
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", WILLOW)
    assert house.run(Scope.PRACTICE).success


def test_a_discovery_that_is_not_whole_judges_no_name(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that failed may hold it, and one asset alone tells nothing of the others."""
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", WILLOW)
    assert house.run(Scope.PRACTICE, assets=["locations"]).success
    assert house.run(Scope.PRACTICE, dry_run=True).success
    house.box.faults.add("status", path="/institutions", status=403)
    failed = house.failure(house.run(Scope.PRACTICE))
    assert "institutions" in failed
    assert "NEXHEALTH_SUBDOMAINS" not in failed


def test_where_nothing_of_the_chosen_is_known_the_setting_is_named(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Discovery has run: told to run it, nobody would find the mistyped name."""
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", "gone")
    assert not house.run(Scope.PRACTICE).success
    house.instance.add_dynamic_partitions("nexhealth_locations", [PIER])
    for failed in (house.run(Scope.LOCATION, [PIER]), house.job(CHANGES_JOB, CHANGES_OP)):
        assert house.failure(failed).startswith(
            "no institution or location of NEXHEALTH_SUBDOMAINS (gone) is known yet"
        )


def test_a_name_that_cannot_be_a_key_is_told_and_keeps_no_other_out(house: House) -> None:
    """And what ended the read is told first: a name may wait."""
    add_locations(house.warehouse, 99, "a b", [7])
    text = house.failure(house.run(Scope.PRACTICE))
    assert text.startswith("partition key 'a b': only letters")
    assert _keys(house) == {NORTH, SOUTH, DESERT, PIER, ISLAND}
    assert {*house.instance.get_dynamic_partitions("nexhealth_institutions")} == {WILLOW, HARBOR}
    house.box.faults.add("status", path="/locations", status=403)
    text = house.failure(house.run(Scope.PRACTICE))
    assert "locations" in text
    assert "a b" not in text


@pytest.mark.parametrize("scope", [Scope.INSTITUTION, Scope.LOCATION, Scope.LOCATION_MONTH])
def test_a_run_of_nothing_that_is_reached_is_refused(
    known: House, monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    """Green without a request would look like rows that were read."""
    key = {
        Scope.INSTITUTION: HARBOR,
        Scope.LOCATION: PIER,
        Scope.LOCATION_MONTH: f"{PIER}|{month_keys(datetime.now(UTC).date())[2]}",
    }[scope]
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", WILLOW)
    known.box.requests.clear()
    result = known.run(scope, [key])
    assert known.failure(result).startswith(f"partition '{key}': the API key, or NEXHEALTH_SUBDOMAINS, reaches nothing")
    assert known.events(result, dg.DagsterEventType.ASSET_OBSERVATION) == []
    assert len(known.box.requests) == 0
