"""Ticks of schedules and sensor: at most one run each, over the right keys, and never a traceback."""

import uuid
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import dagster as dg
import psycopg
import pytest
from dagster._core.storage.tags import SCHEDULED_EXECUTION_TIME_TAG

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration import schedules
from nexhealth_pipeline.orchestration.command_runs import COMMAND_TAGS
from nexhealth_pipeline.orchestration.nightly import Due
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.warehouse.knowledge import record_freshness
from tests.effort import counted

from .practices import add_locations, complete_months

REPOSITORY = defs.get_repository_def()
NAMES = [one.name for one in REPOSITORY.schedule_defs]


def _context(instance: dg.DagsterInstance, at: datetime | None = None) -> dg.ScheduleEvaluationContext:
    """Of the tick at `at`, by default now."""
    return dg.build_schedule_context(
        instance=instance,
        scheduled_execution_time=at or datetime.now(UTC),
        resources={"nexhealth": NexHealthResource()},
        repository_def=REPOSITORY,
    )


def _tick(instance: dg.DagsterInstance, name: str) -> dg.RunRequest | dg.SkipReason:
    schedule = REPOSITORY.get_schedule_def(name)
    data = schedule.evaluate_tick(_context(instance))
    if data.skip_message:
        return dg.SkipReason(data.skip_message)
    (request,) = data.run_requests or ()
    return request


@pytest.fixture
def with_key(monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance) -> dg.DagsterInstance:
    monkeypatch.setenv("NEXHEALTH_API_KEY", "some-key")
    return instance


@pytest.fixture
def three(with_key: dg.DagsterInstance, environment: dict[str, str]) -> dg.DagsterInstance:
    """Locations acme.1, acme.2 and bond.3, with their keys."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        add_locations(db, 10, "acme", [1, 2])
        add_locations(db, 20, "bond", [3])
    with_key.add_dynamic_partitions("nexhealth_institutions", ["acme", "bond"])
    with_key.add_dynamic_partitions("nexhealth_locations", ["acme.1", "acme.2", "bond.3"])
    return with_key


def test_without_a_key_every_tick_skips_and_names_the_setting(instance: dg.DagsterInstance) -> None:
    """Schedules run from the first start; a newcomer's Dagit must not turn red at night."""
    for name in NAMES:
        answer = _tick(instance, name)
        assert isinstance(answer, dg.SkipReason)
        assert "NEXHEALTH_API_KEY" in str(answer.skip_message)
    assert _sense(instance) == "no run is dead", "one may have died before the key was taken away"


def test_before_anything_is_known_only_discovery_runs(with_key: dg.DagsterInstance) -> None:
    """An empty list of keys must not mean all, nor an error."""
    for name in NAMES:
        answer = _tick(with_key, name)
        if name == "nexhealth_nightly_practice":
            assert isinstance(answer, dg.RunRequest)
            assert answer.run_config == {}
        else:
            assert isinstance(answer, dg.SkipReason)
            assert "nexhealth_practice" in str(answer.skip_message)


def test_a_night_is_one_run_a_job_over_all_of_its_partitions(three: dg.DagsterInstance) -> None:
    """A run costs ten seconds before its first line, a thousand of them a night."""
    request = _tick(three, "nexhealth_nightly_locations")
    assert isinstance(request, dg.RunRequest)
    keys = ["acme.1", "acme.2", "bond.3"]
    assert request.run_config == {"ops": {"read_locations": {"config": {"partitions": keys}}}}
    assert request.tags["dagster/asset_partition_range_start"] == "acme.1"
    assert request.tags["dagster/asset_partition_range_end"] == "bond.3"
    assert request.tags["nexhealth/partitions"] == "3"
    assert request.tags["dagster/max_runtime"] == "172800", "a night that hangs must not cost a fortnight of nights"


def test_months_go_into_the_run_config_by_location_and_month(three: dg.DagsterInstance) -> None:
    """Two dimensions are one key there: `location|month`."""
    request = _tick(three, "nexhealth_nightly_appointments")
    assert isinstance(request, dg.RunRequest)
    keys = request.run_config["ops"]["read_appointments"]["config"]["partitions"]
    assert keys[0] == "acme.1|2024-07"
    assert request.tags["dagster/asset_partition_range_start"] == "acme.1|2024-07"
    assert request.tags["dagster/asset_partition_range_end"] == keys[-1]
    assert isinstance(_tick(three, "nexhealth_nightly_appointment_changes"), dg.SkipReason)


def _one_is_reconciled(environment: dict[str, str]) -> None:
    """A location that has been read is its database's turn tonight."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        db.execute(
            "INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through)"
            " VALUES (10, 2, 'patients', now())"
        )


def test_what_is_reconciled_is_one_more_run_of_the_same_job(
    three: dg.DagsterInstance, environment: dict[str, str]
) -> None:
    """The daemon starts two runs of one tick only if their keys differ."""
    _one_is_reconciled(environment)
    schedule = REPOSITORY.get_schedule_def("nexhealth_nightly_locations")
    context = _context(three)
    found = {request.run_key: request for request in schedule.evaluate_tick(context).run_requests or ()}
    configs = {key: one.run_config["ops"]["read_locations"]["config"] for key, one in found.items()}
    assert configs == {
        "incremental": {"mode": "incremental", "partitions": ["acme.1", "bond.3"]},
        "reconcile": {"mode": "reconcile", "every_list": False, "partitions": ["acme.2"]},
    }
    assert found["reconcile"].tags["dagster/asset_partition_range_start"] == "acme.2"


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED])
def test_a_run_that_is_still_going_is_not_doubled(three: dg.DagsterInstance, status: dg.DagsterRunStatus) -> None:
    """The second would wait for every slice of the first."""
    run = three.create_run_for_job(defs.resolve_job_def("nexhealth_locations"), status=status)
    answer = _tick(three, "nexhealth_nightly_locations")
    assert isinstance(answer, dg.SkipReason)
    assert run.run_id in str(answer.skip_message)
    assert isinstance(_tick(three, "nexhealth_nightly_institutions"), dg.RunRequest)


LOCATIONS_JOB = defs.resolve_job_def("nexhealth_locations")


def _living(instance: dg.DagsterInstance, keys: list[str], tags: dict[str, str] | None = None) -> dg.DagsterRun:
    """A run of some locations that somebody has started."""
    config = {"ops": {"read_locations": {"config": {"partitions": keys}}}} if keys else {}
    return instance.create_run_for_job(
        LOCATIONS_JOB, status=dg.DagsterRunStatus.STARTED, run_config=config, tags=tags or {}
    )


def _asked(answer: dg.RunRequest | dg.SkipReason, step: str = "read_locations") -> list[str]:
    """The keys that a tick asks for."""
    assert isinstance(answer, dg.RunRequest)
    keys: list[str] = answer.run_config["ops"][step]["config"]["partitions"]
    return keys


def test_locations_read_by_hand_cost_no_other_the_night(three: dg.DagsterInstance) -> None:
    """One office's first load takes two days: a run that reads it as well waits for it, and is in the next night's way."""
    _living(three, [], {"dagster/partition": "acme.1"})
    _living(three, ["acme.1"])
    assert _asked(_tick(three, "nexhealth_nightly_locations")) == ["acme.2", "bond.3"]
    second = _living(three, ["acme.2"], dict(COMMAND_TAGS))
    assert _asked(_tick(three, "nexhealth_nightly_locations")) == ["bond.3"]
    three.report_run_canceled(second)
    assert _asked(_tick(three, "nexhealth_nightly_locations")) == ["acme.2", "bond.3"]


def test_one_of_two_locations_read_by_hand_for_long_costs_the_other_no_night(
    with_key: dg.DagsterInstance, environment: dict[str, str]
) -> None:
    """A small practice's first load of a second office: the first one grew a day older each night."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        add_locations(db, 10, "acme", [1, 2])
    with_key.add_dynamic_partitions("nexhealth_locations", ["acme.1", "acme.2"])
    _living(with_key, ["acme.2"])
    assert _asked(_tick(with_key, "nexhealth_nightly_locations")) == ["acme.1"]
    months = {"ops": {"read_appointments": {"config": {"partitions": [f"acme.2|{key}" for key in _months()]}}}}
    job = defs.resolve_job_def("nexhealth_appointments")
    with_key.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, run_config=months)
    assert _asked(_tick(with_key, "nexhealth_nightly_appointments"), "read_appointments") == [
        f"acme.1|{key}" for key in _months()
    ]


def _months() -> list[str]:
    return month_keys(datetime.now(UTC).date())


def test_the_catch_up_of_one_location_does_not_wait_for_others(three: dg.DagsterInstance) -> None:
    """One office failed at night; a run of another that somebody started counted for it, and it stayed a day older."""
    due = schedules._Timetable("nexhealth_catchup", "30 9 * * *", lambda *_: Due(locations=["bond.3"]), "")
    (target,) = (one for one in schedules._TARGETS if one.job == "nexhealth_locations")
    morning = schedules._schedule(due, target, "UTC")
    context = _context(three)
    _living(three, [], {"dagster/partition": "acme.1"})
    (request,) = morning.evaluate_tick(context).run_requests or ()
    assert _asked(request) == ["bond.3"]
    run = _living(three, [], {"dagster/partition": "bond.3"})
    assert run.run_id in str(morning.evaluate_tick(context).skip_message)


@pytest.mark.parametrize(
    ("keys", "tags"),
    [
        (["acme.1"], {"dagster/schedule_name": "nexhealth_nightly_locations"}),
        (["acme.1", "acme.2", "bond.3"], dict(COMMAND_TAGS)),
        ([], {"dagster/asset_partition_range_start": "acme.1", "dagster/asset_partition_range_end": "bond.3"}),
    ],
)
def test_a_run_that_leaves_nothing_is_waited_for(
    three: dg.DagsterInstance, keys: list[str], tags: dict[str, str]
) -> None:
    """Another night's, with all that repeats it; a command's of all; a range of all."""
    run = _living(three, keys, tags)
    answer = _tick(three, "nexhealth_nightly_locations")
    assert isinstance(answer, dg.SkipReason)
    assert run.run_id in str(answer.skip_message)


@pytest.mark.parametrize(
    ("keys", "tags"),
    [
        (["acme.1", "bond.3"], dict(COMMAND_TAGS)),
        ([], {"dagster/asset_partition_range_start": "acme.1", "dagster/asset_partition_range_end": "acme.2"}),
    ],
)
def test_what_a_run_of_most_leaves_is_read(three: dg.DagsterInstance, keys: list[str], tags: dict[str, str]) -> None:
    """Reads of others by hand, however many, are no reason to be a day older."""
    _living(three, keys, tags)
    assert _asked(_tick(three, "nexhealth_nightly_locations")) == ["acme.2" if keys else "bond.3"]


def test_a_tick_that_is_resumed_between_its_two_runs_asks_for_both(
    three: dg.DagsterInstance, environment: dict[str, str]
) -> None:
    """The daemon was killed after the first: the tick met its own run, and the night had no reconcile."""
    _one_is_reconciled(environment)
    night = datetime(2026, 11, 30, 2, tzinfo=ZoneInfo("America/New_York"))
    context = _context(three, night)
    schedule = REPOSITORY.get_schedule_def("nexhealth_nightly_locations")
    first, _ = schedule.evaluate_tick(context).run_requests or ()
    tags = {**first.tags, "dagster/schedule_name": schedule.name, "dagster/run_key": str(first.run_key)}
    run = three.create_run_for_job(
        LOCATIONS_JOB,
        status=dg.DagsterRunStatus.STARTING,
        tags={**tags, SCHEDULED_EXECUTION_TIME_TAG: "2026-11-30T07:00:00+00:00"},
    )
    again = schedule.evaluate_tick(context).run_requests or ()
    assert [one.run_key for one in again] == ["incremental", "reconcile"]
    three.report_run_canceled(run)
    yesterday = three.create_run_for_job(
        LOCATIONS_JOB,
        status=dg.DagsterRunStatus.STARTING,
        tags={**tags, SCHEDULED_EXECUTION_TIME_TAG: "2026-11-29T07:00:00+00:00"},
    )
    assert yesterday.run_id in str(schedule.evaluate_tick(context).skip_message)


@pytest.mark.parametrize(
    ("scope", "first", "last", "waits"),
    [
        ("locations", "acme.1", "acme.2", False),
        ("locations", "acme.1", "acme.9", True),  # who knows how many
        ("locations", "acme.1", "dune.6", True),
        ("appointments", "acme.1|2024-07", "acme.2|2024-12", False),
        ("appointments", "acme.1|2024-07", "bond.3|2099-12", True),
        ("appointments", "acme.1", "acme.2", True),
    ],
)
def test_a_range_counts_for_what_it_has(
    three: dg.DagsterInstance, environment: dict[str, str], scope: str, first: str, last: str, waits: bool
) -> None:
    """Dagit launches two neighbours as a range in one run; it took the night from all others."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        add_locations(db, 40, "dune", [4, 5, 6])
    three.add_dynamic_partitions("nexhealth_locations", ["dune.4", "dune.5", "dune.6"])
    three.add_run(
        dg.DagsterRun(
            job_name=f"nexhealth_{scope}",
            run_id=str(uuid.uuid4()),
            status=dg.DagsterRunStatus.STARTED,
            tags={"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last},
        )
    )
    assert isinstance(_tick(three, f"nexhealth_nightly_{scope}"), dg.SkipReason) is waits


@pytest.mark.parametrize(
    ("job", "asked"),
    [("institutions", ["acme", "bond"]), ("locations", ["acme.1", "acme.2", "bond.3"]), ("appointments", None)],
)
def test_what_dagster_does_not_know_is_made_known_before_it_is_asked_for(
    with_key: dg.DagsterInstance, environment: dict[str, str], job: str, asked: list[str] | None
) -> None:
    """A new database of Dagster's beside a full warehouse: it refuses a run of partitions that it does not have."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        add_locations(db, 10, "acme", [1, 2])
        add_locations(db, 20, "bond", [3])
        add_locations(db, 30, "a b", [4])  # which no key can be made of
    request = _tick(with_key, f"nexhealth_nightly_{job}")
    assert isinstance(request, dg.RunRequest)
    keys = request.run_config["ops"][f"read_{job}"]["config"]["partitions"]
    assert keys == asked or (
        asked is None and {key.partition("|")[0] for key in keys} == {"acme.1", "acme.2", "bond.3"}
    )
    run = with_key.create_run_for_job(
        defs.resolve_job_def(f"nexhealth_{job}"), run_config=request.run_config, tags=request.tags
    )
    assert run.tags["dagster/asset_partition_range_start"] == keys[0]


def test_where_nothing_is_due_the_chosen_institutions_are_named(
    three: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistyped name looks like a practice that nobody has read yet."""
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", "Acme")
    answer = _tick(three, "nexhealth_nightly_locations")
    assert isinstance(answer, dg.SkipReason)
    assert str(answer.skip_message).startswith("nothing of NEXHEALTH_SUBDOMAINS (Acme) is due")


@pytest.mark.parametrize(("hours", "late", "ago"), [(13, False, 0), (13.9, False, 0), (18, True, 0), (20, False, 15)])
def test_the_morning_goes_by_when_the_night_began(
    hours: float,
    late: bool,
    ago: float,
    three: dg.DagsterInstance,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A night from eight in the evening to half past nine: nothing of it is to be read once more.

    Nor where the daemon was away and comes to a morning of `ago` hours only after the next night's own tick.
    """
    zone = ZoneInfo("America/Phoenix")  # whose clocks are never changed
    night = (datetime.now(UTC) - timedelta(hours=14)).astimezone(zone)
    monkeypatch.setenv("NEXHEALTH_NIGHTLY", f"{night.minute} {night.hour} * * *")
    monkeypatch.setenv("NEXHEALTH_TIMEZONE", zone.key)
    read = datetime.now(UTC) - timedelta(hours=hours)
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        for institution, location in ((10, 1), (10, 2), (20, 3)):
            for one in DECLARED:
                record_freshness(
                    db,
                    institution_id=institution,
                    location_id=location,
                    collection=one.name,
                    complete_through=read,
                    last_full_at=None,
                    changed=False,
                )
    (morning,) = (one for one in schedules._schedules() if one.name == "nexhealth_catchup_locations")
    context = _context(three, datetime.now(UTC) - timedelta(hours=ago))
    assert bool(morning.evaluate_tick(context).run_requests) is late


def test_a_database_that_is_not_there_is_a_reason_to_skip(
    with_key: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address must not land in the tick history."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    for text in (str(_tick(with_key, "nexhealth_nightly_locations")), _sense(with_key)):
        assert "DATABASE_URL" in text
        assert "hidden" not in text


def _sense(instance: dg.DagsterInstance, name: str = "nexhealth_dead_runs") -> str:
    sensor = REPOSITORY.get_sensor_def(name)
    context = dg.build_sensor_context(
        instance=instance, resources={"nexhealth": NexHealthResource()}, repository_def=REPOSITORY
    )
    return str(sensor.evaluate_tick(context).skip_message)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("UPDATE nexhealth_alembic_version SET version_num = '0001'", "of an earlier release (at migration 0001"),
        ("UPDATE nexhealth_alembic_version SET version_num = '9999'", "install a newer nexhealth-pipeline"),
        ("DROP TABLE nexhealth_alembic_version", "not set up yet: run `nexhealth db upgrade`"),
    ],
)
def test_a_warehouse_of_another_release_is_a_reason_to_skip_that_says_what_to_do(
    three: dg.DagsterInstance, environment: dict[str, str], change: str, words: str
) -> None:
    """After an update nothing is read until the warehouse is upgraded; "nothing is due" would hide that."""
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        db.execute(change)
    told = {name: str(_tick(three, name)) for name in NAMES if name != "nexhealth_nightly_practice"}
    told |= {sensor.name: _sense(three, sensor.name) for sensor in REPOSITORY.sensor_defs}
    assert {name: text for name, text in told.items() if words not in text} == {}


def test_the_sensor_says_what_it_found(with_key: dg.DagsterInstance) -> None:
    """It never asks for a run: what died is repeated by the daemon."""
    assert _sense(with_key) == "no run is dead"


def test_a_tick_over_a_thousand_locations_costs_no_more_each_than_one_over_a_hundred(
    with_key: dg.DagsterInstance, environment: dict[str, str]
) -> None:
    """Dagster gives a tick a minute, and nine of them come at once."""
    found = []
    for ids in (range(1000, 1100), range(1100, 2000)):
        with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
            add_locations(db, 30, "many", ids)
            complete_months(db, 30, ids, [*month_keys(datetime.now(UTC).date()), CHANGES])
            db.execute("ANALYZE")
        with_key.add_dynamic_partitions("nexhealth_locations", [f"many.{number}" for number in ids])
        _tick(with_key, "nexhealth_nightly_locations")  # what is made at first use
        with counted() as effort:
            request = _tick(with_key, "nexhealth_nightly_locations")
        assert isinstance(request, dg.RunRequest)
        assert request.tags["nexhealth/partitions"] == str(ids.stop - 1000)
        found.append(effort)
    few, many = found
    assert many.statements == few.statements
    assert many.rows <= 10 * few.rows
    assert many.calls <= 10 * few.calls
