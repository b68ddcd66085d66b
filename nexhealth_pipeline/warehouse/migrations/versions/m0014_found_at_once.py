"""What is asked for a few rows reads no more than those: the last runs."""

from alembic import op

revision = "0014"
down_revision = "0013"

_RUNS = "CREATE INDEX IF NOT EXISTS nexhealth_runs_started ON nexhealth_runs (started_at)"

_SUBSCRIPTIONS = """
COMMENT ON COLUMN nexhealth_webhooks.subscriptions IS
    'What it is subscribed to: [{id, subdomain, resource_type, event, active, since}]; without since: as long as it is '
    'registered. PHI class: none.';
"""


def upgrade() -> None:
    """Create the index, and say what a subscription tells now."""
    for ddl in (_RUNS, _SUBSCRIPTIONS):
        op.get_bind().exec_driver_sql(ddl)


def downgrade() -> None:
    """Not offered: a warehouse is only ever upgraded."""
    raise RuntimeError("a warehouse is only ever upgraded; restore a backup to go back")
