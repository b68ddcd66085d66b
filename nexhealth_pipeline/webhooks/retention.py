"""Payloads of events are records of patients: they go after some days, the audit row stays."""

from datetime import datetime

import psycopg

__all__ = ["expunge"]

_BATCH = 1000
_Place = tuple[datetime, int]
_PARKED_TIMES = 10
"""Payloads of parked events are kept so many times as long: somebody may still mend and replay them."""


_OLD = """
SELECT id FROM nexhealth_webhook_events WHERE payload IS NOT NULL AND status <> 'pending'
AND received_at < clock_timestamp() - %(days)s * interval '1 day'
AND (status <> 'parked' OR received_at < clock_timestamp() - %(parked)s * interval '1 day')
AND (%(received)s::timestamptz IS NULL OR (received_at, id) > (%(received)s, %(id)s))
ORDER BY received_at, id LIMIT %(batch)s FOR UPDATE SKIP LOCKED
"""


def expunge(connection: psycopg.Connection, days: int, *, most: int | None = None) -> int:
    """Remove the payloads of events that are done with and older than `days`, about `most`; returns how many.

    Pending events keep theirs. `connection` must be in autocommit mode: each thousand is a transaction.
    """
    removed, last = 0, None
    while (most is None or removed < most) and (found := _expunge_some(connection, days, last)):
        removed, last = removed + len(found), max(found)
    return removed


def _expunge_some(connection: psycopg.Connection, days: int, after: _Place | None) -> list[_Place]:
    """Expunge the next ones after a place in the order of arrival; the places of those that were."""
    return connection.execute(
        f"UPDATE nexhealth_webhook_events SET payload = NULL, expunged_at = clock_timestamp() WHERE id IN ({_OLD})"  # noqa: S608 - a constant
        " RETURNING received_at, id",
        {
            "days": days,
            "parked": days * _PARKED_TIMES,
            "batch": _BATCH,
            "received": after and after[0],
            "id": after and after[1],
        },
    ).fetchall()
