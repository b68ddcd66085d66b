"""One row of nexhealth_webhook_events as the receiver writes it, and the statement that writes many at once.

All values travel as texts and bytes in one array a column: one statement, one round trip and one commit for
however many requests wait. An empty value is NULL.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from nexhealth_pipeline.webhooks.events import EVENTS_CHANNEL

__all__ = ["INSERT", "EventRow", "array_of", "columns_of"]

INSERT = f"""
WITH given AS (
    SELECT * FROM unnest(
        %(source)b::text[], %(endpoint_id)b::text[], %(event_name)b::text[], %(resource_type)b::text[],
        %(subdomain)b::text[], %(institution_id)b::text[], %(resource_ids)b::text[], %(event_time)b::text[],
        %(payload)b::text[], %(body_hash)b::bytea[], %(dedup_hash)b::bytea[], %(header_names)b::text[],
        %(verdict)b::text[], %(status)b::text[], %(error)b::text[], %(repeats)b::text[], %(age)b::text[]
    ) WITH ORDINALITY AS given (
        source, endpoint_id, event_name, resource_type, subdomain, institution_id, resource_ids, event_time,
        payload, body_hash, dedup_hash, header_names, verdict, status, error, repeats, age, place)
), stored AS (
    INSERT INTO nexhealth_webhook_events (
        source, endpoint_id, event_name, resource_type, subdomain, institution_id, resource_ids, event_time,
        payload, body_hash, dedup_hash, header_names, verdict, status, error, repeats, received_at, duplicate_of)
    SELECT nullif(source, '')::inet, nullif(endpoint_id, '')::bigint, nullif(event_name, ''),
           nullif(resource_type, ''), nullif(subdomain, ''), nullif(institution_id, '')::bigint,
           resource_ids::bigint[], nullif(event_time, '')::timestamptz, nullif(payload, ''), nullif(body_hash, ''),
           nullif(dedup_hash, ''), header_names::text[], verdict, status, nullif(error, ''), repeats::integer,
           clock_timestamp() - make_interval(secs => age::float),
           CASE WHEN status = 'duplicate' THEN (
               SELECT first.id FROM nexhealth_webhook_events AS first
               WHERE first.dedup_hash = given.dedup_hash AND first.status NOT IN ('duplicate', 'rejected')) END
    FROM given ORDER BY place
    ON CONFLICT (dedup_hash) WHERE status NOT IN ('duplicate', 'rejected') DO NOTHING
    RETURNING id, dedup_hash, status
)
SELECT id, dedup_hash, CASE WHEN status = 'pending' THEN pg_notify('{EVENTS_CHANNEL}', '') END FROM stored ORDER BY id
"""  # noqa: S608 - a constant
"""Stores the rows that are not there yet; gives id and dedup_hash of each it stored, in their order.

Notifies EVENTS_CHANNEL where some of them wait to be applied.
"""


@dataclass(slots=True)
class EventRow:
    """One request. Texts, "" for NULL; arrays in PostgreSQL's text form."""

    verdict: str
    status: str
    source: str = ""
    endpoint_id: str = ""
    event_name: str = ""
    resource_type: str = ""
    subdomain: str = ""
    institution_id: str = ""
    resource_ids: str = "{}"
    event_time: str = ""
    payload: str = field(default="", repr=False)
    body_hash: bytes = b""
    dedup_hash: bytes = b""
    header_names: str = "{}"
    error: str = ""
    repeats: str = "1"
    age: str = "0"
    """Seconds since it came."""


_NAMES = tuple(one.name for one in fields(EventRow))


def columns_of(rows: Sequence[EventRow]) -> dict[str, list[Any]]:
    """Values of :data:`INSERT` for `rows`."""
    return {name: [getattr(row, name) for row in rows] for name in _NAMES}


def array_of(texts: Sequence[str]) -> str:
    """`texts`, which hold no quotes and no backslashes, in PostgreSQL's text form of an array."""
    return '{"' + '","'.join(texts) + '"}' if texts else "{}"
