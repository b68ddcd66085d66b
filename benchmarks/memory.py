"""Peak memory of the process of a Dagster run that loads ever more records: it should not grow with them.

    python benchmarks/memory.py                              10 thousand, 100 thousand, 1 million patients; 3 rounds
    python benchmarks/memory.py --records 10000 50000 --rounds 1

Each is a first load by `nexhealth sync`, whose run is a forked child: the figure is the greatest peak of the
command's processes, by the kernel's account. Beside them many locations at once, and a run that the daemon launched.
Ends with status 1 where one takes more than a run may, or grew with its records.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from nightly import place, settings_of, sync
from results import Chart, Part, Table, arguments, show, spread
from startup import WAIT_SECONDS, daemon

RECORDS = (10_000, 100_000, 1_000_000)
LOCATIONS, OF_EACH = 16, 15_000
"""More than are read at once, with so many patients each at most."""
MOST = 200.0
"""MiB that the process of a run may take."""
GROWTH = 0.10
"""What a load may take above the least one, whatever its size."""
JOB, STEP, PARTITIONS = "nexhealth_locations", "read_locations", "nexhealth_locations"


def loaded(locations: int, records: int) -> float:
    """MiB at most of a first load of so many patients of each location, by the command."""
    with place(locations, records, 0.0) as where:
        return sync(where, "--mode", "full", "--resource", "patients").rss


def loaded_by_daemon(records: int) -> float:
    """MiB at most of the process that the code server starts for a run: the same load, and all other lists."""
    with place(1, records, 0.0) as where:
        sync(where, "--resource", "locations")  # the location gets its partition
        with daemon(where, settings_of(where)) as workspace:
            return launched(workspace)


def launched(workspace: Path) -> float:
    """MiB at most of one run through the queue. Raises SystemExit where it does not succeed."""
    import dagster as dg

    with dg.DagsterInstance.get() as instance:
        config = {"partitions": list(instance.get_dynamic_partitions(PARTITIONS)), "mode": "full"}
        options = ["-w", str(workspace), "-j", JOB, "--config-json", json.dumps({"ops": {STEP: {"config": config}}})]
        subprocess.run(
            [sys.executable, "-P", "-m", "dagster", "job", "launch", *options], check=True, capture_output=True
        )
        run_id = instance.get_runs(dg.RunsFilter(job_name=JOB), limit=1)[0].run_id
        peak, deadline = 0.0, time.monotonic() + WAIT_SECONDS
        while not (run := instance.get_run_by_id(run_id)).is_finished:  # type: ignore[union-attr]  # it was launched
            if time.monotonic() > deadline:
                raise SystemExit(f"the run did not end within {WAIT_SECONDS:g} s")
            peak = max(peak, peak_so_far(worker_of(instance, run_id)))
            time.sleep(0.1)
    if not run.is_success:
        raise SystemExit(f"the run ended as {run.status.value}: its memory is of no use")
    return peak


def worker_of(instance: object, run_id: str) -> int | None:
    """The process of a run, by what it said first."""
    for entry in instance.all_logs(run_id):  # type: ignore[attr-defined]  # dagster is not imported here
        told = entry.dagster_event and entry.dagster_event.event_specific_data
        if "pid" in (getattr(told, "metadata", None) or {}):
            return int(told.metadata["pid"].value)
    return None


def peak_so_far(pid: int | None) -> float:
    """MiB, by the kernel; 0 of a process that is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> int:
    """Measure, print, keep; status 1 where a run took too much."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, nargs="*", default=list(RECORDS))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    many = sorted(args.records)[len(args.records) // 2]
    kinds: dict[str, Callable[[], float]] = {f"{one:,}": partial(loaded, 1, one) for one in args.records}
    sizes = list(kinds)
    each = min(OF_EACH, many)
    kinds[f"{LOCATIONS} x {each:,}"] = partial(loaded, LOCATIONS, each)
    kinds[f"{many:,}, by the daemon"] = partial(loaded_by_daemon, many)
    peaks: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(args.rounds):
        for name, load in kinds.items():
            peaks[name].append(load())
            print(f"round {number + 1}, {name}: {peaks[name][-1]:.0f} MiB", flush=True)
    medians = {name: statistics.median(found) for name, found in peaks.items()}
    least = min(medians[name] for name in sizes)
    rows = [[name, spread(found), f"{medians[name] / least - 1:+.0%}"] for name, found in peaks.items()]
    chart = Chart("peak", "Peak memory of a run, by records loaded", "MiB", list(medians), {"peak RSS": list(medians.values())})  # fmt: skip
    text = (
        f"First loads of patients within the rate limits, {args.rounds} round(s), by `nexhealth sync`: of one location, and of "
        f"{LOCATIONS}, of which as many are read at once as is usual. A run that the daemon launches has a process of its own, "
        "and reads all other lists of its location as well. "
        f"A run may take {MOST:g} MiB, and one location's loads {GROWTH:.0%} more than the least of them."
    )
    table = Table(["records", "peak RSS MiB", "above the least"], rows)
    show(Part("memory", "Memory of a run", text, [table], [chart]), args.json)
    grew = max(medians[name] for name in sizes) > (1 + GROWTH) * least
    return int(grew or max(medians.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
