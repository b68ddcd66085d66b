"""Text tables for people."""

from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.cli.tables import age, moment, number, table

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_columns_line_up_whatever_the_letters() -> None:
    """An emoji takes two columns, a combining accent none."""
    assert table(("name", "n"), [["Emergency ‼️", "1"], ["Île d'Or", "23"], ["I\u0302le", "4"]], right=" >") == [
        "name           n",
        "------------  --",
        "Emergency ‼️   1",
        "Île d'Or      23",
        "I\u0302le            4",
    ]


@pytest.mark.parametrize(
    ("passed", "expected"),
    [
        (timedelta(seconds=5), "5 s"),
        (timedelta(seconds=61), "1 min"),
        (timedelta(minutes=119), "119 min"),
        (timedelta(hours=47), "47 h"),
        (timedelta(days=3), "3 d"),
        (timedelta(seconds=-4), "0 s"),
    ],
)
def test_an_age_has_one_unit(passed: timedelta, expected: str) -> None:
    """Exact to what matters."""
    assert age(NOW - passed, NOW) == expected


def test_what_is_nothing_is_empty() -> None:
    """A column of zeros hides the one figure that is not."""
    assert (age(None, NOW), moment(None), number(0)) == ("", "", "")
    assert (moment(NOW), number(1234)) == ("2026-03-01 12:00", "1,234")
