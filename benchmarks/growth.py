"""How both databases grow, night after night, with what is old removed and without.

    python benchmarks/growth.py                                   50 locations, 120 nights, 30 days kept
    python benchmarks/growth.py --locations 200 --nights 60 --days 10

One real night (a full sync of a sandbox, then the incremental one that is copied) gives the rows; further nights are
that one's rows again, moved in time and multiplied by the locations, so that every byte is as Dagster and the sync
log wrote it. Retention runs after each night as the watchdog runs it. What a practice's own data grows by is not
looked at. The embedded server is used, in
a folder that is removed afterwards.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from statistics import fmean

import psycopg
from results import Chart, Part, Table, arguments, show
from serving import server

REPO = Path(__file__).resolve().parents[1]
PATIENTS = 40
"""Few: the number of slices is what counts here."""
PHASE = 30
"""Nights after which the log stands again where it stood, within a night: a month of it goes at once."""
_NAMES = {
    "kept_warehouse": "warehouse, MB", "kept_dagster": "Dagster, MB",
    "warehouse": "warehouse, nothing removed, MB", "dagster": "Dagster, nothing removed, MB",
}  # fmt: skip
PAIRS = {True: ("kept_warehouse", "kept_dagster"), False: ("warehouse", "dagster")}
"""Databases by whether what is old is removed."""

_TEMPLATES = """
CREATE TABLE growth_runs AS SELECT * FROM runs WHERE run_id = ANY(%(runs)s);
CREATE TABLE growth_run_tags AS SELECT * FROM run_tags WHERE run_id = ANY(%(runs)s);
CREATE TABLE growth_events AS SELECT * FROM event_logs WHERE run_id = ANY(%(runs)s);
CREATE TABLE growth_tags AS SELECT * FROM asset_event_tags WHERE event_id IN (SELECT id FROM growth_events)
"""
# The real syncs were before all nights: events are numbered in the order of time.
_LONG_AGO = """
UPDATE event_logs SET timestamp = timestamp - %(ago)s;
UPDATE runs SET create_timestamp = create_timestamp - %(ago)s, update_timestamp = update_timestamp - %(ago)s,
    end_time = end_time - extract(epoch FROM %(ago)s);
VACUUM FULL
"""
_DAGSTER_NIGHT = """
INSERT INTO runs (run_id, snapshot_id, pipeline_name, status, run_body, create_timestamp, update_timestamp, start_time,
    end_time)
SELECT run_id || %(name)s, snapshot_id, pipeline_name, status, run_body, create_timestamp - %(ago)s,
       update_timestamp - %(ago)s, start_time - extract(epoch FROM %(ago)s), end_time - extract(epoch FROM %(ago)s)
FROM growth_runs;
INSERT INTO run_tags (run_id, key, value) SELECT run_id || %(name)s, key, value FROM growth_run_tags;
CREATE TEMP TABLE night AS
SELECT nextval('event_logs_id_seq') AS id, e.id AS model, copy
FROM growth_events e CROSS JOIN generate_series(1, %(copies)s) copy WHERE copy = 1 OR partition LIKE '%%.%%';
INSERT INTO event_logs (id, run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
SELECT n.id, run_id || %(name)s, event, dagster_event_type, timestamp - %(ago)s, step_key, asset_key,
       partition || CASE WHEN copy > 1 THEN '-' || copy ELSE '' END
FROM night n JOIN growth_events e ON e.id = n.model;
INSERT INTO asset_event_tags (event_id, asset_key, key, value, event_timestamp)
SELECT n.id, asset_key, key, value, event_timestamp - %(ago)s FROM night n JOIN growth_tags t ON t.event_id = n.model;
DROP TABLE night
"""
_LOG = "run_id, asset, collection, institution_id, location_id, partition_key, mode, status"
_COUNTS = (
    "watermark_from, watermark_to, pages, records_read, inserted, updated, unchanged, quarantined, tombstoned, requests,"
    " retries, throttled_seconds, bytes"
)
# The log's partitions are made month by month, as time goes: what lies in the one of all other months is not dropped whole.
_WAREHOUSE_NIGHT = f"""
SELECT nexhealth_sync_logs_month(date_trunc('month', (now() - %(ago)s) AT TIME ZONE 'UTC'));
INSERT INTO nexhealth_runs (run_id, host, pid, started_at, finished_at, status)
SELECT run_id || %(name)s, host, pid, started_at - %(ago)s, finished_at - %(ago)s, status FROM growth_runs;
INSERT INTO nexhealth_sync_logs ({_LOG}, started_at, finished_at, {_COUNTS})
SELECT run_id || %(name)s, {_LOG.removeprefix("run_id, ")}, started_at - %(ago)s, finished_at - %(ago)s, {_COUNTS}
FROM growth_logs CROSS JOIN generate_series(1, %(copies)s) copy WHERE copy = 1 OR location_id IS NOT NULL
"""


def real_night(home: Path, warehouse: str, dagster: str) -> list[str]:
    """Fill both databases by two real syncs; ids of the second one's runs."""
    from nexhealth_pipeline.sandbox import SandboxServer

    with SandboxServer(patients=PATIENTS, limits=False) as box:
        environment = {
            **os.environ,
            "NEXHEALTH_HOME": str(home),
            "NEXHEALTH_API_URL": box.url,
            "NEXHEALTH_API_KEY": box.api_key,
            "NEXHEALTH_RATE_SHARE": "1",
            "NEXHEALTH_DATA_KIND": "sandbox",
            "DATABASE_URL": warehouse,
            "DAGSTER_DATABASE_URL": dagster,
        }
        for mode in ("full", "incremental"):
            done = subprocess.run(
                [sys.executable, "-m", "nexhealth_pipeline.cli", "sync", "--mode", mode, "--json"],
                env=environment,
                cwd=REPO,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode not in (0, 1):
                raise SystemExit(done.stderr)
    runs: list[str] = json.loads(done.stdout)["run_ids"]
    return runs


def templates(warehouse: str, dagster: str, runs: list[str]) -> int:
    """Keep the night's rows beside the tables; how many locations it read."""
    with psycopg.connect(dagster, autocommit=True) as db:
        for statement in _TEMPLATES.split(";"):
            db.execute(statement.encode(), {"runs": runs})
    with psycopg.connect(warehouse, autocommit=True) as db:
        for table, name in (("nexhealth_runs", "growth_runs"), ("nexhealth_sync_logs", "growth_logs")):
            db.execute(f"CREATE TABLE {name} AS SELECT * FROM {table} WHERE run_id = ANY(%s)".encode(), (runs,))
        row = db.execute("SELECT count(DISTINCT location_id) FROM growth_logs").fetchone()
        assert row is not None
        return int(row[0])


def run_at(url: str, statements: str, ago: int, *, name: str = "", copies: int = 1) -> None:
    """Execute `statements` for a night so many days ago."""
    given = {"name": f" {name}", "copies": copies}
    with psycopg.connect(url, autocommit=True) as db:
        for statement in statements.replace("%(ago)s", f"interval '{ago} days'").split(";"):
            db.execute(statement.encode(), given)


def months_since(ago: int, today: date) -> int:
    """Months that began since so many days ago."""
    then = today - timedelta(days=ago)
    return 12 * (today.year - then.year) + today.month - then.month


def keep_house(warehouse: str, dagster: str, days: int, months: int, ago: int) -> None:
    """What the watchdog removes, as if this were so many days ago."""
    from nexhealth_pipeline.orchestration.retention import remove_old_records
    from nexhealth_pipeline.settings import load_settings
    from nexhealth_pipeline.warehouse.housekeeping import remove_old

    kept = months + months_since(ago, datetime.now(UTC).date())
    settings = load_settings({"NEXHEALTH_SYNC_LOG_MONTHS": str(kept)}, environ={}, env_file=None)
    with psycopg.connect(warehouse, autocommit=True) as db:
        remove_old(db, settings)
    remove_old_records(dagster, days + ago)
    for url in (warehouse, dagster):
        with psycopg.connect(url, autocommit=True) as db:
            db.execute("VACUUM")  # as autovacuum does between nights, which follow each other too fast here


def size(url: str) -> int:
    """Bytes of a database."""
    with psycopg.connect(url, autocommit=True) as db:
        row = db.execute("SELECT pg_database_size(current_database())").fetchone()
    assert row is not None
    return int(row[0])


def grow(urls: dict[bool, tuple[str, str]], given: argparse.Namespace, copies: int) -> dict[str, list[int]]:
    """Add the nights; sizes after each, by database."""
    sizes: dict[str, list[int]] = {name: [] for pair in PAIRS.values() for name in pair}
    for night in range(1, given.nights + 1):
        ago = given.nights - night
        for kept, (warehouse, dagster) in urls.items():
            for url, statements in ((warehouse, _WAREHOUSE_NIGHT), (dagster, _DAGSTER_NIGHT)):
                run_at(url, statements, ago, name=f"night {night}", copies=copies)
            if kept:
                keep_house(warehouse, dagster, given.days, given.months, ago)
            for name, url in zip(PAIRS[kept], (warehouse, dagster), strict=True):
                sizes[name].append(size(url))
        if night % 10 == 0:
            print(f"night {night} of {given.nights}", flush=True)
    return sizes


def main() -> None:
    """Grow both pairs of databases, print how, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--locations", type=int, default=50)
    parser.add_argument("--nights", type=int, default=120)
    parser.add_argument("--days", type=int, default=30, help="NEXHEALTH_DAGSTER_DAYS")
    parser.add_argument("--months", type=int, default=1, help="NEXHEALTH_SYNC_LOG_MONTHS")
    given = parser.parse_args()
    with server(durable=False) as (postgres, home):
        os.environ["NEXHEALTH_HOME"] = str(home)
        for name in PAIRS[False]:
            postgres.create_database(name)
        warehouse, dagster = (postgres.url(name) for name in PAIRS[False])
        locations = templates(warehouse, dagster, real_night(home, warehouse, dagster))
        run_at(dagster, _LONG_AGO, given.nights)
        with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
            for name, copied in zip(PAIRS[True], PAIRS[False], strict=True):
                admin.execute(f"CREATE DATABASE {name} TEMPLATE {copied}".encode())
        urls = {kept: (postgres.url(names[0]), postgres.url(names[1])) for kept, names in PAIRS.items()}
        sizes = grow(urls, given, math.ceil(given.locations / locations))
    show(part_of(sizes, given), given.json)


def a_night(sizes: list[int]) -> float:
    """Bytes that a night adds in the long run: a month's mean against that of the month before."""
    nights = max(1, min(PHASE, len(sizes) // 2))
    before = sizes[-2 * nights : -nights] or sizes
    return (fmean(sizes[-nights:]) - fmean(before)) / nights


def part_of(sizes: dict[str, list[int]], given: argparse.Namespace) -> Part:
    """Every tenth night, and what a night adds in the long run."""
    nights = [*range(9, given.nights - 1, 10), given.nights - 1]
    rows = [[str(night + 1), *(f"{found[night] / 1e6:.0f}" for found in sizes.values())] for night in nights]
    rows.append(["kB a night, in the long run", *(f"{a_night(found) / 1e3:,.0f}" for found in sizes.values())])
    columns = ["after night", *(_NAMES[name] for name in sizes)]
    chart = Chart(
        "megabytes",
        "Size of both databases, night by night",
        "MB",
        [str(night + 1) for night in nights],
        {_NAMES[name].removesuffix(", MB"): [found[night] / 1e6 for night in nights] for name, found in sizes.items()},
        "lines",
    )
    text = (
        f"{given.locations} locations, Dagster's records kept {given.days} days, the sync log {given.months} whole month(s) beside the "
        "running one (so the warehouse swings by a month of it) and its days summed up, beside the same nights with nothing removed. One real night's rows, moved in time and multiplied by the locations. "
        f"In the long run: the mean of a month's nights ({PHASE}, or half of all) against that of as many before, at the same place of the swing within a night's rows. "
        "What the practices' own data grows by is not in it, nor are ticks and the runs that the daemon adds to nights: those of webhook events, checks and the watchdog."
    )
    return Part("growth", "Growth of the databases per night", text, [Table(columns, rows)], [chart])


if __name__ == "__main__":
    main()
