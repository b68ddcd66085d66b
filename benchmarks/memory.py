"""Peak memory of the process of a Dagster run that loads ever more records: it should not grow with them.

    python benchmarks/memory.py                              10 thousand, 100 thousand, 1 million patients
    python benchmarks/memory.py --records 10000 50000

Each is a first load by `nexhealth sync`, whose run is a forked child: the figure is the greatest peak of the
command's processes, by the kernel's account. Ends with status 1 where one is far above the least.
"""

import sys

from nightly import Run, place, sync
from results import Chart, Part, Table, arguments, show

RECORDS = (10_000, 100_000, 1_000_000)
BOUND = 0.25
"""A peak so much above the least grows with the records; seven per cent was the most that was measured."""


def loaded(records: int) -> Run:
    """A first load of so many patients."""
    with place(1, records, 0.0) as where:
        return sync(where, "--mode", "full", "--resource", "patients")


def main() -> int:
    """Measure, print, keep; status 1 where memory grew with the records."""
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, nargs="*", default=list(RECORDS))
    args = parser.parse_args()
    runs: dict[int, Run] = {}
    for records in args.records:
        runs[records] = loaded(records)
        print(f"{records:,} records: {runs[records].rss:.0f} MiB, {runs[records].wall:.0f} s", flush=True)
    least = min(run.rss for run in runs.values())
    rows = [
        [f"{records:,}", f"{run.rss:.0f}", f"{run.rss / least - 1:+.0%}", f"{run.wall:.0f}"]
        for records, run in runs.items()
    ]
    chart = Chart("peak", "Peak memory of a run, by records loaded", "MiB", [row[0] for row in rows],
                  {"peak RSS": [run.rss for run in runs.values()]})  # fmt: skip
    text = (
        "A first load of one location's patients within the rate limits, so that a million records take over a minute."
    )
    table = Table(["records", "peak RSS MiB", "above the least", "s"], rows)
    show(Part("memory", "Memory of a run", text, [table], [chart]), args.json)
    return int(max(run.rss for run in runs.values()) > (1 + BOUND) * least)


if __name__ == "__main__":
    sys.exit(main())
