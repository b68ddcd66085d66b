"""What the rate limits hold back, against the floor they set: a night of many locations, a full load, documents.

    python benchmarks/nightly.py night                       1,000 locations, half an hour
    python benchmarks/nightly.py night_by_daemon             the same by the schedules, which reconcile as well
    python benchmarks/nightly.py full_load                   5 locations, five minutes
    python benchmarks/nightly.py documents                   of 20,000 patients, 28 minutes
    python benchmarks/nightly.py night --locations 50

The night: everything was read the night before, one per cent of the patients and appointments changed since. The
floor is that of the requests that were answered: what NEXHEALTH_RATE_SHARE of the documented limits allows at the even
rate, by the slowest class. What had been read before is partly written by SQL instead of read (said in the report): its first load is not
what is measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from arrivals import Arrival, counts_of, floor_seconds, peaks, statuses
from measure import accounted, children_cpu, peak_rss_of, server_cpu
from practice_api import KEY
from results import Part, Table, arguments, show
from serving import asked, daemon, environment, server, started

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.limits import LIMITS
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.children import ROWS
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import passes_of, slices_of
from nexhealth_pipeline.sync.practice import Practices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.migrate import declare_kind, upgrade
from nexhealth_pipeline.warehouse.state import PassKey

if TYPE_CHECKING:
    import dagster as dg
    from dagster._core.scheduler.instigation import InstigatorTick

SHARE = 0.8
TOO_MANY = 429
"""Status of a request beyond the limits."""
NIGHTS = 30
"""Over which the lists under patients rotate."""
_DAEMON_STANDS = timedelta(minutes=2)
"""In which daemon and code server start: a schedule makes up for no tick of before. The last minute is cut off."""
_SCHEDULES, _SCHEDULES_BEGIN = 5, 300.0
"""The nightly ones, and the seconds in which each has asked for its runs."""


_LAST_NIGHT = "now() - interval '1 day'"
"""Of what a night found last: lists under rows come up sooner, or fewer at once, the shorter ago that was."""


class Unlimited:
    """For what is read before the clock starts."""

    def acquire(self, classes: object) -> float:
        """Never wait."""
        return 0.0

    def throttle(self, classes: object, seconds: float) -> None:
        """Never called."""


@dataclass(frozen=True, slots=True)
class Run:
    """One `nexhealth sync`, or one night of the daemon's, and what the API saw of it."""

    wall: float
    began: float
    arrivals: list[Arrival]
    client_cpu: float
    server_cpu: float
    rss: float
    runs: int
    """Of Dagster's."""

    @property
    def floor(self) -> float:
        """Seconds that what was answered takes at the even rate; what was refused came again."""
        return floor_seconds(counts_of(one for one in self.arrivals if one[2] != TOO_MANY), SHARE)


def read_before(where: "Place", *, rest: bool) -> None:
    """Bring a warehouse to where last night left it: patients are read, the `rest` is noted as read."""
    asked(f"{where.api_url}/bench/begin?limits=0")
    url = where.url
    choices = {"NEXHEALTH_API_KEY": KEY, "NEXHEALTH_API_URL": where.api_url, "DATABASE_URL": url}
    settings = load_settings(choices, environ={}, env_file=None)
    options = SyncOptions(mode=Mode.FULL, concurrency=8)
    today = datetime.now(UTC).date()
    with SyncSession(settings, url, budget_for=lambda _: Unlimited()) as session:
        load(session, [Slice(one) for one in DECLARED if one.scope is Scope.PRACTICE and one.is_asset], options)
        load(session, slices_of(COLLECTIONS["patients"], session.practices(), today), options)
        if rest:
            with psycopg.connect(url) as db:
                note_read(db, session.practices())


def load(session: SyncSession, slices: Iterable[Slice], options: SyncOptions) -> None:
    """Read slices. Raises SystemExit where one fails."""
    failed = [result.slice.label for result in run_slices(session, slices, options) if result.status == "failed"]
    if failed:
        raise SystemExit(f"could not be read before: {failed[0]}")


def note_read(db: psycopg.Connection, practices: Practices) -> None:
    """Note every slice but those of patients, and every list under a patient, as read completely last night."""
    db.execute(
        "CREATE TEMP TABLE was_read (collection text, institution_id bigint, location_id bigint, window_key text, pass text)"
    )
    with db.cursor() as cursor, cursor.copy("COPY was_read FROM STDIN") as copy:
        for key in keys_of(practices):
            copy.write_row(astuple(key))
    moments = ("watermark", "pass_started_at", "begun_at", "complete_at", "last_full_at", "fresh_at", "full_at")
    db.execute(
        "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode, filter_hash,"
        f" cursor, page, records, run_id, {', '.join(moments)})"
        f" SELECT *, 'full', '', '', 0, 0, '', {', '.join([_LAST_NIGHT] * len(moments))} FROM was_read ON CONFLICT DO NOTHING"
    )
    db.execute(
        "INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through, last_full_at)"
        f" SELECT DISTINCT institution_id, location_id, collection, {_LAST_NIGHT}, {_LAST_NIGHT} FROM was_read"
        " ON CONFLICT DO NOTHING"
    )
    for name in [one.name for one in DECLARED if one.per_patient]:
        db.execute(
            "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, judged_at,"
            " patient_version, rows) SELECT %s, institution_id, id, read_at, read_at, updated_at, 0"
            " FROM nexhealth_patients, LATERAL (SELECT now() - (id %% %s) * interval '1 day' - interval '23 hours') r (read_at)",
            (name, NIGHTS),
        )


def keys_of(practices: Practices) -> Iterator[PassKey]:
    """The passes of all slices but those of patients and of the practice."""
    today = datetime.now(UTC).date()
    for collection in DECLARED:
        if collection.is_asset and collection.scope is not Scope.PRACTICE and collection.name != "patients":
            for piece in slices_of(collection, practices, today):
                plans = passes_of(piece, today)
                yield from (replace(one.key, pass_name=ROWS) if collection.per else one.key for one in plans)


@dataclass(frozen=True, slots=True)
class Place:
    """A local API, a warehouse, and the command's home."""

    api_url: str
    url: str
    home: Path


@contextmanager
def place(locations: int, patients: int, latency: float) -> Iterator[Place]:
    """An API of its own and an empty warehouse."""
    options = ("--locations", locations, "--patients", patients, "--latency", latency)
    with started("practice_api.py", *options) as api_url, server() as (postgres, home):
        postgres.create_database("nexhealth")
        url = postgres.url("nexhealth")
        upgrade(url)
        declare_kind(url, "sandbox")
        yield Place(api_url, url, home)


def settings_of(where: Place) -> dict[str, str]:
    """What the command and Dagster's processes are given."""
    return {"NEXHEALTH_API_URL": where.api_url, "NEXHEALTH_API_KEY": KEY, "DATABASE_URL": where.url,
            "NEXHEALTH_DATA_KIND": "sandbox", "NEXHEALTH_RATE_SHARE": str(SHARE), "NEXHEALTH_LOG_LEVEL": "WARNING"}  # fmt: skip


def sync(where: Place, *options: str) -> Run:
    """Run the command under the documented limits and wait for its end. Raises SystemExit where it fails."""
    asked(f"{where.api_url}/bench/begin?limits=1")
    command = [sys.executable, "-P", "-m", "nexhealth_pipeline.cli", "sync", "--json", *options]
    with psycopg.connect(where.url, autocommit=True) as db:
        before, began = server_cpu(db), time.time()
        used = accounted(command, environment(where.home, **settings_of(where)), where.home)
        spent = server_cpu(db) - before
    if used.status:
        raise SystemExit(f"nexhealth sync ended with {used.status}: {used.output[-2000:]}")
    arrivals = [(moment, path, status) for moment, path, status in asked(f"{where.api_url}/bench/arrivals")]
    return Run(used.wall, began, arrivals, used.cpu, spent, used.rss, len(json.loads(used.output)["run_ids"]))


def night(args: argparse.Namespace) -> Run:
    """A night after one on which everything was read."""
    with place(args.locations, args.patients, args.latency) as where:
        print("reading what last night had read", flush=True)
        read_before(where, rest=True)
        asked(f"{where.api_url}/bench/change?every=100")
        print("the night", flush=True)
        return sync(where)


def night_by_daemon(args: argparse.Namespace) -> Run:
    """The same night, as schedules, daemon and code server make it."""
    import dagster as dg

    with place(args.locations, args.patients, args.latency) as where:
        print("reading what last night had read", flush=True)
        read_before(where, rest=True)
        asked(f"{where.api_url}/bench/change?every=100")
        begins = (datetime.now(UTC) + _DAEMON_STANDS).replace(second=0, microsecond=0)
        with (
            daemon(where.home, settings_of(where) | crons(begins)),
            dg.DagsterInstance.get() as instance,
            psycopg.connect(where.url, autocommit=True) as db,
        ):
            print(f"the night begins at {begins:%H:%M} UTC", flush=True)
            time.sleep(begins.timestamp() - time.time())
            asked(f"{where.api_url}/bench/begin?limits=1")
            before, spent = server_cpu(db), children_cpu(without="practice_api.py")
            runs, rss = night_of(instance, begins)
            spent, before = children_cpu(without="practice_api.py") - spent, server_cpu(db) - before
        arrivals = [(moment, path, status) for moment, path, status in asked(f"{where.api_url}/bench/arrivals")]
        ended = max(run.end_time or 0.0 for run in runs)
        return Run(ended - begins.timestamp(), begins.timestamp(), arrivals, spent, before, rss, len(runs))


def crons(begins: datetime) -> dict[str, str]:
    """Settings by which a night begins then, and the morning comes half a day later."""
    morning = begins + timedelta(hours=12)
    at = {"NEXHEALTH_NIGHTLY": begins, "NEXHEALTH_CATCHUP": morning}
    return {name: f"{one.minute} {one.hour} * * *" for name, one in at.items()} | {"NEXHEALTH_TIMEZONE": "UTC"}


def night_of(instance: "dg.DagsterInstance", begins: datetime) -> tuple["Sequence[dg.RunRecord]", float]:
    """The runs since then, once the schedules have asked for theirs and all have ended; the greatest peak of one, MiB.

    Raises SystemExit where a schedule has not begun after five minutes, or one or a run of theirs has failed.
    """
    import dagster as dg

    from nexhealth_pipeline.orchestration.names import CHANGES_JOB, SCOPE_JOBS

    peak = 0.0
    while True:
        with suppress(LookupError):  # none is going
            peak = max(peak, peak_rss_of("spawn_main("))
        ticks = [tick for tick in nightly_ticks(instance) if tick.timestamp >= begins.timestamp()]
        since = instance.get_run_records(dg.RunsFilter(created_after=begins))
        runs = [
            run for run in since if run.dagster_run.job_name in {*SCOPE_JOBS.values(), CHANGES_JOB}
        ]  # not those of checks and of the watchdog
        failed = [run.dagster_run.job_name for run in runs if run.dagster_run.is_failure_or_canceled]
        failed += [tick.instigator_name for tick in ticks if tick.is_failure]
        if failed:
            raise SystemExit(f"{failed[0]} failed")
        begun = sum(tick.is_completed for tick in ticks) == _SCHEDULES
        if begun and all(run.dagster_run.is_finished for run in runs):
            return runs, peak
        if not begun and time.time() > begins.timestamp() + _SCHEDULES_BEGIN:
            raise SystemExit(f"of {_SCHEDULES} schedules only {len(ticks)} have begun")
        time.sleep(5)


def nightly_ticks(instance: "dg.DagsterInstance") -> Iterator["InstigatorTick"]:
    """What the nightly schedules have done."""
    for one in instance.all_instigator_state():
        if one.instigator_name.startswith("nexhealth_nightly_"):
            yield from instance.get_ticks(one.instigator_origin_id, one.selector_id)


def full_load(args: argparse.Namespace) -> Run:
    """A first load."""
    with place(args.locations, args.patients, args.latency) as where:
        return sync(where, "--mode", "full")


def documents(args: argparse.Namespace) -> Run:
    """A list under each patient, the first time."""
    with place(args.locations, args.patients, args.latency) as where:
        print("reading the patients", flush=True)
        read_before(where, rest=False)
        return sync(where, "--resource", "documents")


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured."""

    run: Callable[[argparse.Namespace], Run]
    locations: int
    patients: int
    """Of each location, and as many appointments."""
    title: str
    text: str


KINDS = {
    "night": Kind(
        night,
        1000,
        100,
        "A night against the rate floor",
        "Before it all patients were read; all other lists, months of appointments and lists under patients were noted "
        f"as read by SQL, the latter spread over the {NIGHTS} nights of the rotation; then one in a hundred patients and "
        "appointments changed. It is the command, `nexhealth sync`.",
    ),
    "night_by_daemon": Kind(
        night_by_daemon,
        1000,
        100,
        "A night by schedules and daemon against the rate floor",
        "What was there before is that of the command's night. The schedules ask for their runs at a full minute, from "
        "which the time counts; the daemon queues and starts them. They reconcile a seventh of the locations as well: "
        "all its patients, and two requests for each of its 53 months of appointments. CPU is that of daemon, code server and runs, the peak that of a run.",
    ),
    "full_load": Kind(
        full_load,
        5,
        200,
        "A full load against the rate floor",
        "Nothing was there before; it is the command, `nexhealth sync --mode full`.",
    ),
    "documents": Kind(
        documents,
        1,
        20_000,
        "Documents of all patients against the rate floor",
        "The patients were there, their lists of documents were never read: a request each.",
    ),
}
_TEXT = """\
{locations:,} location(s) with {patients:,} patients and as many appointments each. At {share:.0%} of the documented limits, against a local API that enforces them, waits {wait:.0f} ms \
before each answer and counts what arrives. The floor is the slowest rate class's requests at that share, at the even rate; a sliding window gives \
its first window's worth at once, so the true least is up to a minute shorter. Lists other \
than those of patients and appointments are empty: requests are measured, not loading. {more}"""


def row(run: Run) -> list[str]:
    """A run in figures."""
    first, last = (f"{choose(one[0] for one in run.arrivals) - run.began:.1f}" for choose in (min, max))
    counts = ", ".join(f"{one} {count:,}" for one, count in sorted(counts_of(run.arrivals).items()))
    most = ", ".join(f"{one} {count}/{LIMITS[one].requests}" for one, count in sorted(peaks(run.arrivals).items()))
    return [
        counts, f"{run.floor:.0f}", f"{run.wall:.0f}", f"{run.wall / run.floor:.2f}", f"{first} / {last}", most,
        str(statuses(run.arrivals)[TOO_MANY]), f"{run.client_cpu:.0f} + {run.server_cpu:.0f}", f"{run.rss:.0f}", str(run.runs),
    ]  # fmt: skip


COLUMNS = ["requests", "floor s", "took s", "ratio", "first / last request s", "most in a window / limit", "429",
           "CPU s: client + PostgreSQL", "peak RSS MiB of a process", "Dagster runs"]  # fmt: skip


def main() -> None:
    """Run one, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--locations", type=int)
    parser.add_argument("--patients", type=int, help="of each location, and as many appointments")
    parser.add_argument("--latency", type=float, default=0.15, help="seconds before each of the API's answers")
    args = parser.parse_args()
    kind = KINDS[args.kind]
    args.locations, args.patients = args.locations or kind.locations, args.patients or kind.patients
    run = kind.run(args)
    text = _TEXT.format(
        locations=args.locations, patients=args.patients, share=SHARE, wait=args.latency * 1000, more=kind.text
    )
    table = Table(COLUMNS, [row(run)])
    show(Part(args.kind, kind.title, text, [table]), args.json)


if __name__ == "__main__":
    main()
