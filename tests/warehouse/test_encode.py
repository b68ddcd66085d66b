"""From bytes to rows and back: nothing is lost, nothing ends the load, nothing is quoted."""

import json
import logging
import random
import traceback
from dataclasses import replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.encode import Note, RecordEncoder
from nexhealth_pipeline.warehouse.values import NULL

from .kit import GADGETS, NOON, Table, gadget

RECORDS, SOAK_RECORDS = 10_000, 100_000
"""Random records that go through COPY and merge, in `make test` and in `make soak`."""
_PER_EXAMPLE = 400
_DRAWN = 30
"""Texts and values drawn for one example; its records are made of them in every combination."""
CANARY = "canary-5550100"
HOSTILE = [
    *(
        "\\.",
        "\\N",
        "\\",
        "a\tb",
        "a\rb\nc",
        "\u2028",
        "\u0085",
        "'; DROP TABLE nexhealth_gadgets; --",
        "\x00",
        "\\u0000",
    ),
    *("{}", "\\x00", "%s", "$1", "👩‍⚕️", "e\u0301", "\ufeff", "\uffff", "\x7f", " ", "NULL", '"', "null", "\x1b[0m"),
]
texts = st.one_of(
    st.sampled_from(HOSTILE), st.text(max_size=40), st.text(st.sampled_from("\\\tnNt.\r\n\x00'\""), max_size=8)
)


def _as_key(text: str) -> str:
    """No key of a column, nor one that is dropped as too sensitive: hypothesis takes words out of the code under test."""
    return f"~{text}"


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts.map(_as_key), inner, max_size=4),
    max_leaves=8,
)


def records_of(drawn: list[str], inner: list[Any], seed: int) -> list[tuple[dict[str, Any], bool]]:
    """Records made of what was drawn (texts also joined), each with whether it is sent as pure ASCII.

    Drawing each record for itself costs a hundred times as much and finds no other faults.
    """
    choose = random.Random(seed)

    def text() -> str:
        return "".join(choose.choices(drawn, k=choose.choice((1, 1, 1, 2, 3))))

    def value() -> Any:
        return choose.choice((choose.choice(inner), text(), [choose.choice(inner), text()], {_as_key(text()): text()}))

    found = []
    for _ in range(_PER_EXAMPLE):
        record = {"name": choose.choice((text(), text(), None)), "note": choose.choice((text(), None)), "tags": value()}
        more = {
            "price": {"amount": "1.00", "currency": text()},
            "other": value(),
            "born": value(),
            _as_key(text()): value(),
        }
        record |= {key: more[key] for key in more if choose.random() < 0.4}
        found.append((record, choose.random() < 0.5))
    return found


batches = st.builds(
    records_of,
    st.lists(texts, min_size=_DRAWN, max_size=_DRAWN),
    st.lists(values, min_size=_DRAWN, max_size=_DRAWN),
    st.integers(0, 2**32),
)


def exact(text: str) -> Any:
    """A JSON text's value with every digit, NUL as the sign that stands for it."""
    value = json.loads(text, parse_float=Decimal, parse_int=Decimal)
    return _with_sign(value)


def _with_sign(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "\u2400")
    if isinstance(value, list):
        return [_with_sign(item) for item in value]
    if isinstance(value, dict):
        return {_with_sign(key): _with_sign(item) for key, item in value.items()}
    return value


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


def random_batches(count: int, *, others: bool = False) -> Any:
    """Runs a test with `count` random records, a batch at a time: the same in each run, or `others`."""

    def decorate(test: Any) -> Any:
        chosen = settings(
            max_examples=count // _PER_EXAMPLE,
            deadline=None,
            database=None,
            derandomize=not others,
            phases=[Phase.explicit, Phase.generate],  # a failing batch says enough; shrinking one takes minutes
            suppress_health_check=[
                HealthCheck.function_scoped_fixture,
                HealthCheck.too_slow,
                HealthCheck.data_too_large,
            ],
        )
        return chosen(given(batch=batches)(test))

    return decorate


@random_batches(RECORDS)
def test_any_record_comes_back_equal(table: Table, batch: list[tuple[dict[str, Any], bool]]) -> None:
    """Risk: one odd text ends the COPY, moves a column, or comes back as another."""
    assert_comes_back(table, batch)


@pytest.mark.soak
@random_batches(SOAK_RECORDS, others=True)
def test_any_of_very_many_records_comes_back_equal(table: Table, batch: list[tuple[dict[str, Any], bool]]) -> None:
    """The same with more luck."""
    assert_comes_back(table, batch)


def assert_comes_back(table: Table, batch: list[tuple[dict[str, Any], bool]]) -> None:
    """Each record's texts in their columns, and the whole of it in `raw`; its flag says how it is escaped."""
    sent = [{"id": number, "updated_at": None, **record} for number, (record, _) in enumerate(batch)]
    raw = [json.dumps(one, ensure_ascii=ascii_) for one, (_, ascii_) in zip(sent, batch, strict=True)]
    table.connection.execute("TRUNCATE nexhealth_gadgets")
    table.notes.clear()
    assert table.load(*(text.encode() for text in raw)) == (len(sent), 0)
    assert {note.field for note in table.notes} <= {"born"}
    got = table.connection.execute(
        "SELECT name, note, price_currency, tags::text, raw::text FROM nexhealth_gadgets ORDER BY id"
    ).fetchall()
    for want, (name, note, currency, tags, stored) in zip(map(exact, raw), got, strict=True):
        assert (name, note) == (want["name"], want["note"])
        assert currency == want.get("price", {}).get("currency")
        assert (None if tags is None else exact(tags)) == want["tags"]
        assert exact(stored) == want


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_texts_come_back_in_every_place(table: Table, text: str) -> None:
    table.load(
        gadget(1, name=text, note=text, tags=[text], price={"amount": "1", "currency": text}, extra={text: text})
    )
    want = text.replace("\x00", "\u2400")
    assert [table.value(name) for name in ("name", "note", "price_currency")] == [want] * 3
    assert (table.value("tags"), table.value("raw->'extra'")) == ([want], {want: want})


def test_a_note_of_a_megabyte_comes_back(table: Table) -> None:
    note = "é\\\n" * 300_000
    table.load(gadget(note=note))
    assert table.value("note") == note


BAD_RECORDS = {
    "lone surrogate": b'{"id": 2, "name": "\\ud800"}',
    "NaN": b'{"id": 2, "weight": NaN}',
    "Infinity": b'{"id": 2, "weight": -Infinity}',
    "number out of range": b'{"id": 2, "weight": 1e400}',
    "5,000-digit integer": b'{"id": 2, "weight": ' + b"9" * 5000 + b"}",
    "id over 2^64": b'{"id": 18446744073709551617}',
    "id of 400 digits": b'{"id": ' + b"9" * 400 + b"}",
    "id as float": b'{"id": 2.0}',
    "id of 20 digits in a text": b'{"id": "12345678901234567890"}',
    "id as text": b'{"id": "canary-5550100"}',
    "id as object": b'{"id": {"canary-5550100": 1}}',
    "no id": b'{"name": "canary-5550100"}',
    "null id": b'{"id": null}',
    "true as id": b'{"id": true}',
    "no object": b'["canary-5550100"]',
    "null": b"null",
    "cut": b'{"id": 2, "name": "canary-5550100',
    "invalid UTF-8": b'{"id": 2, "name": "\xff"}',
    "NUL byte": b'{"id": 2, "name": "\x00"}',
    "control character": b'{"id": 2, "name": "\x01"}',
    "nested 100,000 deep": b'{"id": 2, "tags": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nested 700 deep": b'{"id": 2, "tags": ' + b"[" * 700 + b"]" * 700 + b"}",
    "nested 6,000 deep": b'{"id": 2, "tags": ' + b'{"a":' * 6000 + b"1" + b"}" * 6000 + b"}",
    "nested deep, with a NUL": b'{"id": 2, "tags": ' + b"[" * 900 + b'"\\u0000"' + b"]" * 900 + b"}",
}


@pytest.mark.parametrize("raw", BAD_RECORDS.values(), ids=BAD_RECORDS.keys())
def test_one_bad_record_is_noted_and_the_rest_loads(table: Table, raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    inserted, _ = table.load(gadget(1), raw, gadget(3))
    if inserted == 3:  # storable after all: as good as noted
        assert not table.notes
        return
    assert inserted == 2
    (note,) = table.notes
    assert (note.loaded, note.raw) == (False, raw)
    assert note.rule
    assert CANARY not in caplog.text + repr(note) + note.rule + note.field


@pytest.mark.parametrize("depth", [700, 6000])
def test_depth_is_refused_by_the_record_alone(table: Table, depth: int) -> None:
    """Not by what a version of Python takes: PostgreSQL's parser has a limit as well, and would end the load."""
    table.load(b'{"id": 2, "tags": %s}' % (b"[" * depth + b"]" * depth))
    assert [note.rule for note in table.notes] == ["nested too deep"]


STORABLE = {
    "many decimals": '{"id": 1, "x": 0.%s1}' % ("0" * 20_000),
    "tiny": '{"id": 1, "x": 1e-200000}',
    "tiny with plus": '{"id": 1, "x": 1E-20000}',
    "400-digit integer": '{"id": 1, "x": %s}' % ("9" * 400),
    "the same key twice": '{"id": 1, "x": 1, "x": 2}',
    "blanks and newlines": '\n{ "id" :\t1 }\r\n',
    "500 deep": '{"id": 1, "x": %s}' % ("[" * 500 + "]" * 500),
    "many side by side": '{"id": 1, "x": [{}' + ",{}" * 2000 + "]}",
    "brackets in a text": '{"id": 1, "x": "%s\\""}' % ("[" * 2000),
    "id in a text": '{"id": "1"}',
}


@pytest.mark.parametrize("raw", STORABLE.values(), ids=STORABLE.keys())
def test_odd_but_storable_records_are_stored(table: Table, raw: str) -> None:
    """Risk: jsonb refuses numbers that JSON allows, and its error quotes the record."""
    assert table.load(raw.encode()) == (1, 0)
    assert table.value("raw") == json.loads(raw)
    assert not [note for note in table.notes if note.field != "id"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("born", "yesterday"),
        ("born", CANARY),
        ("start_time", "2024-01-01T00:00:00"),
        ("location_id", 2**64),
        ("active", CANARY),
        ("weight", CANARY),
        ("price", CANARY),
        ("price", {"amount": CANARY, "currency": "USD"}),
        ("maker", [CANARY]),
        ("name", "".join(chr(0x4E00 + index % 20_000) for index in range(3000))),
    ],
)
def test_a_bad_field_becomes_null_and_is_noted(table: Table, field: str, value: Any) -> None:
    """Risk: one unreadable date keeps a patient out; or a name too long for the index ends every load for ever."""
    assert table.load(gadget(**{field: value})) == (1, 0)
    column = {"price": "price", "maker": "maker_city"}.get(field, field)
    assert table.value(column) is None
    assert table.value("raw")[field] == value
    assert {note.field.split("_")[0] for note in table.notes} == {field.split("_", maxsplit=1)[0]}
    for note in table.notes:
        assert note.loaded
        assert note.record_id == "1"
        assert CANARY not in repr(note) + note.rule + note.field


def test_a_long_text_without_index_is_kept(table: Table) -> None:
    table.load(gadget(note="".join(chr(0x4E00 + index % 20_000) for index in range(30_000))))
    assert not table.notes
    assert table.value("length(note)") == 30_000


def test_what_is_too_sensitive_to_keep_is_nowhere(table: Table, connection: psycopg.Connection) -> None:
    """Risk: `raw` lacks the number, but a jsonb column around it, or the quarantine, still has it."""
    record = gadget(tin=CANARY, box={"ssn": CANARY, "colour": "red"}, born="never")
    table.load(record)
    whole = connection.execute("SELECT g::text FROM nexhealth_gadgets g").fetchall()
    assert CANARY not in str(whole)
    assert table.value("box") == {"colour": "red"}
    (note,) = table.notes
    assert CANARY.encode() not in note.raw
    assert b"never" in note.raw


def test_a_sensitive_value_that_changes_rewrites_nothing(table: Table) -> None:
    table.load(gadget(tin="1", box={"ssn": "1"}))
    assert table.load(gadget(tin="2", box={"ssn": "2"})) == (0, 0)


def test_a_record_of_a_collection_without_id_may_have_any_id(connection: psycopg.Connection) -> None:
    """Risk: sync_status and claim payouts have no id of ours; an `id` of theirs must not be read as one."""
    collection = Collection(
        name="gadgets",
        group="practice",
        doc="Without an id.",
        path="/gadgets",
        scope=Scope.PRACTICE,
        key=("institution_id", "name"),
        institution_at=("owner", "id"),
        columns=(
            Column("name", SqlType.TEXT, Phi.NONE, "Name.", ("name",)),
            Column("note", SqlType.TEXT, Phi.NONE, "Note.", ("note",)),
        ),
    )
    table = Table(connection, collection)
    table.encoder = RecordEncoder(collection, None)
    good, bad = b'{"id": "abc", "name": "n", "owner": {"id": 5}}', b'{"name": "m", "owner": {"id": "canary-5550100"}}'
    assert table.load(good, bad, b'{"name": "", "owner": {"id": 5}}', b'{"name": "o"}') == (2, 0)
    assert connection.execute("SELECT institution_id, name FROM nexhealth_gadgets ORDER BY 2").fetchall() == [
        (5, ""),
        (5, "n"),
    ]
    assert [(note.field, note.loaded) for note in table.notes] == [("", False), ("institution_id", False)]
    encoded = table.encoder.encode([good], NOON, {})
    assert encoded.ids == []


def test_ids_are_those_of_the_lines() -> None:
    encoded = RecordEncoder(GADGETS, 1).encode([b'{"id": 5}', b"[]", b'{"id": "6"}', b'{"id": null}'], NOON, {})
    assert encoded.ids == [5, 6]
    assert len(encoded.lines) == len(encoded.ids)


@pytest.mark.parametrize(
    ("raw", "record_id"),
    [
        (b'{"id": 5, "name": "\xff"}', "5"),
        (b' { "id" : "6" , "weight": NaN}', "6"),
        (b'{"id": "Jane Doe", "name": "\xff"}', ""),
        (b'{"box": {"id": 7}, "name": "\xff"}', ""),
        (b'{"id": 12345678901234567890, "name": "\xff"}', ""),
    ],
)
def test_a_refused_record_is_known_by_its_id_and_by_nothing_else(raw: bytes, record_id: str) -> None:
    """An id finds the record again; whatever else stands there may be a person's."""
    (note,) = RecordEncoder(GADGETS, 1).encode([raw], NOON, {}).notes
    assert (note.record_id, note.loaded, note.read_at) == (record_id, False, NOON)


def test_columns_of_the_request_are_filled_from_it(connection: psycopg.Connection) -> None:
    collection = replace(GADGETS, from_request=(Column("patient_id", SqlType.BIGINT, Phi.ID, "Whose.", ()),))
    table = Table(connection, collection, request={"patient_id": 99, "location_id": 1})
    table.load(gadget())
    assert table.value("patient_id") == 99


def test_the_same_fault_has_the_same_fingerprint_and_another_one_another() -> None:
    def note(**changes: Any) -> bytes:
        base: dict[str, Any] = {"record_id": "1", "field": "born", "rule": "r", "loaded": True, "raw": b"{}"}
        return Note(**(base | changes)).fingerprint

    assert note() == note()
    assert note() == note(raw=b"{ }"), "it says which record it is"
    assert len({note(), note(field="x"), note(rule="x"), note(record_id="2"), note(owner="1")}) == 5
    assert note(record_id="") != note(record_id="", raw=b"{ }")


@pytest.mark.parametrize(
    ("flag", "deleted", "noted"),
    [("true", True, []), ('"true"', True, []), ("false", False, []), ("null", False, []), ("1", False, ["deleted"])],
)
def test_the_flag_of_a_deleted_record_is_read_as_others_are(flag: str, deleted: bool, noted: list[str]) -> None:
    """A visit that was cancelled away stayed in the schedule, and nobody was told."""
    visits = COLLECTIONS["appointments"]
    assert visits.deleted_if == "deleted"
    encoder = RecordEncoder(visits, 1)
    record = b'{"id": 7, "updated_at": "2026-01-01T00:00:00Z", "deleted": %s}' % flag.encode()
    encoded = encoder.encode([record], NOON, {})
    at = encoder.stage_columns.index("deleted_at")
    assert (encoded.lines[0].split("\t")[at] != NULL) == deleted
    assert [(note.record_id, note.field) for note in encoded.notes] == [("7", field) for field in noted]


def test_a_record_without_an_id_is_told_by_its_key() -> None:
    """A source's status has times that move at every look: each sync had a new note of the same fault."""
    encoder = RecordEncoder(COLLECTIONS["sync_status"], 1)

    def note(source: str, at: str) -> bytes:
        record = {"sync_source_type": source, "sync_source_name": "A", "read_status_at": at, "emr": {"id": "x"}}
        return encoder.encode([json.dumps(record).encode()], NOON, {}).notes[0].fingerprint

    assert note("Emr", "2026-01-01T00:00:00Z") == note("Emr", "2026-01-02T00:00:00Z")
    assert note("Emr", "2026-01-01T00:00:00Z") != note("Other", "2026-01-01T00:00:00Z")


def test_a_note_names_the_row_as_its_key_does() -> None:
    """An id with zeros before it is the row's all the same, by which the note is closed."""
    (note,) = RecordEncoder(GADGETS, 1).encode([b'{"id": "007", "born": "2024-02-30"}'], NOON, {}).notes
    assert note.record_id == "7"


def test_no_error_of_the_database_quotes_a_record(table: Table) -> None:
    """Should a value ever get past the checks, `driver_errors` around the load drops the server's words."""
    from nexhealth_pipeline.errors import WarehouseError
    from nexhealth_pipeline.warehouse.connect import driver_errors

    table.connection.execute("ALTER TABLE nexhealth_gadgets ADD CHECK (name <> 'canary-5550100')")
    with pytest.raises(WarehouseError) as caught, driver_errors("loading nexhealth_gadgets"):
        table.load(gadget(name=CANARY))
    assert CANARY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "record",
    [
        b'{"id": 1, "bio": {"ssn": "987-65-4321"}}',
        b'{"id": 1, "bio": [{"ssn": "987-65-4321"}, {"ssn": ["987-65-4321"]}]}',
        b'{"id": 1, "bio": {"\\u0073sn": {"n": "987-65-4321"}}, "email": 7}',
        b'{"id": 1, "bio": {"city": NaN, "ssn": {"n": "987-65-4321"}}}',
        b'{"id": "x", "bio": {"ssn": ["987-65-4321", "987-65-4321"]}}',
        b'{"id": 1, "bio": {"city": NaN, "\\u0073s\\u006E": "987-65-4321"}}',
        b'{"id": 1, "bio": "{\\"ssn\\": \\"987-65-4321\\"}", "city": NaN}',
    ],
)
def test_a_social_security_number_is_kept_in_no_shape(record: bytes) -> None:
    """Neither in the row nor in quarantine, whatever stands where text should."""
    encoded = RecordEncoder(COLLECTIONS["patients"], 7).encode([record], NOON, {})
    kept = "".join(encoded.lines).encode() + b"".join(note.raw for note in encoded.notes)
    assert b"987" not in kept
