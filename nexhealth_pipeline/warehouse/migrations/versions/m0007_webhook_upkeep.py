"""Endpoints about to be made, so that what a killed set-up has left is told from another's; old payloads, found at once."""

from alembic import op

revision = "0007"
down_revision = "0006"

_ATTEMPTS = """
CREATE TABLE nexhealth_webhook_attempts (
    key_hash text NOT NULL,
    target_url text NOT NULL,
    there_before bigint[] NOT NULL,
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (key_hash, target_url)
);
COMMENT ON TABLE nexhealth_webhook_attempts IS
    'Endpoints that are being made at NexHealth, or of which nobody learnt whether they were.';
COMMENT ON COLUMN nexhealth_webhook_attempts.key_hash IS 'Which API key it belongs to. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_attempts.target_url IS 'Where NexHealth is to post events to. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_attempts.there_before IS
    'Ids of the endpoints that were there before; others with this URL are ours. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_attempts.begun_at IS 'When it was begun. PHI class: none.';
"""


_PAYLOADS = """
-- Who removes old payloads would otherwise pass over all rows that have lost theirs.
CREATE INDEX nexhealth_webhook_events_payloads ON nexhealth_webhook_events (received_at, id)
    WHERE payload IS NOT NULL AND status <> 'pending';
"""


def upgrade() -> None:
    """Create the table and the index."""
    for ddl in (_ATTEMPTS, _PAYLOADS):
        op.get_bind().exec_driver_sql(ddl.replace("%", "%%"))
