"""Records that could not be loaded: they heal by themselves, or by another try, and never bring back what is old."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync import retry_quarantine as retrying
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.practice import Institution, Location
from nexhealth_pipeline.sync.retry_quarantine import retry_quarantine
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse import encode
from nexhealth_pipeline.warehouse.child_reads import ChildRead, DueRow, record_child_reads
from nexhealth_pipeline.warehouse.values import CONVERTERS

from .ended import ended_once
from .kit import Rows, sync_all

ACME = Institution(7, "acme", "Acme", frozenset())
NORTH = Location(3, "North", ACME, inactive=False, owner_id=3, shared=False)
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ONE, TWO, THREE = (NOON.replace(minute=minute) for minute in (1, 2, 3))
OPEN = "SELECT record_id, field FROM nexhealth_quarantine WHERE resolved_at IS NULL ORDER BY record_id"
_USED = ("quarantine", "sync_logs", "runs", "sync_state", "patients", "documents", "charges", "claim_payouts")
_CLEAN = "; ".join(f"DELETE FROM nexhealth_{name}" for name in (*_USED, "patient_addresses", "alerts", "child_reads"))


class Desk:
    """Loads answers of collections, as a slice does."""

    def __init__(self, url: str, connection: psycopg.Connection) -> None:
        self.url, self.connection = url, connection

    def load(self, name: str, *records: dict[str, Any] | bytes, at: datetime = ONE, **request: int) -> int:
        """The answer of one request; new notes."""
        loader = Loader(self.connection, Slice(COLLECTIONS[name], ACME, NORTH), run_id="r", dry_run=False)
        loader.open()
        raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in records]
        page = Page(1, raw, "", False, at, 1, 0, 0.0, 0, None, None)
        with self.connection.transaction():
            loader.encode_and_load([(page, {"location_id": 3, **request})])
        return loader.new_notes

    def read_whole(self, name: str, location: int, at: datetime, *, name_of_pass: str = "all") -> None:
        """The slice of a location was read whole, by a read begun at that time."""
        self.connection.execute(
            "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode,"
            " filter_hash, cursor, page, records, run_id, last_full_at)"
            " VALUES (%s, 7, %s, '', %s, 'full', '', '', 0, 0, '', %s)",
            (name, location, name_of_pass, at),
        )

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(query).fetchall()

    def retry(self, **which: Any) -> tuple[int, int, int, int]:
        done = retry_quarantine(self.url, **which)
        return done.tried, done.loaded, done.outdated, done.still_open


@pytest.fixture
def desk(shared_url: str) -> Iterator[Desk]:
    with psycopg.connect(shared_url, autocommit=True) as connection:
        yield Desk(shared_url, connection)
        connection.execute(_CLEAN)


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later release, which reads every date that has the form of one as the first of its month."""

    def date(value: object) -> str | None:
        return f"{value[:7]}-01" if isinstance(value, str) else None

    monkeypatch.setattr(encode, "CONVERTERS", CONVERTERS | {"date": date})


def person(number: int = 1, born: str | None = "2024-02-30", at: str = "2026-02-01T00:00:00Z", **fields: Any) -> dict:
    return {"id": number, "first_name": "Zoë", "bio": {"date_of_birth": born}, "updated_at": at, **fields}


class TestRetry:
    def test_what_passes_todays_rules_is_loaded_and_its_note_closed(self, desk: Desk, lenient: None) -> None:
        """A rule that was too strict must not cost the data for good."""
        with pytest.MonkeyPatch.context() as strict:
            strict.setattr(encode, "CONVERTERS", CONVERTERS)
            assert desk.load("patients", person(), person(2, born=None)) == 1
        assert desk.rows(OPEN) == [("1", "bio_date_of_birth")]
        assert desk.retry() == (1, 1, 0, 0)
        assert desk.rows(OPEN) == []
        assert desk.rows("SELECT id, bio_date_of_birth::text FROM nexhealth_patients ORDER BY id") == [
            (1, "2024-02-01"),
            (2, None),
        ]
        assert desk.rows(
            "SELECT mode, status, updated, requests, location_id FROM nexhealth_sync_logs WHERE collection = 'patients'"
        ) == [("retry", "succeeded", 1, 0, 3)]
        assert desk.rows("SELECT status FROM nexhealth_runs") == [("succeeded",)]
        assert desk.retry() == (0, 0, 0, 0)

    def test_what_still_fails_stays_open_with_its_reason(self, desk: Desk) -> None:
        desk.load("patients", person(), b'{"id": 5, "email": "\xff"}')
        before = desk.rows("SELECT * FROM nexhealth_quarantine ORDER BY id")
        assert desk.retry() == (2, 0, 0, 2)
        assert desk.rows("SELECT * FROM nexhealth_quarantine ORDER BY id") == before
        assert desk.rows(OPEN) == [("1", "bio_date_of_birth"), ("5", "")]

    def test_it_never_goes_backwards(self, desk: Desk, lenient: None) -> None:
        """The record has changed since: what was quarantined is an older version of it."""
        with pytest.MonkeyPatch.context() as strict:
            strict.setattr(encode, "CONVERTERS", CONVERTERS)
            desk.load("patients", person(first_name="Old"))
            desk.load("patients", person(first_name="New", born=None, at="2026-02-02T00:00:00Z"), at=TWO)
        assert desk.rows("SELECT resolved_at IS NULL FROM nexhealth_quarantine") == [(False,)]
        desk.connection.execute("UPDATE nexhealth_quarantine SET resolved_at = NULL")
        assert desk.retry() == (1, 1, 0, 0)
        assert desk.rows("SELECT first_name, bio_date_of_birth FROM nexhealth_patients") == [("New", None)]

    def test_what_a_deadlock_rolled_back_is_tried_again_and_counted_once(
        self, desk: Desk, lenient: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.MonkeyPatch.context() as strict:
            strict.setattr(encode, "CONVERTERS", CONVERTERS)
            desk.load("patients", person(pin=1))
        desk.connection.execute("DELETE FROM nexhealth_schema_drift")
        calls = ended_once(monkeypatch, retrying, "_close")
        assert desk.retry() == (1, 1, 0, 0)
        assert len(calls) == 2
        assert desk.rows(OPEN) == []
        assert desk.rows("SELECT status, updated FROM nexhealth_sync_logs") == [("succeeded", 1)]
        assert desk.rows("SELECT field FROM nexhealth_schema_drift") == [("pin",)]

    def test_what_the_request_knew_is_remembered(self, desk: Desk) -> None:
        """A document names no patient: only the path of its request does."""
        desk.load("documents", {"id": "x", "filename": "a.pdf"}, patient_id=77)
        assert desk.rows("SELECT request, record_id, read_at FROM nexhealth_quarantine") == [
            ({"patient_id": 77}, "", ONE)
        ]
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (b'{"id": 8, "filename": "a.pdf"}',))
        assert desk.retry(collection="documents") == (1, 1, 0, 0)
        assert desk.rows("SELECT id, patient_id, source_read_at FROM nexhealth_documents") == [(8, 77, ONE)]

    def test_a_fault_met_in_another_list_since_is_mended_there(self, desk: Desk) -> None:
        """Risk: a document goes back to its old patient, by what was known of the same fault before it moved."""
        paper = {"id": 8, "filename": "a.pdf", "document_type_id": "x"}
        for patient, at in ((77, ONE), (78, THREE), (77, TWO)):
            desk.load("documents", paper, at=at, patient_id=patient)
        assert desk.rows("SELECT request, read_at FROM nexhealth_quarantine") == [({"patient_id": 78}, THREE)]
        mended = json.dumps(paper | {"document_type_id": 3}).encode()
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (mended,))
        assert desk.retry(collection="documents") == (1, 1, 0, 0)
        assert desk.rows("SELECT patient_id, document_type_id FROM nexhealth_documents") == [(78, 3)]

    def test_what_a_later_whole_read_no_longer_met_is_out_of_date(self, desk: Desk, lenient: None) -> None:
        """Deleted at the practice meanwhile: loading it would raise the dead."""
        desk.load("patients", b'{"id": 5, "email": "\xff"}')
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (json.dumps(person(5)).encode(),))
        desk.connection.execute(
            "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode,"
            " filter_hash, cursor, page, records, run_id, last_full_at)"
            " VALUES ('patients', 7, 3, '', 'all', 'full', '', '', 0, 0, '', %s)",
            (TWO,),
        )
        assert desk.retry() == (1, 0, 1, 0)
        assert desk.rows("SELECT count(*) FROM nexhealth_patients") == [(0,)]

    @pytest.mark.parametrize(("last_month", "outdated"), [(TWO, 1), (None, 0)], ids=["all months", "not all"])
    def test_reads_of_changes_are_never_whole_and_tell_nothing_of_that(
        self, desk: Desk, last_month: datetime | None, outdated: int
    ) -> None:
        """Else no note of an appointment is ever out of date."""
        desk.load("appointments", b'{"id": 5, "note": "\xff"}')
        for window, whole in (("2026-02", TWO), ("2026-03", last_month), ("changes", None)):
            desk.connection.execute(
                "INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode,"
                " filter_hash, cursor, page, records, run_id, last_full_at)"
                " VALUES ('appointments', 7, 3, %s, 'all', 'full', '', '', 0, 0, '', %s)",
                (window, whole),
            )
        assert desk.retry() == (1, 0, outdated, 1 - outdated)

    def test_a_pass_that_only_a_reconcile_makes_is_not_waited_for(self, desk: Desk) -> None:
        """A record the API no longer has would come back until next week's."""
        desk.load("providers", b'{"id": 5, "name": "\xff"}')
        for name, whole in (("active", TWO), ("inactive", TWO), ("active_again", NOON)):
            desk.read_whole("providers", 0, whole, name_of_pass=name)
        assert desk.retry() == (1, 0, 1, 0)

    def test_a_pass_that_only_tells_who_is_listed_is_not_waited_for(self, desk: Desk) -> None:
        """It is made no more once an office shares its database with nobody, and what it left behind stays."""
        desk.load("patients", b'{"id": 5, "first_name": "\xff"}')
        desk.read_whole("patients", 3, TWO)
        desk.read_whole("patients", 3, NOON, name_of_pass="members")
        assert desk.retry() == (1, 0, 1, 0)

    @pytest.mark.parametrize(("second", "outdated"), [(TWO, 1), (NOON, 0)], ids=["at both offices", "at one"])
    @pytest.mark.parametrize("filed", [0, 3], ids=["institution-wide", "under a patient's office"])
    def test_a_list_of_the_institution_that_each_office_is_asked_for_was_read_where_all_were(
        self, desk: Desk, filed: int, second: datetime, outdated: int
    ) -> None:
        """Else no note of an appointment type is ever out of date."""
        desk.load("appointment_types", b'{"id": 5, "name": "\xff"}')
        desk.connection.execute("UPDATE nexhealth_quarantine SET location_id = %s", (filed,))
        desk.read_whole("appointment_types", 3, TWO)
        desk.read_whole("appointment_types", 4, second)
        assert desk.retry() == (1, 0, outdated, 1 - outdated)

    def test_that_other_patients_lists_were_read_makes_no_note_out_of_date(self, desk: Desk) -> None:
        """Where some lists failed, the rest is noted as all of them: this record is there, and nobody has loaded it."""
        desk.load("documents", {"id": "x", "filename": "a.pdf"}, patient_id=7)
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (b'{"id": 8, "filename": "a.pdf"}',))
        desk.load("documents", at=TWO, patient_id=77)
        desk.read_whole("documents", 3, TWO, name_of_pass="rows")
        assert desk.retry() == (1, 1, 0, 0)
        assert desk.rows("SELECT id, patient_id FROM nexhealth_documents") == [(8, 7)]

    @pytest.mark.parametrize("deleted_by", ["absence", "source"])
    @pytest.mark.parametrize("name", ["documents", "alerts"])
    def test_what_stood_in_the_list_of_a_patient_who_is_gone_is_out_of_date(
        self, desk: Desk, name: str, deleted_by: str
    ) -> None:
        """That list is never read again; loaded, it would stand live under a patient who is deleted."""
        for patient in (7, 77):
            desk.load("patients", person(patient, born=None))
            desk.load(name, b'{"id": %d, "note": "\xff"}' % (patient + 1), patient_id=patient)
        desk.connection.execute(
            "UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = %s WHERE id = 7", (TWO, deleted_by)
        )
        desk.connection.execute(
            'UPDATE nexhealth_quarantine SET raw = convert_to(format(\'{"id": %s, "patient_id": %s}\', record_id,'
            " request ->> 'patient_id'), 'UTF8')",
        )
        assert desk.retry() == (2, 1, 1, 0)
        assert desk.rows(f"SELECT id, patient_id FROM nexhealth_{name}") == [(78, 77)]
        assert desk.rows(OPEN) == []

    def test_a_record_that_a_retry_takes_from_another_list_is_not_missed_there(self, desk: Desk) -> None:
        """Else a check warns of that list until it is read again."""
        papers = COLLECTIONS["documents"]
        desk.load("documents", {"id": 8}, {"id": 9}, patient_id=7)
        with desk.connection.transaction():
            reads = [ChildRead(DueRow(7, None), 2, time.monotonic())]
            record_child_reads(desk.connection, collection=papers, institution_id=7, reads=reads)
        desk.load("documents", b'{"id": 8, "filename": "\xff"}', at=TWO, patient_id=77)
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (b'{"id": 8, "filename": "a.pdf"}',))
        assert desk.retry() == (1, 1, 0, 0)
        assert desk.rows("SELECT id, patient_id FROM nexhealth_documents ORDER BY 1") == [(8, 77), (9, 7)]
        assert desk.rows("SELECT patient_id, rows FROM nexhealth_child_reads") == [(7, 1)]

    def test_a_row_inside_a_record_that_changed_since_is_out_of_date(self, desk: Desk) -> None:
        """The record is the authority over its list."""
        payout = {"claim_id": "x", "write_off": {"amount": "1.00", "currency": "USD"}}
        charge = {"id": 4, "updated_at": "2026-02-01T00:00:00Z", "claim_payouts": [payout]}
        desk.load("charges", charge)
        assert desk.rows("SELECT collection, request FROM nexhealth_quarantine") == [
            ("claim_payouts", {"charge_id": 4})
        ]
        fixed = json.dumps(payout | {"claim_id": 9}).encode()
        desk.connection.execute("UPDATE nexhealth_quarantine SET raw = %s", (fixed,))
        desk.connection.execute("UPDATE nexhealth_charges SET source_read_at = %s", (TWO,))
        assert desk.retry() == (1, 0, 1, 0)
        desk.connection.execute("UPDATE nexhealth_charges SET source_read_at = %s", (ONE,))
        desk.connection.execute("UPDATE nexhealth_quarantine SET resolved_at = NULL")
        assert desk.retry() == (1, 1, 0, 0)
        assert desk.rows("SELECT charge_id, claim_id FROM nexhealth_claim_payouts") == [(4, 9)]

    def test_an_id_that_is_none_is_named(self, desk: Desk) -> None:
        with pytest.raises(InvalidSetting, match="note 999999: there is none"):
            desk.retry(ids=[999999])


class TestBySyncItself:
    def test_a_record_read_later_without_the_fault_closes_its_note(self, desk: Desk) -> None:
        """Else the list of what is wrong only ever grows, and nobody reads it."""
        desk.load("patients", person(), b'{"id": 5, "email": "\xff"}', person(6))
        desk.load("patients", person(born="1990-01-01", at="2026-02-03T00:00:00Z"), {"id": 5}, at=TWO)
        assert desk.rows(OPEN) == [("6", "bio_date_of_birth")]

    def test_the_same_fault_read_again_stays_open_and_is_not_new(self, desk: Desk) -> None:
        assert desk.load("patients", person()) == 1
        assert desk.load("patients", person(), at=TWO) == 0
        assert desk.rows(OPEN) == [("1", "bio_date_of_birth")]
        assert desk.rows("SELECT read_at FROM nexhealth_quarantine") == [(TWO,)]

    def test_a_fault_that_comes_back_is_new_and_open_again(self, desk: Desk) -> None:
        desk.load("patients", person())
        desk.load("patients", person(born=None), at=TWO)
        assert desk.rows(OPEN) == []
        assert desk.load("patients", person(), at=THREE) == 1
        assert desk.rows(OPEN) == [("1", "bio_date_of_birth")]

    def test_an_answer_older_than_the_fault_closes_nothing(self, desk: Desk) -> None:
        """Two locations of one database are read side by side."""
        desk.load("patients", person(), at=TWO)
        desk.load("patients", person(born=None), at=ONE)
        assert desk.rows(OPEN) == [("1", "bio_date_of_birth")]

    @pytest.mark.parametrize("name", ["documents", "alerts"])
    def test_a_list_read_without_the_record_closes_its_note(self, desk: Desk, name: str) -> None:
        """Deleted at the practice: nothing else would ever close it, and a retry would raise the dead."""
        bad = [b'{"id": %d, "note": "\xff"}' % number for number in (5, 6, 8)]
        desk.load(name, bad[0], patient_id=7, at=THREE)
        desk.load(name, bad[1], patient_id=7)
        desk.load(name, bad[2], patient_id=77)
        desk.load(name, at=TWO, patient_id=7)
        assert desk.rows(OPEN) == [("5", ""), ("8", "")], "not what was met later, nor in another patient's list"
        assert desk.retry() == (2, 0, 0, 2)

    def test_a_record_met_in_another_list_is_that_ones(self, desk: Desk) -> None:
        """Two records of a patient that were two are one: the list it left says nothing of it, nor whose it is."""
        for patient, at in ((7, ONE), (77, TWO)):
            desk.load("documents", b'{"id": 8, "filename": "\xff"}', at=at, patient_id=patient)
        desk.load("documents", at=THREE, patient_id=7)
        assert desk.rows("SELECT request, resolved_at FROM nexhealth_quarantine") == [({"patient_id": 77}, None)]

    def test_rows_without_an_id_are_known_by_what_they_stand_under(self, desk: Desk) -> None:
        """A patient's address, and the payouts inside a charge."""
        desk.load("patient_addresses", b'{"city": "\xff"}', patient_id=5)
        desk.load("patient_addresses", b'{"city": "\xff"}', patient_id=6)
        assert len(desk.rows(OPEN)) == 2, "the same bytes under two patients are two faults"
        desk.load("patient_addresses", {"city": "Malmö"}, at=TWO, patient_id=5)
        assert desk.rows("SELECT request FROM nexhealth_quarantine WHERE resolved_at IS NULL") == [({"patient_id": 6},)]
        charge = {"id": 4, "updated_at": "2026-02-01T00:00:00Z", "claim_payouts": [{"claim_id": "x"}]}
        desk.load("charges", charge)
        desk.load(
            "charges", charge | {"claim_payouts": [{"claim_id": 9}], "updated_at": "2026-02-02T00:00:00Z"}, at=TWO
        )
        assert desk.rows("SELECT count(*) FROM nexhealth_quarantine WHERE resolved_at IS NULL") == [(1,)]

    def test_a_fault_inside_a_record_stays_until_the_list_it_stands_in_is_read(self, desk: Desk) -> None:
        """An event may bring a record without its list, or the list as something else: nobody has read the row again."""
        charge = {"id": 4, "updated_at": "2026-02-01T00:00:00Z"}
        faults = "SELECT field, rule FROM nexhealth_quarantine WHERE resolved_at IS NULL ORDER BY field"
        assert desk.load("charges", charge | {"claim_payouts": [{"claim_id": "x"}]}) == 1
        row, no_list = ("claim_id", "not an integer"), ("claim_payouts", "not a list")
        assert desk.rows(faults) == [row]
        for nothing in ({}, {"claim_payouts": None}):
            desk.load("charges", charge | nothing, at=TWO)
            assert desk.rows(faults) == [row], nothing
        assert desk.load("charges", charge | {"claim_payouts": {"items": []}}, at=TWO) == 1
        assert desk.rows(faults) == [row, no_list]
        assert desk.retry(collection="claim_payouts") == (2, 0, 0, 2)
        desk.load("charges", charge | {"claim_payouts": [{"claim_id": 9}]}, at=THREE)
        assert desk.rows(faults) == []


def test_a_sync_heals_what_the_practice_corrected(settings: Settings, box: SandboxServer, rows: Rows) -> None:
    """From the API to the note and back, over HTTP."""
    patient = box.state.ids("patients")[0]
    box.state.update("patients", patient, {"bio": {"date_of_birth": "2024-02-30"}})
    sync_all(settings, SyncOptions(mode=Mode.FULL), only={"patients"})
    assert rows(OPEN) == [(str(patient), "bio_date_of_birth")]
    box.state.update("patients", patient, {"bio": {"date_of_birth": "2024-02-28"}})
    sync_all(settings, only={"patients"})
    assert rows(OPEN) == []
    assert rows("SELECT count(*) FROM nexhealth_quarantine") == [(1,)]


def test_what_has_no_id_at_all_heals_when_its_whole_list_is_read(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """One bad time in the status of an office would else be a note for ever."""
    status = box.state.ids("sync_status")[0]
    box.state.update("sync_status", status, {"read_status_at": "at noon"})
    for _ in range(2):
        sync_all(settings, only=set())
        assert rows(OPEN) == [("", "read_status_at")]
    box.state.update("sync_status", status, {"read_status_at": "2026-03-01T12:00:00Z"})
    sync_all(settings, only=set())
    assert rows(OPEN) == []


@pytest.mark.parametrize(
    ("name", "raw", "unclear"),
    [
        ("documents", b'{"id":900,"filename":"Jos\xe9"}', set()),
        ("documents", b'{"filename":"Jos\xe9","id":900}', {0}),
        ("coverage_subscribers", b'{"id":900,"name":"Jos\xe9"}', {0}),
    ],
    ids=["the row's id", "no id to be seen", "an id that is not the row's"],
)
def test_a_refused_record_says_which_row_it_is_or_leaves_it_open(
    desk: Desk, name: str, raw: bytes, unclear: set[int]
) -> None:
    """Risk: the row that could not be read this time is taken for one that is gone."""
    loader = Loader(desk.connection, Slice(COLLECTIONS[name], ACME, NORTH), run_id="r", dry_run=False)
    loader.open()
    page = Page(1, [raw], "", False, ONE, 1, 0, 0.0, 0, None, None)
    with desk.connection.transaction():
        known = {"location_id": 3, "patient_id": 5, "coverage_id": 77}
        loaded = loader.encode_and_load([(page, known)])
    assert loaded.nameless == unclear
    assert loaded.named == ([] if unclear else ["900"])
    assert loaded.unread == {0}
