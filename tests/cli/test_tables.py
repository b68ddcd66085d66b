"""Text tables for people."""

from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.cli.tables import age, beside_seconds, moment, number, table

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


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (119.6, ""),
        (120.0, " (2 min)"),
        (150.4, " (2 min 30 s)"),
        (3_599.7, " (1 h)"),
        (4_500.0, " (1 h 15 min)"),
        (84_601.0, " (23 h 30 min)"),
        (86_369.0, " (23 h 59 min)"),
        (86_399.0, " (1 d)"),
        (225_000.0, " (2 d 14 h)"),
    ],
)
def test_beside_long_seconds_stands_what_people_plan_by(value: float, said: str) -> None:
    """Of a first load "225,000 s" was told to whoever wanted to know whether it ends by Monday."""
    assert beside_seconds(value) == said
