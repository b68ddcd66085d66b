"""Lists under rows, read in turn while a reconcile that reads all of them is under way: neither takes the other's reads."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import datetime

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import runner
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.reconcile import judge
from nexhealth_pipeline.sync.runner import read_slice
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from tests.conftest import _fresh

from .conftest import small_box
from .kit import Rows, open_session, sync_all
from .reconciled import FULL, RECONCILE, gone, having_read, practice
from .test_lists_in_turn import NAMES, QUICK, TURN, asked, documents

pytestmark = pytest.mark.small_box(visits=0)

CHANGES = replace(TURN, rotation_days=1000)
"""Lists of what changed, and hardly any other."""


@pytest.fixture(scope="module")
def read_before(server_url: str, template: str, base: datetime) -> Iterator[str]:
    """Everything of one practice."""
    yield from having_read(small_box(0, base), "willow-dental", NAMES, server_url, template)


@pytest.fixture
def database_url(server_url: str, read_before: str) -> Iterator[str]:
    yield from _fresh(server_url, read_before)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def between(patch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> None:
    """What happens once a reconcile has read all lists and before it judges."""

    def judging(session: SyncSession, slices: Iterable[Slice], options: SyncOptions) -> Iterator[SliceResult]:
        if options.mode_of_lists.whole and any(one.collection.per for one in slices):
            meanwhile()
        return judge(session, slices, options)

    patch.setattr(runner, "judge", judging)


def test_a_reconcile_judges_by_all_lists_though_others_read_some_of_them_since(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours lie between its first list and its judgement. Risk: what it met is forgotten, and it marks nothing."""
    patient, (victim, *_) = list(documents(rows, 2).items())[-1]
    box.state.delete("documents", victim, hard=True)

    def meanwhile() -> None:
        box.requests.clear()
        sync_all(settings, CHANGES, only=NAMES)
        assert patient not in asked(box)
        assert gone(rows, "documents") == set()

    between(monkeypatch, meanwhile)
    sync_all(settings, RECONCILE, only=NAMES)
    assert gone(rows, "documents") == {victim}


def test_what_a_reconcile_met_before_does_not_hold_what_a_list_lacks_since(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: the list's turn is over, and the row is there until the next."""
    patient, (victim, *_) = list(documents(rows, 2).items())[-1]
    found: list[set[object]] = []

    def meanwhile() -> None:
        box.state.delete("documents", victim, hard=True)
        box.state.update("patients", patient, {"first_name": "Other"})
        sync_all(settings, CHANGES, only=NAMES)
        found.append(gone(rows, "documents"))

    between(monkeypatch, meanwhile)
    sync_all(settings, RECONCILE, only=NAMES)
    assert (found, gone(rows, "documents")) == ([{victim}], {victim})


@pytest.mark.parametrize("release", ["this", "an earlier"])
def test_lists_of_which_only_some_were_read_since_are_read_by_a_reconcile_that_is_gone_on_with(
    settings: Settings, box: SandboxServer, rows: Rows, release: str
) -> None:
    """Or that comes to them after another sync. Risk: it takes a few lists for all, and says that they were read."""
    began = rows("SELECT clock_timestamp()")[0][0]
    sync_all(settings, CHANGES, only=NAMES)
    if release == "an earlier":  # kept both in one place
        rows("UPDATE nexhealth_seen_passes SET pass = 'rows' WHERE collection = 'documents' RETURNING 1")
    box.requests.clear()
    sync_all(settings, replace(RECONCILE, fresh_after=began), only=NAMES)
    everybody = rows("SELECT patient_id FROM nexhealth_child_reads WHERE collection = 'documents' ORDER BY 1")
    assert asked(box) == [number for (number,) in everybody]
    box.requests.clear()
    sync_all(settings, replace(RECONCILE, fresh_after=began), only=NAMES)
    assert asked(box) == [], "once is enough"


def test_whoever_goes_on_with_the_lists_of_a_reconcile_judges_by_all_of_them(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """One list failed, so the office's were not judged; the next sync reads that one alone."""
    lowest = "SELECT patient_id, min(location_id) FROM nexhealth_patient_locations GROUP BY 1"
    homes: dict[int, int] = dict(rows(lowest))
    held = documents(rows)
    patient, other = next((one, two) for one in held for two in held if one < two and homes[one] == homes[two])
    victim = held[patient][0]
    box.state.delete("documents", victim, hard=True)
    box.faults.add("status", path=f"/patients/{other}/documents")
    sync_all(settings, RECONCILE, only=NAMES, retry=QUICK)
    assert gone(rows, "documents") == set()
    box.faults.clear()
    box.requests.clear()
    sync_all(settings, CHANGES, only=NAMES)
    assert other in asked(box)
    assert patient not in asked(box)
    assert gone(rows, "documents") == {victim}


def test_a_reconcile_that_came_in_between_keeps_its_reads_for_its_own_judgement(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Lists in turn were read before it and are judged before it. Risk: they are judged by its reads, and it has none left."""
    _, (victim, *_) = list(documents(rows, 2).items())[-1]
    box.state.delete("documents", victim, hard=True)
    with open_session(settings) as session:
        lists = [Slice(COLLECTIONS["documents"], one.institution, one) for one in session.practices().active()]
        for options in (CHANGES, RECONCILE):
            for piece in lists:
                assert read_slice(session, piece, options).status == "succeeded"
        assert list(judge(session, lists, CHANGES)) == []
        assert gone(rows, "documents") == set()
        judged = [one for one in judge(session, lists, RECONCILE) if one.absence is not None]
        assert [one.status for one in judged] == ["succeeded"] * len(lists)
    assert gone(rows, "documents") == {victim}


def test_a_reconcile_does_not_judge_a_list_that_was_read_and_judged_since(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own list lacked what is there again, as it was. Risk: nobody brings that back before the list's next turn."""
    (patient, (back, *_)), (_, (victim, *_)) = list(documents(rows, 2).items())[-2:]
    row = box.state.row("documents", back)
    for number in (back, victim):
        box.state.delete("documents", number, hard=True)

    def meanwhile() -> None:
        box.state.store("documents").put(row)
        box.state.update("patients", patient, {"first_name": "Other"})
        box.requests.clear()
        for _ in range(2):  # the second time it is not due
            sync_all(settings, CHANGES, only=NAMES)
        assert asked(box).count(patient) == 1

    between(monkeypatch, meanwhile)
    sync_all(settings, RECONCILE, only=NAMES)
    assert gone(rows, "documents") == {victim}


def test_what_the_brake_held_of_lists_in_turn_is_left_to_a_reconcile_that_may_mark_it(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read since, but came to no judgement. Risk: who allows it marks nothing."""
    patient = next(iter(documents(rows)))
    made = [box.state.create("documents", subdomain="willow-dental", patient_id=patient).id for _ in range(11)]
    sync_all(settings, FULL, only=NAMES)
    for number in made:
        box.state.delete("documents", number, hard=True)
    braked: list[SliceResult] = []

    def meanwhile() -> None:
        box.state.update("patients", patient, {"first_name": "Other"})
        results = sync_all(settings, CHANGES, only=NAMES)
        braked.extend(one for one in results if one.absence is not None and one.absence.braked)

    between(monkeypatch, meanwhile)
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only=NAMES)
    assert (len(braked), gone(rows, "documents")) == (1, set(made))
