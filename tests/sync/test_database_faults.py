"""PostgreSQL that goes away, stands still, is full or says no: a clear end, no half page, and the next sync heals."""

import os
import shutil
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.errors import BudgetUnavailable, PipelineError, WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import children, fault_points
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import SliceResult, Status
from nexhealth_pipeline.warehouse import budget
from nexhealth_pipeline.warehouse.absence import Missing
from tests.servers import Server

from .killed import open_rows
from .test_full import expected

READ = COLLECTIONS["patients"]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a disk of its own needs root: mount -t tmpfs")


@pytest.fixture(scope="module")
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=24, appointments_per_patient=1, limits=False) as box:
        yield box


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 4)
    monkeypatch.setattr(budget, "_AWAY_SECONDS", 5.0)  # longer than a restart: no end of a slice is lost by it


def sync(box: SandboxServer, url: str, *others: str, mode: Mode = Mode.INCREMENTAL, **more: Any) -> list[SliceResult]:
    """The practice and its patients, then `others`, with the budget that all processes share."""
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": url}
    settings = load_settings(given, environ={}, env_file=None)
    options = SyncOptions(mode=mode, batch_pages=1, **more)
    today = datetime.now(UTC).date()
    with SyncSession(settings, url) as session:
        practice = [one for one in DECLARED if one.scope is Scope.PRACTICE]
        results = list(run_slices(session, due_slices(practice, session.practices(), {}, options, today), options))
        for collection in (READ, *(COLLECTIONS[name] for name in others)):
            results += run_slices(session, due_slices([collection], session.practices(), {}, options, today), options)
    return results


@contextmanager
def once_at(point: str, act: Callable[[], object], at: str = READ.name) -> Iterator[list[str]]:
    """Do something to the server when the second batch of a collection has come to `point`."""
    reached: list[str] = []
    lock = threading.Lock()

    def armed(here: fault_points.Point, collection: str) -> None:
        with lock:
            if (here, collection) == (point, at):
                reached.append(point)
                if len(reached) == 2:
                    act()

    fault_points.armed = armed
    try:
        yield reached
    finally:
        fault_points.armed = None
        assert len(reached) >= 2


def no_page_is_half(url: str) -> None:
    """Rows, log and state were written together or not at all."""
    with psycopg.connect(url) as connection:
        counted = connection.execute(
            "SELECT (SELECT count(*) FROM nexhealth_patients), (SELECT coalesce(sum(inserted), 0) FROM nexhealth_sync_logs"
            " WHERE collection = 'patients'), (SELECT coalesce(sum(records), 0) FROM nexhealth_sync_state"
            " WHERE collection = 'patients' AND pass = 'all')"
        ).fetchone()
    assert counted
    assert counted[0] == counted[1] == counted[2]


def heals(box: SandboxServer, url: str) -> None:
    """The next sync ends well, with every row, and leaves nothing open."""
    results = sync(box, url)
    assert {str(result.status) for result in results} <= {"succeeded", "skipped"}, [r.reason for r in results]
    with psycopg.connect(url) as connection:
        found = connection.execute(f"SELECT count(*), count(DISTINCT id) FROM {READ.table}").fetchone()
    assert found == (len(expected(box, READ)),) * 2
    assert open_rows(url) == []


def ended(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {status for (status,) in connection.execute("SELECT status FROM nexhealth_sync_logs").fetchall()}


def says(error: PipelineError) -> str:
    """All that a stored traceback would show: never the driver's own words."""
    text = "".join(traceback.format_exception(error))
    assert "psycopg." not in text.replace("psycopg.connect", ""), text
    return str(error)


SOAK = pytest.mark.soak
CRASHES = [
    pytest.param(point, marks=() if point in ("after_copy", "before_commit") else SOAK) for point in fault_points.POINTS
]
RESTARTS = [pytest.param(point, marks=() if point == "before_commit" else SOAK) for point in fault_points.POINTS]


@pytest.mark.parametrize("point", CRASHES)
def test_a_server_that_crashes_ends_the_sync_and_costs_no_row(point: str, server: Server, box: SandboxServer) -> None:
    """Before COPY, merge and commit, and after it. Nobody may wait for a server that is gone."""
    url = server.database()
    began = time.monotonic()
    with once_at(point, server.crash), pytest.raises(WarehouseUnreachable) as caught:
        sync(box, url)
    assert time.monotonic() - began < 60
    assert says(caught.value)
    server.up()
    no_page_is_half(url)
    heals(box, url)
    assert "interrupted" in ended(url)


@pytest.mark.parametrize("point", RESTARTS)
def test_a_server_that_is_restarted_ends_the_sync_with_its_log_closed(
    point: str, server: Server, box: SandboxServer
) -> None:
    """It is there again when the run ends, so the run says itself how that was."""
    url = server.database()
    with once_at(point, server.restart), pytest.raises(WarehouseError) as caught:
        sync(box, url)
    assert says(caught.value)
    assert open_rows(url) == []
    assert "failed" in ended(url)
    no_page_is_half(url)
    heals(box, url)


@pytest.mark.parametrize("seconds", [0.5, pytest.param(60.0, marks=SOAK)])
def test_a_server_that_stands_still_is_waited_for(seconds: float, server: Server, box: SandboxServer) -> None:
    """A snapshot of a virtual machine does this. After a minute it may be given up, but only in clear words."""
    url = server.database()
    with once_at("after_copy", lambda: server.freeze(seconds)):
        try:
            results = sync(box, url)
        except WarehouseError as error:
            if seconds < 30:
                raise
            says(error)
        else:
            assert {str(result.status) for result in results} == {"succeeded"}, [
                (result.slice.label, result.reason) for result in results if str(result.status) != "succeeded"
            ]
    time.sleep(0.1)
    no_page_is_half(url)
    heals(box, url)


def test_a_budget_that_cannot_be_asked_ends_the_sync_with_its_log_closed(
    server: Server, box: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may be sent, so no other slice would fare better."""
    monkeypatch.setattr(budget, "_SESSION", "SELECT set_config('lock_timeout', '100ms', false)")
    monkeypatch.setattr(budget, "_PATIENCE_SECONDS", 0.2)
    url = server.database()
    with psycopg.connect(url) as holder:
        hold = "SELECT FROM nexhealth_rate_budget FOR UPDATE"
        with once_at("after_fetch", lambda: holder.execute(hold) and None), pytest.raises(BudgetUnavailable):
            sync(box, url)
        assert open_rows(url) == []
        assert "failed" in ended(url)
    no_page_is_half(url)
    heals(box, url)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of its own that the server may write to."""
    folder = Path(tempfile.mkdtemp(prefix="nexhealth-disk-", dir="/var/tmp"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip("this machine lets nobody mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@AS_ROOT
def test_a_full_disk_is_called_that_and_heals_once_there_is_room(server: Server, box: SandboxServer) -> None:
    """The driver calls it an operational error, like a lost connection; the cure is another one."""
    with small_disk(64) as disk:
        inside = disk / "rows"
        inside.mkdir()
        shutil.chown(inside, *(_owner(server)))
        inside.chmod(0o700)
        with psycopg.connect(server.up().url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{inside}'")
        url = server.database("TABLESPACE small")
        ballast = disk / "ballast"
        with once_at("after_fetch", lambda: _fill(ballast)), pytest.raises(WarehouseError) as caught:
            sync(box, url)
        assert "no room left (53100)" in says(caught.value)
        ballast.unlink()
        no_page_is_half(url)
        heals(box, url)
        assert ended(url) & {"failed", "interrupted"}
        with psycopg.connect(server.up().url("postgres"), autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {psycopg.conninfo.conninfo_to_dict(url)['dbname']} WITH (FORCE)")
            connection.execute("DROP TABLESPACE small")


def _owner(server: Server) -> tuple[int, int]:
    data = (server.home / "postgres/server/data").stat()
    return data.st_uid, data.st_gid


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"\0" * 65536)
        except OSError:
            pass


def as_loader(connection: psycopg.Connection, url: str) -> str:
    """The address for a role that is not the tables' owner, but may do with them all that a sync does."""
    if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'loader'").fetchone():
        connection.execute("CREATE ROLE loader LOGIN")
    connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO loader")
    connection.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO loader")
    connection.execute("GRANT CREATE ON SCHEMA public TO loader")
    return url.replace("postgres@", "loader@")


LACKS = "loading nexhealth_{}: the database role lacks a right (42501)"


def refusals(results: list[SliceResult], name: str) -> set[str | None]:
    """Why slices of a collection failed; those of all others did not."""
    failed = [one for one in results if one.status is Status.FAILED and one.absence is None]
    assert {one.slice.collection.name for one in failed} == {name}
    return {one.reason for one in failed}


def test_a_role_that_loses_a_right_is_told_so(server: Server, box: SandboxServer) -> None:
    """An administrator's REVOKE in the middle of the night; the slice's log row says how it ended, and others are read."""
    url = server.database()
    with psycopg.connect(url, autocommit=True) as connection:
        theirs = as_loader(connection, url)
        revoke = "REVOKE INSERT, UPDATE ON nexhealth_patients FROM loader"
        with once_at("after_fetch", lambda: connection.execute(revoke) and None):
            results = sync(box, theirs)
        assert LACKS.format("patients") in refusals(results, "patients")
        logged = connection.execute("SELECT DISTINCT error FROM nexhealth_sync_logs WHERE status = 'failed'").fetchall()
        assert {error for (error,) in logged} == refusals(results, "patients")
        assert open_rows(url) == []
        no_page_is_half(url)
        connection.execute("GRANT INSERT, UPDATE ON nexhealth_patients TO loader")
    heals(box, theirs)


def test_a_batch_of_lists_under_rows_that_fails_is_not_tried_once_more(
    server: Server, box: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage went with the transaction: without it the second try ended otherwise, and hid what there is to mend."""
    monkeypatch.setattr(children, "_BATCH_ROWS", 4)
    url = server.database()
    with psycopg.connect(url, autocommit=True) as connection:
        theirs = as_loader(connection, url)
        connection.execute("REVOKE INSERT, UPDATE ON nexhealth_documents FROM loader")
        results = sync(box, theirs, "documents", mode=Mode.RECONCILE)
        assert refusals(results, "documents") == {LACKS.format("documents")}
        assert open_rows(url) == []
        connection.execute("GRANT INSERT, UPDATE ON nexhealth_documents TO loader")
    results = sync(box, theirs, "documents", mode=Mode.RECONCILE)
    assert {str(result.status) for result in results} <= {"succeeded", "skipped"}, [r.reason for r in results]


def test_a_table_that_refuses_is_asked_for_once_and_absences_elsewhere_are_judged(server: Server) -> None:
    """Each slice of it would ask NexHealth in vain; and what is gone of one collection waits for no right on another."""
    url = server.database()
    with (
        SandboxServer(patients=12, appointments_per_patient=1, limits=False) as box,
        psycopg.connect(url, autocommit=True) as connection,
    ):
        theirs = as_loader(connection, url)
        sync(box, theirs, "documents", "operatories")
        gone, room = (min(box.state.ids(name)) for name in ("patients", "operatories"))
        box.state.delete("patients", gone, hard=True)
        box.state.delete("operatories", room, hard=True)
        connection.execute("REVOKE UPDATE ON nexhealth_documents FROM loader")
        results = sync(box, theirs, "operatories", mode=Mode.RECONCILE)
        judged = [one.reason for one in results if one.absence is not None and one.status is Status.FAILED]
        lacks = LACKS.format("patients").replace(
            "loading nexhealth_patients", "marking patients or what stands under them"
        )
        assert set(judged) == {f"absences not judged: {lacks}"}
        deleted = "SELECT count(*) FROM nexhealth_operatories WHERE deleted_by = 'absence'"
        assert connection.execute(deleted).fetchone() == (1,)

        connection.execute("REVOKE SELECT ON nexhealth_patients FROM loader")
        for dry_run in (True, False):
            box.requests.clear()
            results = sync(box, theirs, "operatories", mode=Mode.FULL, dry_run=dry_run, concurrency=1)
            assert refusals(results, "patients") == {LACKS.format("patients")}
            slices = sum(one.slice.collection is READ for one in results)
            assert sum(one.path == "/patients" for one in box.requests) < slices


def refuse(error: psycopg.Error) -> None:
    raise error


def test_a_value_that_a_column_cannot_hold_fails_its_slice_alone(server: Server, box: SandboxServer) -> None:
    """What no check of ours has foreseen is one location's, not the night's."""
    url = server.database()
    with once_at("before_commit", lambda: refuse(psycopg.errors.NumericValueOutOfRange())):
        results = sync(box, url)
    words = "loading nexhealth_patients: PostgreSQL refused a value (22003 NumericValueOutOfRange)"
    assert words in refusals(results, "patients")
    assert open_rows(url) == []
    no_page_is_half(url)
    heals(box, url)


@pytest.mark.parametrize(
    ("error", "collection", "point"),
    [
        (psycopg.errors.DeadlockDetected, "patients", "before_commit"),
        (psycopg.errors.LockNotAvailable, "documents", "before_commit"),
        (psycopg.errors.SerializationFailure, "patients", "after_copy"),
        (psycopg.errors.DeadlockDetected, "documents", "after_copy"),
    ],
)
def test_a_transaction_that_another_one_was_in_the_way_of_is_made_again(
    error: type[psycopg.Error],
    collection: str,
    point: str,
    server: Server,
    box: SandboxServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Risk: one deadlock of one batch ends a night of a thousand locations. It is nobody's fault, and counts nothing twice."""
    monkeypatch.setattr(children, "_BATCH_ROWS", 4)
    url = server.database()
    with once_at(point, lambda: refuse(error()), at=collection):
        results = [one for one in sync(box, url, "documents", mode=Mode.RECONCILE) if one.absence is None]
    assert {str(result.status) for result in results} == {"succeeded"}, [r.reason for r in results]
    no_page_is_half(url)
    for name in ("patients", "documents"):
        read = [one.counts for one in results if one.slice.collection.name == name]
        with psycopg.connect(url) as connection:
            logged = connection.execute(
                "SELECT sum(inserted), sum(records_read), sum(pages) FROM nexhealth_sync_logs WHERE collection = %s",
                (name,),
            ).fetchone()
        assert logged == tuple(
            sum(getattr(one, what) for one in read) for what in ("inserted", "records_read", "pages")
        )
        assert logged[0] == len(expected(box, COLLECTIONS[name]))
    heals(box, url)


def test_a_transaction_that_is_in_the_way_again_and_again_ends_the_sync(server: Server, box: SandboxServer) -> None:
    url = server.database()

    def armed(here: fault_points.Point, collection: str) -> None:
        if (here, collection) == ("before_commit", READ.name):
            raise psycopg.errors.DeadlockDetected

    fault_points.armed = armed
    try:
        with pytest.raises(WarehouseError, match="40P01"):
            sync(box, url)
    finally:
        fault_points.armed = None
    assert open_rows(url) == []
    no_page_is_half(url)
    heals(box, url)


def test_marking_what_is_gone_is_made_again_as_well(
    server: Server, box: SandboxServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.database()
    sync(box, url)
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE nexhealth_patients SET id = -id WHERE id = (SELECT min(id) FROM nexhealth_patients)")
    mark, marked = Missing.mark, []

    def noting(self: Missing, at: datetime) -> int:
        marked.append(mark(self, at))
        return marked[-1]

    def armed(here: fault_points.Point, collection: str) -> None:
        if (here, collection) == ("before_commit", fault_points.ABSENCES) and marked == [1]:
            raise psycopg.errors.DeadlockDetected

    monkeypatch.setattr(Missing, "mark", noting)
    fault_points.armed = armed
    try:
        sync(box, url, mode=Mode.RECONCILE)
    finally:
        fault_points.armed = None
    assert marked == [1, 1]
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT deleted_by FROM nexhealth_patients WHERE id < 0").fetchall()
    assert found == [("absence",)]


def test_a_wrong_password_ends_before_anything_is_asked(server: Server, box: SandboxServer) -> None:
    with psycopg.connect(server.up().url("postgres"), autocommit=True) as connection:
        connection.execute("CREATE ROLE stranger")  # may not log in
    asked = len(box.requests)
    with pytest.raises(WarehouseUnreachable) as caught:
        sync(box, server.database().replace("postgres@", "stranger@"))
    assert says(caught.value)
    assert len(box.requests) == asked
