"""A history that is written instead of made is as Dagster would have left it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from many_locations import NIGHT, Size, fill

if TYPE_CHECKING:
    import dagster as dg

REPO = Path(__file__).parents[2]


@pytest.fixture
def given(database_url: str, empty_database_url: str, own_home: Path) -> dict[str, str]:
    return {
        **os.environ,
        "NEXHEALTH_HOME": str(own_home),
        "DATABASE_URL": database_url,
        "DAGSTER_DATABASE_URL": empty_database_url,
        "DAGSTER_HOME": str(REPO),
    }


def test_the_last_night_s_run_and_a_day_of_ticks_are_there_to_be_shown(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages were timed on an instance whose sensors had never been asked and whose runs no page could draw."""
    import dagster as dg

    from nexhealth_pipeline.definitions import defs

    fill(given, given["DAGSTER_DATABASE_URL"], Size(locations=2, nights=2))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with dg.DagsterInstance.get() as instance:
        run = instance.get_run_by_id(NIGHT)
        assert run is not None
        assert run.is_success
        assert run.execution_plan_snapshot_id
        events = [one.dagster_event for one in instance.all_logs(NIGHT)]
        assert events[-1] is not None
        assert events[-1].event_type is dg.DagsterEventType.RUN_SUCCESS
        planned = [one for one in events if one and one.event_type is dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED]
        assert {one.partition for one in planned} == {"practice-0.1", "practice-0.2"}
        repository = defs.get_repository_def()
        for schedule in repository.schedule_defs:
            assert len(ticks_of(instance, schedule.name)) == 2
        for sensor in repository.sensor_defs:
            found = ticks_of(instance, sensor.name)
            assert len(found) == 24 * 3600 // (sensor.minimum_interval_seconds or 30)
            assert 0 < found[0].timestamp - found[-1].timestamp < 24 * 3600


def ticks_of(instance: "dg.DagsterInstance", name: str) -> list["dg.InstigatorTick"]:
    from dagster._core.definitions.selector import InstigatorSelector

    selector = InstigatorSelector(location_name="nexhealth_pipeline", repository_name="__repository__", name=name)
    return list(instance.get_ticks("", selector.get_id()))
