"""What goes on with a run: it reads what is still to be read, and not once the next nights have waited long enough."""

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.assets import PARTITIONS
from nexhealth_pipeline.orchestration.code_location import DEFINITIONS
from nexhealth_pipeline.orchestration.names import CHANGES_JOB, CHANGES_OP, SCOPE_JOBS
from nexhealth_pipeline.orchestration.partitions import partition_tags

from .kit import ISLAND, PIER, House

OF_A_SCHEDULE = {"dagster/schedule_name": "nexhealth_nightly_locations"}
BY_THE_DAEMON = {"dagster/retry_number": "1"}
BY_A_PERSON = {"dagster/is_resume_retry": "true"}


class Nights:
    """Runs that began some hours ago and failed, and what repeats them."""

    def __init__(self, house: House, url: str) -> None:
        self._house, self._url = house, url

    def failed(self, hours: float, tags: dict[str, str]) -> str:
        run = self._house.instance.create_run_for_job(
            DEFINITIONS.resolve_job_def(SCOPE_JOBS[Scope.LOCATION]), status=dg.DagsterRunStatus.STARTED, tags=tags
        )
        self._house.instance.report_run_failed(run)
        with psycopg.connect(self._url) as db:
            db.execute(
                "UPDATE runs SET start_time = extract(epoch FROM clock_timestamp()) - %s * 3600 WHERE run_id = %s",
                (hours, run.run_id),
            )
        return run.run_id

    def repeated(self, run_id: str, tags: dict[str, str]) -> dg.ExecuteInProcessResult:
        partitions = partition_tags(self._house.instance, PARTITIONS[Scope.LOCATION], [PIER])
        return self._house.run(
            Scope.LOCATION, [PIER], assets=["operatories"], tags={**partitions, **tags, **parent(run_id)}
        )


def parent(run_id: str) -> dict[str, str]:
    return {"dagster/parent_run_id": run_id, "dagster/root_run_id": run_id}


@pytest.fixture
def nights(known: House, dagster_database_url: str) -> Nights:
    return Nights(known, dagster_database_url)


def test_a_night_that_was_ended_for_its_length_is_not_repeated(known: House, nights: Nights) -> None:
    """One that hangs for two days, three times, would cost six nights."""
    first = nights.failed(48.1, OF_A_SCHEDULE)
    second = nights.failed(1, {**OF_A_SCHEDULE, **BY_THE_DAEMON, **parent(first)})
    known.box.requests.clear()
    for run_id in (first, second):
        result = nights.repeated(run_id, {**OF_A_SCHEDULE, **BY_THE_DAEMON})
        assert known.failure(result) == (
            f"run {first}, which this one repeats, began more than 48 hours ago: the next tick of its schedule takes up "
            "the rest"
        )
        run = known.instance.get_run_by_id(result.run_id)
        assert run is not None
        assert run.tags["dagster/will_retry"] == "false"
    changes = known.job(
        CHANGES_JOB, CHANGES_OP, tags={**OF_A_SCHEDULE, **BY_THE_DAEMON, **parent(first)}, config={"partitions": [PIER]}
    )
    assert first in known.failure(changes)
    assert list(known.box.requests) == []


@pytest.mark.parametrize(
    ("hours", "tags"),
    [
        (47.9, {**OF_A_SCHEDULE, **BY_THE_DAEMON}),
        (300, {**OF_A_SCHEDULE, **BY_A_PERSON}),
        (300, BY_THE_DAEMON),
    ],
    ids=["in time", "by a person", "of no schedule"],
)
def test_what_nothing_waits_for_is_repeated(nights: Nights, hours: float, tags: dict[str, str]) -> None:
    """A night whose host went down, a backfill of eleven days, and whatever somebody asks for."""
    assert nights.repeated(nights.failed(hours, tags), tags).success


def test_the_daemon_repeats_a_persons_run(nights: Nights) -> None:
    """Monday's night, re-executed from failure on Thursday by a worker that is then killed: the tags of the schedule are copied."""
    monday = nights.failed(80, OF_A_SCHEDULE)
    thursday = nights.failed(1, {**OF_A_SCHEDULE, **BY_A_PERSON, **parent(monday)})
    assert nights.repeated(thursday, {**OF_A_SCHEDULE, **BY_THE_DAEMON, **BY_A_PERSON}).success


def test_what_goes_on_with_a_run_that_never_began_reads_what_failed_since(known: House, nights: Nights) -> None:
    """The warehouse was away as the night began; each repetition of what one office failed for read all others again."""
    first = nights.failed(1, {})
    keys, chain = [PIER, ISLAND], [first]
    known.box.faults.add("status", path="/operatories", location_id=348622, status=403)
    asked = []
    for _ in range(3):
        known.box.requests.clear()
        result = known.run(
            Scope.LOCATION,
            keys,
            assets=["operatories"],
            tags={
                **partition_tags(known.instance, PARTITIONS[Scope.LOCATION], keys),
                **BY_A_PERSON,
                **parent(chain[-1]),
            },
        )
        assert not result.success
        chain.append(result.run_id)
        asked.append({one.param("location_id") for one in known.box.requests.matching("/operatories")})
    assert asked == [{"348621", "348622"}, {"348622"}, {"348622"}]
