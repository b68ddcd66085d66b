"""Whether continuous sync works, asked of the warehouse: what the watchdog checks, what `nexhealth status` shows.

Results hold counts, NexHealth's ids and subdomains only. They are kept where the checks of the copy are kept. Ages are
counted from `statement_timestamp()`: with a volatile clock no index would be asked, and events are kept for years.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import LiteralString

import psycopg

from nexhealth_pipeline.warehouse.check_results import keep
from nexhealth_pipeline.warehouse.check_rules import Severity

__all__ = [
    "COLLECTION",
    "GIVEN_UP",
    "HEALTH_RULES",
    "WAITING_MINUTES",
    "EndpointState",
    "Health",
    "HealthRule",
    "WebhookState",
    "endpoint_states",
    "examine",
    "store_health",
    "webhook_state",
]

COLLECTION = "webhook_events"
"""What results of these rules are kept under; its table is `nexhealth_webhook_events`."""
WAITING_MINUTES = 15
"""So long an event may wait: its run starts within a minute, and its second retry within three."""
GIVEN_UP: LiteralString = (
    "status = 'parked' AND (payload IS NOT NULL"
    " OR (expunged_at IS NULL AND received_at > statement_timestamp() - interval '7 days'))"
)
"""Events that somebody should look at: those that can be replayed, and for a week those that could not be kept.

Of a signed body that is no text nothing is kept: no replay will ever help it, and it says that something is wrong.
"""
_ASKED_HOURS = 2


@dataclass(frozen=True, slots=True)
class HealthRule:
    """One thing that continuous sync must fulfil."""

    name: str
    severity: Severity
    doc: str
    faults: LiteralString = field(repr=False)
    """Query of what does not: institution (0 = none in particular), sample (an id)."""


HEALTH_RULES = (
    HealthRule(
        "endpoint_active",
        Severity.ERROR,
        "NexHealth posts events to every endpoint of ours, as it said in the last two hours.",
        "SELECT 0::bigint AS institution, endpoint_id::text AS sample FROM nexhealth_webhooks"
        # Nobody minds a retired one that has no subscriptions any more.
        " WHERE removed_at IS NULL AND (retire_at IS NULL OR subscriptions <> '[]') AND (NOT active"
        "  OR checked_at < statement_timestamp() - make_interval(hours => %(asked_hours)s))",
    ),
    HealthRule(
        "holes_filled",
        Severity.WARNING,
        "What may have been missed while an endpoint was inactive has been read since; documents whose"
        " patient has not changed come with the nightly rotation.",
        "SELECT 0::bigint AS institution, endpoint_id::text AS sample FROM nexhealth_webhooks"
        " WHERE removed_at IS NULL AND hole_since IS NOT NULL",
    ),
    HealthRule(
        "retired_deleted",
        Severity.WARNING,
        "An endpoint that another one replaced is deleted after 49 hours: until then its secret stays valid.",
        "SELECT DISTINCT coalesce(i.id, 0) AS institution, endpoint_id::text AS sample"
        " FROM nexhealth_webhooks LEFT JOIN jsonb_array_elements(subscriptions) s ON true"
        " LEFT JOIN nexhealth_institutions i ON i.subdomain = s.value ->> 'subdomain'"
        " WHERE removed_at IS NULL AND retire_at <= statement_timestamp()",
    ),
    HealthRule(
        "events_arrive",
        Severity.WARNING,
        "Every institution subscribed to has sent an event in the last hours (NEXHEALTH_WEBHOOK_SILENCE_HOURS), and is"
        " still called by that subdomain.",
        "SELECT coalesce(i.id, 0) AS institution, coalesce(i.id::text, told.subdomain) AS sample FROM ("
        # An institution may have joined an endpoint that is years old.
        "  SELECT s.value ->> 'subdomain' AS subdomain,"
        "   min(coalesce((s.value ->> 'since')::timestamptz, registered_at)) AS since"
        "  FROM nexhealth_webhooks, jsonb_array_elements(subscriptions) s"
        "  WHERE removed_at IS NULL AND (s.value ->> 'active')::boolean GROUP BY 1) told"
        # Who was renamed sends under another name, and is subscribed to by the old one until the next set-up.
        " LEFT JOIN nexhealth_institutions i ON i.subdomain = told.subdomain WHERE i.deleted_at IS NULL"
        " AND told.since < statement_timestamp() - make_interval(secs => %(silence_seconds)s) AND (i.id IS NULL OR NOT EXISTS ("
        "  SELECT FROM nexhealth_webhook_events e WHERE e.subdomain = told.subdomain AND e.status <> 'rejected'"
        # One that came later than now, by a clock that was ahead then, would be the last one until that time.
        "  AND e.received_at > statement_timestamp() - make_interval(secs => %(silence_seconds)s)"
        "  AND e.received_at <= statement_timestamp()))",
    ),
    HealthRule(
        "all_subscribed",
        Severity.WARNING,
        "Where an endpoint is registered, every institution that has an active location is subscribed to: one that joins is"
        " so by `nexhealth webhooks setup URL` alone.",
        "SELECT i.id AS institution, i.id::text AS sample FROM nexhealth_institutions i"
        " WHERE i.deleted_at IS NULL AND (%(wanted)s::text[] = '{}' OR i.subdomain = ANY(%(wanted)s))"
        " AND EXISTS (SELECT FROM nexhealth_locations l WHERE l.institution_id = i.id AND l.deleted_at IS NULL"
        "  AND NOT coalesce(l.inactive, false))"
        # Of one that nothing is noted of yet a set-up goes on, or was killed. Of several keys that is so until the first
        # of them is done: while it comes to the others, theirs are told of.
        " AND EXISTS (SELECT FROM nexhealth_webhooks WHERE removed_at IS NULL AND subscriptions <> '[]')"
        " AND i.subdomain <> ALL (ARRAY(SELECT DISTINCT s.value ->> 'subdomain'"
        "  FROM nexhealth_webhooks, jsonb_array_elements(subscriptions) s"
        "  WHERE removed_at IS NULL AND (s.value ->> 'active')::boolean AND s.value ->> 'subdomain' IS NOT NULL))",
    ),
    HealthRule(
        "nothing_waits",
        Severity.WARNING,
        "No event has waited for a quarter of an hour.",
        "SELECT coalesce(institution_id, 0) AS institution, id::text AS sample FROM nexhealth_webhook_events"
        " WHERE status = 'pending' AND (replays = 0 OR attempts > 0)"
        " AND received_at < statement_timestamp() - make_interval(mins => %(waiting_minutes)s)",
    ),
    HealthRule(
        "nothing_parked",
        Severity.WARNING,
        "No event was given up that can still be tried again (`nexhealth webhooks replay`), and none came in the last"
        " seven days whose body could not be kept.",
        "SELECT coalesce(institution_id, 0) AS institution, id::text AS sample FROM nexhealth_webhook_events WHERE "  # noqa: S608 - a constant
        + GIVEN_UP,
    ),
    HealthRule(
        "source_online",
        Severity.WARNING,
        "NexHealth can read the practice system of every active location: without that there are no events either.",
        "SELECT i.id AS institution, l.id::text AS sample FROM nexhealth_sync_status s"
        " JOIN nexhealth_locations l USING (institution_id)"
        " JOIN nexhealth_institutions i ON i.id = l.institution_id AND i.deleted_at IS NULL"
        " WHERE s.deleted_at IS NULL AND s.read_status <> 'green' AND l.deleted_at IS NULL"
        " AND NOT coalesce(l.inactive, false) AND s.locations @> jsonb_build_array(jsonb_build_object('id', l.id))"
        " AND (%(wanted)s::text[] = '{}' OR i.subdomain = ANY(%(wanted)s))",
    ),
)
"""All rules, the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Health:
    """What came of a rule."""

    rule: HealthRule
    institutions: dict[int, int]
    """Faults by institution; 0 = none in particular."""
    sample_ids: dict[int, tuple[str, ...]]

    @property
    def count(self) -> int:
        """Faults in all."""
        return sum(self.institutions.values())


def examine(connection: psycopg.Connection, *, silence_hours: float, subdomains: Iterable[str] = ()) -> list[Health]:
    """Ask the warehouse about every rule; of those institutions whose subdomains are wanted, or of all."""
    values: dict[str, object] = {
        "wanted": list(subdomains),
        "asked_hours": _ASKED_HOURS,
        "silence_seconds": silence_hours * 3600,
        "waiting_minutes": WAITING_MINUTES,
    }
    return [_ask(connection, rule, values) for rule in HEALTH_RULES]


def _ask(connection: psycopg.Connection, rule: HealthRule, values: dict[str, object]) -> Health:
    rows = connection.execute(
        "SELECT institution, count(*), (array_agg(sample ORDER BY length(sample), sample))[:5]"  # noqa: S608 - literals
        " FROM (" + rule.faults + ") fault GROUP BY 1 ORDER BY 1",
        values,
    ).fetchall()
    return Health(rule, {row[0]: row[1] for row in rows}, {row[0]: tuple(row[2]) for row in rows})


def store_health(connection: psycopg.Connection, results: Iterable[Health], institutions: Iterable[int]) -> None:
    """Keep results, one row for each of `institutions` and for whatever else has faults; commits."""
    known = {0, *institutions}
    keep(
        connection,
        [
            (
                *(COLLECTION, result.rule.name, institution, result.rule.severity.value),
                result.institutions.get(institution, 0),
                list(result.sample_ids.get(institution, ())),
                result.institutions.get(institution, 0),
            )
            for result in sorted(results, key=lambda one: one.rule.name)
            for institution in sorted(known | result.institutions.keys())
        ],
    )


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint of ours, as NexHealth described it last."""

    endpoint_id: int
    target_url: str
    active: bool
    subscriptions: int
    checked_at: datetime
    last_event_at: datetime | None
    """Since it was looked for."""
    hole_since: datetime | None
    """Since when events may be missing that were not read yet."""
    retire_at: datetime | None
    """When it is to be deleted, its subscriptions having moved."""
    looked_since: datetime
    """Since when an event of it was looked for: seven days ago, or when it was registered."""


@dataclass(frozen=True, slots=True)
class WebhookState:
    """Continuous sync at a glance."""

    endpoints: list[EndpointState]
    last_event_at: datetime | None
    """Of the last seven days, with whatever secret it was signed."""
    pending: int
    oldest_pending_at: datetime | None
    parked: int
    """Events that were given up: those that can still be replayed, and those of the last seven days that could not be kept."""
    rejected_last_day: int
    """Requests refused in the last 24 hours."""

    @property
    def in_use(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.endpoints or self.last_event_at or self.pending or self.parked or self.rejected_last_day)


_ENDPOINTS = """
SELECT w.endpoint_id, w.target_url, w.active, jsonb_array_length(w.subscriptions), w.checked_at, last.at, w.hole_since,
       w.retire_at, greatest(w.registered_at, statement_timestamp() - interval '7 days')
FROM nexhealth_webhooks w LEFT JOIN LATERAL (
    SELECT e.received_at AS at FROM nexhealth_webhook_events e
    WHERE e.endpoint_id = w.endpoint_id AND e.status <> 'rejected'
      AND e.received_at >= greatest(w.registered_at, statement_timestamp() - interval '7 days')
      AND e.received_at <= statement_timestamp()
    ORDER BY e.received_at DESC LIMIT 1) last ON true
WHERE w.removed_at IS NULL ORDER BY w.endpoint_id
"""
_EVENTS: LiteralString = f"""
SELECT (SELECT received_at FROM nexhealth_webhook_events WHERE status <> 'rejected'
        AND received_at BETWEEN statement_timestamp() - interval '7 days' AND statement_timestamp() ORDER BY received_at DESC LIMIT 1),
       waiting.events, waiting.oldest,
       (SELECT count(*) FROM nexhealth_webhook_events WHERE {GIVEN_UP}),
       (SELECT coalesce(sum(repeats), 0)::bigint FROM nexhealth_webhook_events
        WHERE status = 'rejected' AND received_at > statement_timestamp() - interval '1 day')
FROM (SELECT count(*) AS events, min(received_at) AS oldest FROM nexhealth_webhook_events WHERE status = 'pending') waiting
"""  # noqa: S608 - a constant
"""The oldest that waits together with how many do: asked for alone, and many thought to wait as after a busy hour, it is
looked for from the oldest event of all on."""


def endpoint_states(connection: psycopg.Connection) -> list[EndpointState]:
    """Our endpoints by id, removed ones left out."""
    return [EndpointState(*row) for row in connection.execute(_ENDPOINTS)]


def webhook_state(connection: psycopg.Connection) -> WebhookState:
    """Endpoints, and how many events wait, were given up or refused."""
    endpoints = endpoint_states(connection)
    row = connection.execute(_EVENTS).fetchone()
    assert row is not None
    return WebhookState(endpoints, *row)
