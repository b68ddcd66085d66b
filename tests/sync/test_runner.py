"""Slices read side by side share what a run may hold; indexes are made when all are read, or not at all."""

from dataclasses import replace
from datetime import UTC, datetime
from threading import Event
from time import monotonic, sleep
from typing import Any, cast

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import MissingRights, WarehouseError
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import runner
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.sync_log import Counts


class Session:
    """Notes nothing and has no database."""

    def __init__(self) -> None:
        self.indexed: list[set[str]] = []
        self.stop = Event()
        self.refusals: dict[str, MissingRights] = {}

    def note(self, result: SliceResult) -> None:
        pass

    def index(self, collections: Any) -> None:
        self.indexed.append({one.name for one in collections})


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Of each slice read: pages a transaction, and whether it fetches while it encodes."""
    found: list[tuple[int, bool]] = []

    def read(_: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
        found.append((options.batch_pages, options.fetch_ahead))
        return SliceResult(piece, Status.SUCCEEDED, Counts(), 0.0)

    monkeypatch.setattr(runner, "read_slice", read)
    return found


def pieces(count: int, name: str = "patients") -> list[Slice]:
    return [Slice(COLLECTIONS[name]) for _ in range(count)]


@pytest.mark.parametrize(
    ("slices", "concurrency", "asked", "given"),
    [
        (1, 8, 6, (6, True)),
        (2, 8, 6, (3, True)),
        (4, 8, 6, (1, False)),
        (6, 8, 6, (1, False)),
        (6, 8, 18, (3, False)),
        (100, 6, 6, (1, False)),
        (100, 2, 6, (3, True)),
        (100, 64, 6, (1, False)),
        (1, 8, 100, (100, True)),
    ],
)
def test_many_slices_at_once_share_the_pages_of_one(
    batches: list[tuple[int, bool]], slices: int, concurrency: int, asked: int, given: tuple[int, bool]
) -> None:
    """Risk: eight practices at once take twice the memory that a run may have."""
    options = SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC), concurrency=concurrency, batch_pages=asked)
    list(run_slices(cast("SyncSession", Session()), pieces(slices), options))
    assert set(batches) == {given}


@pytest.mark.parametrize(("others", "given"), [("operatories", 1), ("documents", 2)])
def test_slices_of_every_lane_count(batches: list[tuple[int, bool]], others: str, given: int) -> None:
    """Lists under rows commit row by row, and count for nothing."""
    options = SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC), concurrency=6, batch_pages=12)
    list(run_slices(cast("SyncSession", Session()), pieces(8) + pieces(8, others), options))
    assert {pages for pages, _ in batches} == {given}


class Elsewhere:
    """Other runs read some slices for so many looks; notes the slices that are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **looks: int) -> None:
        self.looks, self.seen = looks, list[str]()
        monkeypatch.setattr(runner, "read_slice", self._read)
        monkeypatch.setattr(runner, "_PAUSE_SECONDS", 0.0)

    def _read(self, _: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
        name = piece.collection.name
        self.seen.append(name)
        self.looks[name] = self.looks.get(name, 0) - 1
        held = self.looks[name] >= 0
        return SliceResult(piece, Status.SKIPPED if held else Status.SUCCEEDED, Counts(), 0.0, held=held)


UNDER_ROWS = ["documents", "alerts", "patient_addresses", "coverage_subscribers"]


def test_slices_that_other_runs_read_take_turns_at_the_end_of_their_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is read for hours must not keep the run from another that is free in a minute."""
    elsewhere = Elsewhere(monkeypatch, documents=4, alerts=2)
    slices = [piece for name in UNDER_ROWS for piece in pieces(1, name)]
    results = run_slices(cast("SyncSession", Session()), slices, SyncOptions())
    assert [one.slice.collection.name for one in results] == [*UNDER_ROWS[2:], "alerts", "documents"]
    assert elsewhere.seen[:6] == [*UNDER_ROWS, "documents", "alerts"]


def test_who_does_not_wait_looks_at_each_slice_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Webhooks hold their events meanwhile; those of a slice that is being read come again later."""
    elsewhere = Elsewhere(monkeypatch, documents=4)
    slices = [piece for name in UNDER_ROWS for piece in pieces(1, name)]
    results = list(run_slices(cast("SyncSession", Session()), slices, SyncOptions(waits=False)))
    assert [(one.slice.collection.name, one.held) for one in results] == [(n, n == "documents") for n in UNDER_ROWS]
    assert elsewhere.seen == UNDER_ROWS


@pytest.mark.parametrize("error", [WarehouseError("no room left"), ValueError("Canary")], ids=["told", "a bug"])
def test_what_is_under_way_when_one_ends_the_run_is_handed_out_first(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: of what was read and committed meanwhile nobody is told, and the reason is not for hours."""
    slices = [Slice(COLLECTIONS["operatories"], window_key=str(number)) for number in range(20)]
    begun, other, failed = list[Slice](), Event(), Event()

    def read(_: SyncSession, piece: Slice, __: SyncOptions) -> SliceResult:
        begun.append(piece)
        if piece is slices[0]:
            assert other.wait(10)
            failed.set()
            raise error
        other.set()
        assert failed.wait(10)
        deadline = monotonic() + 10  # else this one may end before what ends the run is known
        while not caplog.messages and monotonic() < deadline:
            sleep(0.01)
        return SliceResult(piece, Status.SUCCEEDED, Counts(), 0.0)

    monkeypatch.setattr(runner, "read_slice", read)
    told = []
    with pytest.raises(type(error)) as caught:  # noqa: PT012 # what came before it counts as well
        for result in run_slices(cast("SyncSession", Session()), slices, SyncOptions(concurrency=2)):
            told.append(result.slice)
            assert caplog.messages == ["an error ends the run once the slices under way are read"]
    assert caught.value is error
    assert slices[1] in told
    assert sorted([*told, slices[0]], key=slices.index) == sorted(begun, key=slices.index)
    assert len(begun) < len(slices) / 2
    assert "Canary" not in str(vars(caplog.records[0])["nexhealth"])


def test_only_who_writes_and_holds_nothing_makes_indexes(batches: list[tuple[int, bool]]) -> None:
    session = cast("SyncSession", Session())
    options = SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC))
    list(run_slices(session, pieces(2), replace(options, dry_run=True)))
    list(run_slices(session, pieces(2), options, indexes=False))
    assert cast("Session", session).indexed == []
    list(run_slices(session, pieces(2), options))
    assert cast("Session", session).indexed == [{"patients"}]


def test_tables_of_lists_inside_records_are_looked_at_as_well(batches: list[tuple[int, bool]]) -> None:
    """Risk: one that gains an index in a release never gets it, since no slice reads it."""
    session = cast("SyncSession", Session())
    list(run_slices(session, pieces(1, "charges"), SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC))))
    assert cast("Session", session).indexed == [{"charges", "claim_payouts"}]


def test_a_run_does_not_fail_for_want_of_an_index(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Everything was read and committed before."""
    settings = load_settings({"NEXHEALTH_API_KEY": "k", "DATABASE_URL": database_url}, environ={}, env_file=None)
    with SyncSession(settings, database_url) as session:
        session.pool.close()
        session.index([COLLECTIONS["patients"]])
    assert [record.getMessage() for record in caplog.records] == ["indexes are left to the next run"]
