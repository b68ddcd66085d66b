"""Endpoints about to be made: what a set-up that was killed has left at NexHealth can be told from another's."""

from alembic import op

revision = "0007"
down_revision = "0004"

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


def upgrade() -> None:
    """Create the table."""
    op.get_bind().exec_driver_sql(_ATTEMPTS.replace("%", "%%"))


def downgrade() -> None:
    """Not offered: a warehouse is only ever upgraded."""
    raise RuntimeError("a warehouse is only ever upgraded; restore a backup to go back")
