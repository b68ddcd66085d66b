"""What killed syncs are judged by: which pages the database holds, and whether two warehouses hold the same."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sandbox.log import Asked
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.plan import passes_of, slices_of
from nexhealth_pipeline.sync.practice import load_practices
from tests.forks import Forks, forks

PAGING = {"end_cursor", "per_page", "page"}
DISCOVERY = {"/authenticates", *(one.path for one in DECLARED if one.scope is Scope.PRACTICE)}
Key = tuple[str, tuple[tuple[str, str], ...]]


def order(box: SandboxServer, url: str, mode: str = "full", **more: object) -> dict[str, object]:
    """A sync of `box` into the warehouse at `url`, for :class:`tests.forks.Forks`; `more` as `fork_server.run` has it."""
    return {"api_url": box.url, "api_key": box.api_key, "database_url": url, "mode": mode, **more}


@contextmanager
def syncs(folder: Path) -> Iterator[Forks]:
    """What starts them."""
    with forks("tests.sync.fork_server", folder) as started:
        yield started


class Witness:
    """One scenario: remembers which requests need not be sent again."""

    def __init__(self, box: SandboxServer, url: str) -> None:
        self._box, self._url = box, url
        self._held: set[Key] = set()
        with psycopg.connect(url) as connection:
            found = connection.execute("SELECT run_id, clock_timestamp() FROM nexhealth_runs").fetchall()
            self._earlier = {run_id for run_id, _ in found}
            row = connection.execute("SELECT clock_timestamp(), count(*) FROM nexhealth_sweeps").fetchone()
        assert row is not None
        self._began, self._sweeps = row
        self._first = self._mark = self._last_number()

    def _last_number(self) -> int:
        return max((asked.number for asked in self._box.requests), default=0)

    def nothing_asked_twice(self) -> None:
        """Nothing asked since the last look was in the database then; note what is there now."""
        for asked in self._box.requests.matching(since=self._mark):
            assert asked.path in DISCOVERY or asked_key(asked) not in self._held, (asked.path, asked.query)
        self._mark = self._last_number()
        self._held |= self._committed()

    @property
    def sync_is_over(self) -> bool:
        """Whether the sync had come to its end, whatever became of its process: the next one is another."""
        with psycopg.connect(self._url) as connection:
            row = connection.execute(
                "SELECT count(*), bool_and(finished_at IS NOT NULL) FROM nexhealth_sweeps"
            ).fetchone()
        return row is not None and row[0] > self._sweeps and row[1]

    @property
    def held(self) -> int:
        """How many answers need not be asked for again."""
        return len(self._held)

    def _committed(self) -> set[Key]:
        chains: dict[Key, dict[Key, None]] = {}
        for asked in self._box.requests.matching(since=self._first, status=200):
            chains.setdefault(chain_of(asked), {})[asked_key(asked)] = None
        with psycopg.connect(self._url) as connection:
            states = connection.execute(
                "SELECT collection, institution_id, location_id, window_key, pass, page, run_id,"
                " watermark IS NOT DISTINCT FROM pass_started_at, mode FROM nexhealth_sync_state"
            ).fetchall()
            plans = dict(_plans(connection, reconcile=any(mode == Mode.RECONCILE for *_, mode in states)))
            singles = set(self._singles(connection))
        kept = {key for chain, keys in chains.items() if chain in singles for key in keys}
        held = dict.fromkeys(plans, 0)
        for *name, pages, run_id, complete, _ in states:
            # A page number is no place to go on from: rows move between pages.
            goes_on = complete or COLLECTIONS[name[0]].paging is not Paging.PAGE
            if goes_on and run_id not in self._earlier and tuple(name) in plans:
                held[tuple(name)] = pages
        # A reconcile asks for some lists twice: what both passes hold is not asked for again.
        for chain in set(plans.values()):
            pages = min(held[name] for name, of in plans.items() if of == chain)
            kept |= set(list(chains.get(chain, {}))[:pages])
        return kept

    def _singles(self, connection: psycopg.Connection) -> Iterator[Key]:
        """Lists under one row that have been read."""
        reads = connection.execute(
            "SELECT collection, subdomain, patient_id FROM nexhealth_child_reads r"
            " JOIN nexhealth_institutions i ON i.id = r.institution_id WHERE read_at >= %s",
            (self._began,),
        )
        for name, subdomain, parent in reads.fetchall():
            for pass_ in COLLECTIONS[name].passes:
                path = COLLECTIONS[name].path.replace("{id}", str(parent))
                yield path, tuple(sorted([*pass_.params, ("subdomain", subdomain)]))


def _plans(connection: psycopg.Connection, *, reconcile: bool) -> Iterator[tuple[tuple[object, ...], Key]]:
    """Key of each pass's state -> what its requests have in common."""
    today = datetime.now(UTC).date()
    for collection in DECLARED:
        if not collection.is_asset or collection.scope is Scope.PRACTICE or collection.per:
            continue
        for piece in slices_of(collection, load_practices(connection, ()), today):
            for plan in passes_of(piece, today, reconcile=reconcile):
                key, request = plan.key, plan.request
                params = sorted([*request.params, ("subdomain", str(request.subdomain))])
                name = (key.collection, key.institution_id, key.location_id, key.window_key, key.pass_name)
                yield name, (request.path, tuple(params))


def asked_key(asked: Asked) -> Key:
    return asked.path, tuple(sorted(asked.params))


def chain_of(asked: Asked) -> Key:
    """What the requests of one pass have in common."""
    left_out = PAGING | {one.increment for one in DECLARED if one.path == asked.path}
    return asked.path, tuple(sorted(pair for pair in asked.params if pair[0] not in left_out))


def facts(url: str) -> dict[str, str]:
    """Hash of each table's rows, without times of ours and run ids."""
    with psycopg.connect(url) as connection:
        found = {collection.name: _hash(connection, _content(collection)) for collection in DECLARED}
        found["patient_locations"] = _hash(
            connection,
            "SELECT institution_id, patient_id, location_id, gone_at IS NULL FROM nexhealth_patient_locations ORDER BY 1, 2, 3",
        )
        found["child_reads"] = _hash(
            connection,
            "SELECT collection, institution_id, patient_id, patient_version, rows FROM nexhealth_child_reads ORDER BY 1, 2, 3",
        )
        found["history"] = _hash(
            connection,
            "SELECT collection, institution_id, key, version, cause, changed_fields, raw FROM nexhealth_history"
            " ORDER BY 1, 2, 3, 4",
        )
        found["quarantine"] = _hash(
            connection,
            "SELECT collection, institution_id, record_id, field FROM nexhealth_quarantine ORDER BY 1, 2, 3, 4",
        )
    return found


def _content(collection: Collection) -> sql.Composed:
    names = [column.name for column in collection.columns if column.name != "deleted_at"]
    keys = [sql.Identifier(name) for name in collection.key]
    columns = [sql.Identifier(name) for name in [*collection.key, *names, "raw", "row_hash", "deleted_by"]]
    return sql.SQL(
        "SELECT {}, CASE WHEN deleted_by = 'absence' THEN NULL ELSE deleted_at END FROM {} ORDER BY {}"
    ).format(sql.SQL(", ").join(columns), sql.Identifier(collection.table), sql.SQL(", ").join(keys))


def _hash(connection: psycopg.Connection, query: "str | sql.Composed") -> str:
    rows = connection.execute(query).fetchall()
    text = json.dumps([[str(value) for value in row] for row in rows], sort_keys=True)
    return f"{len(rows)} rows {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def open_rows(url: str) -> list[tuple[object, ...]]:
    """Runs and log rows that nobody ended."""
    with psycopg.connect(url) as connection:
        runs = connection.execute("SELECT run_id, status FROM nexhealth_runs WHERE finished_at IS NULL").fetchall()
        logs = connection.execute(
            "SELECT id, collection, status FROM nexhealth_sync_logs WHERE status = 'running' OR finished_at IS NULL"
        ).fetchall()
    return [*runs, *logs]


def statuses(url: str) -> list[str]:
    """How the runs ended, in order."""
    with psycopg.connect(url) as connection:
        return [status for (status,) in connection.execute("SELECT status FROM nexhealth_runs ORDER BY started_at")]
