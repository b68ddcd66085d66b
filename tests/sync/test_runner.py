"""Slices read side by side share what a run may hold."""

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
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
        self.stop = self

    def is_set(self) -> bool:
        return False

    def note(self, result: SliceResult) -> None:
        pass

    def index(self, collections: Any) -> None:
        self.indexed.append({one.name for one in collections})


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pages a transaction of each slice read."""
    found: list[int] = []

    def read(_: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
        found.append(options.batch_pages)
        return SliceResult(piece, Status.SUCCEEDED, Counts(), 0.0)

    monkeypatch.setattr(runner, "read_slice", read)
    return found


def pieces(count: int) -> list[Slice]:
    return [Slice(COLLECTIONS["patients"]) for _ in range(count)]


@pytest.mark.parametrize(
    ("slices", "concurrency", "asked", "given"),
    [(1, 8, 4, 4), (4, 8, 4, 4), (8, 8, 4, 2), (100, 8, 4, 2), (100, 2, 4, 4), (100, 64, 4, 1), (1, 8, 100, 100)],
)
def test_many_slices_at_once_share_the_pages_of_a_few(
    batches: list[int], slices: int, concurrency: int, asked: int, given: int
) -> None:
    """Risk: eight practices at once take twice the memory that a run may have."""
    options = SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC), concurrency=concurrency, batch_pages=asked)
    list(run_slices(cast("SyncSession", Session()), pieces(slices), options))
    assert set(batches) == {given}


def test_a_dry_run_makes_no_index(batches: list[int]) -> None:
    session = Session()
    for dry_run in (True, False):
        options = SyncOptions(mode=Mode.FULL, fresh_after=datetime.now(UTC), dry_run=dry_run)
        list(run_slices(cast("SyncSession", session), pieces(2), options))
    assert session.indexed == [{"patients"}]
