"""A full read that was killed is taken up again, for a day."""

import psycopg
import pytest

from nexhealth_pipeline.warehouse.sweeps import SWEEP_HOURS, begin_sweep, finish_sweep, open_sweep


def age(connection: psycopg.Connection, sweep_id: int, hours: float) -> None:
    connection.execute(
        "UPDATE nexhealth_sweeps SET started_at = clock_timestamp() - make_interval(secs => %s) WHERE id = %s",
        (hours * 3600, sweep_id),
    )


def test_an_unfinished_sweep_is_taken_up(connection: psycopg.Connection) -> None:
    first = begin_sweep(connection, "full", "all")
    assert first[2] is False
    assert begin_sweep(connection, "full", "all") == (*first[:2], True)


@pytest.mark.parametrize(("mode", "scope"), [("incremental", "all"), ("full", "patients")])
def test_another_mode_or_scope_is_another_sweep(connection: psycopg.Connection, mode: str, scope: str) -> None:
    first = begin_sweep(connection, "full", "all")
    other = begin_sweep(connection, mode, scope)
    assert other[2] is False
    assert other[0] != first[0]


def test_a_finished_sweep_is_not_taken_up(connection: psycopg.Connection) -> None:
    """Otherwise a second `--mode full` on the same day would read nothing."""
    first = begin_sweep(connection, "full", "all")
    finish_sweep(connection, first[0])
    second = begin_sweep(connection, "full", "all")
    assert second[2] is False
    assert second[1] > first[1]


@pytest.mark.parametrize(("hours", "taken_up"), [(SWEEP_HOURS - 0.1, True), (SWEEP_HOURS + 0.1, False)])
def test_a_sweep_older_than_a_day_is_begun_anew(connection: psycopg.Connection, hours: float, taken_up: bool) -> None:
    assert SWEEP_HOURS == 24
    first = begin_sweep(connection, "full", "all")
    age(connection, first[0], hours)
    assert begin_sweep(connection, "full", "all")[2] is taken_up


def test_a_sweep_that_began_later_than_now_is_begun_anew(connection: psycopg.Connection) -> None:
    """By a clock that was ahead: nothing would count as read since, so no absence is judged, and whoever is killed begins anew."""
    first = begin_sweep(connection, "full", "all")
    age(connection, first[0], -72)
    second = begin_sweep(connection, "full", "all")
    assert (second[0] != first[0], second[2]) == (True, False)
    assert begin_sweep(connection, "full", "all") == (*second[:2], True)
    finish_sweep(connection, second[0])
    age(connection, first[0], 1)
    assert open_sweep(connection, "full", "all") is None, "that time has come"


def test_the_latest_of_several_unfinished_sweeps_is_taken_up(connection: psycopg.Connection) -> None:
    """Two that began at once: what the later one has read, the earlier one has not."""
    old = begin_sweep(connection, "full", "all")
    connection.execute("INSERT INTO nexhealth_sweeps (mode, scope_hash) VALUES ('full', 'all')")
    assert begin_sweep(connection, "full", "all")[1] > old[1]
