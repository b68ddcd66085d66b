"""What an installation asks for, and how it grows with its locations: the tables of deploy/README.md.

    .venv/bin/python benchmarks/sizing.py          # prints them
    .venv/bin/python benchmarks/sizing.py --write  # puts them into deploy/README.md

Requests are counted with the planner itself, over practices that are made up here. What one record takes in the
database, and one request in CPU, was measured (`MEASURED`); what a location has is assumed (`Office`): change it to
yours and run it again.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import yaml
from kubernetes.utils.quantity import parse_quantity

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE
from nexhealth_pipeline.sync.explain import floor_seconds
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import due_slices, passes_of
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.checks import CHECKS

DEPLOY = Path(__file__).parents[1] / "deploy"
GUIDE = DEPLOY / "README.md"
ON = date(2026, 11, 28)
"""The day the figures are for: the number of months grows."""
SHARE = 0.8
NIGHTS = 7
"""A database is reconciled once in so many nights."""
RUNS_AT_ONCE = 3
"""Long nightly runs that Dagster starts side by side, each a process with a core of its own (`dagster.yaml`)."""
PROCESSES = RUNS_AT_ONCE + 1
"""Discovery, of seconds, waits for none of them."""
SIZES = (10, 100, 1000)
"""Locations that the tables are for."""
OFFICES_OF_ONE = 10
"""Locations of one institution, each with an EHR database of its own."""


@dataclass(frozen=True)
class Office:
    """What one location has, and what a day changes there. Assumptions: a practice of middle size."""

    patients: int = 4000
    coverages: int = 3000
    changed_patients: int = 60
    changed_coverages: int = 20
    changed_rows: int = 200
    """Rows that get a new version, appointments first of all; each old version is kept."""


DAY = {
    "appointments": 25, "procedures": 60, "charges": 40, "payments": 30, "claims": 15, "claim_payouts": 18,
    "clinical_notes": 15, "documents": 8, "patients": 2, "insurance_coverages": 2,
}  # fmt: skip
"""New rows of a day at one location."""


@dataclass(frozen=True)
class Measured:
    """Of a full sync and an incremental one of the sandbox: 700 patients, 5 locations, PostgreSQL 18, 28 November 2026."""

    bytes_a_patient: int = 46_500
    """Growth of the warehouse by the first sync, per patient, with everything that belongs to them, indexes included."""
    bytes_a_version: int = 1100
    """An old version in `nexhealth_history`: its `raw` is kept as it was."""
    bytes_a_slice: int = 650
    """A line of nexhealth_sync_logs."""
    bytes_a_change: int = 160
    """An entry of the change feed, which goes after seven days."""
    bytes_an_event: int = 1660
    """An event of Dagster's, indexes included."""
    events_a_run: int = 25
    events_a_check: int = 3
    """Planned, put out, evaluated: in a run of its own after the night's. A sync plans none."""
    bytes_a_check: int = 1600
    cpu_a_list: tuple[float, float] = (0.0139, 0.0073)
    """Seconds of client and PostgreSQL a request of a list: a night of 1,000 locations on 29 November 2026, 00:37 UTC
    (456 + 220 s), less its start and the 18,000 lists under rows that it asked for. The same night took 292 + 149 s later
    that day: a core is not always as fast, and these are the careful figures."""
    cpu_a_row: tuple[float, float] = (0.0040, 0.0012)
    """The same, of a list under a row: documents of 20,000 patients, 00:19 UTC (83 + 24 s); beside tests 133 + 39 s."""
    cpu_to_start: float = 4.5
    mib_of_a_run: int = 194
    """Peak of the greatest process of that night."""
    mib_of_services: tuple[int, ...] = (168, 173, 148, 88)
    """Peaks of code location, webserver, daemon and receiver, in an installation of one location."""


BYTES = {
    "appointments": 1810, "procedures": 842, "charges": 1197, "payments": 943, "claims": 1303, "claim_payouts": 1332,
    "clinical_notes": 672, "documents": 545, "patients": 1978, "insurance_coverages": 743,
}  # fmt: skip
"""pg_total_relation_size of a collection's table, per row."""
_UNDER_ROWS = {one.path for one in DECLARED if one.per}
_SCOPES = {one.path: one.scope for one in DECLARED}
OFFICE, MEASURED = Office(), Measured()


class _AllComplete(dict[Any, Any]):
    """Watermarks of an installation that has read everything once."""

    def __contains__(self, key: object) -> bool:
        return True


def practice() -> Practices:
    """One institution with its locations."""
    institution = Institution(1, "practice", "", frozenset())
    offices = tuple(Location(number, "", institution, False, number, False) for number in range(1, OFFICES_OF_ONE + 1))
    return Practices((institution,), offices)


@cache
def slices(mode: Mode, today: date) -> tuple[Slice, ...]:
    """What a sync of one institution reads, once everything was read before."""
    assets = [one for one in DECLARED if one.is_asset]
    return tuple(due_slices(assets, practice(), _AllComplete(), SyncOptions(mode=mode), today))


def times(collection: Collection, locations: int) -> int:
    """How often one institution's work is done; the practice collections are asked for once."""
    return 1 if collection.scope is Scope.PRACTICE else locations // OFFICES_OF_ONE


@cache
def requests(locations: int, mode: Mode, today: date) -> Mapping[str, int]:
    """Requests by the collection's path, for a multiple of OFFICES_OF_ONE locations.

    Lists count a page a pass, and in whole reads as many as their rows need.
    """
    found: Counter[str] = Counter()
    for piece in slices(mode, today):
        collection = piece.collection
        offices = OFFICES_OF_ONE if collection.scope is Scope.INSTITUTION else 1
        if collection.per:
            asked = offices_children(collection, mode, OFFICE, offices)
        else:
            passes = len(passes_of(piece, today, reconcile=mode is Mode.RECONCILE))
            asked = passes * _pages(collection, mode, OFFICE, offices)
        found[collection.path] += asked * times(collection, locations)
    return found


def offices_children(collection: Collection, mode: Mode, office: Office, offices: int) -> int:
    """Single reads of one slice: of all parents in a full sync; else, reconciled or not, those changed and in turn."""
    of_patients = collection.per == "patients"
    parents = offices * (office.patients if of_patients else office.coverages)
    if mode is Mode.FULL:
        return parents
    changed = offices * (office.changed_patients if of_patients else office.changed_coverages)
    return changed + ceil(parents / SyncOptions().rotation_days)


def _pages(collection: Collection, mode: Mode, office: Office, offices: int) -> int:
    rows = {"patients": office.patients, "insurance_coverages": office.coverages}.get(collection.name, 0)
    return max(1, ceil(offices * rows / MOST_A_PAGE[collection.paging])) if mode.whole else 1


def night(locations: int, today: date) -> Counter[str]:
    """Requests of a night by path: one seventh of the databases is reconciled, lists in turn; the others incrementally.

    What changed in windows is read of all.
    """
    changes = requests(locations, Mode.INCREMENTAL, today)
    whole = requests(locations, Mode.RECONCILE, today)
    of_all = {one.path for one in DECLARED if one.window}
    nights = {path: NIGHTS if path in of_all else NIGHTS - 1 for path in changes.keys() | whole.keys()}
    return Counter(
        {path: round((changes.get(path, 0) * some + whole.get(path, 0)) / NIGHTS) for path, some in nights.items()}
    )


def lines(locations: int, today: date, *, windows: bool = True) -> int:
    """Slices of a night, with those of appointments or without."""
    return sum(
        times(one.collection, locations)
        for one in slices(Mode.INCREMENTAL, today)
        if windows or one.collection.window is None
    )


def events(locations: int, today: date) -> int:
    """Dagster's events of a night: each slice is planned and materialized; appointments' changes are observed."""
    of_checks = len(CHECKS) * MEASURED.events_a_check
    return 2 * lines(locations, today, windows=False) + locations + 6 * MEASURED.events_a_run + of_checks


def cpu(found: Mapping[str, int]) -> tuple[float, float]:
    """Seconds of client and PostgreSQL for requests by path."""
    under_rows = sum(number for path, number in found.items() if path in _UNDER_ROWS)
    lists = sum(found.values()) - under_rows
    client, server = (
        lists * a_list + under_rows * a_row
        for a_list, a_row in zip(MEASURED.cpu_a_list, MEASURED.cpu_a_row, strict=True)
    )
    return client + MEASURED.cpu_to_start, server


def why(collection: Collection) -> str:
    """Why its requests are needed, and no fewer."""
    if collection.per:
        return f"one of each of the {collection.per.replace('_', ' ')}, since there is no list of all: that changed, and 1/30 of all"
    if collection.scope is Scope.PRACTICE:
        return "one for all that the key reaches, to know what there is to read"
    passes = len(collection.regular_passes)
    parts = [
        "what changed" if collection.increment else "all of it: the API tells no changes",
        "by month the first time, since it must be asked for by dates" if collection.window else "",
        f"in {passes} parts that no single answer holds" if passes > 1 else "",
    ]
    return "; ".join(filter(None, parts))


def by_collection(today: date) -> Iterator[str]:
    """Requests of a location by collection, as Markdown; several collections may come from one path."""
    first, nightly = requests(OFFICES_OF_ONE, Mode.FULL, today), night(OFFICES_OF_ONE, today)
    yield "| from | collection | first sync, a location | a night | why |"
    yield "|---|---|---|---|---|"
    for path in sorted(first):
        ours = [one for one in DECLARED if one.is_asset and one.path == path]
        yield _row(
            f"`{path}`",
            ", ".join(one.name for one in ours),
            *(f"{found.get(path, 0) / OFFICES_OF_ONE:,.1f}" for found in (first, nightly)),
            why(ours[0]),
        )


def tables(today: date) -> Iterator[str]:
    """All tables, as Markdown."""
    yield "| locations | requests, first sync | hours | requests a night | of `/patients`, `/appointments` | hours with one key | with a key an institution |"
    yield "|---|---|---|---|---|---|---|"
    for count in SIZES:
        first, nightly = requests(count, Mode.FULL, today), night(count, today)
        one_key = night(min(count, OFFICES_OF_ONE), today)
        patients = sum(number for path, number in nightly.items() if path.startswith(("/patients", "/appointments")))
        yield _row(
            count,
            sum(first.values()),
            f"{hours(first, first):.1f}",
            sum(nightly.values()),
            patients,
            f"{hours(nightly, nightly):.1f}",
            f"{hours(one_key, nightly):.1f}",
        )
    yield ""
    yield "| locations | warehouse after the first sync | a night | Dagster's history a night | slices a night | CPU of the runs a night | of PostgreSQL |"
    yield "|---|---|---|---|---|---|---|"
    for count in SIZES:
        nightly = night(count, today)
        whole, grown, history = databases(count, today)
        yield _row(
            count,
            size(whole),
            size(grown),
            size(history),
            lines(count, today),
            *(f"{one / 60:.0f} min" if one >= 90 else f"{one:.0f} s" for one in cpu(nightly)),
        )
    yield ""
    yield "| locations | cores busy in a night with one key | CPU of the first sync | PostgreSQL's disk after a year |"
    yield "|---|---|---|---|"
    for count in SIZES:
        nightly = night(count, today)
        whole, grown, history = databases(count, today)
        busy = (one / 3600 / hours(nightly, nightly) for one in cpu(nightly))
        yield _row(
            count,
            " + ".join(f"{one:.2f}" for one in busy),
            " + ".join(f"{one / 3600:.1f} h" for one in cpu(requests(count, Mode.FULL, today))),
            size(whole + 365 * grown + 30 * history),
        )
    cores, mib = reserved()
    yield ""
    yield f"At any of these sizes at most {RUNS_AT_ONCE} long runs of schedules, and discovery, go on at a time in a night, each with a core of its own, and in a cluster with a pod."
    yield f"The application takes {memory() / 1024:.1f} GiB of memory then (what stands all the time as measured with one location), and what pods"
    yield f"reserve of a cluster is {cores:g} cores and {mib / 1024:.1f} GiB."


def databases(locations: int, today: date) -> tuple[float, float, float]:
    """Bytes: the warehouse after the first sync, what a night adds to it, and what a night adds to Dagster's history."""
    logged = lines(locations, today) * MEASURED.bytes_a_slice
    grown = locations * (_new_bytes() + OFFICE.changed_rows * MEASURED.bytes_a_version) + logged
    history = events(locations, today) * MEASURED.bytes_an_event + len(CHECKS) * MEASURED.bytes_a_check
    return locations * OFFICE.patients * MEASURED.bytes_a_patient, grown, history


def _new_bytes() -> int:
    return sum(number * BYTES[name] for name, number in DAY.items())


def hours(of_a_key: Mapping[str, int], of_all: Mapping[str, int]) -> float:
    """The least time, by what limits: a key's rate limits at the default share, or the cores of the runs.

    No run ends before its own CPU time, and of all runs no more than RUNS_AT_ONCE go on.
    """
    known = {one.path for one in COLLECTIONS.values()}
    by_path = {path: number for path, number in of_a_key.items() if path in known}
    client, _ = cpu(of_all)
    return max(floor_seconds(by_path, SHARE), client / RUNS_AT_ONCE, longest_run(of_all)) / 3600


def longest_run(found: Mapping[str, int]) -> float:
    """CPU seconds of a night's longest run: a scope is one job, and a tick asks for one run of it beside what it reconciles."""
    of_scopes = (
        cpu({path: number for path, number in found.items() if _SCOPES[path] is scope})[0]
        for scope in set(_SCOPES.values())
    )
    return max(of_scopes) * (NIGHTS - 1) / NIGHTS


def reserved() -> tuple[float, float]:
    """Cores and MiB that the pods of deploy/ reserve in a cluster while so many nightly runs go on."""
    values = yaml.safe_load((DEPLOY / "helm" / "values.yaml").read_text(encoding="utf-8"))
    instance = yaml.safe_load((DEPLOY / "kubernetes" / "dagster.yaml").read_text(encoding="utf-8"))
    receiver, *_ = yaml.safe_load_all((DEPLOY / "kubernetes" / "receiver.yaml").read_text(encoding="utf-8"))
    webserver, daemon = values["dagsterWebserver"], values["dagsterDaemon"]
    pods = [
        (webserver["replicaCount"], webserver["resources"]),
        (1, daemon["resources"]),
        *((1, one["resources"]) for one in values["dagster-user-deployments"]["deployments"]),
        (PROCESSES, instance["run_launcher"]["config"]["resources"]),
        *(
            (receiver["spec"]["replicas"], one["resources"])
            for one in receiver["spec"]["template"]["spec"]["containers"]
        ),
    ]
    cores, octets = (
        float(sum(count * parse_quantity(one["requests"][what]) for count, one in pods)) for what in ("cpu", "memory")
    )
    return cores, octets / 2**20


def memory() -> int:
    """MiB of the application while so many nightly runs go on."""
    return PROCESSES * MEASURED.mib_of_a_run + sum(MEASURED.mib_of_services)


def size(number: float) -> str:
    """Bytes for people."""
    power, unit = next((one for one in ((9, "GB"), (6, "MB")) if number >= 10 ** one[0]), (3, "kB"))
    rounded = number / 10**power
    return f"{rounded:.0f} {unit}" if rounded >= 10 else f"{rounded:.1f} {unit}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(f"{one:,}" if isinstance(one, int) else str(one) for one in cells) + " |"


def written(text: str, today: date) -> str:
    """The guide with these tables in it."""
    for name, made in (("sizing", tables(today)), ("requests", by_collection(today))):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        _, _, after = rest.partition(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n" + "\n".join(made) + f"\n<!-- /{name} -->{after}"
    return text


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        GUIDE.write_text(written(GUIDE.read_text(encoding="utf-8"), ON), encoding="utf-8")
    else:
        print("\n".join([*tables(ON), "", *by_collection(ON)]))
