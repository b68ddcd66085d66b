"""Records inside the one object of a single read: whether a row has none, or the API does not give what it was asked for."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status
from tests.client.stub import Reply, Seen, Stub, envelope, running

from .kit import Rows, settings_of, sync_all
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
    slices = [f"{name} willow.{one}" for one in (11, 12)] if name == "patient_addresses" else [f"{name} willow"]
    with caplog.at_level(logging.WARNING):
        read(office, database_url, name)
        assert rows(missing) == [(name, key, 1)]
        assert warned(caplog) == [{"slice": one, "field": key} for one in slices]
        read(office, database_url, name, SyncOptions())
        assert warned(caplog) == [], "once is enough, until all of it is read again"
        assert rows(missing) == [(name, key, 1)]
        assert rows(table) == [(0,)]

        office.fields = {7: {key: record}}
        read(office, database_url, name)
        assert rows(missing) == []
        assert rows(table) == [(1,)]
        assert warned(caplog) == [{"slice": one, "field": key} for one in slices if one.endswith(".12")]


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
