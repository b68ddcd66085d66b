"""Peak memory of the process of a Dagster run that loads ever more records: it should not grow with them.

    python benchmarks/memory.py                              10 thousand, 100 thousand, 1 million patients; 3 rounds
    python benchmarks/memory.py --records 10000 50000 --rounds 1

Each is a first load by `nexhealth sync`, whose run is a forked child: the figure is the greatest peak of the
command's processes, by the kernel's account. Beside them many locations at once, and a run in a process of Dagster's own.
Ends with status 1 where one takes more than a run may, or grew with its records.
"""

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measure import accounted
from nightly import place, settings_of, sync
from practice_api import FIRST_INSTITUTION, FIRST_LOCATION
from results import Chart, Part, Table, arguments, show, spread
from serving import environment

from nexhealth_pipeline.orchestration.instance import dagster_home
from nexhealth_pipeline.settings import load_settings

RECORDS = (10_000, 100_000, 1_000_000)
LOCATIONS, OF_EACH = 16, 15_000
"""More than are read at once, with so many patients each at most."""
MOST = 200.0
"""MiB that the process of a run may take."""
GROWTH = 0.10
"""What a load may take above the least one, whatever its size."""


def loaded(locations: int, records: int) -> float:
    """MiB at most of a first load of so many patients of each location, by the command."""
    with place(locations, records, 0.0) as where:
        return sync(where, "--mode", "full", "--resource", "patients").rss


def loaded_by_dagster(records: int) -> float:
    """MiB at most of a process that Dagster starts for a run, as its daemon does: not a fork of ours, nor its summary."""
    with place(1, records, 0.0) as where:
        sync(where, "--resource", "locations")  # so that the location has its partition
        given = settings_of(where)
        home = dagster_home(
            load_settings({**given, "NEXHEALTH_HOME": str(where.home)}, environ={}, env_file=None), start=Path("/")
        )
        environ = {**environment(where.home, **given), "DAGSTER_HOME": str(home)}
        key = f"bench-{FIRST_INSTITUTION}.{FIRST_LOCATION}"
        options = ["--select", "nexhealth_patients", "--partition", key, "-m", "nexhealth_pipeline.definitions"]
        used = accounted([sys.executable, "-P", "-m", "dagster", "asset", "materialize", *options], environ, where.home)
    if used.status:
        raise SystemExit(f"the run ended with {used.status}: its memory is of no use")
    return used.rss


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
    kinds[f"{many:,}, in a process of Dagster's"] = partial(loaded_by_dagster, many)
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
        f"{LOCATIONS}, of which as many are read at once as is usual. A run of the daemon has a process of Dagster's own, "
        "as `dagster asset materialize` has, not a fork of the command. "
        f"A run may take {MOST:g} MiB, and one location's loads {GROWTH:.0%} more than the least of them."
    )
    table = Table(["records", "peak RSS MiB", "above the least"], rows)
    show(Part("memory", "Memory of a run", text, [table], [chart]), args.json)
    grew = max(medians[name] for name in sizes) > (1 + GROWTH) * least
    return int(grew or max(medians.values()) > MOST)


if __name__ == "__main__":
    sys.exit(main())
