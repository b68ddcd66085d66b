"""How long each schedule and sensor takes to decide, on a warehouse and a Dagster instance that have grown.

    python benchmarks/ticks.py                        1,000 locations
    python benchmarks/ticks.py --locations 100 --profile nexhealth_nightly_appointments

Every location and month has been read completely once, runs have been made, and webhook events wait. Each schedule
and sensor is then evaluated as the daemon does it, `--rounds` times; wall and CPU seconds of this process are printed,
and what it answered: one that has nothing to do is idle. Then the same where no month was read yet, as in the first
night. The embedded server is used, in a folder that is removed afterwards.
"""

import argparse
import cProfile
import json
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from measure import server_cpu
from results import Part, Table, arguments, show, spread
from serving import server

REPO = Path(__file__).resolve().parents[1]
INSTITUTIONS = 20
NIGHTS = {"A night like others": False, "The first night: no month was read yet": True}
"""Whether months are unread, by what the night is called."""

_PRACTICES = """
INSERT INTO nexhealth_institutions (id, institution_id, subdomain, name, raw, synced_at, source_read_at, row_hash)
SELECT i, i, 'group-' || i, 'Group ' || i, '{}', now(), now(), '' FROM generate_series(1, %(institutions)s) i;

INSERT INTO nexhealth_locations (id, institution_id, name, inactive, raw, synced_at, source_read_at, row_hash)
SELECT 1000 + l, 1 + l %% %(institutions)s, 'Office ' || l, false, '{}', now(), now(), ''
FROM generate_series(1, %(locations)s) l;

INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at)
SELECT 'run ' || n, 'h', 1, 'succeeded', now() - n * interval '1 hour' FROM generate_series(1, 1000) n;
"""
_STATES = """
INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, watermark, pass_started_at,
    mode, filter_hash, cursor, page, records, complete_at, run_id)
SELECT %(collection)s, institution_id, id, key, pass, now(), now(), 'full', '', '', 1, 10, now(), 'r'
FROM nexhealth_locations, unnest(%(keys)s::text[]) key, unnest(%(passes)s::text[]) pass
"""
_FRESH = """
INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through, last_full_at)
SELECT institution_id, id, what, now() - interval '1 day', now() FROM nexhealth_locations, unnest(%(located)s::text[]) what
UNION ALL
SELECT id, 0, what, now() - interval '1 day', now() FROM nexhealth_institutions, unnest(%(general)s::text[]) what
"""
_SEEN = """
INSERT INTO nexhealth_seen_passes (collection, institution_id, location_id, window_key, pass, begun_at, offline, judged_at)
SELECT list, institution_id, l.id, key, 'all', now() - (l.id %% 10) * interval '1 day', '{}', now() - (l.id %% 10) * interval '1 day'
FROM nexhealth_locations l, (SELECT unnest(%(located)s::text[]), '' UNION ALL
    SELECT m, k FROM unnest(%(windowed)s::text[]) m, unnest(%(keys)s::text[]) k) what (list, key)
"""
_EVENTS = """
INSERT INTO nexhealth_webhook_events (verdict, status, payload, received_at, applied_at)
SELECT 'valid', CASE WHEN n %% 10 = 0 THEN 'pending' ELSE 'applied' END, '{}', now() - n * interval '1 second', now()
FROM generate_series(1, %(events)s) n
"""


def fill(db: psycopg.Connection, locations: int, events: int, *, unread: bool) -> None:
    """A warehouse as it stands after a night: all of it complete, a part of it due to be reconciled."""
    from nexhealth_pipeline.catalog.collection import Scope
    from nexhealth_pipeline.catalog.collections import DECLARED
    from nexhealth_pipeline.sync.months import CHANGES, month_keys

    windowed = [one for one in DECLARED if one.scope is Scope.LOCATION_MONTH]
    keys = month_keys(datetime.now(UTC).date())
    given: dict[str, Any] = {
        "institutions": min(INSTITUTIONS, locations),
        "locations": locations,
        "events": events,
        "keys": keys,
        "windowed": [one.name for one in windowed],
        "located": [
            one.name for one in DECLARED if one.is_asset and one.scope in (Scope.LOCATION, Scope.LOCATION_MONTH)
        ],
        "general": [one.name for one in DECLARED if one.is_asset and one.scope is Scope.INSTITUTION],
    }
    for statement in _PRACTICES.split(";"):
        if statement.strip():
            db.execute(statement.encode(), given)
    for one in windowed if not unread else ():
        passes = [regular.name for regular in one.regular_passes]
        db.execute(_STATES, {"collection": one.name, "keys": [*keys, CHANGES], "passes": passes})
    for statement in (_FRESH, _SEEN, _EVENTS):
        db.execute(statement.encode(), given)
    db.execute("VACUUM ANALYZE")


def discover(locations: int) -> None:
    """The dynamic partitions, and runs that have ended."""
    import dagster as dg

    from nexhealth_pipeline.orchestration.partitions import INSTITUTIONS as INSTITUTION_KEYS
    from nexhealth_pipeline.orchestration.partitions import LOCATIONS, add_keys

    count = min(INSTITUTIONS, locations)
    with dg.DagsterInstance.get() as instance:
        add_keys(instance, INSTITUTION_KEYS, [f"group-{number}" for number in range(1, count + 1)])
        add_keys(
            instance, LOCATIONS, [f"group-{1 + number % count}.{1000 + number}" for number in range(1, locations + 1)]
        )
        _runs(instance, 100)


def _runs(instance: Any, count: int) -> None:
    """Runs of every job, ended."""
    import dagster as dg

    from nexhealth_pipeline.definitions import defs
    from nexhealth_pipeline.orchestration.names import CHANGES_JOB, WATCHDOG_JOB

    for name in (CHANGES_JOB, WATCHDOG_JOB):
        job = defs.resolve_job_def(name)
        for _ in range(count):
            instance.create_run_for_job(job, status=dg.DagsterRunStatus.SUCCESS)


@contextmanager
def grown(locations: int, events: int, *, unread: bool) -> Iterator[None]:
    """Both databases, filled; the environment names them."""
    from nexhealth_pipeline.warehouse.migrate import upgrade

    with server(durable=False) as (postgres, home):
        for name in ("nexhealth", "dagster"):
            postgres.create_database(name)
        os.environ |= {
            "NEXHEALTH_HOME": str(home),
            "DATABASE_URL": postgres.url("nexhealth"),
            "DAGSTER_DATABASE_URL": postgres.url("dagster"),
            "DAGSTER_HOME": str(REPO),
            "NEXHEALTH_API_KEY": "bench",
            "NEXHEALTH_API_URL": "http://127.0.0.1:9",
        }
        os.chdir(home)
        upgrade(postgres.url("nexhealth"))
        with psycopg.connect(postgres.url("nexhealth"), autocommit=True) as db:
            fill(db, locations, events, unread=unread)
        discover(locations)
        try:
            yield
        finally:
            os.chdir(REPO)


def ticks(instance: Any) -> dict[str, Callable[[], Any]]:
    """What evaluates each schedule and sensor once, by name."""
    import dagster as dg

    from nexhealth_pipeline.definitions import defs
    from nexhealth_pipeline.orchestration.resource import NexHealthResource

    repository = defs.get_repository_def()
    resources = {"nexhealth": NexHealthResource()}

    def schedule(one: Any) -> Callable[[], Any]:
        return lambda: one.evaluate_tick(
            dg.build_schedule_context(
                instance=instance,
                resources=resources,
                repository_def=repository,
                scheduled_execution_time=datetime.now(UTC),
            )
        )

    def sensor(one: Any) -> Callable[[], Any]:
        return lambda: one.evaluate_tick(
            dg.build_sensor_context(instance=instance, resources=resources, repository_def=repository)
        )

    return {one.name: schedule(one) for one in repository.schedule_defs} | {
        one.name: sensor(one) for one in repository.sensor_defs
    }


def answer_of(data: Any) -> str:
    """What a tick asked for, or why for nothing."""
    requests = data.run_requests or []
    if not requests:
        return f"idle: {data.skip_message or 'no reason given'}"
    sizes = [len(json.dumps(one.run_config)) for one in requests]
    return f"{len(requests)} run(s), {sum(sizes):,} bytes of config"


@dataclass(frozen=True, slots=True)
class Cost:
    """A tick, in seconds."""

    wall: float
    cpu: float
    """Of this process."""
    server_cpu: float
    """Of PostgreSQL."""


def cost_of(tick: Callable[[], Any], admin: psycopg.Connection) -> tuple[Cost, str]:
    """What one tick cost, and its answer."""
    spent, wall, cpu = server_cpu(admin), time.monotonic(), time.process_time()
    answer = answer_of(tick())
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return Cost(wall, cpu, server_cpu(admin) - spent), answer


def row(name: str, found: Sequence[tuple[Cost, str]]) -> list[str]:
    """A schedule or sensor in figures, and what it answered last."""
    figures = (spread([getattr(cost, what) for cost, _ in found], 3) for what in ("wall", "cpu", "server_cpu"))
    return [name, *figures, found[-1][1]]


def measured(given: argparse.Namespace, *, unread: bool) -> list[list[str]]:
    """All of them, on databases of their own."""
    import dagster as dg

    rows = []
    with (
        grown(given.locations, given.events, unread=unread),
        dg.DagsterInstance.get() as instance,
        psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as admin,
    ):
        for name, tick in ticks(instance).items():
            if given.profile not in (None, name):
                continue
            if given.profile:
                profile = cProfile.Profile()
                profile.runcall(tick)
                pstats.Stats(profile, stream=sys.stdout).sort_stats("cumulative").print_stats(45)
            rows.append(row(name, [cost_of(tick, admin) for _ in range(given.rounds)]))
    return rows


def main() -> None:
    """Measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--locations", type=int, default=1000)
    parser.add_argument("--events", type=int, default=100_000, help="webhook events in the table")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--profile", metavar="NAME", help="only this one, and where its time goes")
    given = parser.parse_args()
    columns = ["schedule or sensor", "s", "CPU s", "CPU s of PostgreSQL", "answer"]
    tables = [Table(columns, measured(given, unread=unread), title) for title, unread in NIGHTS.items()]
    text = (
        f"{given.locations:,} locations, {given.events:,} webhook events in the table; {given.rounds} round(s). Who asks for runs "
        "stands beside who is idle: that is said in the answer. Evaluated in "
        "one process, as the code server does it: what the daemon adds by asking it and by making the runs is not in it."
    )
    show(Part("ticks", "What ticks of sensors and schedules cost", text, tables), given.json)


if __name__ == "__main__":
    main()
