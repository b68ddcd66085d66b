"""Many events that only tell of a change, at many locations: planned once, and left as they were by a wish to stop."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.practice import Practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.sync_log import Counts
from nexhealth_pipeline.webhooks.applying import hints
from nexhealth_pipeline.webhooks.applying.apply import apply_pending
from tests.effort import counted
from tests.sync.kit import open_session

from .kit import INSTITUTION, body, complete_elsewhere, load_page, mark_complete, settings_for, store

LOCATIONS = range(71, 79)


class Plans:
    """Notes the plans that are made, and what is read after them: nothing is asked of an API."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[list[int]] = []
        """The locations of each."""
        self.read: list[Slice] = []
        self.stop_at: SyncSession | None = None
        monkeypatch.setattr(hints, "due_slices", self._planning)
        monkeypatch.setattr(hints, "run_slices", self._reading)

    def _planning(self, collections: Iterable[Collection], practices: Practices, *given: Any) -> list[Slice]:
        self.made.append([location.id for location in practices.locations])
        if self.stop_at is not None:
            self.stop_at.stop.set()
        return due_slices(collections, practices, *given)

    def _reading(self, _session: SyncSession, pieces: Iterable[Slice], *_: Any, **__: Any) -> Iterator[SliceResult]:
        for piece in pieces:
            self.read.append(piece)
            yield SliceResult(piece, Status.SUCCEEDED, Counts(), 0.0, complete=True)


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> Plans:
    return Plans(monkeypatch)


@pytest.fixture
def session(practice: psycopg.Connection, practice_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncSession]:
    """Of a practice all of whose appointments were read once at these locations."""
    monkeypatch.setattr(months, "FIRST_MONTH", datetime.now(UTC).date().replace(day=1))
    monkeypatch.setattr(months, "MONTHS_AHEAD", 1)
    for number in LOCATIONS:
        location = {"id": number, "institution_id": INSTITUTION, "name": str(number), "inactive": False}
        load_page(practice, "locations", [location], institution=False)
        for month in months.month_keys(datetime.now(UTC).date()):
            mark_complete(practice, "appointments", month, number)
    with open_session(settings_for(practice_url), retry=RetryPolicy(sleep=lambda _: None)) as session:
        yield session


def insertions(places: Iterable[int]) -> list[bytes]:
    """An appointment was made at each of these locations."""
    return [
        body("appointment_insertion.complete", {"appointment": {"id": number, "location_id": place}})
        for number, place in enumerate(places)
    ]


STATES = "SELECT status, error, attempts, taken FROM nexhealth_webhook_events ORDER BY id"


def test_the_slices_of_a_batch_are_planned_once(
    practice: psycopg.Connection, session: SyncSession, plans: Plans
) -> None:
    """A plan looks at every month of every location: one an event took a run longer than it may last."""
    store(practice, *insertions([*LOCATIONS[:-1], *LOCATIONS[:-1], 70]))
    list(apply_pending(session))
    assert len(plans.made) == 1
    assert sorted(piece.location_id for piece in plans.read) == [*LOCATIONS[:-1]], "each once, and none unasked"
    *told, last = practice.execute(STATES).fetchall()
    assert [status for status, *_ in told] == ["applied"] * len(told)
    assert last[:2] == ("superseded", "appointments: never read completely: its first full read will bring the change")


def test_events_of_one_location_have_no_other_planned(
    practice: psycopg.Connection, session: SyncSession, plans: Plans
) -> None:
    """Of a thousand, for one event."""
    store(practice, *insertions([LOCATIONS[2]] * 3))
    list(apply_pending(session))
    assert plans.made == [[LOCATIONS[2]]]


def test_watermarks_of_other_institutions_are_not_read_for_an_event(
    practice: psycopg.Connection, session: SyncSession, plans: Plans
) -> None:
    store(practice, *insertions([LOCATIONS[2]]))
    complete_elsewhere(practice, "appointments", 300)
    with counted() as effort:
        list(apply_pending(session))
    assert [piece.location_id for piece in plans.read] == [LOCATIONS[2]]
    assert 0 < effort.rows < 200


def test_a_wish_to_stop_is_heard_while_slices_are_planned(
    practice: psycopg.Connection, session: SyncSession, plans: Plans
) -> None:
    """A run at the end of its time that does not hear it is killed, and its events count as deadly."""
    store(practice, *insertions(LOCATIONS))
    plans.stop_at = session
    list(apply_pending(session))
    assert (len(plans.made), plans.read) == (1, [])
    assert practice.execute(STATES).fetchall() == [("pending", None, 0, 0)] * len(LOCATIONS)
