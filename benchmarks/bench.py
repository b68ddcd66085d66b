"""Ours beside what our users would otherwise take, on the same server in the same run.

    make bench                                       everything, into benchmarks/RESULTS.md
    .venv/bin/python benchmarks/bench.py --records 20000 --rounds 1

Needs an environment for dlt (made by `make bench`). The API is benchmarks/api.py without rate limits, PostgreSQL the
embedded one over TCP. Contestants run one after another in each round, so that noise meets all of them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from measure import Cost, run

from nexhealth_pipeline.warehouse import embedded

HERE = Path(__file__).parent
CASES = ("empty table", "nothing changed", "1 % changed", "incremental of 1 %")
MINE, DLT = sys.executable, str(HERE / ".venv" / "bin" / "python")


def contestants(*, with_dlt: bool) -> dict[str, tuple[str, str]]:
    """Interpreter and script by name."""
    found = {"ours": (MINE, "ours.py"), "limit script": (MINE, "limit.py"), "raw COPY": (MINE, "raw_copy.py")}
    if with_dlt:
        found |= {"dlt, arrow": (DLT, "dlt_arrow.py"), "dlt, rest_api": (DLT, "dlt_rest.py")}
    return found


@contextmanager
def api(records: int) -> Iterator[str]:
    """The server with so many patients; its address."""
    command = [MINE, str(HERE / "api.py"), "--records", str(records)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def one_round(
    names: dict[str, tuple[str, str]], records: int, server: embedded.EmbeddedServer
) -> dict[str, dict[str, Cost]]:
    """Every contestant through every case: costs by contestant and case."""
    costs: dict[str, dict[str, Cost]] = {}
    for name, (python, script) in names.items():
        identity = uuid.uuid4().hex[:8]
        database = f"bench_{identity}"
        admin = server.tcp_url("postgres")
        with psycopg.connect(admin, autocommit=True) as db:
            db.execute(f"CREATE DATABASE {database}")
        url = server.tcp_url(database)
        folder = Path(tempfile.gettempdir()) / f"nexhealth-bench-{identity}"
        environment = {
            "BENCH_ID": identity,
            "DLT_DATA_DIR": str(folder),
            "RUNTIME__DLTHUB_TELEMETRY": "false",
            "PYTHONPATH": str(HERE.parent),
        }
        program = str(HERE / "contestants" / script)
        with api(records) as address:
            if name == "raw COPY":
                subprocess.run(
                    [python, program, address, url, "prepare"], env={**os.environ, **environment}, check=True
                )
            costs[name] = {}
            for case in CASES[:1] if name == "raw COPY" else CASES:
                if case in ("1 % changed", "incremental of 1 %"):
                    urllib.request.urlopen(f"{address}/bench/change?every=100").close()
                mode = "incremental" if case.startswith("incremental") else "full"
                costs[name][case] = run([python, program, address, url, mode], environment, admin, url)
                print(f"  {name:14} {case:20} {costs[name][case].wall:7.1f} s", flush=True)
        with psycopg.connect(admin, autocommit=True) as db:
            db.execute(f"DROP DATABASE {database} WITH (FORCE)")
        subprocess.run(["rm", "-rf", str(folder), f"{folder}.copy"], check=False)
    return costs


def table(rounds: list[dict[str, dict[str, Cost]]], records: int) -> list[str]:
    """Medians (and spread of the wall time) as Markdown."""
    lines = ["| case | who | records/s (min-max) | CPU s per 100k: client + PostgreSQL | peak RSS MiB | rows written | WAL MB |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for case in CASES:
        for name in rounds[0]:
            runs = [one[name][case] for one in rounds if case in one[name]]
            if not runs:
                continue
            read = max(records // 100, 1) if case.startswith("incremental") else records
            speeds = [read / one.wall for one in runs]
            client, server = (
                statistics.median(getattr(one, what) for one in runs) for what in ("client_cpu", "server_cpu")
            )
            lines.append(
                f"| {case} | {name} | {statistics.median(speeds):,.0f} ({min(speeds):,.0f}-{max(speeds):,.0f})"
                f" | {client * 1e5 / read:.1f} + {server * 1e5 / read:.1f} = {(client + server) * 1e5 / read:.1f}"
                f" | {statistics.median(one.rss for one in runs):.0f} | {statistics.median(one.rows_written for one in runs):,.0f}"
                f" | {statistics.median(one.wal for one in runs) / 1e6:.1f} |"
            )
    return lines


def machine() -> str:
    """What it ran on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return f"{os.cpu_count()} cores ({model}), {platform.system()}, Python {platform.python_version()}, load {os.getloadavg()[0]:.1f} at the end"


def main() -> None:
    """Run, print, and with `--write` keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="only this contestant; repeatable")
    parser.add_argument("--json", type=Path, help="write all figures there")
    args = parser.parse_args()
    names = contestants(with_dlt=Path(DLT).exists())
    names = {name: how for name, how in names.items() if not args.only or name in args.only}
    with tempfile.TemporaryDirectory(prefix="nexhealth-bench-") as home:
        Path(home).chmod(0o711)
        server = embedded.ensure(Path(home) / "home", tcp=True)
        rounds = []
        for number in range(args.rounds):
            print(f"round {number + 1} of {args.rounds}, {args.records:,} patients", flush=True)
            rounds.append(one_round(names, args.records, server))
        embedded.release(Path(home) / "home")
    print(f"\n{args.records:,} patients, medians of {args.rounds}; {machine()}; {datetime.now(UTC):%Y-%m-%d}\n")
    print("\n".join(table(rounds, args.records)))
    if args.json:
        plain = [{name: {case: {field: getattr(cost, field) for field in Cost.__slots__} for case, cost in cases.items()}
                  for name, cases in one.items()} for one in rounds]  # fmt: skip
        args.json.write_text(json.dumps(plain, indent=1))


if __name__ == "__main__":
    main()
