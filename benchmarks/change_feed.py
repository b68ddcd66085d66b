"""What the change feed costs a load: the same rows with and without its triggers, in turns, on one server.

    python benchmarks/change_feed.py                       200,000 patients, 5 rounds
    python benchmarks/change_feed.py --records 50000 --rounds 3

From records in memory to committed rows, six pages a transaction, as a sync loads them; requests would only
make the feed's share smaller. CPU is this process's and its PostgreSQL backend's. The embedded server is used,
durable, in a folder that is removed afterwards.
"""

import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from api import INSTITUTION, SUBDOMAIN, World
from results import Part, Table, arguments, show, spread
from serving import server

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse import embedded
from nexhealth_pipeline.warehouse.changes import TRIGGERS
from nexhealth_pipeline.warehouse.migrate import upgrade

PAGE, PAGES = 1000, 6
PASSES = ("full load", "1 % changed", "nothing changed")


@dataclass(frozen=True, slots=True)
class Cost:
    """One pass."""

    wall: float
    cpu: float
    """Seconds, client and server."""
    wal: int
    """Bytes."""
    feed: int
    """Rows of the feed."""


def cpu_of(pid: int) -> float:
    """Seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def pages_of(world: World) -> list[Page]:
    """All answers of the API."""
    return [page(world, number, start) for number, start in enumerate(range(0, world.records, PAGE), 1)]


def page(world: World, number: int, start: int) -> Page:
    """One answer of the API."""
    records = [world.record(index).encode() for index in range(start, min(start + PAGE, world.records))]
    return Page(number, records, "", True, datetime.now(UTC), 1, 0, 0.0, sum(map(len, records)), None, None)


def load(db: psycopg.Connection, pages: list[Page]) -> None:
    """Load answers into the table."""
    institution = Institution(INSTITUTION, SUBDOMAIN, "Bench", frozenset())
    loader = Loader(db, Slice(COLLECTIONS["patients"], institution), run_id=str(uuid.uuid4()), dry_run=False)
    for first in range(0, len(pages), PAGES):
        with db.transaction():
            loader.open()
            loader.encode_and_load([(one, {}) for one in pages[first : first + PAGES]])


def measured(db: psycopg.Connection, pages: list[Page]) -> Cost:
    """Load, and what it cost."""
    db.execute("CHECKPOINT")
    pid = db.info.backend_pid
    wal, feed = counters(db)
    cpu, began = time.process_time() + cpu_of(pid), time.monotonic()
    load(db, pages)
    wall, cpu = time.monotonic() - began, time.process_time() + cpu_of(pid) - cpu
    wal_after, feed_after = counters(db)
    return Cost(wall, cpu, wal_after - wal, feed_after - feed)


def counters(db: psycopg.Connection) -> tuple[int, int]:
    """Bytes of WAL ever written, and rows of the feed."""
    row = db.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, (SELECT count(*) FROM nexhealth_changes)"
    ).fetchone()
    assert row is not None
    return row[0], row[1]


@contextmanager
def database(postgres: embedded.EmbeddedServer, *, feed: bool) -> Iterator[psycopg.Connection]:
    """A new warehouse, with or without the feed's triggers."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as admin:
        admin.execute("CREATE DATABASE bench")
        upgrade(postgres.url("bench"))
        with psycopg.connect(postgres.url("bench"), autocommit=True) as db:
            if not feed:
                for name in TRIGGERS:
                    db.execute(f"ALTER TABLE nexhealth_patients DISABLE TRIGGER {name}")
            yield db
        admin.execute("DROP DATABASE bench WITH (FORCE)")


def one_round(
    postgres: embedded.EmbeddedServer, first: list[Page], changed: list[Page], *, feed: bool
) -> dict[str, Cost]:
    """The cost of each kind of pass."""
    with database(postgres, feed=feed) as db:
        costs = {"full load": measured(db, first)}
        db.execute("VACUUM ANALYZE nexhealth_patients")
        costs["1 % changed"] = measured(db, changed)
        costs["nothing changed"] = measured(db, changed)
        return costs


def ratio(mine: list[float], others: list[float]) -> str:
    """With the feed to without, round by round: the median, the least and the greatest."""
    return spread([one / other for one, other in zip(mine, others, strict=True)], 2)


def main() -> None:
    """Measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    world = World(given.records)
    first = pages_of(world)
    world.change(100)
    changed = pages_of(world)
    costs: dict[bool, list[dict[str, Cost]]] = {True: [], False: []}
    with server() as (postgres, _):
        one_round(postgres, first[:PAGES], changed[:PAGES], feed=True)  # what is only slow at first is not the feed's
        for number in range(given.rounds):
            for feed in (True, False) if number % 2 else (False, True):
                costs[feed].append(one_round(postgres, first, changed, feed=feed))
                print(f"round {number + 1}, {'with' if feed else 'without'} the feed", flush=True)
    rows = [
        [name, f"{costs[True][0][name].feed:,}"]
        + [ratio(*([float(getattr(one[name], what)) for one in costs[feed]] for feed in (True, False))) for what in ("wall", "cpu", "wal")]
        + [f"{statistics.median(one[name].wal for one in costs[True]) / 1e6:.1f}"]
        for name in PASSES
    ]  # fmt: skip
    text = (
        f"{given.records:,} patients in memory, loaded with and without the feed's triggers in turns, {given.rounds} rounds; CPU is "
        "the client's and its backend's. The second pass changes 1 %, the third nothing; nothing is vacuumed between them, so that "
        "the third one's WAL is of hint bits and pruned pages of the second."
    )
    columns = [
        "pass",
        "rows of the feed",
        "time: with / without",
        "CPU: with / without",
        "WAL: with / without",
        "WAL with, MB",
    ]
    show(Part("change_feed", "What the change feed costs a load", text, [Table(columns, rows)]), given.json)


if __name__ == "__main__":
    main()
