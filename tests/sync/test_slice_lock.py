"""Two runs that read the same slice: one at a time, and nothing that is fresh is read twice (DESIGN 3b)."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import fault_points, runner
from nexhealth_pipeline.sync.months import utc_today
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slice_lock import SliceLock
from nexhealth_pipeline.sync.slices import Slice, SliceResult

from .kit import Rows, open_session, sync_all

ONE = {"providers"}


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=4, appointments_per_patient=1, limits=False) as box:
        yield box


def in_thread(settings: Settings, options: SyncOptions, results: list[SliceResult], **more: object) -> threading.Thread:
    def run() -> None:
        results.extend(one for one in sync_all(settings, options, only=ONE, **more) if one.slice.collection.name in ONE)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


class Pause:
    """Holds the first reader of providers at its first commit until let go."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, point: fault_points.Point, collection: str) -> None:
        if collection in ONE and point == "before_commit":
            self.reached.set()
            assert self.go_on.wait(120)


@pytest.fixture
def pause(monkeypatch: pytest.MonkeyPatch) -> Pause:
    pause = Pause()
    monkeypatch.setattr(fault_points, "armed", pause)
    monkeypatch.setattr(runner, "_PAUSE_SECONDS", 0.02)
    return pause


def waits(caplog: pytest.LogCaptureFixture) -> bool:
    return any("waiting for another run" in record.message for record in caplog.records)


def until_it_waits(caplog: pytest.LogCaptureFixture) -> None:
    tick = threading.Event()
    for _ in range(12_000):
        if waits(caplog):
            return
        tick.wait(0.01)
    raise AssertionError("the second run does not say that it waits")


def now(url: str) -> datetime:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row
    moment: datetime = row[0]
    return moment


@pytest.mark.parametrize("mode", [Mode.FULL, Mode.INCREMENTAL])
def test_the_second_reader_waits_says_so_and_skips_what_was_read_since_it_began(
    mode: Mode,
    settings: Settings,
    database_url: str,
    box: SandboxServer,
    rows: Rows,
    pause: Pause,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Began first, came to the slice second: reading it again would cost the budget and bring nothing."""
    caplog.set_level(logging.INFO, logger="nexhealth_pipeline.sync.runner")
    began = now(database_url)
    first: list[SliceResult] = []
    second: list[SliceResult] = []
    one = in_thread(settings, SyncOptions(mode=mode, fresh_after=now(database_url)), first)
    assert pause.reached.wait(120)
    other = in_thread(settings, SyncOptions(mode=mode, fresh_after=began), second)
    until_it_waits(caplog)
    pause.go_on.set()
    one.join()
    other.join()
    assert {str(result.status) for result in first} == {"succeeded"}
    assert {(str(result.status), result.reason) for result in second} == {
        ("skipped", "already read completely since this sync began")
    }
    asked = [(one.path, one.query) for one in box.requests if one.path == "/providers"]
    assert len(asked) == len(set(asked))
    logged = "SELECT status, count(*) FROM nexhealth_sync_logs WHERE collection = 'providers' GROUP BY 1 ORDER BY 1"
    assert rows(logged) == [("skipped", len(second)), ("succeeded", len(first))]


def test_the_second_reader_reads_again_what_was_begun_before_it(
    settings: Settings,
    database_url: str,
    box: SandboxServer,
    rows: Rows,
    pause: Pause,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A change made between both beginnings may lie on a page that the first had passed already."""
    caplog.set_level(logging.INFO, logger="nexhealth_pipeline.sync.runner")
    first: list[SliceResult] = []
    second: list[SliceResult] = []
    one = in_thread(settings, SyncOptions(mode=Mode.FULL, fresh_after=now(database_url)), first)
    assert pause.reached.wait(120)
    changed = box.state.ids("providers")[0]
    box.state.update("providers", changed, {"first_name": "Between"})
    other = in_thread(settings, SyncOptions(mode=Mode.FULL, fresh_after=now(database_url)), second)
    until_it_waits(caplog)
    pause.go_on.set()
    one.join()
    other.join()
    assert "succeeded" in {str(result.status) for result in second}
    assert rows(f"SELECT first_name FROM nexhealth_providers WHERE id = {changed}") == [("Between",)]


def test_a_reader_that_waits_can_be_stopped(
    settings: Settings, database_url: str, pause: Pause, caplog: pytest.LogCaptureFixture, rows: Rows
) -> None:
    """Ctrl-C must not wait for another run's hour; nothing of the wait stays in the log as running."""
    caplog.set_level(logging.INFO, logger="nexhealth_pipeline.sync.runner")
    first: list[SliceResult] = []
    second: list[SliceResult] = []
    one = in_thread(settings, SyncOptions(fresh_after=now(database_url)), first)
    assert pause.reached.wait(120)
    stop = threading.Event()
    other = in_thread(settings, SyncOptions(fresh_after=now(database_url)), second, stop=stop)
    until_it_waits(caplog)
    stop.set()
    other.join(120)
    assert not other.is_alive()
    pause.go_on.set()
    one.join()
    assert {str(result.status) for result in second} == {"cancelled"}
    assert {str(result.status) for result in first} == {"succeeded"}
    assert rows("SELECT count(*) FROM nexhealth_sync_logs WHERE status = 'running'") == [(0,)]


@contextmanager
def held(other: psycopg.Connection, piece: Slice, session: SyncSession) -> Iterator[None]:
    """Another run reads a slice; whoever waits for it all the same is stopped."""
    give_up = threading.Timer(60, session.stop.set)
    give_up.start()
    try:
        with SliceLock(other, piece, threading.Event()):
            yield
    finally:
        give_up.cancel()


def test_a_slice_that_another_run_reads_lets_all_behind_it_go_first(settings: Settings, database_url: str) -> None:
    """Risk: while a backfill reads one location's documents for hours, the night reads no list under rows of any other."""
    sync_all(settings, only={"patients"})
    with open_session(settings) as session, psycopg.connect(database_url, autocommit=True) as other:
        slices = due_slices([COLLECTIONS["documents"]], session.practices(), {}, SyncOptions(), utc_today())[:3]
        results = run_slices(session, slices, SyncOptions())
        with held(other, slices[0], session):
            first = [next(results), next(results)]
        (last,) = results
    assert [one.slice for one in (*first, last)] == [slices[1], slices[2], slices[0]]
    assert {str(one.status) for one in (*first, last)} == {"succeeded"}


def test_who_does_not_wait_is_told_which_slice_another_run_reads(
    settings: Settings, database_url: str, rows: Rows
) -> None:
    """Its log has no row of a slice that was not begun."""
    sync_all(settings, only={"patients"})
    with open_session(settings) as session, psycopg.connect(database_url, autocommit=True) as other:
        slices = due_slices([COLLECTIONS["documents"]], session.practices(), {}, SyncOptions(), utc_today())[:2]
        with held(other, slices[0], session):
            found = {one.slice: one for one in run_slices(session, slices, SyncOptions(waits=False))}
    assert [str(found[piece].status) for piece in slices] == ["skipped", "succeeded"]
    assert [found[piece].held for piece in slices] == [True, False]
    assert found[slices[0]].reason == "another run reads it just now"
    assert rows("SELECT count(*) FROM nexhealth_sync_logs WHERE collection = 'documents'") == [(1,)]
