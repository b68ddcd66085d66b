"""What passes before a run's first request, and after its last: imports, the command, Dagster's queue and processes.

    python benchmarks/startup.py                 3 rounds
    python benchmarks/startup.py --rounds 1

CPU seconds are the process's and its children's by the kernel's account. A run through the daemon is the job
nexhealth_practice (three requests), launched while daemon and code server stand, each part read from Dagster's own
events and the kernel's note of when the run's process was started; the API is a local one of one location that answers
at once. The same lists are read by `sync/` without Dagster as well, and by the command. Last comes what the processes
that stand all the time have taken of memory: daemon and code server after those runs, the webserver after its first page.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from measure import accounted, children_cpu, peak_rss_of, server_cpu
from nightly import Place, place, settings_of, sync
from results import Chart, Part, Table, arguments, show, spread
from serving import asked, daemon, environment, served

if TYPE_CHECKING:
    import dagster as dg

IMPORTS = {
    "the interpreter": "pass",
    "import dagster": "import dagster",
    "import the code location": "import nexhealth_pipeline.definitions",
    "import `nexhealth sync`": (
        "from nexhealth_pipeline.cli.loading import loading\nwith loading(): import nexhealth_pipeline.orchestration.launch"
    ),
}
JOB = "nexhealth_practice"
LISTS = ("institutions", "locations", "sync_status")
"""What the job reads."""
_ALONE = """
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.connect import warehouse_url
import sys
settings = load_settings(env_file=None)
with SyncSession(settings, warehouse_url(settings)) as session:
    results = list(run_slices(session, [Slice(COLLECTIONS[name]) for name in sys.argv[1:]], SyncOptions()))
sys.exit(any(one.status != "succeeded" for one in results))
"""
"""Those lists, read by `sync/` without Dagster."""
_ALL, _CPU, _SERVER_CPU = "all", "CPU s of daemon, code server and run", "CPU s of PostgreSQL"
_PAGE = "{ assetNodes { assetKey { path } partitionDefinition { description } } runsOrError { ... on Runs { results { id } } } }"
"""What a page of assets and one of runs ask the webserver for."""
WAIT_SECONDS = 300.0
"""Longest wait for a run of a few seconds: a busy machine takes many times as long."""


def imports(rounds: int) -> Table:
    """What starting an interpreter and importing costs."""
    rows = []
    for name, statement in IMPORTS.items():
        runs = [accounted([sys.executable, "-c", statement], os.environ) for _ in range(rounds)]
        rows.append([name, *(spread([getattr(one, what) for one in runs], digits)
                             for what, digits in (("wall", 2), ("cpu", 2), ("rss", 0)))])  # fmt: skip
    return Table(["what", "s", "CPU s", "RSS MiB"], rows, "Interpreter and imports")


def command(where: Place, rounds: int) -> Table:
    """A sync by the command of which nothing is due but the lists of one location."""
    rows = []
    runs = [sync(where) for _ in range(rounds)]
    parts = {
        "start to the first request (institutions and locations)": [run.arrivals[0][0] - run.began for run in runs],
        "then to the first request of the other lists": [second_start(run.arrivals) for run in runs],
        "from there to the last request": [run.arrivals[-1][0] - run.arrivals[0][0] - second_start(run.arrivals) for run in runs],
        "then to the end": [run.began + run.wall - run.arrivals[-1][0] for run in runs],
        "all": [run.wall for run in runs],
    }  # fmt: skip
    rows = [[name, spread(seconds, 1)] for name, seconds in parts.items()]
    rows += [
        [
            "CPU s, client + PostgreSQL",
            f"{spread([run.client_cpu for run in runs], 1)} + {spread([run.server_cpu for run in runs], 1)}",
        ]
    ]
    return Table(["part", "s"], rows, "`nexhealth sync` of one location")


def alone(where: Place) -> tuple[float, float, float]:
    """The lists of the practice without Dagster: seconds, CPU seconds, those of PostgreSQL. Raises SystemExit where it fails."""
    asked(f"{where.api_url}/bench/begin?limits=0")
    with psycopg.connect(where.url, autocommit=True) as db:
        before = server_cpu(db)
        given = environment(where.home, **settings_of(where))
        used = accounted([sys.executable, "-P", "-c", _ALONE, *LISTS], given, where.home)
        spent = server_cpu(db) - before
    if used.status or len(asked(f"{where.api_url}/bench/arrivals")) < len(LISTS):
        raise SystemExit(f"the lists of the practice were not read: status {used.status}")
    return used.wall, used.cpu, spent


def same_work(by: Mapping[str, Sequence[tuple[float, float, float]]]) -> Table:
    """The lists of the practice, read by each."""
    rows = [[name, *(spread(figures, 2) for figures in zip(*runs, strict=True))] for name, runs in by.items()]
    return Table(
        ["three lists, read by", "s", "CPU s", "CPU s of PostgreSQL"], rows, "What Dagster adds to the same work"
    )


def second_start(arrivals: Sequence[tuple[float, str, int]]) -> float:
    """Seconds from the first request to the first after those for institutions, locations and their status."""
    discovery = ("/authenticates", "/institutions", "/locations", "/sync_status")
    return next(moment for moment, path, _ in arrivals if path not in discovery) - arrivals[0][0]


def started_at(pid: int) -> float:
    """When a living process was started, seconds since 1970, to a hundredth. Raises FileNotFoundError where it has ended."""
    since_boot = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


def worker_start(instance: "dg.DagsterInstance", run_id: str) -> float:
    """When the process of a run that is going on was started, seconds since 1970; 0 until it has said that it is there."""
    import dagster as dg

    told = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=1).records
    event = told[0].event_log_entry.dagster_event if told else None
    with suppress(FileNotFoundError, KeyError):  # it has ended, or the event is of something else
        return started_at(int(str(event.engine_event_data.metadata["pid"].value))) if event else 0.0
    return 0.0


def launched(where: Place, workspace: Path) -> dict[str, float]:
    """One run through the queue: seconds of each of its parts."""
    import dagster as dg

    asked(f"{where.api_url}/bench/begin?limits=0")
    command = [sys.executable, "-P", "-m", "dagster", "job", "launch", "-w", str(workspace), "-j", JOB]
    with psycopg.connect(where.url, autocommit=True) as db, dg.DagsterInstance.get() as instance:
        spent, server_spent, born = children_cpu(), server_cpu(db), 0.0
        subprocess.run(command, check=True, capture_output=True)
        run_id = instance.get_runs(dg.RunsFilter(job_name=JOB), limit=1)[0].run_id
        deadline = time.monotonic() + WAIT_SECONDS
        while not instance.get_run_by_id(run_id).is_finished:  # type: ignore[union-attr]  # it was launched
            if time.monotonic() > deadline:
                raise SystemExit(f"the run did not end within {WAIT_SECONDS:g} s")
            born = born or worker_start(instance, run_id)
            time.sleep(0.1)
        spent, server_spent = children_cpu() - spent, server_cpu(db) - server_spent
        at: dict[str, float] = {}
        for entry in instance.all_logs(run_id):
            if entry.dagster_event is not None:
                at.setdefault(entry.dagster_event.event_type_value, entry.timestamp)
        if "PIPELINE_SUCCESS" not in at:
            raise SystemExit(
                "the run failed: its log is not kept; run with the warehouse of `nexhealth demo` to see why"
            )
    if not born:
        raise SystemExit("the run's process had ended before anybody looked when it was started")
    arrivals = [moment for moment, _, _ in asked(f"{where.api_url}/bench/arrivals")]
    marks = {
        "in the queue": at["PIPELINE_STARTING"] - at["PIPELINE_ENQUEUED"],
        "daemon and code server, to the start of the run's process": born - at["PIPELINE_STARTING"],
        "imports: interpreter, Dagster, the instance": at["ENGINE_EVENT"] - born,
        "definitions, to the run's start": at["PIPELINE_START"] - at["ENGINE_EVENT"],
        "executor, to the step's start": at["STEP_START"] - at["PIPELINE_START"],
        "step's start to the first request": arrivals[0] - at["STEP_START"],
        "first to last request": arrivals[-1] - arrivals[0],
        "last request to the run's end": at["PIPELINE_SUCCESS"] - arrivals[-1],
    }
    return marks | {_ALL: at["PIPELINE_SUCCESS"] - at["PIPELINE_ENQUEUED"], _CPU: spent, _SERVER_CPU: server_spent}


def standing() -> Table:
    """Memory of the processes that stand all the time, while daemon and code server do."""
    peaks = {"code server": peak_rss_of("api grpc"), "daemon": peak_rss_of("dagster._daemon")}
    with served(dict(os.environ)) as address:
        question = json.dumps({"query": _PAGE}).encode()
        request = urllib.request.Request(f"{address}/graphql", question, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            if not json.load(answer)["data"]["assetNodes"]:
                raise SystemExit("the webserver shows no asset: the code location was not loaded")
        peaks["webserver"] = peak_rss_of("dagster_webserver")
    return Table(
        ["process", "peak RSS MiB"], [[name, f"{peak:.0f}"] for name, peak in peaks.items()], "Memory of what stands"
    )


def main() -> None:
    """Measure each, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    tables = [imports(args.rounds)]
    print("imports are measured", flush=True)
    with place(1, 10, 0.0) as where:
        sync(where)  # the first one loads everything
        tables.append(command(where, args.rounds))
        lists = [each for name in LISTS for each in ("--resource", name)]
        by_command = [sync(where, *lists) for _ in range(args.rounds)]
        by_sync = [alone(where) for _ in range(args.rounds)]
        print("the command is measured", flush=True)
        with daemon(where.home, settings_of(where)) as workspace:
            launched(where, workspace)  # the first one waits for the code server
            runs = [launched(where, workspace) for _ in range(args.rounds)]
            memory = standing()
    rows = [[name, spread([run[name] for run in runs], 2)] for name in runs[0]]
    tables.append(Table(["part", "s"], rows, f"A run of {JOB} through queue and daemon"))
    tables.append(same_work({
        "`sync/` alone, in a process": by_sync,
        "`nexhealth sync`": [(run.wall, run.client_cpu, run.server_cpu) for run in by_command],
        "a run that the daemon launches, from the queue to its end": [
            (run[_ALL], run[_CPU], run[_SERVER_CPU]) for run in runs
        ],
    }))  # fmt: skip
    tables.append(memory)
    parts = list(runs[0])[: list(runs[0]).index(_ALL)]
    chart = Chart("parts", "A run through queue and daemon: where its start goes", "s",
                  [name.partition(",")[0].partition(":")[0] for name in parts],
                  {"median": [statistics.median(run[name] for run in runs) for name in parts]})  # fmt: skip
    text = (
        f"{args.rounds} round(s). A run pays its start once, however many slices it reads: a night of a thousand locations is some seven "
        "runs, not thousands. What was done: the command imports once and forks its runs; runs of the daemon have the in-process "
        "executor, so that no step starts a process; the queue is looked at every second (Dagster's default is five). "
        "What is left is mostly the process that Dagster starts for each run: the interpreter, `import dagster` and the opening of "
        "the instance come before it says that it is there. The same work by `sync/` alone, by the command and by such a run stands below. "
        "Memory is the peak of each process that stands all the time, after these runs and the webserver's first page; a run's is "
        "under memory."
    )
    show(Part("startup", "Start-up: what a run costs before its first request", text, tables, [chart]), args.json)


if __name__ == "__main__":
    main()
