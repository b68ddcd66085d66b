"""Dagster's schedules and sensors after the clock of the daemon's host was ahead: what docs/operations.md says makes them go on."""

import re
import time
from pathlib import Path

import dagster as dg
import psycopg
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._daemon.sensor import get_elapsed

GUIDE = Path(__file__).parents[2] / "docs" / "operations.md"
DAY = 86400


def _origin(name: str) -> RemoteInstigatorOrigin:
    location = RegisteredCodeLocationOrigin("nexhealth_pipeline")
    return RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)


def _tick(instance: dg.DagsterInstance, origin: RemoteInstigatorOrigin, kind: InstigatorType, at: float) -> None:
    instance.create_tick(
        TickData(
            instigator_origin_id=origin.get_id(),
            selector_id=origin.get_selector().get_id(),
            instigator_name=origin.instigator_name,
            instigator_type=kind,
            status=TickStatus.SKIPPED,
            timestamp=at,
        )
    )


def test_ticks_of_the_future_are_removed_by_what_the_guide_says(
    instance: dg.DagsterInstance, dagster_database_url: str
) -> None:
    """Risk: a clock was two months ahead for an hour, and for two months nothing is read."""
    now = time.time()
    ahead = now + 60 * DAY
    for name, kind, data in (
        ("nightly", InstigatorType.SCHEDULE, ScheduleInstigatorData("0 2 * * *", ahead, ahead)),
        (
            "events",
            InstigatorType.SENSOR,
            SensorInstigatorData(ahead, cursor="kept", last_tick_start_timestamp=ahead),
        ),
    ):
        origin = _origin(name)
        instance.add_instigator_state(InstigatorState(origin, kind, InstigatorStatus.RUNNING, data))
        for at in (now - DAY, ahead):
            _tick(instance, origin, kind, at)
    _, _, rest = GUIDE.read_text(encoding="utf-8").partition("\n## A clock that was ahead\n")
    found = re.search(r"```sql\n(.*?)```", rest, re.DOTALL)
    assert found is not None
    with psycopg.connect(dagster_database_url) as db:
        db.execute(found[1].encode())

    soon = time.time() + 60
    states = {one.instigator_name: one for one in instance.all_instigator_state()}
    schedule, sensor = states["nightly"].instigator_data, states["events"].instigator_data
    assert isinstance(schedule, ScheduleInstigatorData)
    assert isinstance(sensor, SensorInstigatorData)
    assert 0 < max(schedule.start_timestamp or 0, schedule.last_iteration_timestamp or 0) < soon
    assert (get_elapsed(states["events"]) or 0) > -60
    assert sensor.cursor == "kept"
    for name in ("nightly", "events"):
        origin = _origin(name)
        ticks = instance.get_ticks(origin.get_id(), origin.get_selector().get_id())
        assert [round(one.timestamp) for one in ticks] == [round(now - DAY)]
