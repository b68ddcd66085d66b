"""Everything that is known to be wrong in records (DESIGN's table of traps), through the whole load of a page.

Promise 7: one bad record never stops a load. Each case is loaded between two good records; it ends as a row, as
a row without the field, or in quarantine with its reason and its bytes, and the good ones are there.
"""

import json
import logging
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.warehouse.quarantine import quarantine

from .conftest import Rows
from .kit import INSTITUTION, Table, gadget

CANARY = "canary-5550100"
NO_DATES = (
    "now",
    "yesterday",
    "infinity",
    "-infinity",
    "2024-02-30",
    "0000-00-00",
    "10000-01-01",
    "1899-12-31",
    CANARY,
)
NO_TIMES = (
    *NO_DATES,
    "2024-01-01",
    "2024-01-01T00:00:00",
    "2024-01-01T25:00:00Z",
    "2024-01-01T00:00:00+16:00",
    "epoch",
)


@dataclass(frozen=True)
class Case:
    """A record with id 2, and what is to become of it."""

    raw: bytes
    field: str = ""
    """The field that is null afterwards; empty = the record is refused whole."""


def with_field(name: str, text: str) -> Case:
    return Case(b'{"id": 2, "%s": %s}' % (name.encode(), text.encode()), name)


CASES: dict[str, Case] = {
    "lone surrogate": Case(b'{"id": 2, "name": "\\ud800 canary-5550100"}'),
    "NaN": Case(b'{"id": 2, "note": "canary-5550100", "weight": NaN}'),
    "Infinity": Case(b'{"id": 2, "weight": Infinity}'),
    "id over 2^64": Case(b'{"id": 18446744073709551617}'),
    "id over 2^63": Case(b'{"id": 9223372036854775808}'),
    "id of 20 digits in a text": Case(b'{"id": "12345678901234567890"}'),
    "id as float": Case(b'{"id": 2.5}'),
    "no id": Case(b'{"name": "canary-5550100"}'),
    "cut JSON": Case(b'{"id": 2, "name": "canary-5550100'),
    "no UTF-8": Case(b'{"id": 2, "name": "\xff"}'),
    "no object": Case(b'["canary-5550100"]'),
    "nested deeper than any parser goes": Case(b'{"id": 2, "tags": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    **{f"date {text}": with_field("born", f'"{text}"') for text in NO_DATES},
    **{f"time {text}": with_field("start_time", f'"{text}"') for text in NO_TIMES},
    "date as number": with_field("born", "20240101"),
    "integer over 2^64": with_field("location_id", "18446744073709551617"),
    "400 digits": with_field("location_id", "9" * 400),
    "digits of another script": with_field("location_id", '"\u0661\u0662"'),
    "number as word": with_field("weight", f'"{CANARY}"'),
    "money as word": Case(b'{"id": 2, "price": {"amount": "canary-5550100"}}', "price"),
    "money that is no object": Case(b'{"id": 2, "price": 5}', "price"),
    "flag as word": with_field("active", f'"{CANARY}"'),
    "too long for its index": with_field("name", json.dumps("".join(chr(0x4E00 + n) for n in range(3000)))),
}


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    return Table(connection)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_rest_loads_and_the_reason_is_kept(
    table: Table, rows: Rows, case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    inserted, _ = table.load(gadget(1), case.raw, gadget(3))
    assert rows("SELECT id, name FROM nexhealth_gadgets WHERE id <> 2 ORDER BY id") == [(1, "Zoë"), (3, "Zoë")]
    assert inserted == (3 if case.field else 2)
    if case.field:
        assert table.value(case.field, 2) is None
    new = quarantine(
        table.connection, table.notes, collection="gadgets", institution_id=INSTITUTION, location_id=3, run_id="r"
    )
    assert len(new) == len(table.notes) > 0
    kept = rows("SELECT field, rule, loaded, raw FROM nexhealth_quarantine ORDER BY field")
    assert {loaded for *_, loaded, _ in kept} == {bool(case.field)}
    assert case.field in {field for field, *_ in kept} or not case.field
    assert all(rule for _, rule, *_ in kept)
    assert {raw for *_, raw in kept} == {case.raw}
    said = caplog.text + repr(table.notes) + str([(field, rule) for field, rule, *_ in kept])
    assert CANARY not in said


STORED: dict[str, tuple[bytes, str, Any]] = {
    "NUL": (b'{"id": 2, "note": "a\\u0000b"}', "note", "a\u2400b"),
    "NUL in raw": (b'{"id": 2, "x\\u0000": 1}', "raw->>'x\u2400'", "1"),
    "end of COPY": (b'{"id": 2, "note": "\\\\.\\n\\\\."}', "note", "\\.\n\\."),
    "null of COPY": (b'{"id": 2, "note": "\\\\N"}', "note", "\\N"),
    "tab and CR": (b'{"id": 2, "note": "a\\tb\\r\\nc"}', "note", "a\tb\r\nc"),
    "U+2028": ('{"id": 2, "note": "\u2028"}'.encode(), "note", "\u2028"),
    "SQL": (
        b'{"id": 2, "note": "\'; DROP TABLE nexhealth_gadgets; --"}',
        "note",
        "'; DROP TABLE nexhealth_gadgets; --",
    ),
    "emoji": ('{"id": 2, "note": "👩‍⚕️"}'.encode(), "note", "👩‍⚕️"),
    "id of 19 digits in a text": (b'{"id": "2"}', "id", 2),
    "first date": (b'{"id": 2, "born": "1900-01-01"}', "born", date(1900, 1, 1)),
    "empty date": (b'{"id": 2, "born": ""}', "born", None),
    "time with an offset": (
        b'{"id": 2, "start_time": "2026-03-01T10:00:00.123-0700"}',
        "start_time",
        datetime(2026, 3, 1, 17, 0, 0, 123_000, tzinfo=UTC),
    ),
    "zero to a power that jsonb refuses": (b'{"id":2,"misc":{"x":0e9999999999}}', "raw->'misc'->>'x'", "0.0"),
    "zero to a high power": (b'{"id": 2, "weight": 1, "box": {"x": [-0E+99999999]}}', "raw->'box'->'x'->>0", "0.0"),
    "such a zero where a number goes": (b'{"id": 2, "weight": 0.00E9999999999}', "weight", 0),
    "400 digits where any value goes": (b'{"id": 2, "x": %s}' % (b"9" * 400), "length(raw->>'x')", 400),
}


@pytest.mark.parametrize(("raw", "expression", "value"), STORED.values(), ids=STORED.keys())
def test_what_is_only_odd_is_stored(table: Table, raw: bytes, expression: str, value: Any) -> None:
    """Quarantine is for what cannot be kept; a note nobody needs to read hides those one should."""
    assert table.load(gadget(1), raw, gadget(3)) == (3, 0)
    assert table.notes == []
    assert table.value(expression, 2) == value


def test_a_note_of_a_megabyte_and_one_of_brackets_are_stored(table: Table) -> None:
    """How large a page may be is the client's business."""
    assert table.load(gadget(1, note="é\\\n" * 300_000), b'{"id": 2, "tags": [' + b"[]," * 300_000 + b"[]]}") == (2, 0)
    assert table.value("length(note)") == 900_000
    assert table.value("jsonb_array_length(tags)", 2) == 300_001
