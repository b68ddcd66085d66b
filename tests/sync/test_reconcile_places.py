"""Which places a reconcile judges by: offices that are offline, inactive, read in part, or share a database."""

import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import reader, reconcile, runner
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices

from .kit import Rows, open_session, sync_all
from .reconciled import DESERT, FULL, NORTH, OFFLINE, PIER, RECONCILE, SOUTH, at, at_patient, gone, practice, told

pytestmark = pytest.mark.small_box(visits=2)

QUICK = RetryPolicy(sleep=lambda _: None)
OF_DESERT = (
    f"SELECT patient_id FROM nexhealth_patient_locations GROUP BY 1 HAVING array_agg(location_id) = '{{{DESERT}}}'"
)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


@pytest.fixture
def harbor(box: SandboxServer, database_url: str) -> Settings:
    """The practice one of whose offices is offline."""
    return practice(box, database_url, "harbor-smiles")


def test_nothing_is_told_by_a_source_that_is_or_was_offline(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Risk: what NexHealth could not read from the office looks like what the office deleted."""
    sync_all(settings, FULL, only={"operatories"})
    for location in (NORTH, DESERT):
        box.state.delete("operatories", at(rows, "operatories", location)[0], hard=True)

    def goes_red(label: str, pages: int, records: int) -> None:
        if label.startswith("operatories"):
            box.state.update("sync_status", 35, {"read_status": "red"})

    results = sync_all(settings, RECONCILE, only={"operatories"}, on_progress=goes_red)
    assert "not green" in str(told(results, "operatories")[f"willow-dental.{NORTH}"])
    (desert,) = gone(rows, "operatories")
    assert desert in at(rows, "operatories", DESERT), "another database's is judged"

    began, stop = rows("SELECT clock_timestamp()")[0][0], threading.Event()
    options = replace(RECONCILE, fresh_after=began)

    def after_north(label: str, pages: int, records: int) -> None:
        if label.endswith(str(NORTH)):
            stop.set()

    sync_all(settings, options, only={"operatories"}, on_progress=after_north, stop=stop)
    box.state.update("sync_status", 35, {"read_status": "green"})
    assert rows("UPDATE nexhealth_sync_status SET read_status = 'green' RETURNING 1")
    results = sync_all(settings, options, only={"operatories"})
    assert "not green" in str(told(results, "operatories")[f"willow-dental.{NORTH}"]), "it was when the read began"
    assert gone(rows, "operatories") == {desert}
    sync_all(settings, RECONCILE, only={"operatories"})
    assert len(gone(rows, "operatories")) == 2


def test_of_an_institution_with_an_offline_office_only_rows_of_the_others_are_judged(
    harbor: Settings, box: SandboxServer, rows: Rows
) -> None:
    """A provider belongs to no office: it may be the offline one's. A cover belongs to where its patient is listed."""
    names = {"providers", "insurance_coverages", "patients", "operatories"}
    sync_all(harbor, FULL, only=names)
    cover = "SELECT c.id FROM nexhealth_insurance_coverages c JOIN nexhealth_patient_locations l USING (patient_id)"
    online, offline = (
        int(str(rows(f"{cover} WHERE l.location_id = {office} ORDER BY 1 LIMIT 1")[0][0])) for office in (PIER, OFFLINE)
    )
    for number in (online, offline):
        box.state.delete("insurance_coverages", number, hard=True)
    for name in ("providers", "operatories"):
        for (number,) in rows(f"SELECT min(id) FROM nexhealth_{name}"):
            box.state.delete(name, int(str(number)), hard=True)
    results = sync_all(harbor, RECONCILE, only=names)
    assert gone(rows, "insurance_coverages") == {online}
    assert gone(rows, "providers") == set()
    assert len(gone(rows, "operatories")) == 1
    assert "not green" in str(told(results, "providers")["harbor-smiles"])


def test_a_read_that_failed_in_part_tells_nothing_of_its_database(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """One location of two that share a database: what it lists might be what the other lacks."""
    names = {"operatories", "fee_schedules"}
    sync_all(settings, FULL, only=names)
    everybodys = int(str(rows("SELECT min(id) FROM nexhealth_fee_schedules")[0][0]))
    for location in (NORTH, DESERT):
        box.state.delete("operatories", at(rows, "operatories", location)[0], hard=True)
    box.state.delete("fee_schedules", everybodys, hard=True)
    rows(f"UPDATE nexhealth_fee_schedules SET location_id = NULL WHERE id = {everybodys} RETURNING id")
    box.faults.add("status", path="/(operatories|fee_schedules)", location_id=SOUTH)
    results = sync_all(settings, RECONCILE, only=names, retry=QUICK)
    ended = told(results, "operatories")
    assert ended[f"willow-dental.{NORTH}"] == (
        "skipped",
        "absences not judged: 1 of 2 reads are not complete in this reconcile",
    )
    assert [number in at(rows, "operatories", DESERT) for number in gone(rows, "operatories")] == [True]
    assert gone(rows, "fee_schedules") == set(), "a row of no location is judged when all databases are complete"
    box.faults.clear()
    sync_all(settings, RECONCILE, only=names)
    assert len(gone(rows, "operatories")) == 2
    assert gone(rows, "fee_schedules") == {everybodys}


def test_rows_of_an_inactive_location_are_not_judged(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """Nobody reads it any more: everything it had would vanish. Nor do lists of its patients fall to another office."""
    names = {"patients", "operatories", "appointment_types", "documents"}
    sync_all(settings, FULL, only=names)
    box.state.update("locations", DESERT, {"inactive": True})
    for number in at(rows, "operatories", DESERT):
        box.state.delete("operatories", number, hard=True)
    vanished = at_patient(rows, DESERT)
    box.state.delete("patients", vanished, hard=True)
    papers = f"SELECT min(id) FROM nexhealth_documents JOIN ({OF_DESERT}) mine USING (patient_id)"
    victim = int(str(rows(f"{papers} WHERE patient_id <> {vanished}")[0][0]))
    box.state.delete("documents", victim, hard=True)
    box.requests.clear()
    sync_all(settings, replace(RECONCILE, allow_mass_delete=True), only=names)
    assert [gone(rows, name) for name in sorted(names)] == [set()] * 4
    asked = {int(one.path.split("/")[2]) for one in box.requests if one.path.endswith("/documents")}
    assert asked
    assert not asked & {number for (number,) in rows(OF_DESERT)}
    box.state.update("locations", DESERT, {"inactive": False})
    sync_all(settings, RECONCILE, only={"patients", "documents"})
    assert victim in gone(rows, "documents"), "it is read again"


def test_an_office_that_is_said_to_be_gone_holds_up_no_absence_of_the_others(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: whom both had listed is never judged again, since nobody reads the one that left."""
    sync_all(settings, FULL, only={"patients"})
    box.state.delete("locations", SOUTH, hard=True)
    gone_office = "UPDATE nexhealth_locations SET deleted_at = now(), deleted_by = 'absence'"
    rows(f"{gone_office} WHERE institution_id = 11201 AND id = {SOUTH} RETURNING id")
    both = f"SELECT patient_id FROM nexhealth_patient_locations WHERE location_id IN ({NORTH}, {SOUTH})"
    victim = int(str(rows(f"{both} GROUP BY 1 HAVING count(*) = 2 ORDER BY 1 LIMIT 1")[0][0]))
    box.state.delete("patients", victim, hard=True)
    for _ in range(2):
        sync_all(settings, RECONCILE, only={"patients"})
    assert gone(rows, "patients") == {victim}


def test_a_row_that_only_another_location_lists_stands_under_that_one(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Only the request tells the location of a document type, and the first to list it keeps it."""
    sync_all(settings, FULL, only={"document_types"})
    moved, *_ = at(rows, "document_types", NORTH)
    box.state.update("document_types", moved, {}, about={"location_id": SOUTH}, touch=False)
    sync_all(settings, FULL, only={"document_types"})
    assert rows(f"SELECT location_id FROM nexhealth_document_types WHERE id = {moved}") == [(NORTH,)]
    sync_all(settings, RECONCILE, only={"document_types"})
    assert rows(f"SELECT location_id FROM nexhealth_document_types WHERE id = {moved}") == [(SOUTH,)]
    before = rows("SELECT id, xmin FROM nexhealth_document_types ORDER BY 1")
    sync_all(settings, RECONCILE, only={"document_types"})
    assert rows("SELECT id, xmin FROM nexhealth_document_types ORDER BY 1") == before
    assert gone(rows, "document_types") == set()


@pytest.mark.parametrize("had_it", [False, True])
def test_a_row_of_no_location_is_judged_although_one_office_never_had_the_collection(
    had_it: bool, harbor: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Finance is often enabled for some offices only; one that had it may be where the row is listed."""
    for status in box.state.ids("sync_status"):
        box.state.update("sync_status", status, {"read_status": "green"})
    box.state.enable(OFFLINE, on=had_it)
    sync_all(harbor, FULL, only={"fee_schedules"})
    box.state.enable(OFFLINE, on=False)
    everybodys, *_ = at(rows, "fee_schedules", PIER)
    box.state.update("fee_schedules", everybodys, {"location_id": None})
    sync_all(harbor, only={"fee_schedules"})
    box.state.delete("fee_schedules", everybodys)
    sync_all(harbor, RECONCILE, only={"fee_schedules"})
    assert gone(rows, "fee_schedules") == (set() if had_it else {everybodys})


def test_an_office_that_never_had_a_collection_holds_up_nobody_who_shares_its_database(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Finance is enabled for one of the two: what it lacks is no row of the other's, which has none."""
    box.state.enable(SOUTH, on=False)
    sync_all(settings, FULL, only={"fee_schedules"})
    victim, *others = at(rows, "fee_schedules", NORTH)
    assert others
    box.state.delete("fee_schedules", victim, hard=True)
    sync_all(settings, RECONCILE, only={"fee_schedules"})
    assert gone(rows, "fee_schedules") == {victim}


def test_what_an_office_listed_before_it_was_refused_is_not_judged_without_it(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Both list the database's types, which stand under the first: no row says that the other one has them, too.

    One refusal is enough: a practice is refused by mistake, and the next night it is not.
    """
    sync_all(settings, FULL, only={"adjustment_types"})
    kept, *_ = at(rows, "adjustment_types", NORTH)
    assert at(rows, "adjustment_types", SOUTH) == []
    box.state.update("adjustment_types", kept, {}, about={"location_id": SOUTH}, touch=False)
    box.state.enable(SOUTH, on=False)
    sync_all(settings, RECONCILE, only={"adjustment_types"})
    assert rows(f"SELECT status FROM nexhealth_capabilities WHERE location_id = {SOUTH}") == [("not_enabled",)]
    assert gone(rows, "adjustment_types") == set()
    box.state.enable(SOUTH)
    sync_all(settings, RECONCILE, only={"adjustment_types"})
    assert gone(rows, "adjustment_types") == set()
    assert at(rows, "adjustment_types", SOUTH) == [kept]


def reconcile_at(settings: Settings, location: int, name: str) -> None:
    """A night on which this location alone has its turn."""
    sync_all(settings, only=set())
    with open_session(settings) as session:
        due = due_slices([COLLECTIONS[name]], session.practices(), {}, RECONCILE, datetime.now(UTC).date())
        list(run_slices(session, [one for one in due if one.location_id == location], RECONCILE))


def split(box: SandboxServer) -> None:
    """One of the two offices that share a database moves to another practice system."""
    source = box.state.row("sync_status", 35).record()
    box.state.update("sync_status", 35, {}, about={"location_ids": [SOUTH]})
    moved = source | {"sync_source_name": "The other system"}
    box.state.create("sync_status", moved, subdomain="willow-dental", location_ids=[NORTH])


@pytest.mark.parametrize("first", [NORTH, SOUTH])
def test_what_stands_under_an_office_that_left_the_database_is_not_gone(
    settings: Settings, box: SandboxServer, rows: Rows, first: int
) -> None:
    """Both had listed the database's types, which stand under the one that left; from then on they have different nights.

    Each night forgot what it had met, so on the next nobody knew that the other office still lists them.
    """
    name = "adjustment_types"
    sync_all(settings, FULL, only={name})
    _, gone_for_good, renamed = leaving = at(rows, name, NORTH)[:3]
    rows(f"UPDATE nexhealth_{name} SET location_id = {SOUTH} WHERE id = {renamed} RETURNING 1")
    sync_all(settings, RECONCILE, only={name})
    assert at(rows, name, SOUTH) == [renamed], "which had listed it first"
    box.state.update(name, renamed, {"name": "Renamed"})
    sync_all(settings, only={name})
    assert at(rows, name, SOUTH) == [], "which had its change later"
    split(box)
    for number in leaving:
        box.state.update(name, number, {}, about={"location_id": SOUTH}, touch=False)
    for location in (first, NORTH + SOUTH - first):
        # A week has nights between two turns, and each of them begins a little earlier or later.
        rows("UPDATE nexhealth_seen_passes SET begun_at = begun_at - interval '8 days' RETURNING 1")
        reconcile_at(settings, location, name)
        assert gone(rows, name) == set()
    assert at(rows, name, SOUTH) == leaving
    before = rows(f"SELECT id, xmin FROM nexhealth_{name} ORDER BY 1")
    for location in (NORTH, SOUTH):
        reconcile_at(settings, location, name)
    assert rows(f"SELECT id, xmin FROM nexhealth_{name} ORDER BY 1") == before
    box.state.delete(name, gone_for_good, hard=True)
    reconcile_at(settings, NORTH, name)
    reconcile_at(settings, SOUTH, name)
    assert gone(rows, name) == {gone_for_good}


@pytest.mark.parametrize("was_judged", [True, False])
def test_an_office_whose_next_read_fails_still_has_what_stands_under_one_that_left(
    settings: Settings, box: SandboxServer, rows: Rows, was_judged: bool
) -> None:
    """Risk: its read begins, what it had met is forgotten, and on the other office's night nobody knows the rows."""
    name = "payment_plans"
    sync_all(settings, FULL, only={name})
    sync_all(settings, RECONCILE, only={name})
    if not was_judged:  # the brake held it, say
        rows(f"UPDATE nexhealth_seen_passes SET judged_at = NULL WHERE location_id = {SOUTH} RETURNING 1")
    leaving = at(rows, name, NORTH)[:3]
    split(box)
    for number in leaving:
        box.state.update(name, number, {}, about={"location_id": SOUTH}, touch=False)
    for _ in range(2):
        box.faults.add("status", status=400, path=f"/{name}")
        reconcile_at(settings, SOUTH, name)
        box.faults.clear()
    reconcile_at(settings, NORTH, name)
    assert gone(rows, name) == set()
    assert at(rows, name, SOUTH) == leaving
    reconcile_at(settings, SOUTH, name)
    assert rows("SELECT count(*) FROM nexhealth_seen_passes WHERE pass LIKE '%aside'") == [(0,)]


def test_a_run_that_was_planned_before_midnight_goes_by_the_months_it_was_given(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited in the queue until the first, and a month more is for the schedule of the next night."""
    sync_all(settings, FULL, only=set())
    first = datetime.now(UTC).date().replace(day=1)
    last = first - timedelta(days=1)
    with open_session(settings) as session:
        for planned, begins, goes_by in (
            (last, first, last),
            (first, first, first),
            (last, first + timedelta(days=1), first + timedelta(days=1)),
        ):
            monkeypatch.setattr(runner, "utc_today", lambda begins=begins: begins)
            slices = due_slices([COLLECTIONS["appointments"]], session.practices(), {}, RECONCILE, planned)
            assert runner._day_of(slices) == goes_by
            assert runner._day_of([]) == begins


def test_what_is_judged_on_the_first_of_a_month_is_what_was_read_on_the_last(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a month that nobody has read there is no absence to tell: hundreds of requests were made for nothing."""
    sync_all(settings, FULL, only={"appointments"})
    victim = at(rows, "appointments", DESERT)[0]
    box.state.delete("appointments", victim, hard=True)
    box.requests.clear()
    began = datetime.now(UTC).date()
    asked: list[date] = []

    def day() -> date:
        """The second one to ask is told of another month."""
        asked.append(began + timedelta(days=31 * len(asked)))
        return asked[-1]

    with open_session(settings) as session:
        slices = due_slices([COLLECTIONS["appointments"]], session.practices(), {}, RECONCILE, began)
        for module in (runner, reader, reconcile):
            monkeypatch.setattr(module, "utc_today", day, raising=False)
        results = list(run_slices(session, slices, RECONCILE))
    assert gone(rows, "appointments") == {victim}
    assert told(results, "appointments").keys() == {f"willow-dental.{DESERT}"}
    ends = [one.param("end") for one in box.requests.matching("/appointments") if one.param("start") is not None]
    last = max(one.window_key for one in slices)
    assert {end[:4] for end in ends if end is not None and end[:7] > last} == {"2200"}, (
        "everything later is the last one's"
    )
