"""Which endpoints at NexHealth are ours, although nobody may have learnt their secret.

An endpoint is ours that the warehouse has ever known, and one that appeared while we were making one: that is
written down before (table `nexhealth_webhook_attempts`), since a process may be killed before it has the answer.
"""

from collections.abc import Iterable, Sequence

import psycopg

__all__ = ["adopt_attempts", "attempt_begins", "attempt_over", "ours_among"]


def attempt_begins(connection: psycopg.Connection, key_hash: str, target_url: str, there_before: Iterable[int]) -> None:
    """Remember that an endpoint is about to be made. One that is open already knows better what was there before."""
    connection.execute(
        "INSERT INTO nexhealth_webhook_attempts (key_hash, target_url, there_before) VALUES (%s, %s, %s)"
        " ON CONFLICT DO NOTHING",
        (key_hash, target_url, sorted(there_before)),
    )


def adopt_attempts(
    connection: psycopg.Connection, key_hash: str, endpoint_ids: Iterable[int], present: Sequence[str]
) -> None:
    """Take over, for a key that lists these endpoints, what was begun with one that is not among the `present` ones.

    Only where all that was there before is listed, or, if nothing was, it began today and no other key may be the one: in
    another account somebody else's endpoint was not there before either, and would be taken for ours and deleted.
    """
    connection.execute(
        "UPDATE nexhealth_webhook_attempts a SET key_hash = %(key_hash)s FROM"
        " (SELECT DISTINCT ON (target_url) key_hash, target_url FROM nexhealth_webhook_attempts"
        "  WHERE key_hash <> ALL(%(present)s) AND there_before <@ %(ids)s::bigint[]"
        "  AND (there_before <> '{}' OR %(alone)s AND begun_at > clock_timestamp() - interval '1 day') ORDER BY target_url, begun_at) lost"
        " WHERE a.key_hash = lost.key_hash AND a.target_url = lost.target_url"
        " AND NOT EXISTS (SELECT FROM nexhealth_webhook_attempts other"
        "  WHERE other.key_hash = %(key_hash)s AND other.target_url = a.target_url)",
        {"key_hash": key_hash, "ids": list(endpoint_ids), "present": present, "alone": len(present) == 1},
    )


def attempt_over(connection: psycopg.Connection, key_hash: str, target_url: str) -> None:
    """What was to be made is known, and what else was made of it deleted."""
    connection.execute(
        "DELETE FROM nexhealth_webhook_attempts WHERE key_hash = %s AND target_url = %s", (key_hash, target_url)
    )


def ours_among(connection: psycopg.Connection, key_hash: str, target_url: str, endpoint_ids: Iterable[int]) -> set[int]:
    """Those of these endpoints, all with `target_url`, that we have made."""
    rows = connection.execute(
        "SELECT id FROM unnest(%(ids)s::bigint[]) found(id)"
        " WHERE EXISTS (SELECT FROM nexhealth_webhooks w WHERE w.key_hash = %(hash)s AND w.endpoint_id = id)"
        " OR EXISTS (SELECT FROM nexhealth_webhook_attempts a WHERE a.key_hash = %(hash)s AND a.target_url = %(url)s"
        " AND id <> ALL(a.there_before))",
        {"ids": list(endpoint_ids), "hash": key_hash, "url": target_url},
    )
    return {id_ for (id_,) in rows}
