"""Fields that come otherwise than declared: found while records are encoded, told once, and without a value."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Pass
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.warehouse.drift import Drift, DriftWatch, field_of, record_drift, record_missing
from nexhealth_pipeline.warehouse.encode import RecordEncoder
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state

from .conftest import Rows
from .kit import GADGETS, INSTITUTION, NOON, gadget, until_it_waits

CANARY = "canary-5550100"


def seen(*records: dict[str, Any], encoder: RecordEncoder | None = None) -> list[tuple[str, str]]:
    """Kind and field of what `records` show."""
    encoder = encoder or RecordEncoder(GADGETS, INSTITUTION)
    encoder.encode([json.dumps(one).encode() for one in records], NOON, {})
    return sorted((one.kind, one.field) for one in encoder.drift.drain())


def test_a_record_as_declared_shows_nothing() -> None:
    """A warning that is always there is read by nobody."""
    assert seen(gadget(), gadget(2, note=None, box={"any": "thing"}, tags={"free": 1})) == []
    assert seen(gadget(institution_id=7, tin="1", box={"ssn": "1"})) == []


@pytest.mark.parametrize(
    ("fields", "drift"),
    [
        ({"colour": CANARY}, ("new", "colour")),
        ({"colour": CANARY, "institution_id": 7, "note": ...}, ("new", "colour")),
        ({"maker": {"city": "Malmö", "zip": CANARY}}, ("new", "maker.zip")),
        ({"maker": {"zip": CANARY}}, ("new", "maker.zip")),
        ({"price": {"amount": "1", "currency": "USD", "cents": 5550100}}, ("new", "price.cents")),
        ({CANARY + " Jane": 1}, ("new", "(a key that is no plain name)")),
        ({"born": CANARY}, ("retyped", "born")),
        ({"born": "2001-02-03T00:00:00-05:00"}, ("retyped", "born")),
        ({"active": CANARY}, ("retyped", "active")),
        ({"location_id": CANARY}, ("retyped", "location_id")),
        ({"price": CANARY}, ("retyped", "price.amount")),
        ({"maker": [CANARY]}, ("retyped", "maker.city")),
        ({"name": {"first": CANARY}}, ("retyped", "name")),
        ({"note": 5550100}, ("retyped", "note")),
        ({"maker": {"city": [CANARY]}}, ("retyped", "maker.city")),
    ],
)
def test_what_is_not_as_declared_is_named_with_the_record_it_was_seen_in(
    fields: dict[str, Any], drift: tuple[str, str]
) -> None:
    """Without the name nobody can declare the column; with the value, a log would hold a patient's data."""
    encoder = RecordEncoder(GADGETS, INSTITUTION)
    encoder.encode([json.dumps(gadget(5, **fields)).encode()], NOON, {})
    found = encoder.drift.drain()
    assert drift in [(one.kind, one.field) for one in found]
    assert {(one.institution_id, one.sample_id) for one in found} == {(INSTITUTION, 5)}
    assert CANARY not in repr(found).replace("(a key that", "")


def test_a_value_that_is_only_wrong_is_no_other_type() -> None:
    """30 February is one office's mistake, not a change of the API."""
    assert seen(gadget(born="2024-02-30", location_id=2**64, start_time="1700-01-01T00:00:00Z")) == []


def test_days_that_come_as_times_are_told_once_and_loaded() -> None:
    """Each row of the ledger was a note in quarantine with its whole record, millions in a first load, and had no day."""
    payments = COLLECTIONS["payments"]
    encoder = RecordEncoder(payments, INSTITUTION)
    record = {"id": 1, "updated_at": "2026-03-01T10:00:00Z", "paid_at": "2024-05-20T23:00:00-04:00"}
    raw = [json.dumps(record | {"id": number}).encode() for number in range(1, 4)]
    encoded = encoder.encode(raw, NOON, {})
    at = encoder.stage_columns.index("paid_at")
    assert [line.split("\t")[at] for line in encoded.lines] == ["2024-05-21"] * 3
    assert encoded.notes == []
    assert [(one.kind, one.field, one.sample_id) for one in encoder.drift.drain()] == [("retyped", "paid_at", 1)]


@pytest.mark.parametrize("zone", ["+02:00", "Z", ""])
def test_a_birthday_that_comes_as_a_time_is_the_day_that_is_written(zone: str) -> None:
    """Midnight where somebody was born may be another day in UTC; and without a zone each was a note in quarantine."""
    encoder = RecordEncoder(COLLECTIONS["patients"], INSTITUTION)
    born = {"date_of_birth": f"1980-02-03T00:00:00{zone}"}
    encoded = encoder.encode([json.dumps({"id": 1, "bio": born}).encode()], NOON, {})
    assert encoded.lines[0].split("\t")[encoder.stage_columns.index("bio_date_of_birth")] == "1980-02-03"
    assert encoded.notes == []
    assert [(one.kind, one.field) for one in encoder.drift.drain()] == [("retyped", "bio.date_of_birth")]


def test_a_drift_is_told_once_and_an_object_keyed_by_anything_does_not_fill_the_table() -> None:
    encoder = RecordEncoder(GADGETS, INSTITUTION)
    assert seen(gadget(1, colour=1), gadget(2, colour=2), encoder=encoder) == [("new", "colour")]
    assert seen(gadget(3, colour=3), encoder=encoder) == []
    assert len(seen(gadget(maker={f"k{number}": 1 for number in range(5000)}), encoder=encoder)) < 300


def test_only_a_field_that_no_record_had_is_absent() -> None:
    encoder = RecordEncoder(GADGETS, INSTITUTION)
    seen(gadget(1, note=..., born=..., maker=...), gadget(2, note=..., price=...), encoder=encoder)
    assert encoder.drift.drain_absent() == {"note"}
    assert encoder.drift.drain_absent() is None
    seen(gadget(3, maker=...), encoder=encoder)
    assert encoder.drift.drain_absent() == {"maker.city"}


@pytest.mark.parametrize("collection", DECLARED, ids=lambda one: one.name)
def test_every_declared_field_of_every_collection_is_known(collection: Any) -> None:
    """Lists that are tables of their own and keys too sensitive to keep are no news either."""
    record: dict[str, Any] = {"institution_id": 1}
    for column in collection.columns:
        place = record
        for key in column.path[:-1]:
            place = place.setdefault(key, {})
        place[column.path[-1]] = None
    for path in collection.sensitive:
        if len(path) == 1 or isinstance(record.get(path[0]), dict):
            (record if len(path) == 1 else record[path[0]])[path[-1]] = None
    watch = DriftWatch(collection)
    watch.see(record, "1", [], [])
    assert watch.drain() == []
    assert watch.drain_absent() == set()


def test_a_list_that_is_a_table_of_its_own_is_no_new_field() -> None:
    watch = DriftWatch(COLLECTIONS["charges"])
    watch.see(
        {"id": 1, "claim_payouts": [{"claim_id": 1, "x": 1}], "fee": {"amount": "1", "tax": 1}}, "1", ["note"], []
    )
    assert [(one.kind, one.field) for one in watch.drain()] == [("new", "fee.tax")]


def test_every_amount_of_a_record_with_many_is_looked_at() -> None:
    """A balance has eight, and the next record with the new key is read the quick way, which tells nothing."""
    watch, names = DriftWatch(COLLECTIONS["guarantor_balances"]), set()
    for column in COLLECTIONS["guarantor_balances"].columns:
        if column.path[-1] == "amount":
            names.add(field_of(column).removesuffix(".amount"))
    record = {name: {"amount": "1", "currency": "USD", "cents": 1} for name in names}
    watch.see({"id": 1, **record}, "1", [], [])
    assert {one.field for one in watch.drain()} == {f"{name}.cents" for name in names}


def test_a_drift_keeps_when_it_was_first_seen_and_moves_when_it_was_last(
    connection: psycopg.Connection, rows: Rows
) -> None:
    first = [Drift("new", 7, "colour", 1), Drift("retyped", 7, "born", None)]
    record_drift(connection, "gadgets", first)
    record_drift(connection, "gadgets", [Drift("new", 7, "colour", 2), Drift("new", 8, "colour", 3)])
    assert rows(
        "SELECT institution_id, field, kind, sample_id, last_seen_at > first_seen_at + interval '1 microsecond'"
        " FROM nexhealth_schema_drift ORDER BY 1, 2"
    ) == [(7, "born", "retyped", None, False), (7, "colour", "new", 2, True), (8, "colour", "new", 3, False)]


def test_an_id_that_is_none_is_no_sample(connection: psycopg.Connection, rows: Rows) -> None:
    """Where it is no key it is loaded whatever it is; an error of the database would end the load every night."""
    encoder = RecordEncoder(COLLECTIONS["patient_addresses"], INSTITUTION)
    for text in ("true", str(2**64), '"7"'):
        encoder.encode([b'{"id": %s, "colour_%d": 1}' % (text.encode(), len(text))], NOON, {"patient_id": 5})
    record_drift(connection, "patient_addresses", encoder.drift.drain())
    assert rows("SELECT DISTINCT sample_id FROM nexhealth_schema_drift WHERE field LIKE 'colour%'") == [(None,)]


def end_read(connection: psycopg.Connection, location: int, *absent: str) -> list[str]:
    """A complete read of a location lacked these fields; which of them were not noted before."""
    key = PassKey("gadgets", 7, location, "", "all")
    save_state(connection, PassState(key, watermark=NOON, pass_started_at=NOON, absent_fields=list(absent)))
    return record_missing(connection, GADGETS, 7, absent)


def test_a_field_is_missing_only_where_no_read_of_the_institution_met_it(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """One office without any note is no change of the API; and a field that comes back is no longer missing."""

    def complete(location: int, *absent: str) -> list[str]:
        return sorted(end_read(connection, location, *absent))

    missing = "SELECT field FROM nexhealth_schema_drift WHERE kind = 'missing' ORDER BY 1"
    assert complete(1, "note", "born") == ["born", "note"]
    assert rows(missing) == [("born",), ("note",)]
    assert complete(2, "note") == []
    assert rows(missing) == [("note",)]
    assert complete(1, "note", "born") == []
    assert rows(missing) == [("note",)]
    assert complete(2) == []
    assert rows(missing) == []
    assert complete(2, "note") == ["note"]


def test_what_only_a_reconcile_read_last_week_keeps_no_field_from_being_missed(
    connection: psycopg.Connection, rows: Rows
) -> None:
    twice = replace(GADGETS, passes=(Pass("all"), Pass("again", reconcile_only=True)))
    for name, absent in (("all", ["note"]), ("again", [])):
        key = PassKey("gadgets", 7, 1, "", name)
        save_state(connection, PassState(key, watermark=NOON, pass_started_at=NOON, absent_fields=absent))
    record_missing(connection, twice, 7, ["note"])
    assert rows("SELECT field FROM nexhealth_schema_drift WHERE kind = 'missing'") == [("note",)]


def test_slices_that_end_together_wait_for_each_other_in_no_circle(
    connection: psycopg.Connection, other: psycopg.Connection, shared_url: str
) -> None:
    """Each met what the other lacked: one forgets the field that the other notes again, and the other way round."""

    def end(slice_: psycopg.Connection, absent: str) -> None:
        with slice_.transaction():
            record_missing(slice_, GADGETS, 7, [absent])

    record_missing(connection, GADGETS, 7, ["born", "note"])
    with psycopg.connect(shared_url, autocommit=True) as third, ThreadPoolExecutor(2) as pool:
        with connection.transaction():
            connection.execute("SELECT FROM nexhealth_schema_drift WHERE field = 'born' FOR UPDATE")
            first = pool.submit(end, other, "note")
            until_it_waits(connection, other)
            second = pool.submit(end, third, "born")
            until_it_waits(connection, third)
        first.result()
        second.result()
    missing = connection.execute("SELECT field FROM nexhealth_schema_drift WHERE kind = 'missing'").fetchall()
    assert missing == [("born",)], "as the one that ended last has it"


def test_what_another_slice_meets_just_now_is_not_noted_as_missing_again(
    connection: psycopg.Connection, other: psycopg.Connection, rows: Rows
) -> None:
    """It was asked for before the other's end was there to be seen; nothing would forget it until the next night."""

    def end() -> None:
        with other.transaction():
            end_read(other, 2, "note")

    for location in (1, 2):
        end_read(connection, location, "note")
    assert rows("SELECT field FROM nexhealth_schema_drift WHERE kind = 'missing'") == [("note",)]
    with ThreadPoolExecutor(1) as pool:
        with connection.transaction():
            end_read(connection, 1)
            late = pool.submit(end)
            until_it_waits(connection, other)
        late.result()
    assert rows("SELECT field FROM nexhealth_schema_drift WHERE kind = 'missing'") == []
