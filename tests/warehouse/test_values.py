"""What each column type takes, and what it refuses before PostgreSQL can quote it in an error."""

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import SqlType
from nexhealth_pipeline.errors import RecordRefused
from nexhealth_pipeline.warehouse.values import CONVERTERS, json_text, replace_nul, utc_date

CANARY = "canary-5550100"

TAKEN: list[tuple[SqlType, object, str | None]] = [
    *((type_, None, None) for type_ in SqlType),
    (SqlType.TEXT, "", ""),
    (SqlType.TEXT, "a\x00b", "a␀b"),
    (SqlType.TEXT, "now", "now"),
    (SqlType.TEXT, 12, "12"),
    (SqlType.TEXT, True, "true"),
    (SqlType.TEXT, ["a\x00"], '["a\\u0000"]'),
    (SqlType.BIGINT, 0, "0"),
    (SqlType.BIGINT, -(2**63), str(-(2**63))),
    (SqlType.BIGINT, 2**63 - 1, str(2**63 - 1)),
    (SqlType.BIGINT, "0042", "42"),
    (SqlType.BIGINT, "1234567890123456789", "1234567890123456789"),
    (SqlType.BIGINT, "", None),
    (SqlType.BOOLEAN, True, "True"),
    (SqlType.BOOLEAN, "false", "False"),
    (SqlType.NUMERIC, "12.50", "12.50"),
    (SqlType.NUMERIC, -3, "-3"),
    (SqlType.NUMERIC, 0.1234567, "0.1234567"),
    (SqlType.NUMERIC, 1e-7, "0.0000001"),
    (SqlType.NUMERIC, 1e22, "10000000000000000000000"),
    (SqlType.DOUBLE, 1e300, "1e+300"),
    (SqlType.DOUBLE, "1.5", "1.5"),
    (SqlType.DATE, "1900-01-01", "1900-01-01"),
    (SqlType.DATE, "2024-02-29", "2024-02-29"),
    (SqlType.DATE, "2200-12-31", "2200-12-31"),
    (SqlType.DATE, "", None),
    # The day as written: it is a birthday at midnight of whatever zone.
    (SqlType.DATE, "2024-01-01T00:00:00Z", "2024-01-01"),
    (SqlType.DATE, "2024-05-20T23:00:00.000-04:00", "2024-05-20"),
    (SqlType.DATE, "2024-05-20 00:30:00 +10:00", "2024-05-20"),
    (SqlType.DATE, "1980-02-03T00:00:00", "1980-02-03"),
    (SqlType.DATE, "1980-02-03 00:00:00.000", "1980-02-03"),
    (SqlType.DATE, "1980-02-03T00:00", "1980-02-03"),
    (SqlType.TIMESTAMPTZ, "2024-02-29T23:59:59.999999Z", "2024-02-29T23:59:59.999999Z"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00+0530", "2024-01-01T00:00+0530"),
    (SqlType.TIMESTAMPTZ, "2024-01-01 00:00:00 -05:00", "2024-01-01 00:00:00-05:00"),
    (SqlType.TIMESTAMPTZ, "2024-01-01 00:00:00 UTC", "2024-01-01 00:00:00Z"),
    (SqlType.TIMESTAMPTZ, "2024-01-01 00:00:00 Z", "2024-01-01 00:00:00Z"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:00.123456789+15:59", "2024-01-01T00:00:00.123456789+15:59"),
    (SqlType.JSONB, {"a": "b\x00"}, '{"a":"b␀"}'),
    (SqlType.JSONB, "text", '"text"'),
    (SqlType.JSONB, False, "false"),
]

DATE_TRAPS = [
    *("now", "today", "yesterday", "infinity", "-infinity", "epoch", "2024-02-30", "0000-00-00", "10000-01-01"),
    *("2024-1-1", "20240101", "01/02/2024", "1899-12-31", "2201-01-01", "٢٠٢٤-٠١-٠١", "2024-01-01 ", "2024-01-01\n"),
    *(20240101, True, ["2024-01-01"]),
]
TIME_TRAPS = [
    *("2024-02-30T00:00:00Z", "1899-12-31T00:00:00Z", "2024-01-01T25:00:00Z"),
    *("2024-02-30T00:00:00", "1899-12-31T00:00:00", "2024-01-01T25:00:00", "2024-01-01T", "2024-01-01T00"),
    *("2024-01-01 noon", "2024-01-01T00:00:00 America/New_York", "now T00:00:00Z"),
]
REFUSED: list[tuple[SqlType, object]] = [
    *((SqlType.DATE, value) for value in [*DATE_TRAPS, *TIME_TRAPS]),
    *((SqlType.TIMESTAMPTZ, value) for value in DATE_TRAPS),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:00"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T25:00:00Z"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:60Z"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:00+16:00"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:00+05:60"),
    (SqlType.TIMESTAMPTZ, "2024-01-01T00:00:00 America/New_York"),
    (SqlType.TIMESTAMPTZ, "1899-12-31T00:00:00Z"),
    (SqlType.BIGINT, 2**63),
    (SqlType.BIGINT, -(2**63) - 1),
    (SqlType.BIGINT, 10**400),
    (SqlType.BIGINT, "9999999999999999999"),
    (SqlType.BIGINT, "12345678901234567890"),
    (SqlType.BIGINT, 1.0),
    (SqlType.BIGINT, True),
    (SqlType.BIGINT, "1 2"),
    (SqlType.BIGINT, "１２"),
    (SqlType.BIGINT, {"id": 1}),
    (SqlType.BOOLEAN, 1),
    (SqlType.BOOLEAN, "yes"),
    (SqlType.BOOLEAN, []),
    (SqlType.NUMERIC, "NaN"),
    (SqlType.NUMERIC, "Infinity"),
    (SqlType.NUMERIC, "1e5"),
    (SqlType.NUMERIC, "1,000.00"),
    (SqlType.NUMERIC, "$5"),
    (SqlType.NUMERIC, "٣.٥"),
    (SqlType.NUMERIC, 10**30),
    (SqlType.NUMERIC, 1e30),
    (SqlType.NUMERIC, float("nan")),
    (SqlType.NUMERIC, float("inf")),
    (SqlType.NUMERIC, True),
    (SqlType.DOUBLE, float("-inf")),
    (SqlType.DOUBLE, "nan"),
    (SqlType.DOUBLE, CANARY),
]


@pytest.mark.parametrize(("type_", "value", "text"), TAKEN, ids=repr)
def test_a_good_value_becomes_its_text(type_: SqlType, value: object, text: str | None) -> None:
    assert CONVERTERS[type_](value) == text


@pytest.mark.parametrize(("type_", "value"), REFUSED, ids=lambda value: repr(value)[:40])
def test_a_bad_value_is_refused_by_a_rule_that_does_not_quote_it(type_: SqlType, value: object) -> None:
    with pytest.raises(RecordRefused) as caught:
        CONVERTERS[type_](value)
    assert caught.value.rule
    assert str(value) not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("value", "day"),
    [
        ("2024-05-20", "2024-05-20"),
        ("2024-05-20T21:00:00+00:00", "2024-05-20"),
        ("2024-05-20T23:00:00-04:00", "2024-05-21"),
        ("2024-05-20T01:00:00.000+0530", "2024-05-19"),
        ("2024-12-31 23:59:59 UTC", "2024-12-31"),
        ("", None),
        (None, None),
    ],
)
def test_a_time_in_the_place_of_a_day_of_utc_is_its_day_there(value: object, day: str | None) -> None:
    """In the vendor's file days of the ledger are dates where they are read, and times where they are written."""
    assert utc_date(value) == day


@pytest.mark.parametrize(
    "value",
    [*DATE_TRAPS, *TIME_TRAPS, "2200-12-31T23:00:00-04:00", "2024-01-01T00:00:00", "2024-01-01T00:00"],
    ids=repr,
)
def test_what_is_no_time_is_no_day_of_utc(value: object) -> None:
    """A time without a zone is of two days of UTC."""
    with pytest.raises(RecordRefused):
        utc_date(value)


def test_every_type_has_a_converter() -> None:
    assert set(CONVERTERS) == set(SqlType)


@pytest.mark.parametrize("type_", [type_ for type_ in SqlType if type_ is not SqlType.JSONB])
def test_postgresql_takes_whatever_a_converter_lets_through(type_: SqlType, connection: psycopg.Connection) -> None:
    """Risk: a value the server refuses fails its whole page, and the server's error quotes it."""
    for other, _, text in TAKEN:
        if other is type_ and text is not None:
            connection.execute(f"SELECT %s::{type_.value}", (text,))


def test_numbers_keep_every_digit(connection: psycopg.Connection) -> None:
    """Risk: a format with six decimals rounds money and coordinates without a word."""
    for value in (0.1, 0.1234567890123, 1 / 3, 123456789.123456, 5e-324, -0.0):
        row = connection.execute("SELECT %s::numeric::float8", (CONVERTERS[SqlType.NUMERIC](value),)).fetchone()
        assert row == (value,)


@pytest.mark.parametrize("value", [{"a\x00": ["\x00", {"b": "\x00"}]}, ["\\u0000"], "\x00", {"k": 1.5, "n": None}])
def test_json_text_holds_no_nul_and_is_otherwise_equal(value: object, connection: psycopg.Connection) -> None:
    row = connection.execute("SELECT %s::jsonb", (json_text(value),)).fetchone()
    assert row is not None
    assert row[0] == _without_nul(value)


def _without_nul(value: object) -> object:
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return replace_nul(value) if isinstance(value, str) else value


def test_nul_becomes_its_sign_and_nothing_else_changes() -> None:
    assert replace_nul("a\x00b\x01␀") == "a␀b\x01␀"
