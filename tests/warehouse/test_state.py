"""What the next sync starts from."""

from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from nexhealth_pipeline.warehouse.state import (
    PassKey,
    PassState,
    database_time,
    load_fresh,
    load_state,
    load_watermarks,
    save_state,
    take_over,
)

from .kit import MINUTE, NOON

KEY = PassKey("gadgets", 7, 3, "2026-03", "all")
STARTED = PassState(KEY, pass_started_at=NOON, mode="full", filter_hash="f", cursor="c", page=4, records=80, run_id="r")


def test_a_pass_never_read_has_an_empty_state(connection: psycopg.Connection) -> None:
    assert load_state(connection, KEY) == PassState(KEY)
    assert not PassState(KEY).unfinished


def test_a_state_comes_back_as_it_was_saved(connection: psycopg.Connection) -> None:
    state = replace(STARTED, watermark=NOON - MINUTE, since=NOON - 2 * MINUTE, complete_at=NOON, last_full_at=NOON)
    save_state(connection, STARTED)
    save_state(connection, state)
    assert load_state(connection, KEY) == state
    assert load_watermarks(connection, ["gadgets", "others"]) == {KEY: NOON - MINUTE}
    assert load_watermarks(connection, ["others"]) == {}


def test_a_pass_never_complete_has_no_watermark(connection: psycopg.Connection) -> None:
    save_state(connection, STARTED)
    assert load_watermarks(connection, ["gadgets"]) == {}


@pytest.mark.parametrize(
    "change", [{"institution_id": 8}, {"location_id": 4}, {"window_key": "changes"}, {"pass_name": "x"}]
)
def test_passes_do_not_share_a_state(connection: psycopg.Connection, change: dict[str, object]) -> None:
    save_state(connection, STARTED)
    other = replace(KEY, **change)  # type: ignore[arg-type]
    assert load_state(connection, other) == PassState(other)


def test_a_state_is_gone_with_the_transaction_of_its_rows(connection: psycopg.Connection) -> None:
    """Risk: a cursor that is ahead of the rows skips a page for ever."""
    with connection.transaction():
        save_state(connection, STARTED)
        raise psycopg.Rollback
    assert load_state(connection, KEY) == PassState(KEY)


def test_a_complete_pass_moves_the_watermark_to_its_start() -> None:
    """Not to its end: what changed while it ran may have been missed."""
    assert STARTED.unfinished
    done = STARTED.completed(NOON + timedelta(hours=1))
    assert not done.unfinished
    assert (done.watermark, done.complete_at, done.last_full_at) == (NOON, NOON + timedelta(hours=1), NOON)
    assert done.cursor == ""


def test_a_complete_read_of_changes_is_no_full_one() -> None:
    before = replace(STARTED, since=NOON - MINUTE, last_full_at=NOON - 9 * MINUTE)
    assert before.completed(NOON + MINUTE).last_full_at == NOON - 9 * MINUTE


def test_a_pass_that_is_taken_over_is_gone_on_with_from_where_it_had_come(connection: psycopg.Connection) -> None:
    """Once: a state that stays would have changes of years asked for every night."""
    mine = replace(STARTED, watermark=NOON, fresh_at=NOON, since=NOON - MINUTE, last_full_at=NOON, full_at=NOON)
    theirs = replace(STARTED, key=replace(KEY, location_id=4), watermark=NOON - MINUTE, since=NOON - 2 * MINUTE)
    for state in (mine, theirs, replace(theirs, key=replace(KEY, location_id=5), watermark=NOON - 9 * MINUTE)):
        save_state(connection, state)
    for _ in range(2):
        take_over(connection, KEY, [3, 4])
        found = load_state(connection, KEY)
        assert (found.watermark, found.since, found.last_full_at) == (NOON - MINUTE, NOON - 2 * MINUTE, None)
        assert not found.unfinished, "what it had read of its own list alone"
        assert found.cursor == ""
    assert {key.location_id for key in load_watermarks(connection, ["gadgets"])} == {3, 5}
    save_state(connection, replace(theirs, watermark=None))
    take_over(connection, KEY, [3, 4])
    assert load_state(connection, KEY).watermark is None, "whole, since it was never read to its end"


def test_a_time_of_this_database_that_has_not_come_yet_is_none(connection: psycopg.Connection) -> None:
    """Its clock was ahead then: until that time has come, whatever is asked would be told that all is fresh."""
    now = database_time(connection)
    for then, fresh in ((now, {KEY}), (now + timedelta(days=3), set())):
        state = replace(STARTED, begun_at=then, mode="full").completed(NOON)
        save_state(connection, state)
        found = load_state(connection, KEY)
        assert (found.begun_at, found.fresh_at, found.full_at) == (then if fresh else None,) * 3
        assert found.watermark == NOON, "a time of the API"
        assert load_fresh(connection, ["gadgets"], now) == fresh
