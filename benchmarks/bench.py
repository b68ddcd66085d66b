"""Ours beside what our users would otherwise take, on the same server in the same run.

    make bench ONLY=bench                            into benchmarks/RESULTS.md
    .venv/bin/python benchmarks/bench.py --records 20000 --rounds 1

Needs an environment for dlt (made by `make bench`). The API is benchmarks/api.py without rate limits, PostgreSQL the
embedded one over TCP. In each round every case is run by all contestants, one after another, before the next case; every round is begun by
another one, so that noise and a cold server meet all of them.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from measure import Cost, run
from results import Chart, Part, Table, arguments, show, spread
from serving import server

from nexhealth_pipeline.warehouse import embedded

HERE = Path(__file__).parent
CASES = ("empty table", "nothing changed", "1 % changed", "incremental of 1 %")
CHANGED = 100
"""One record of so many is changed: one per cent."""
PREPARED = "prepared"
"""What raw COPY loads is downloaded before, and a warehouse's tables are made once in its life."""
Costs = dict[str, dict[str, Cost]]
"""Of one round: by contestant and case."""
OURS, LIMIT, COPY = "ours", "limit script", "raw COPY"
MINE, DLT = sys.executable, str(HERE / ".venv" / "bin" / "python")


def contestants(*, with_dlt: bool) -> dict[str, tuple[str, str]]:
    """Interpreter and script by name."""
    found = {OURS: (MINE, "ours.py"), LIMIT: (MINE, "limit.py"), COPY: (MINE, "raw_copy.py")}
    if with_dlt:
        found |= {
            "dlt, arrow": (DLT, "dlt_arrow.py"),
            "dlt, arrow, ADBC": (DLT, "dlt_arrow_adbc.py"),
            "dlt, arrow, ADBC, raw": (DLT, "dlt_arrow_adbc_raw.py"),
            "dlt, rest_api": (DLT, "dlt_rest.py"),
            "dlt, rest_api, objects as JSON": (DLT, "dlt_rest_json.py"),
        }
    return found


@contextmanager
def api(records: int) -> Iterator[str]:
    """The server with so many patients; its address."""
    command = [MINE, str(HERE / "api.py"), "--records", str(records), "--ready"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Contestant:
    """One of them with a database and an API of its own, from an empty table to the last case."""

    name: str
    command: tuple[str, str]
    """Interpreter and script."""
    address: str
    admin: str
    url: str
    environment: dict[str, str]
    records: int
    """Patients that its API has."""

    def run(self, case: str) -> Cost:
        """One case, or what comes before all of them. Raises RuntimeError where it fails or does not read what it must."""
        if case in ("1 % changed", "incremental of 1 %"):
            urllib.request.urlopen(f"{self.address}/bench/change?every={CHANGED}").close()
        mode = "prepare" if case == PREPARED else "incremental" if case.startswith("incremental") else "full"
        cost = run([*self.command, self.address, self.url, mode], self.environment, self.admin, self.url)
        if case != PREPARED:
            self._check(case, cost.answer)
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute("VACUUM ANALYZE")  # else autovacuum does, while the next one is measured
        return cost

    def _check(self, case: str, answer: str) -> None:
        """Whoever ends early is fast: the first number that it printed last is how many records it read."""
        read, wanted = answer.split(maxsplit=1)[0] if answer else "no", read_in(case, self.records)
        if read != str(wanted):
            raise RuntimeError(f"{self.name}, {case}: {read} records were read, not {wanted}; its time is of no use")


@contextmanager
def contestant(
    name: str, script: tuple[str, str], records: int, postgres: embedded.EmbeddedServer
) -> Iterator[Contestant]:
    """Ready to begin, and nothing left of it afterwards."""
    identity = uuid.uuid4().hex[:8]
    admin, folder = postgres.tcp_url("postgres"), Path(tempfile.gettempdir()) / f"nexhealth-bench-{identity}"
    environment = {
        "BENCH_ID": identity,
        "DLT_DATA_DIR": str(folder),
        "RUNTIME__DLTHUB_TELEMETRY": "false",
        "PYTHONPATH": str(HERE.parent),
    }
    command = script[0], str(HERE / "contestants" / script[1])
    with psycopg.connect(admin, autocommit=True) as db:
        db.execute(f"CREATE DATABASE bench_{identity}")
        try:
            with api(records) as address:
                url = postgres.tcp_url(f"bench_{identity}")
                yield Contestant(name, command, address, admin, url, environment, records)
        finally:  # hundreds of megabytes
            shutil.rmtree(folder, ignore_errors=True)
            Path(f"{folder}.copy").unlink(missing_ok=True)
            db.execute(f"DROP DATABASE bench_{identity} WITH (FORCE)")


def one_round(names: dict[str, tuple[str, str]], records: int, postgres: embedded.EmbeddedServer) -> Costs:
    """Every case by every contestant, who take their turns within a case: the machine is the same for all of them."""
    costs: Costs = {name: {} for name in names}
    with ExitStack() as stack:
        all_of_them = [
            stack.enter_context(contestant(name, script, records, postgres)) for name, script in names.items()
        ]
        for one in all_of_them:
            if one.name in (OURS, COPY):
                costs[one.name][PREPARED] = one.run(PREPARED)
        for case in CASES:
            for one in all_of_them:
                if one.name == COPY and case != CASES[0]:
                    continue
                costs[one.name][case] = one.run(case)
                print(f"  {case:20} {one.name:14} {costs[one.name][case].wall:7.1f} s", flush=True)
    return costs


def table(rounds: list[Costs], records: int) -> Table:
    """Medians, of the speed also the least and the greatest."""
    rows = []
    for case in CASES:
        for name in rounds[0]:
            runs = [one[name][case] for one in rounds if case in one[name]]
            if not runs:
                continue
            read = read_in(case, records)
            client, server = (middle(runs, what) * 1e5 / read for what in ("client_cpu", "server_cpu"))
            both = spread([(one.client_cpu + one.server_cpu) * 1e5 / read for one in runs], 1)
            by_limit = [ratios(one[name].get(case), one.get(LIMIT, {}).get(case)) for one in rounds]
            rows.append([
                case, name, f"{middle(runs, 'wall'):.1f}", spread([read / one.wall for one in runs]), f"{client:.1f} + {server:.1f}", both,
                *(spread([pair[at] for pair in by_limit if pair], 2) for at in (0, 1)),
                f"{middle(runs, 'rss'):.0f}", f"{middle(runs, 'rows_written'):,.0f}", f"{middle(runs, 'rows_of_patients'):,.0f}",
                spread([one.wal / 1e6 for one in runs], 2),
            ])  # fmt: skip
    columns = ["case", "who", "s", "records/s", "CPU s per 100k: client + PostgreSQL", "both", "speed / limit script's", "CPU / its", "peak RSS MiB", "rows written",
               "of them of patients", "WAL MB"]  # fmt: skip
    return Table(columns, rows)


def ratios(one: Cost | None, limit: Cost | None) -> tuple[float, float] | None:
    """Speed and CPU beside those of the limit script in the same round."""
    if one is None or limit is None:
        return None
    spent, its = (each.client_cpu + each.server_cpu for each in (one, limit))
    return limit.wall / one.wall, spent / its


def read_in(case: str, records: int) -> int:
    """Records that a contestant reads in a case."""
    return len(range(0, records, CHANGED)) if case.startswith("incremental") else records


def middle(runs: list[Cost], what: str) -> float:
    """The median of one figure."""
    return statistics.median(getattr(one, what) for one in runs)


def charts(rounds: list[Costs], records: int) -> list[Chart]:
    """The cases side by side: speed, CPU, memory, WAL."""
    figures: dict[str, tuple[str, str, Callable[[Cost, int], float]]] = {
        "speed": ("Records per second (more is better)", "records/s", lambda cost, read: read / cost.wall),
        "cpu": ("CPU of client and PostgreSQL", "CPU s per 100,000 records",
                lambda cost, read: (cost.client_cpu + cost.server_cpu) * 1e5 / read),
        "memory": ("Peak memory of the client", "MiB", lambda cost, _: cost.rss),
        "wal": ("WAL written", "bytes per record", lambda cost, read: cost.wal / read),
    }  # fmt: skip
    cases = CASES[:3]  # an incremental of a few records is the start of each program and would only stretch the scale
    return [
        Chart(name, title, unit, list(cases), {
            who: [statistics.median(of(one[who][case], read_in(case, records)) for one in rounds) if case in rounds[0][who] else None
                  for case in cases] for who in rounds[0]})
        for name, (title, unit, of) in figures.items()
    ]  # fmt: skip


def main() -> None:
    """Run, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="only this contestant; repeatable")
    args = parser.parse_args()
    names = contestants(with_dlt=Path(DLT).exists())
    names = {name: how for name, how in names.items() if not args.only or name in args.only}
    with server(tcp=True) as (postgres, _):
        rounds = []
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}, {args.records:,} patients", flush=True)
            first = number % len(names)
            turn = [*names][first:] + [*names][:first]
            costs = one_round({name: names[name] for name in turn}, args.records, postgres)
            rounds.append({name: costs[name] for name in names})
    made = [one[OURS][PREPARED] for one in rounds if OURS in one]
    before = (
        f" Ours finds its tables there (`nexhealth db upgrade`: once in a warehouse's life {middle(made, 'wall'):.1f} s,"
        f" CPU {middle(made, 'client_cpu'):.1f} + {middle(made, 'server_cpu'):.1f} s, start included)."
        if made
        else ""
    )
    text = (
        f"{args.records:,} patients of one location, {args.rounds} round(s), the median of each figure, and the least and "
        "greatest speed and CPU. The API is a local one without rate limits, so that the machine is measured; it runs on the same "
        "cores, but its answers were made before. Each contestant is a process of its own whose whole life counts, start included: of the incremental read "
        "that is most of it. Ours is `sync/` as a script would call it, without Dagster, whose part is under start-up. Ours and the limit script keep typed columns, the raw JSON and a hash; ours also versions, "
        "quarantine, resume, log and change feed. dlt (arrow) keeps typed columns only, without a key, by CSV files, or by parquet files and ADBC, a driver of its own; or the raw JSON as well, "
        "as json, which ADBC can write, not jsonb; dlt (rest_api) is as documented, "
        "or keeps the objects within a record as JSON, which its default makes columns of, as all others do. Raw COPY loads a file that was "
        f"downloaded before, into one jsonb column without a key.{before}"
    )
    show(Part("bench", "Loading patients: ours beside others", text, [table(rounds, args.records)],
              charts(rounds, args.records)), args.json)  # fmt: skip


if __name__ == "__main__":
    main()
