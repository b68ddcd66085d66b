"""Lists under rows: each night a share is read, and what a list lacks is marked as gone in its turn at the latest."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.runner import read_slice
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.sync.verdict import Sources
from tests.conftest import _fresh

from .conftest import small_box
from .kit import LISTS_READ, Rows, noting_loads, open_session, sync_all
from .reconciled import FULL, RECONCILE, having_read, practice

pytestmark = pytest.mark.small_box(visits=0)

NIGHTS = 4
TURN = SyncOptions(rotation_days=NIGHTS)
AT_NIGHT = replace(TURN, mode=Mode.RECONCILE, every_list=False)
NAMES = {"patients", "documents"}
QUICK = RetryPolicy(sleep=lambda _: None)


@pytest.fixture(scope="module")
def read_before(server_url: str, template: str, base: datetime) -> Iterator[str]:
    """Everything of one practice, read the night before."""
    yield from having_read(small_box(0, base), "willow-dental", NAMES, server_url, template)


@pytest.fixture
def database_url(server_url: str, read_before: str) -> Iterator[str]:
    yield from _fresh(server_url, read_before)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def a_day_passes(rows: Rows) -> None:
    day = "interval '1 day'"
    rows(f"UPDATE nexhealth_child_reads SET read_at = read_at - {day}, judged_at = judged_at - {day} RETURNING 1")
    rows(f"UPDATE nexhealth_sync_state SET begun_at = begun_at - {day} WHERE collection = 'documents' RETURNING 1")


def night(
    settings: Settings, box: SandboxServer, rows: Rows, options: SyncOptions = TURN, **more: object
) -> tuple[list[SliceResult], list[int]]:
    """The next night: what came of it, and the patients whose documents were asked for."""
    a_day_passes(rows)
    box.requests.clear()
    results = sync_all(settings, options, only=NAMES, **more)
    return results, asked(box)


def asked(box: SandboxServer) -> list[int]:
    return sorted(int(one.path.split("/")[2]) for one in box.requests if one.path.endswith("/documents"))


def gone(rows: Rows) -> set[object]:
    return {row[0] for row in rows("SELECT id FROM nexhealth_documents WHERE deleted_by = 'absence'")}


def documents(rows: Rows, fewest: int = 1, most: int = 99) -> dict[int, list[int]]:
    """Patients with so many documents, and these."""
    found = rows(
        "SELECT patient_id, array_agg(id ORDER BY id) FROM nexhealth_documents WHERE deleted_at IS NULL GROUP BY 1"
        f" HAVING count(*) BETWEEN {fewest} AND {most} ORDER BY 1"
    )
    return {int(str(patient)): list(ids) for patient, ids in found}


def turn_is_next(rows: Rows, patient: int) -> None:
    rows(
        "UPDATE nexhealth_child_reads SET judged_at = judged_at - interval '9 years'"
        f" WHERE patient_id = {patient} RETURNING 1"
    )


@pytest.mark.parametrize("merged", [True, False], ids=["into the other one", "not"])
def test_a_record_that_moves_to_another_patients_list_is_that_patients(
    settings: Settings, box: SandboxServer, rows: Rows, merged: bool
) -> None:
    """Its bytes name no patient. Risk: filed anew, or of a patient merged into another, it is marked as gone."""
    (old, (moved, *_)), (new, _) = list(documents(rows).items())[:2]
    box.state.update("documents", moved, {}, about={"patient_id": new})
    if merged:
        box.state.delete("patients", old, hard=True)
    sync_all(settings, RECONCILE, only=NAMES)
    assert rows(f"SELECT patient_id, deleted_at FROM nexhealth_documents WHERE id = {moved}") == [(new, None)]


def test_a_record_that_moved_is_not_missed_in_the_list_it_left(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Each in its turn, the new patient's first: what the old one's list lacks is another's by then.

    Nor is it missed by the check of lists against the rows that they had, until the old one's turn comes.
    """
    had = "SELECT r.rows - count(d.id) FROM nexhealth_child_reads r LEFT JOIN nexhealth_documents d USING (patient_id)"
    (old, (moved, *_)), (new, _) = list(documents(rows, 2).items())[:2]
    box.state.update("documents", moved, {}, about={"patient_id": new})
    for patient in (new, old):
        turn_is_next(rows, patient)
        _, patients = night(settings, box, rows, replace(TURN, rotation_days=1000))
        assert patient in patients
        assert rows(f"SELECT patient_id, deleted_at FROM nexhealth_documents WHERE id = {moved}") == [(new, None)]
        assert rows(f"{had} WHERE r.patient_id = {old} GROUP BY r.rows") == [(0,)]


def test_a_record_that_moved_comes_back_with_the_list_that_it_is_in_now(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """The old one's turn comes first, and nobody changed: nothing tells that from a record that is gone (docs/operations.md)."""
    (old, (moved, *_)), (new, _) = list(documents(rows, 2).items())[:2]
    box.state.update("documents", moved, {}, about={"patient_id": new})
    for patient, marked in ((old, {moved}), (new, set())):
        turn_is_next(rows, patient)
        _, patients = night(settings, box, rows, replace(TURN, rotation_days=1000))
        assert patient in patients
        assert gone(rows) == marked
    assert rows(f"SELECT patient_id, deleted_at FROM nexhealth_documents WHERE id = {moved}") == [(new, None)]


@pytest.mark.parametrize("options", [TURN, AT_NIGHT], ids=["incremental", "reconcile"])
def test_a_record_gone_from_a_list_is_marked_when_its_patients_turn_comes(
    settings: Settings, box: SandboxServer, rows: Rows, options: SyncOptions
) -> None:
    """Its patient did not change, so nothing else tells of it; and a night costs a share of the lists, not all."""
    lists = "SELECT location_id, count(*) FROM (SELECT min(location_id) AS location_id FROM nexhealth_patient_locations"
    sizes = [int(str(count)) for _, count in rows(f"{lists} GROUP BY patient_id) home GROUP BY 1")]
    patient, (victim, *_) = list(documents(rows).items())[-1]
    box.state.delete("documents", victim, hard=True)
    counted: list[int] = []
    turn = 0
    for number in range(1, NIGHTS + 1):
        _, patients = night(settings, box, rows, options)
        counted += patients
        assert len(patients) <= sum(-(-size // NIGHTS) for size in sizes)
        turn = number if patient in patients else turn
        assert gone(rows) == ({victim} if turn else set())
        once = len(set(counted)) == len(counted)
        assert once or number == NIGHTS, "nobody's turn comes again before all had theirs"
    assert turn
    assert len(set(counted)) == sum(sizes)


def test_a_reconcile_that_is_asked_for_reads_every_list(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    _, patients = night(settings, box, rows, RECONCILE)
    assert len(patients) == rows("SELECT count(*) FROM nexhealth_child_reads")[0][0]


def test_the_list_of_a_changed_or_new_patient_is_judged_the_same_night(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    patient, (victim, *_) = list(documents(rows, 2).items())[-1]
    box.state.delete("documents", victim, hard=True)
    box.state.update("patients", patient, {"first_name": "Other"})
    sync_all(settings, replace(TURN, rotation_days=1000), only=NAMES)
    assert gone(rows) == {victim}


def test_nothing_is_marked_while_the_office_is_offline_and_the_turn_comes_again(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """What NexHealth could not read from the office looks like what the office deleted."""
    statuses = box.state.ids("sync_status")
    patient, (victim, *_) = next(iter(documents(rows, 2).items()))
    turn_is_next(rows, patient)
    box.state.delete("documents", victim, hard=True)
    for status in statuses:
        box.state.update("sync_status", status, {"read_status": "red"})
    for _ in range(2):
        results, patients = night(settings, box, rows)
        assert patient in patients
        assert gone(rows) == set()
        assert not any(one.absence for one in results), "an office that is off at night is no news"
    for status in statuses:
        box.state.update("sync_status", status, {"read_status": "green"})
    night(settings, box, rows)
    assert gone(rows) == {victim}


@pytest.mark.parametrize("stopped", [False, True], ids=["it is not told", "stopped"])
def test_lists_of_an_institution_that_came_to_no_judgement_are_the_first_again(
    settings: Settings, box: SandboxServer, rows: Rows, stopped: bool
) -> None:
    """Whether its offices were online is asked once more before anything is marked. Risk: a turn that ends by that."""
    names = {"insurance_coverages", "coverage_subscribers"}
    sync_all(settings, FULL, only=names)
    (victim,) = rows("SELECT min(coverage_id) FROM nexhealth_coverage_subscribers")[0]
    box.state.update("insurance_coverages", victim, {}, about={"subscriber_id": 0}, touch=False)
    turn = f"collection = 'coverage_subscribers' AND patient_id = {victim}"
    rows("UPDATE nexhealth_child_reads SET judged_at = now() - interval '3 days' RETURNING 1")
    rows(f"UPDATE nexhealth_child_reads SET judged_at = now() - interval '9 years' WHERE {turn} RETURNING 1")
    rows("UPDATE nexhealth_sync_state SET begun_at = begun_at - interval '1 day' RETURNING 1")
    marked = "SELECT coverage_id FROM nexhealth_coverage_subscribers WHERE deleted_by = 'absence'"

    def asks(sources: Sources) -> SliceResult | None:
        box.faults.add("status", path="/sync_status")
        if stopped:
            sources._session.stop.set()
        return ask_again(sources)

    ask_again = Sources.ask_again
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sources, "ask_again", asks)
        sync_all(settings, TURN, only=names, retry=QUICK)
    assert rows(marked) == []
    assert rows(f"SELECT judged_at < now() - interval '8 years' FROM nexhealth_child_reads WHERE {turn}") == [(True,)]
    box.faults.clear()
    rows("UPDATE nexhealth_sync_state SET begun_at = begun_at - interval '1 day' RETURNING 1")
    sync_all(settings, TURN, only=names)
    assert rows(marked) == [(victim,)]


def test_reads_that_do_not_judge_put_no_turn_off(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """A full sync, for one: it marks nothing, and is no reason to look again only in a month."""
    patient, (victim, *_) = next(iter(documents(rows, 2).items()))
    turn_is_next(rows, patient)
    box.state.delete("documents", victim, hard=True)
    night(settings, box, rows, FULL)
    assert gone(rows) == set()
    night(settings, box, rows)
    assert gone(rows) == {victim}


def test_a_run_killed_before_it_judged_loses_no_turn(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Its lists were read and noted; the next night reads them once more, and judges."""
    patient, (victim, *_) = next(iter(documents(rows, 2).items()))
    turn_is_next(rows, patient)
    box.state.delete("documents", victim, hard=True)
    with open_session(settings) as session:
        for location in session.practices().active():
            read_slice(session, Slice(COLLECTIONS["documents"], location.institution, location), TURN)
    assert patient in asked(box)
    assert gone(rows) == set()
    assert patient in night(settings, box, rows)[1]
    assert gone(rows) == {victim}


def test_a_list_that_cannot_be_read_keeps_no_other_from_being_judged(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Each tells of its own patient; one that fails every night must not stop the rotation."""
    (patient, (victim, *_)), (other, (kept, *_)) = list(documents(rows, 2).items())[:2]
    for one in (patient, other):
        turn_is_next(rows, one)
    for number in (victim, kept):
        box.state.delete("documents", number, hard=True)
    box.faults.add("status", path=f"/patients/{other}/documents")
    results, _ = night(settings, box, rows, retry=QUICK)
    assert [one.status for one in results if one.reason and "single reads" in one.reason] == ["failed"]
    assert gone(rows) == {victim}
    box.faults.clear()
    night(settings, box, rows)
    assert gone(rows) == {victim, kept}


def test_patients_whom_the_api_does_not_know_hold_up_nobodys_turn(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Listed as before, their own lists answer 404 night after night: nothing of theirs is marked by that."""
    held = list(documents(rows))
    unknown, patient = held[:-1], held[-1]
    victim = documents(rows)[patient][0]
    for one in unknown:
        turn_is_next(rows, one)
        box.faults.add("status", path=f"/patients/{one}/documents", status=404)
    box.state.delete("documents", victim, hard=True)
    counted = [night(settings, box, rows)[1] for _ in range(2 * NIGHTS)]
    assert gone(rows) == {victim}
    asked_for = [sum(one in patients for patients in counted) for one in unknown]
    assert min(asked_for) >= 1
    assert max(asked_for) <= NIGHTS + 1, "not night after night"


def test_nothing_is_judged_by_a_list_with_a_record_whose_id_cannot_be_read(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """It may be the one that is missing; another patient's list is another matter."""
    (patient, (victim, *_)), (other, (kept, nameless, *_)) = list(documents(rows, 2).items())[:2]
    for one in (patient, other):
        turn_is_next(rows, one)
    for number in (victim, kept):
        box.state.delete("documents", number, hard=True)
    box.state.update("documents", nameless, {"id": "x"})
    night(settings, box, rows)
    assert gone(rows) == {victim}


def test_too_many_at_once_are_left_alone(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    patient = next(iter(documents(rows)))
    made = [box.state.create("documents", subdomain="willow-dental", patient_id=patient) for _ in range(12)]
    many = [one.id for one in made[:11]]
    sync_all(settings, FULL, only=NAMES)
    turn_is_next(rows, patient)
    for number in many:
        box.state.delete("documents", number, hard=True)
    results, patients = night(settings, box, rows)
    assert patient in patients
    assert [one.absence.missing for one in results if one.absence is not None and one.absence.braked] == [11]
    assert gone(rows) == set()
    assert patient not in night(settings, box, rows)[1], "those it held up let the others' turns come"
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only=NAMES)
    assert gone(rows) == set(many)


def test_the_last_record_of_a_list_goes_when_other_lists_still_have_theirs(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """That night's answers are empty, all of them: lists that had records say whether to believe it."""
    patient, ids = next(iter(documents(rows).items()))
    few = replace(TURN, rotation_days=1000)
    turn_is_next(rows, patient)
    for number in ids:
        box.state.delete("documents", number, hard=True)
    results, patients = night(settings, box, rows, few)
    assert gone(rows) == set(ids), [(one.slice.label, one.reason) for one in results]
    assert patient in patients


def test_where_every_list_comes_back_empty_nothing_is_believed(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    patient = next(iter(documents(rows)))
    turn_is_next(rows, patient)
    for ids in documents(rows).values():
        for number in ids:
            box.state.delete("documents", number, hard=True)
    results, _ = night(settings, box, rows, replace(TURN, rotation_days=1000))
    assert any("the answer was empty" in str(one.reason) for one in results)
    assert gone(rows) == set()


def test_a_list_is_as_old_as_its_request(
    settings: Settings, rows: Rows, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a document that comes between request and load is not looked for in the list that lacks it."""
    loads = noting_loads(monkeypatch, database_url, "documents")
    sync_all(settings, FULL, only=NAMES)
    read: dict[int, datetime] = dict(rows(LISTS_READ))
    assert read.keys() == loads.keys()
    assert [patient for patient, read_at in read.items() if read_at >= loads[patient]] == []
