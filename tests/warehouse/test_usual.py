"""The quick way of reading records: what it reads is what the careful way reads, and what is usual is read by it."""

import json
import re
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.encode import RecordEncoder
from nexhealth_pipeline.warehouse.usual import UsualRecords

from .kit import GADGETS, NOON, gadget
from .test_encode import RECORDS, random_batches

READ_ALIKE: dict[str, dict[str, Any]] = {
    "as it should be": {},
    "another key": {"colour": "red"},
    "another key in an object": {"maker": {"city": "X", "zip": "1"}},
    "a key too sensitive to keep": {"tin": "987-65-4321"},
    "such a key in a jsonb column": {"box": {"ssn": "987-65-4321", "colour": "red"}},
    "no jsonb": {"box": None, "tags": None, "weight": None},
    "nulls": {"note": None, "active": None, "born": None, "price": {"amount": None, "currency": None}},
    "absent keys": {"note": ..., "active": ..., "maker": {}},
    "null for an object": {"maker": None},
    "text for an object": {"maker": "X"},
    "empty text for an object": {"maker": ""},
    "a list for an object": {"maker": [{"city": "X"}]},
    "empty texts": {"note": "", "active": "", "born": "", "start_time": "", "location_id": ""},
    "an offset": {"start_time": "2026-02-10T09:00:00+02:00"},
    "the 29th of February": {"born": "2024-02-29", "start_time": "2024-02-29T23:59:59.999999Z"},
    "no 29th of February": {"born": "2023-02-29", "start_time": "2023-02-29T23:59:59Z"},
    "no 31st of April": {"born": "2023-04-31"},
    "hour 24": {"start_time": "2023-04-30T24:00:00Z"},
    "a year too far": {"born": "2201-01-01", "start_time": "1899-12-31T00:00:00Z"},
    "the last year": {"born": "2200-12-31", "start_time": "1900-01-01T00:00:00Z"},
    "digits of another script": {"born": "٢٠٠١-٠٢-٠٣", "location_id": "٧"},
    "numbers as text": {"id": "1", "location_id": "3", "weight": "1.5"},
    "numbers for texts": {"note": 7, "name": 1.5},
    "words for numbers": {"location_id": "x", "weight": True, "active": 1},
    "integers out of range": {"location_id": 2**63, "weight": 10**40},
    "integers at the edge": {"location_id": -(2**63)},
    "too long for its index": {"name": "n" * 1001},
    "long in bytes only": {"name": "ë" * 501},
    "the words for null and true": {"note": "None", "name": "True", "maker": {"city": "None"}, "box": "None"},
    "what COPY would take for something else": {"note": "a\tb\\N\r\n\\.", "tags": ["\t", "\\"], "name": "\\"},
    "numbers of many kinds": {"weight": 10**29, "price": {"amount": -12.5, "currency": "USD"}},
    "numbers as no column has them": {"weight": 1e-7, "price": {"amount": 1e25, "currency": "USD"}},
    "an object keyed by anything": {"maker": {f"k{number}": number for number in range(60)}},
    "no key": {"id": None},
    "a key that is no number": {"id": "x"},
}


Carefully = Callable[..., tuple[Any, ...]]


def uncopied(text: str) -> str:
    """What COPY reads."""
    return re.sub(r"\\(.)", lambda found: {"t": "\t", "n": "\n", "r": "\r"}.get(found[1], found[1]), text)


def encoded(records: list[bytes], collection: Collection = GADGETS) -> tuple[Any, ...]:
    """All that an encoder says of records."""
    encoder = RecordEncoder(collection, 7)
    encoded = encoder.encode(records, NOON, {column.name: 3 for column in collection.from_request})
    kept = [line.split("\t") for line in encoded.staged()]
    at = encoder.stage_columns.index("raw")
    texts = [fields.pop(at) for fields in kept]
    assert b"987-65" not in "".join(encoded.lines).encode() + b"".join(note.raw for note in encoded.notes)
    return (
        kept,
        [json.loads(uncopied(text)) for text in texts],
        encoded.ids,
        encoded.hashes,
        [(note.record_id, note.field, note.rule, note.loaded) for note in encoded.notes],
        encoder.drift.drain(),
        encoder.drift.drain_absent(),
    )


@pytest.fixture
def carefully(monkeypatch: pytest.MonkeyPatch) -> Carefully:
    """Encodes records so that each of their values is looked at."""

    def encode(records: list[bytes], collection: Collection = GADGETS) -> tuple[Any, ...]:
        with monkeypatch.context() as patch:
            patch.setattr(UsualRecords, "read", lambda *_: None)
            return encoded(records, collection)

    return encode


@pytest.mark.parametrize("fields", READ_ALIKE.values(), ids=READ_ALIKE.keys())
def test_the_quick_way_reads_as_the_careful_one(fields: dict[str, Any], carefully: Carefully) -> None:
    """The second of each pair comes when an undeclared key of the first is known."""
    plain = json.dumps(gadget(**fields), ensure_ascii=False).encode()
    escaped = plain.replace(b'"updated_at"', b'"updated\\u005fat"')
    spread = json.dumps(gadget(**fields), indent="\t").encode()
    assert encoded([plain, plain]) == carefully([plain, plain]) == carefully([escaped, escaped])
    assert encoded([escaped, escaped]) == carefully([escaped, escaped])
    assert encoded([spread, plain])[:2] == carefully([spread, plain])[:2]


@random_batches(RECORDS)
def test_the_quick_way_reads_any_record_as_the_careful_one(
    carefully: Carefully, batch: list[tuple[dict[str, Any], bool]]
) -> None:
    raw = [json.dumps(gadget(**fields), ensure_ascii=ascii_only).encode() for fields, ascii_only in batch]
    assert encoded(raw) == carefully(raw)


ODD = {
    "patients": [
        b'{"id": 1, "institution_id": {"ssn": "987-65-4321"}}',
        b'{"id": 1, "institution_id": {"s\\u0073n": "987-65-4321"}}',
        b'{"id": 1, "bio": {"ssn": "987-65-4321", "city": "X"}}',
        b'{"id": 1, "institution_id": "7", "bio": "", "hipaa": null}',
    ],
    "treatment_plans": [
        b'{"id": 1, "procedures": [{"id": 2, "name": "\xff"}]}',
        b'{"id": 1, "procedures": [{"id": 2, "fee": {"amount": 1e-20000}}]}',
        b'{"id": 1, "procedures": [{"id": 2, "fee": {"amount": 1e200000}}]}',
        b'{"id": 1, "procedures": [{"id": 2, "fee": {"amount": 0e9999999999}}]}',
        b'{"id": 1, "procedures": null}',
    ],
    "charges": [
        b'{"id": 1, "claim_payouts": [{"claim_id": 1, "write_off": {"amount": 1e200000}}]}',
        b'{"id": 2, "location_id": 0e9999999999}',
    ],
    "alerts": [
        b'{"id": 1, "colour": 1}',
        b'{"id": 2, "colour": 1e200000}',
        b'{"id": 3, "colour": "\xff"}',
        b'{"id": 4, "colour": -0.0E+9999999999}',
    ],
    "coverage_subscribers": [
        b'{"name": "x", "date_of_birth": "2000-01-02"}',
        b'{"id": null, "name": "x"}',
        b'{"id": 5}',
    ],
    "providers": [b'{"id": 1, "tin": "987-65-4321"}', b'{"id": 2, "availabilities": [{"tin": "987-65-4321"}]}'],
}


@pytest.mark.parametrize("name", ODD)
def test_the_quick_way_reads_odd_records_of_real_collections_as_the_careful_one(
    name: str, carefully: Carefully
) -> None:
    """What is passed over is stored in `raw` too: it must not hold what must not, or cannot, be stored."""
    for records in (ODD[name], *([one] for one in ODD[name])):
        assert encoded(records, COLLECTIONS[name]) == carefully(records, COLLECTIONS[name])


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"note": "None", "name": "True"},
        {"note": 'a\tb\\N\n"c"', "tags": ["a\tb", "\\"]},
        {"active": False, "born": None, "price": None, "maker": None, "tags": None, "box": "None"},
        {"note": ..., "price": ..., "maker": {}},
        {"weight": 7, "price": {"amount": 12.5, "currency": None}},
        {"weight": 0.0, "box": {"x": [1e-7, 1.5e300, -2.25]}},
        {"institution_id": 7},
    ],
)
def test_what_is_usual_is_read_the_quick_way(fields: dict[str, Any]) -> None:
    """Else it costs twice the time, which nobody would notice."""
    assert UsualRecords(GADGETS).read(json.dumps(gadget(**fields), ensure_ascii=False).encode()) is not None


PLAIN = {"middle_name": "None", "bio": {"zip_code": "1", "city": 'Zoë\u2028"s\\\t'}, "id": 1, "institution_id": "7"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"email": None, "bio": None, "institution_id": None},
        {"institution_id": 7, "guarantor_id": -(2**63), "inactive": True, "hipaa": {}},
        {"bio": {"new_patient": False, "city": "", "date_of_birth": "2000-01-02"}, "name": "n" * 5000},
    ],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_plain_record_is_stored_as_received_with_keys_as_jsonb_sorts_them(
    connection: psycopg.Connection, fields: dict[str, Any], *, ascii_only: bool
) -> None:
    """Sorting them was a seventh of the server's work for a record; in this order it finds nothing to do."""
    record = {**PLAIN, **fields}
    found = UsualRecords(COLLECTIONS["patients"]).read(json.dumps(record, ensure_ascii=ascii_only).encode())
    assert found is not None
    stored = json.loads(found.stored, object_pairs_hook=list)
    assert json.loads(found.stored) == record
    row = connection.execute("SELECT %s::jsonb::text", (found.stored,)).fetchone()
    assert row is not None
    assert stored == json.loads(row[0], object_pairs_hook=list)


def test_a_record_with_numbers_is_stored_to_the_letter() -> None:
    """Python's float would lose decimals that jsonb keeps."""
    text = json.dumps(gadget(weight=1), ensure_ascii=False).replace('"weight": 1', '"weight": 0.10000000000000000001')
    found = UsualRecords(GADGETS).read(text.encode())
    assert found is not None
    assert found.stored == text


def test_an_undeclared_key_costs_one_careful_look() -> None:
    """The API grows: every record of a collection has a new key from one day to the next."""
    usual = UsualRecords(GADGETS)
    news = gadget(colour={"r": 1}, maker={"city": "X", "zip": "1"})
    raw = json.dumps(news, ensure_ascii=False).encode()
    assert usual.read(raw) is None
    usual.learn(news)
    assert usual.read(raw) is not None
    assert usual.read(json.dumps(gadget(colour={"ssn": "987-65-4321"})).encode()) is None
    assert usual.read(b'{"id": 1, "colour": "\xff"}') is None
    assert usual.read(b'{"id": 1, "colour": 1e-20000}') is None
    assert usual.read(b'{"id": 1, "colour": 0e9999999999}') is None


def test_an_object_keyed_by_anything_is_not_learnt() -> None:
    usual = UsualRecords(GADGETS)
    for number in range(200):
        usual.learn(gadget(maker={f"k{number}": 1}))
    assert usual.read(json.dumps(gadget(maker={"k199": 1})).encode()) is None
    usual.learn(gadget() | {"tin": "1", 'Jane "J" Doe': 1})
    assert usual.read(json.dumps(gadget(tin="1")).encode()) is None
