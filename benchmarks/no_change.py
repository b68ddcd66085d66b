"""What a full read in which nothing changed writes: into the warehouse, and into Dagster's database beside it.

    python benchmarks/no_change.py                      200,000 patients, 3 rounds
    python benchmarks/no_change.py --records 20000

The command, so with Dagster's runs and events. Each database has a PostgreSQL of its own, since WAL is a server's; both
are vacuumed and checkpointed before each round. Rows are those of ordinary tables by `pg_stat_user_tables`.
"""

import json
import sys
import time
from dataclasses import dataclass

import psycopg
from bench import api
from measure import accounted, settle
from results import Part, Table, arguments, show, spread
from serving import environment, server

from nexhealth_pipeline.warehouse.migrate import declare_kind, upgrade

COMMAND = (
    sys.executable, "-P", "-m", "nexhealth_pipeline.cli", "sync", "--mode", "full", "--resource", "patients", "--json",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Written:
    """By a pass, into one database; or since it exists."""

    wal: int
    """Bytes, of the whole server."""
    inserted: int
    updated: int
    deleted: int
    patients: int
    """Rows of the patients' table that were inserted, updated or deleted."""
    size: int
    """Bytes of the database."""

    def since(self, before: "Written") -> "Written":
        """What was written since then."""
        names = ("wal", "inserted", "updated", "deleted", "patients", "size")
        return Written(*(getattr(self, name) - getattr(before, name) for name in names))


def written(db: psycopg.Connection) -> Written:
    """Since the database exists."""
    db.execute("SELECT pg_stat_force_next_flush()")
    time.sleep(0.2)
    row = db.execute(
        "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, sum(n_tup_ins)::bigint, sum(n_tup_upd)::bigint,"
        " sum(n_tup_del)::bigint,"
        " coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del) FILTER (WHERE relname = 'nexhealth_patients'), 0)::bigint,"
        " pg_database_size(current_database()) FROM pg_stat_user_tables"
    ).fetchone()
    assert row is not None
    return Written(*row)


def settled(db: psycopg.Connection) -> Written:
    """After VACUUM and CHECKPOINT, so that nothing of earlier passes is written by the next one."""
    settle(db)
    return written(db)


def main() -> None:
    """Measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    passes: dict[str, list[Written]] = {"warehouse": [], "Dagster's": []}
    with api(args.records) as address, server() as (postgres, home), server() as (beside, _):
        postgres.create_database("nexhealth")
        beside.create_database("dagster")
        urls = postgres.url("nexhealth"), beside.url("dagster")
        upgrade(urls[0])
        declare_kind(urls[0], "sandbox")
        given = environment(
            home, NEXHEALTH_API_URL=address, NEXHEALTH_API_KEY="bench", NEXHEALTH_DATA_KIND="sandbox",
            NEXHEALTH_LOG_LEVEL="WARNING", DATABASE_URL=urls[0], DAGSTER_DATABASE_URL=urls[1],
        )  # fmt: skip
        sync(given, args.records)
        with psycopg.connect(urls[0], autocommit=True) as db, psycopg.connect(urls[1], autocommit=True) as other:
            for number in range(args.rounds):
                before = settled(db), settled(other)
                sync(given, args.records)
                for found, connection, old in zip(passes.values(), (db, other), before, strict=True):
                    found.append(written(connection).since(old))
                print(f"round {number + 1} of {args.rounds}", flush=True)
    rows = [
        [name, spread([one.wal / 1e6 for one in found], 2),
         *(spread([getattr(one, what) for one in found]) for what in ("patients", "inserted", "updated", "deleted")),
         spread([one.size / 1e3 for one in found])]
        for name, found in passes.items()
    ]  # fmt: skip
    text = (
        f"`nexhealth sync --mode full --resource patients` of {args.records:,} patients that the table has already, {args.rounds} round(s), "
        "each after VACUUM and CHECKPOINT; a PostgreSQL for each of the two databases. What `sync/` writes without Dagster is in "
        "the first section."
    )
    columns = [
        "database",
        "WAL MB",
        "rows of patients written",
        "all rows inserted",
        "updated",
        "deleted",
        "grew by kB",
    ]
    show(Part("no_change", "What a full read writes when nothing changed", text, [Table(columns, rows)]), args.json)


def sync(environ: dict[str, str], records: int) -> None:
    """Run the command. Raises SystemExit where it fails or reads other than all records: reading none writes none, too."""
    used = accounted(COMMAND, environ)
    if used.status:
        raise SystemExit(f"nexhealth sync ended with {used.status}: {used.output[-2000:]}")
    collections = json.loads(used.output)["collections"]
    read = sum(one["counts"]["records_read"] for one in collections if one["name"] == "patients")
    if read != records:
        raise SystemExit(f"nexhealth sync read {read} patients, not {records}: what it wrote is not of a full read")


if __name__ == "__main__":
    main()
