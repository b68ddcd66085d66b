"""Which events are being worked on: noted, and committed, before the work begins.

A process that is killed leaves that note. Its events are taken again few at a time, then alone, so that the one that
ends its process each time is found and given up, and its neighbours are applied. Whatever ends in another way than
with its process takes the note back, so that a database that is away is no event's fault. But where the work broke off
in a way that an event can cause (`failures`), the note is left as well, or its batch would be the first of every
run and nothing behind it would ever be reached.
"""

from collections.abc import Iterable, Sequence

import psycopg

from nexhealth_pipeline.warehouse.runs import is_dead
from nexhealth_pipeline.webhooks.applying.pending import BACKOFF, DUE, NOT_LEFT

__all__ = [
    "LEAST_TAKINGS",
    "abandoned",
    "dead_takers",
    "give_back",
    "leave",
    "take_abandoned",
    "take_hints",
    "take_new",
]

_SIZES = (100, 10)
"""Events taken at once that were taken once, twice before; later ones alone."""
LEAST_TAKINGS = len(_SIZES) + 2
"""Takings after which an event may be given up: not before it was taken alone."""
_TAKE = f"""
WITH chosen AS MATERIALIZED (
    SELECT id FROM nexhealth_webhook_events
    WHERE status = 'pending' AND {DUE} AND """  # noqa: S608 - a constant
_NEW = f"id <= %(upto)s AND id <> ALL(%(without)s) AND {NOT_LEFT} AND taken = 0 AND (attempts > 0) = %(retried)s ORDER BY id"
_HINTS = "id = ANY(%(ids)s) AND taken_by IS NULL ORDER BY id"
# In turn: one that breaks its run off each time must not stand before others that are alone, too.
_ABANDONED = f"""id <= %(upto)s AND {NOT_LEFT} AND taken = %(times)s AND (taken_by IS NULL OR taken_by = ANY(%(dead)s))
    ORDER BY next_attempt_at NULLS FIRST, id"""
# One taken alone is left alone as after a failed try, should it end its process.
# Chosen once: as a subquery of the UPDATE it may be asked again for each row that it joins, and takes the next ones.
_CHOSEN = """ LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE nexhealth_webhook_events e SET taken = e.taken + 1, taken_by = %(run)s,
    next_attempt_at = CASE WHEN e.taken >= %(alone)s THEN clock_timestamp()
        + (%(pauses)s::interval[])[least(e.taken - %(alone)s + 1, cardinality(%(pauses)s::interval[]))] END
FROM chosen WHERE e.id = chosen.id RETURNING e.id
"""


def take_new(
    connection: psycopg.Connection,
    run_id: str,
    *,
    upto: int,
    without: Iterable[int],
    retried: bool,
    limit: int,
    leaving: Iterable[str],
) -> list[int]:
    """Take due events by id that were never tried (or, `retried`, failed before), but `without`.

    Nor any of the subdomains in `leaving`. As every taking: for `connection` in autocommit mode; what another process takes
    just now is left out.
    """
    given = {"upto": upto, "without": list(without), "retried": retried, "limit": limit, "leaving": list(leaving)}
    return _take(connection, _TAKE + _NEW + _CHOSEN, run_id, given)


def take_hints(connection: psycopg.Connection, run_id: str, ids: Sequence[int]) -> list[int]:
    """Take events once more that were given back because the API is to be asked."""
    return _take(connection, _TAKE + _HINTS + _CHOSEN, run_id, {"ids": list(ids), "limit": len(ids)})


def take_abandoned(
    connection: psycopg.Connection,
    run_id: str,
    *,
    upto: int,
    times: int,
    dead: Sequence[str],
    limit: int,
    leaving: Iterable[str],
) -> list[int]:
    """Take due events again that were taken so many times in vain, last by one of the `dead` runs; none of `leaving`."""
    given = {"upto": upto, "times": times, "dead": list(dead), "leaving": list(leaving)}
    return _take(connection, _TAKE + _ABANDONED + _CHOSEN, run_id, given | {"limit": min(limit, _most_at_once(times))})


def dead_takers(connection: psycopg.Connection) -> list[str]:
    """Runs that have events and whose process is gone; `connection` is in autocommit mode."""
    runs = connection.execute(
        "SELECT DISTINCT taken_by FROM nexhealth_webhook_events WHERE status = 'pending' AND taken_by IS NOT NULL"
    ).fetchall()
    return [run_id for (run_id,) in runs if is_dead(connection, run_id)]


def abandoned(connection: psycopg.Connection, *, upto: int, dead: Sequence[str]) -> list[int]:
    """How often events were taken that no living process has and that are due, fewest first."""
    rows = connection.execute(
        "SELECT DISTINCT taken FROM nexhealth_webhook_events WHERE status = 'pending' AND taken > 0 AND id <= %s"  # noqa: S608 - a constant
        f" AND {DUE}"
        " AND (taken_by IS NULL OR taken_by = ANY(%s)) ORDER BY 1",
        (upto, list(dead)),
    )
    return [times for (times,) in rows]


def give_back(connection: psycopg.Connection, run_id: str, ids: Sequence[int]) -> None:
    """Take back the taking of those events that the run has and came to no end with.

    Another step is to follow, or a wish to stop or a failure of no event's came between.
    """
    connection.execute(
        "UPDATE nexhealth_webhook_events SET taken = taken - 1, taken_by = NULL, next_attempt_at = NULL"
        " WHERE id = ANY(%s) AND status = 'pending' AND taken_by = %s",
        (list(ids), run_id),
        prepare=False,
    )


def leave(connection: psycopg.Connection, run_id: str, ids: Sequence[int], *, at_most: int, reason: str) -> None:
    """Leave those of these events that the run has as a process leaves them that is killed: the work on them broke off.

    They count no more than `at_most` takings.
    """
    connection.execute(
        "UPDATE nexhealth_webhook_events SET taken = least(taken, %s), taken_by = NULL, error = %s"
        " WHERE id = ANY(%s) AND status = 'pending' AND taken_by = %s",
        (at_most, reason, list(ids), run_id),
        prepare=False,
    )


def _most_at_once(times: int) -> int:
    return _SIZES[times - 1] if times <= len(_SIZES) else 1


def _take(connection: psycopg.Connection, statement: str, run_id: str, given: dict[str, object]) -> list[int]:
    given |= {"run": run_id, "alone": len(_SIZES) + 1, "pauses": BACKOFF}
    return sorted(id_ for (id_,) in connection.execute(statement, given, prepare=False))
