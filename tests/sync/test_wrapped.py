"""Records inside the one object of a single read: whether a row has none, or the API does not give what it was asked for."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import kept_page
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sync import children, fault_points
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status
from nexhealth_pipeline.sync.wrapped import Wrapped
from nexhealth_pipeline.warehouse.state import PassKey, PassState
from nexhealth_pipeline.webhooks.applying.single_reads import SingleReads
from tests.client.stub import Reply, Seen, Stub, envelope, running

from .kit import Rows, open_session, settings_of, sync_all
from .test_new_collection import cursor_page

WRITTEN = "2026-03-01T10:00:00Z"
FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
PATIENTS = range(1, 31)
MISSING = (
    "SELECT collection, field, institution_id FROM nexhealth_schema_drift WHERE kind = 'missing' AND collection IN ({})"
)
KINDS = {
    "patient_addresses": ({"patients", "patient_addresses"}, "address", {"line_1": "Elm 1"}),
    "coverage_subscribers": ({"insurance_coverages", "coverage_subscribers"}, "subscriber", {"id": 5, "name": "Ann"}),
}
"""By collection: what is read, the key that holds the record, and one."""


class Office(Stub):
    """One institution of two offices, each with a practice system of its own; `fields` are those of a single read."""

    def __init__(self) -> None:
        super().__init__()
        self.fields: dict[int, dict[str, Any]] = {}
        self.broken: set[int] = set()
        self.answer = self.serve

    def serve(self, seen: Seen) -> Reply:
        match seen.path.strip("/").split("/"):
            case ["institutions"]:
                return envelope([{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case ["locations"]:
                return envelope([{"id": 1, "locations": [{"id": one, "institution_id": 1} for one in (11, 12)]}])
            case ["sync_status"]:
                system = {"institution_id": 1, "sync_source_type": "x", "read_status": "green"}
                return envelope(
                    [system | {"sync_source_name": str(one), "locations": [{"id": one}]} for one in (11, 12)]
                )
            case ["patients"]:
                here = [one for one in PATIENTS if (one % 2 == 0) == (seen.query["location_id"] == "12")]
                return cursor_page(
                    [{"id": one, "updated_at": WRITTEN} for one in here], "p" + seen.query["location_id"]
                )
            case ["insurance_coverages"]:
                rows = [{"id": one, "patient_id": 1, "active": True, "updated_at": WRITTEN} for one in PATIENTS]
                return cursor_page(rows if seen.query["active"] == "true" else [], "c" + seen.query["active"])
            case ["patients" | "insurance_coverages", number]:
                if int(number) in self.broken:
                    return Reply(body=b'{"code": true, "data": {"id": %s, "address": NaN}}' % number.encode())
                return envelope({"id": int(number), "updated_at": WRITTEN} | self.fields.get(int(number), {}))
        return Reply(404, b'{"code": false, "error": ["no such path"], "data": null, "description": ""}')


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


def warned(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What was told of fields that no answer had, since the last call."""
    found = [one.__dict__["nexhealth"] for one in caplog.records if "no answer has the field" in one.message]
    caplog.clear()
    return found


def read(office: Office, database_url: str, name: str, options: SyncOptions = FULL) -> None:
    results = sync_all(settings_of(office, database_url), options, only=KINDS[name][0])
    assert {one.status for one in results} <= {Status.SUCCEEDED}, [one.reason for one in results if one.reason]


@pytest.mark.parametrize("name", KINDS)
def test_a_key_that_no_answer_has_is_noted_as_missing_until_one_has_it(
    office: Office, database_url: str, rows: Rows, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Each night asked for every patient's address, was answered without any, and all was green: nobody had one."""
    _, key, record = KINDS[name]
    missing, table = MISSING.format(f"'{name}'"), f"SELECT count(*) FROM nexhealth_{name} WHERE deleted_at IS NULL"
    with caplog.at_level(logging.WARNING):
        read(office, database_url, name, SyncOptions(dry_run=True))
        assert (rows(missing), warned(caplog)) == ([], []), "a dry read notes nothing"
        read(office, database_url, name)
        assert rows(missing) == [(name, key, 1)]
        (told,) = warned(caplog)
        assert (told["field"], told["slice"].split(".")[0]) == (key, f"{name} willow")
        for options in (SyncOptions(), FULL):
            read(office, database_url, name, options)
            assert warned(caplog) == [], "once is enough for an institution, until one has it"
        assert rows(missing) == [(name, key, 1)]
        assert rows(table) == [(0,)]

        office.fields = {7: {key: record}}
        read(office, database_url, name)
        assert rows(missing) == []
        assert rows(table) == [(1,)]
        assert warned(caplog) == []


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("value", [None, "", {}])
def test_a_row_that_has_none_is_no_lack_of_the_answer(
    office: Office, database_url: str, rows: Rows, caplog: pytest.LogCaptureFixture, name: str, value: object
) -> None:
    """Practice systems without addresses answer null, and some leave it out of a few."""
    office.fields = {one: {KINDS[name][1]: value} for one in PATIENTS if one % 10 < 2}
    read(office, database_url, name)
    read(office, database_url, name, SyncOptions())
    assert rows(MISSING.format(f"'{name}'")) == []
    assert warned(caplog) == []


def test_what_a_few_changed_rows_lack_says_nothing(office: Office, database_url: str, rows: Rows) -> None:
    """A night asks for some: where the last read of all had the key, they are the few."""
    office.fields = {one: {"address": {"line_1": "Elm 1"}} for one in PATIENTS if one > 4}
    read(office, database_url, "patient_addresses")
    rows("UPDATE nexhealth_child_reads SET patient_version = NULL WHERE patient_id < 5 RETURNING 1")
    office.seen.clear()
    read(office, database_url, "patient_addresses", SyncOptions())
    asked = {one.path for one in office.data_requests if one.path.startswith("/patients/")}
    assert asked == {f"/patients/{one}" for one in range(1, 5)}
    assert rows(MISSING.format("'patient_addresses'")) == []


class _Crossed(Wrapped):
    """One in which another thread notes an answer that has the key, while one that has not is noted."""

    def __setattr__(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)
        if name == "_answered" and value:
            object.__setattr__(self, "_told", True)


def test_an_answer_that_has_the_key_is_not_forgotten_for_one_that_comes_at_the_same_moment() -> None:
    """Each wrote back what it had read: the one answer of a practice that told might count for nothing."""
    wrapped = _Crossed(COLLECTIONS["patient_addresses"], "patient_addresses willow.11")
    wrapped.note([replace(kept_page(b"", datetime.now(UTC)), whole=b'{"id": 1}')])
    new = PassState(PassKey("patient_addresses", 1, 11, "", "rows"))
    assert wrapped.absent_fields(new, replace(new, begun_at=datetime.now(UTC)), whole=True) == []


def test_what_some_rows_lack_while_others_fail_is_no_verdict_on_all() -> None:
    """One of a thousand objects was read, without an address, and the practice was noted as one that gives none."""
    wrapped = Wrapped(COLLECTIONS["patient_addresses"], "patient_addresses willow.11")
    wrapped.note([replace(kept_page(b"", datetime.now(UTC)), whole=b'{"id": 1}')])
    new = PassState(PassKey("patient_addresses", 1, 11, "", "rows"))
    begun = replace(new, begun_at=datetime.now(UTC))
    assert wrapped.absent_fields(new, begun, whole=False) is None
    assert wrapped.absent_fields(new, begun, whole=True) == ["address"]


class _Killed(BaseException):
    pass


def read_and_kill(office: Office, database_url: str, commit: int) -> None:
    """A whole read of the subscribers that ends right after that commit, of five rows each."""
    left = commit

    def kill(point: str, collection: str) -> None:
        nonlocal left
        left -= point == "after_commit" and collection == "coverage_subscribers"
        if not left:
            raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "_BATCH_ROWS", 5)
        patch.setattr(fault_points, "armed", kill)
        with pytest.raises(_Killed):
            read(office, database_url, "coverage_subscribers")


@pytest.mark.parametrize("commit", [1, 6])
def test_what_the_rest_of_a_read_lacks_that_was_killed_says_nothing_of_all(
    office: Office, database_url: str, rows: Rows, caplog: pytest.LogCaptureFixture, commit: int
) -> None:
    """Those with a subscriber came before the kill: the others were taken for all, and the key for missing."""
    office.fields = {one: {"subscriber": {"id": one, "name": "Ann"}} for one in PATIENTS}
    read_and_kill(office, database_url, commit)
    assert rows("SELECT count(*) FROM nexhealth_coverage_subscribers") == [(5 * commit,)]
    office.fields = {}
    office.seen.clear()
    with caplog.at_level(logging.WARNING):
        read(office, database_url, "coverage_subscribers")
    asked = [one for one in office.data_requests if one.path.startswith("/insurance_coverages/")]
    assert len(asked) == len(PATIENTS) - 5 * commit
    assert rows(MISSING.format("'coverage_subscribers'")) == []
    assert warned(caplog) == []


def test_what_was_known_before_holds_while_a_killed_read_is_gone_on_with(
    office: Office, database_url: str, rows: Rows
) -> None:
    """The last whole read met the key: one that was killed at its end, with nothing left to ask for, takes that not back."""
    verdict = "SELECT absent_fields FROM nexhealth_sync_state WHERE collection = 'coverage_subscribers'"
    office.fields = {1: {"subscriber": {"id": 1, "name": "Ann"}}}
    read(office, database_url, "coverage_subscribers")
    assert rows(verdict) == [([],)]
    read_and_kill(office, database_url, 6)
    read(office, database_url, "coverage_subscribers")
    assert rows(verdict) == [([],)]
    office.fields = {}
    read(office, database_url, "coverage_subscribers")
    assert rows(verdict) == [(["subscriber"],)]
    read_and_kill(office, database_url, 1)
    read(office, database_url, "coverage_subscribers")
    assert rows(verdict) == [(["subscriber"],)]
    assert rows(MISSING.format("'coverage_subscribers'")) == [("coverage_subscribers", "subscriber", 1)]


def test_an_object_that_cannot_be_read_is_no_row_without_a_record(
    office: Office, database_url: str, rows: Rows
) -> None:
    """Taken for one, it would lose its address."""
    office.fields = {one: {"address": {"line_1": "Elm 1"}} for one in PATIENTS}
    read(office, database_url, "patient_addresses")
    office.broken = {3}
    results = sync_all(
        settings_of(office, database_url),
        RECONCILE,
        only=KINDS["patient_addresses"][0],
        retry=RetryPolicy(sleep=lambda _: None),
    )
    assert [one.slice.label for one in results if one.status is Status.FAILED] == ["patient_addresses willow.11"]
    assert rows("SELECT count(*) FROM nexhealth_patient_addresses WHERE deleted_at IS NULL") == [(len(PATIENTS),)]


def test_an_object_that_came_spoilt_is_asked_for_again(office: Office, database_url: str, rows: Rows) -> None:
    """As a list is, and what that cost is counted: one that is cut somewhere else than by the client would fail its row."""
    office.fields = {one: {"address": {"line_1": "Elm 1"}} for one in PATIENTS}
    office.broken = {3}

    def once(seen: Seen) -> Reply:
        reply = office.serve(seen)
        if seen.path.endswith("/patients/3"):
            office.broken.clear()
        return reply

    office.answer = once
    settings, retry = settings_of(office, database_url), RetryPolicy(sleep=lambda _: None)
    results = sync_all(settings, FULL, only=KINDS["patient_addresses"][0], retry=retry)
    assert {one.status for one in results} <= {Status.SUCCEEDED}, [one.reason for one in results if one.reason]
    assert rows("SELECT count(*) FROM nexhealth_patient_addresses") == [(len(PATIENTS),)]
    (read,) = [one for one in results if one.slice.label == "patient_addresses willow.11"]
    assert (read.counts.requests, read.counts.retries) == (len(PATIENTS) / 2 + 1, 1)


@pytest.mark.parametrize("broken", [set(), {3}])
def test_a_single_read_for_an_event_refuses_what_cannot_be_read(
    office: Office, database_url: str, rows: Rows, broken: set[int]
) -> None:
    """Taken for a patient without an address, its own would count as read, and the next sync would not ask for it."""
    office.fields = {one: {"address": {"line_1": "Elm 1"}, "location_ids": [11]} for one in PATIENTS}
    read(office, database_url, "patient_addresses")
    office.fields[3] = {"address": {"line_1": "Oak 2"}, "location_ids": [11, 12]}
    office.broken = broken
    with (
        open_session(settings_of(office, database_url), retry=RetryPolicy(sleep=lambda _: None)) as session,
        psycopg.connect(database_url, autocommit=True) as db,
    ):
        (institution,) = session.practices().institutions
        done = SingleReads(session, db).read(COLLECTIONS["patient_addresses"], institution, [3])
    assert (done.read, set(done.failures)) == ({3} - broken, broken)
    line = "Elm 1" if broken else "Oak 2"
    assert rows("SELECT line_1 FROM nexhealth_patient_addresses WHERE patient_id = 3 AND deleted_at IS NULL") == [
        (line,)
    ]
    where = "SELECT location_id FROM nexhealth_patient_locations WHERE patient_id = 3 AND gone_at IS NULL ORDER BY 1"
    assert rows(where) == [(11,), (12,)][: 1 if broken else 2]
