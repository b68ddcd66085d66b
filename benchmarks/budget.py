"""Whether several processes on one API key use the share of the limits that is theirs, evenly, and never more.

    python benchmarks/budget.py                                  4 and 8 processes, four mixes, 180 s each
    python benchmarks/budget.py --processes 4 --seconds 90 --mix patients

Each process sends as fast as the shared budget lets it, with the product's own client, on eight threads. The local API
enforces the documented limits (429) and notes when each request arrived; what is told of it is its own count.
The first window is left out of the use, since a minute begins with half of its share at once.
"""

import itertools
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import psycopg
from arrivals import Arrival, by_class, fairness, peaks, statuses, use
from practice_api import KEY
from results import Part, Table, arguments, show
from serving import asked, reported, server, started

from nexhealth_pipeline.catalog.limits import LIMITS, RateClass
from nexhealth_pipeline.client.budget import Budget
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.warehouse.budget import BudgetConnection, PostgresBudget
from nexhealth_pipeline.warehouse.migrate import upgrade

SHARE = 0.8
"""Of the limits; the default of NEXHEALTH_RATE_SHARE."""
THREADS = 8
"""Of each process."""
START = 120.0
"""Seconds in which all processes must be ready to send; one that is not keeps the others no longer."""
_MONTH = (("location_id", "100001"), ("start", "2026-01-01T00:00:00+0000"), ("end", "2026-02-01T00:00:00+0000"))
_DOCUMENTS = ApiRequest("/patients/7/documents", (), "bench-101")
_ROOMS = ApiRequest("/operatories", (), "bench-101")
_VISITS = ApiRequest("/appointments", _MONTH, "bench-101")
MIXES = {
    "patients": ((_DOCUMENTS,), RateClass.PATIENTS),
    "other": ((_ROOMS,), RateClass.OTHER),
    "appointment list": ((_VISITS,), RateClass.APPOINTMENT_LIST),
    "all": ((_DOCUMENTS, _ROOMS, _ROOMS, _ROOMS), RateClass.OTHER),
}
"""What the threads ask for, and the class whose use is told."""


def send(
    report: Connection, api_url: str, database_url: str, requests: tuple[ApiRequest, ...], seconds: float, gate: Barrier
) -> None:
    """A sending process: reports how many requests it got answered."""
    stop = threading.Event()

    def budget_for(key_hash: str) -> Budget:
        return PostgresBudget(BudgetConnection(database_url, stop=stop), key_hash, SHARE)

    client = NexHealthClient(api_url=api_url, api_keys={"": KEY}, budget_for=budget_for, timeout_seconds=60, stop=stop)

    def ask(request: ApiRequest) -> int:
        for count in itertools.count():
            try:
                client.get(request)
            except Cancelled:
                return count
        return 0

    client.authenticate()
    gate.wait(START)
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    with ThreadPoolExecutor(THREADS) as pool:
        counts = list(pool.map(ask, itertools.islice(itertools.cycle(requests), THREADS)))
    timer.join()
    client.close()
    report.send(sum(counts))


def trial(api_url: str, database_url: str, mix: str, processes: int, seconds: float) -> tuple[list[Arrival], list[int]]:
    """What arrived, and how many requests each process got answered."""
    requests, _ = MIXES[mix]
    asked(f"{api_url}/bench/begin?limits=1")
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(processes)
    ends = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        given = (theirs, api_url, database_url, requests, seconds, gate)
        process = context.Process(target=send, args=given, daemon=True)  # ended with this one
        process.start()
        theirs.close()
        ends.append((process, ours))
    counts: list[int] = [reported(pipe, 2 * START + seconds) for _, pipe in ends]
    for process, _ in ends:
        process.join()
    return [(moment, path, status) for moment, path, status in asked(f"{api_url}/bench/arrivals")], counts


def row(mix: str, processes: int, arrivals: list[Arrival], counts: list[int]) -> list[str]:
    """A trial in figures."""
    _, rate_class = MIXES[mix]
    times, window = by_class(arrivals)[rate_class], LIMITS[rate_class].window_seconds
    used = use(times, rate_class, SHARE, min(times) + window, max(times))
    most = ", ".join(f"{one} {count}/{LIMITS[one].requests}" for one, count in sorted(peaks(arrivals).items()))
    return [mix, str(processes), f"{len(arrivals):,}", f"{rate_class} {used:.1%}", f"{fairness(counts):.2f}", most,
            str(statuses(arrivals)[429])]  # fmt: skip


def main() -> None:
    """Run the trials one after the other, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--processes", type=int, nargs="*", default=[4, 8])
    parser.add_argument("--mix", nargs="*", choices=MIXES, default=list(MIXES))
    parser.add_argument("--seconds", type=float, default=180, help="of each trial; at least 90 tell a minute's use")
    args = parser.parse_args()
    rows = []
    with server() as (postgres, _), started("practice_api.py", "--latency", 0.05) as api_url:
        upgrade(postgres.url("postgres"))
        for number, (mix, processes) in enumerate(itertools.product(args.mix, args.processes), 1):
            print(f"trial {number}: {mix}, {processes} processes, {args.seconds:g} s", flush=True)
            with psycopg.connect(postgres.url("postgres"), autocommit=True) as db:
                db.execute("TRUNCATE nexhealth_rate_budget")  # each trial meets a new limiter, too
            rows.append(row(mix, processes, *trial(api_url, postgres.url("postgres"), mix, processes, args.seconds)))
            print("  " + " | ".join(rows[-1]), flush=True)
    text = (
        f"{args.seconds:g} s a trial; each process has {THREADS} threads that ask as fast as the shared budget lets "
        f"them, with the product's client, at {SHARE:.0%} of the documented limits. A local API (50 ms an answer) counts "
        "arrivals and enforces the limits. Use is of the share, after the first window; the least part is what "
        "the slowest process got of an equal part; the most in any sliding window stands beside the documented limit."
    )
    columns = ["requests", "processes", "arrived", "use of the share", "least part", "most in a window / limit", "429"]
    show(Part("budget", "One API key, several processes", text, [Table(columns, rows)]), args.json)


if __name__ == "__main__":
    main()
