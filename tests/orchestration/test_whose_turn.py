"""Which EHR databases a night reconciles: the rule alone, without a warehouse."""

from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.orchestration.nightly import Place, Tried, whose_turn

NOW = datetime(2026, 11, 23, 2, tzinfo=UTC)
LONG_AGO = {(9, number): (8.0, 8.0) for number in range(90, 96)}
"""Six more, so that a seventh of all is two: an institution of more than that, whose databases come one by one."""


def tried(days: tuple[float | None, float | None]) -> Tried:
    """Begun and judged so many days ago; None = never."""
    begun, judged = (Tried().begun if one is None else NOW - timedelta(days=one) for one in days)
    return Tried(begun, judged)


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        pytest.param({}, [], id="nothing there"),
        pytest.param({(1, 1): (9, 9), (2, 2): (12, 12)}, [(2, 2)], id="longest not tried"),
        pytest.param({(1, 1): (9, 9), (2, 2): (None, None)}, [(2, 2)], id="never tried"),
        pytest.param({(1, 1): (6, 6)}, [], id="judged this week"),
        pytest.param({(1, 1): (6.6, 6.6)}, [(1, 1)], id="a week ago, though this night began earlier"),
        pytest.param({(1, 1): (9, 2)}, [], id="held by the brake this week"),
        pytest.param({(1, 1): (1, 9)}, [(1, 1)], id="came to no end last night"),
        pytest.param({(1, 1): (1, None), (2, 2): (7, 7)}, [(2, 2)], id="came to no end, and another waits longer"),
        pytest.param({(1, 1): (9, 9), (1, 2): (12, 12)}, [(1, 2)], id="one of an institution of more than a seventh"),
        pytest.param({**LONG_AGO, (1, 1): (9, 9), (2, 2): (12, 12)}, [(2, 2), (1, 1)], id="two of eight"),
        pytest.param({**LONG_AGO, (1, 1): (9, 9), (1, 2): (12, 12)}, [(1, 1), (1, 2)], id="an institution together"),
        pytest.param({**LONG_AGO, (1, 1): (9, 9), (1, 2): (3, 3)}, [(1, 1), (1, 2)], id="who rests comes along"),
        pytest.param(
            {**LONG_AGO, (1, 1): (7, 7), (1, 2): (12, 12), (2, 2): (9, 9)},
            [(1, 1), (1, 2)],
            id="an institution waits as long as the longest of it",
        ),
        pytest.param(
            {**LONG_AGO, (1, 1): (9, 9), (1, 2): (9, 9), (2, 2): (12, 12)},
            [(2, 2), (1, 1), (1, 2)],
            id="the last institution goes beyond a seventh",
        ),
        pytest.param(
            dict.fromkeys(LONG_AGO, (2.0, 2.0)) | {(1, 1): (1, 9), (1, 2): (2, 2)},
            [(1, 1)],
            id="tried again by itself",
        ),
    ],
)
def test_a_seventh_is_chosen_by_when_it_was_tried_and_judged(
    known: dict[Place, tuple[float | None, float | None]], chosen: list[Place]
) -> None:
    """Risk: one that never comes to its end takes the turns of the others, and what they lack stays for good."""
    places = {place: [place[1]] for place in known}
    assert whose_turn(places, {place: tried(days) for place, days in known.items()}, known.keys(), NOW) == chosen


@pytest.mark.parametrize(
    ("judged", "complete", "chosen"),
    [
        ({1: 9, 2: 9}, [1, 2], [(5, 1)]),
        ({1: 9}, [1, 2], [(5, 1)]),
        ({1: 9, 2: 2}, [1, 2], []),
        ({1: 9, 2: 9}, [1], []),
        ({}, [], []),
    ],
    ids=["judged long ago", "one never", "one this week", "one not read completely", "nothing read"],
)
def test_a_database_is_reconciled_whole_or_not_at_all(
    judged: dict[int, float], complete: list[int], chosen: list[Place]
) -> None:
    """Locations that share one are judged by each other's reads."""
    known = {(5, location): tried((days, days)) for location, days in judged.items()}
    assert whose_turn({(5, 1): [1, 2]}, known, {(5, one) for one in complete}, NOW) == chosen


def test_a_database_was_tried_when_the_last_of_its_locations_was() -> None:
    """Its reads begin one after another, and a location that was new then has none."""
    known = {(5, 1): tried((12, 12)), (5, 2): tried((7, 7)), (6, 3): tried((9, 9))}
    assert whose_turn({(5, 1): [1, 2], (6, 3): [3]}, known, known.keys(), NOW) == [(6, 3)]
