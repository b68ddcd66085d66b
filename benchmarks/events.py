"""What Dagster takes to note what a run did: one run that materializes many partitions, with our storage and its own.

    python benchmarks/events.py                     1,000 partitions, 3 rounds in turns
    python benchmarks/events.py --partitions 200

The asset does nothing: planned and materialized events of each partition are all there is. Each is a process of its
own on a server of its own. A run of one partition comes before each: what that took, its start, is taken off.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psycopg
from measure import accounted, server_cpu
from results import Part, Table, arguments, show, spread
from serving import environment, server

REPO = Path(__file__).resolve().parents[1]
STOCK = "Dagster's PostgreSQL storage"
OURS = "ours (`orchestration/event_log.py`)"


def materialize(partitions: int) -> None:
    """In a process of its own: one run over all partitions."""
    import dagster as dg

    keys = [f"p{number}" for number in range(partitions)]

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(keys), backfill_policy=dg.BackfillPolicy.single_run())
    def empty() -> None:
        """Nothing."""

    span = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    with dg.DagsterInstance.get() as instance:
        if not dg.materialize([empty], instance=instance, tags=span).success:
            raise SystemExit("the run failed")


@dataclass(frozen=True, slots=True)
class Noted:
    """One run: what it and its PostgreSQL took."""

    wall: float
    client_cpu: float
    server_cpu: float
    """Seconds, as the others."""
    events: int
    """Stored."""

    def beyond(self, start: "Noted") -> "Noted":
        """Less what a run of one partition took."""
        return Noted(
            self.wall - start.wall,
            self.client_cpu - start.client_cpu,
            self.server_cpu - start.server_cpu,
            self.events,
        )


def one(name: str, partitions: int) -> Noted:
    """A run on a new database."""
    with server() as (postgres, home), tempfile.TemporaryDirectory(prefix="nexhealth-bench-") as folder:
        for database in ("nexhealth", "dagster"):
            postgres.create_database(database)
        url = postgres.url("dagster")
        Path(folder, "dagster.yaml").write_text(f'storage: {{postgres: {{postgres_url: "{_plain(url)}"}}}}\n')
        given = environment(
            home, DATABASE_URL=postgres.url("nexhealth"), DAGSTER_DATABASE_URL=url,
            DAGSTER_HOME=folder if name == STOCK else REPO,
        )  # fmt: skip
        with psycopg.connect(url, autocommit=True) as db:
            before = server_cpu(db)
            used = accounted([sys.executable, __file__, "--materialize", str(partitions)], given)
            spent = server_cpu(db) - before
            if used.status:
                raise SystemExit(f"{name}: ended with {used.status}")
            row = db.execute("SELECT count(*) FROM event_logs WHERE asset_key IS NOT NULL").fetchone()
            assert row is not None
            return Noted(used.wall, used.cpu, spent, row[0])


def _plain(url: str) -> str:
    """With the driver that Dagster's storage needs."""
    return url.replace("postgresql://", "postgresql+psycopg2://", 1)


def main() -> None:
    """Measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--materialize", type=int, help="used by this script itself")
    given = parser.parse_args()
    if given.materialize:
        materialize(given.materialize)
        return
    starts: dict[str, list[Noted]] = {STOCK: [], OURS: []}
    runs: dict[str, list[Noted]] = {STOCK: [], OURS: []}
    for number in range(given.rounds):
        for name, found in runs.items():
            start = one(name, 1)
            starts[name].append(start)
            found.append(one(name, given.partitions).beyond(start))
        print(f"round {number + 1} of {given.rounds}", flush=True)
    rows = [
        [name, f"{found[0].events:,}", spread([each.wall for each in found], 1),
         f"{spread([each.client_cpu for each in found], 1)} + {spread([each.server_cpu for each in found], 1)}",
         spread([each.wall for each in starts[name]], 1)]
        for name, found in runs.items()
    ]  # fmt: skip
    text = (
        f"One run materializes {given.partitions:,} partitions of an asset that does nothing, {given.rounds} round(s) by turns; what a run of "
        "one partition took, just before, is taken off. Ours is what `dagster.yaml` names, in every process: pooled connections, events of one "
        "asset in one statement."
    )
    columns = ["storage", "events", "s", "CPU s: client + PostgreSQL", "one partition, s"]
    show(Part("events", "Dagster's events of a run over many partitions", text, [Table(columns, rows)]), given.json)


if __name__ == "__main__":
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    main()
