"""Webhooks: endpoints with their sealed secrets, and every request that came to the receiver."""

from alembic import op

revision = "0003"
down_revision = "0002"

_ENDPOINTS = """
CREATE TABLE nexhealth_webhooks (
    key_hash text NOT NULL,
    endpoint_id bigint NOT NULL,
    target_url text NOT NULL,
    active boolean NOT NULL,
    secret bytea NOT NULL,
    old_secret bytea,
    old_secret_until timestamptz,
    subscriptions jsonb NOT NULL DEFAULT '[]',
    registered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    checked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_active_at timestamptz,
    hole_since timestamptz,
    retire_at timestamptz,
    removed_at timestamptz,
    PRIMARY KEY (key_hash, endpoint_id)
);
COMMENT ON TABLE nexhealth_webhooks IS 'Endpoints registered with NexHealth, their subscriptions and sealed secrets.';
COMMENT ON COLUMN nexhealth_webhooks.key_hash IS 'Which API key it belongs to. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.endpoint_id IS 'NexHealth''s id of the endpoint. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.target_url IS 'Where NexHealth posts events to. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.active IS
    'Whether NexHealth posts events, when it was last asked; false after 48 hours of errors. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.secret IS
    'What it signs with, sealed with NEXHEALTH_WEBHOOK_KEY. PHI class: secret.';
COMMENT ON COLUMN nexhealth_webhooks.old_secret IS 'The secret before this one, sealed. PHI class: secret.';
COMMENT ON COLUMN nexhealth_webhooks.old_secret_until IS 'Until when the old secret is still taken. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.subscriptions IS
    'What it is subscribed to: [{id, subdomain, resource_type, event, active}]. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.checked_at IS 'When NexHealth was last asked about it. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.seen_active_at IS 'When it was last found active. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.hole_since IS
    'Since when events may be missing; null = none are. Cleared once the changes since then were read. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.retire_at IS
    'When it is to be deleted, its subscriptions having moved to another endpoint. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhooks.removed_at IS 'When it was deleted; its secrets count no more. PHI class: none.';
"""

_EVENTS = """
CREATE TABLE nexhealth_webhook_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    source inet,
    endpoint_id bigint,
    event_name text,
    resource_type text,
    subdomain text,
    institution_id bigint,
    resource_ids bigint[] NOT NULL DEFAULT '{}',
    event_time timestamptz,
    payload text,
    body_hash bytea,
    dedup_hash bytea,
    duplicate_of bigint,
    header_names text[] NOT NULL DEFAULT '{}',
    verdict text NOT NULL,
    status text NOT NULL
        CHECK (status IN ('pending', 'applied', 'superseded', 'duplicate', 'rejected', 'parked')),
    repeats integer NOT NULL DEFAULT 1,
    replays integer NOT NULL DEFAULT 0,
    status_before text,
    attempts integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz,
    error text,
    run_id text,
    applied_at timestamptz,
    expunged_at timestamptz
);
CREATE UNIQUE INDEX nexhealth_webhook_events_once ON nexhealth_webhook_events (dedup_hash)
    WHERE status NOT IN ('duplicate', 'rejected');
CREATE INDEX nexhealth_webhook_events_pending ON nexhealth_webhook_events (id) WHERE status = 'pending';
CREATE INDEX nexhealth_webhook_events_parked ON nexhealth_webhook_events (institution_id) WHERE status = 'parked';
CREATE INDEX nexhealth_webhook_events_received ON nexhealth_webhook_events (received_at);
COMMENT ON TABLE nexhealth_webhook_events IS
    'Every request that came to the webhook receiver: events with their payload, and refused ones without their body.';
COMMENT ON COLUMN nexhealth_webhook_events.received_at IS 'When it came. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.source IS 'Address it came from. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.endpoint_id IS
    'Endpoint whose secret signed it; null = a secret from the settings, or refused. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.event_name IS 'The event, with its suffix (.complete). PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.resource_type IS 'What it is about, as NexHealth calls it. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.subdomain IS 'The institution''s subdomain. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.institution_id IS 'The institution, where it is known. PHI class: id.';
COMMENT ON COLUMN nexhealth_webhook_events.resource_ids IS 'Ids of the records in it. PHI class: id.';
COMMENT ON COLUMN nexhealth_webhook_events.event_time IS 'When it happened, as NexHealth says. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.payload IS
    'The body as received; null = refused, a duplicate, or expunged since. PHI class: clinical.';
COMMENT ON COLUMN nexhealth_webhook_events.body_hash IS 'SHA-256 of the body. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.dedup_hash IS
    'SHA-256 of what tells events apart (a repeated delivery may differ elsewhere). PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.duplicate_of IS 'The event that this repeats. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.header_names IS 'Names of the request''s headers. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.verdict IS
    'What came of the checks: valid, valid-urlsafe (the other base64 alphabet), or why it was refused. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.status IS
    'pending; applied; superseded (the copy had this or a newer version); duplicate; rejected; parked (given up: see '
    'error). PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.repeats IS
    'Requests that this row stands for: many refusals of one address are counted in one row. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.replays IS 'How often it was replayed. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.status_before IS
    'While it is replayed: its status before that, which a replay that changes nothing leaves. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.attempts IS 'Tries to apply it that failed. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.next_attempt_at IS 'Not to be tried before; null = at once. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.error IS 'Why the last try failed, or why it was parked. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.run_id IS 'Run that applied it or tried to last. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.applied_at IS 'When it was applied or found superseded. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.expunged_at IS 'When its payload was removed. PHI class: none.';
"""


def upgrade() -> None:
    """Create the tables of continuous sync."""
    connection = op.get_bind()
    for ddl in (_ENDPOINTS, _EVENTS):
        connection.exec_driver_sql(ddl.replace("%", "%%"))
