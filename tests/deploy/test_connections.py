"""The guide's figures of connections: who plans a server by them counts on the settings' defaults, and on Dagster's pool."""

import re

from sqlalchemy.pool import QueuePool

from nexhealth_pipeline.orchestration.storage import _pooled_engine
from nexhealth_pipeline.settings import Settings

from .files import GUIDE, INSTANCE

TABLE, _, REST = GUIDE.partition("\n**Connections** ")[2].partition("\n\nSo for a night alone ")
ROWS = {cells[1].strip(): cells[2:4] for line in TABLE.splitlines() if len(cells := line.split("|")) == 5}


def test_those_of_a_run_are_counted_with_the_default_concurrency() -> None:
    concurrency = Settings.model_fields["concurrency"].default
    warehouse, _ = ROWS["a run that reads"]
    assert int(re.findall(r": (\d+)", warehouse)[0]) == concurrency + 2 + 1 + 1  # its lock's, and its rate budget's
    three, _ = ROWS["`nexhealth sync`: three such runs side by side"]
    assert int(re.findall(r"\d+", three)[0]) == 3 * (concurrency + 4)


def test_those_to_dagsters_database_are_its_pools() -> None:
    engine = _pooled_engine("postgresql+psycopg2://nobody@127.0.0.1:1/nothing")
    assert isinstance(engine.pool, QueuePool)
    bounds = (engine.pool.size(), engine.pool._max_overflow)
    engine.dispose()
    for who in ("a run that reads", "daemon, code location, webserver"):
        assert tuple(map(int, re.findall(r"\d+", ROWS[who][1]))) == bounds


def test_so_many_ticks_decide_at_once_as_the_instance_lets() -> None:
    threads = sum(INSTANCE[one]["num_workers"] for one in ("sensors", "schedules"))
    assert f" {threads} at most" in ROWS["daemon, code location, webserver"][0]


def test_who_runs_beside_a_night_is_counted_at_the_bounds_of_the_queue() -> None:
    """Room for a night alone was said to be enough, where twice as many runs may go on at a time."""
    limits = {one["key"]: one["limit"] for one in INSTANCE["concurrency"]["runs"]["tag_concurrency_limits"]}
    assert (limits["nexhealth/bulk"], limits["dagster/backfill"]) == (3, 2)  # the guide's "three" and "two"
    a_run, its_events = (int(re.findall(r"\d+", cell)[0]) for cell in ROWS["a run that reads"])
    beside = re.search(
        r"three jobs started by hand and two backfills have (\d+) more, `nexhealth sync`\s+(\d+)\.", REST
    )
    assert beside is not None
    # Of `nexhealth sync` the progress as well.
    assert tuple(map(int, beside.groups())) == (5 * (a_run + its_events), 3 * (a_run + its_events) + 1)
