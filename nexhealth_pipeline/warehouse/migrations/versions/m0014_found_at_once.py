"""What is asked for a few rows reads no more than those: the last runs."""

from alembic import op

revision = "0014"
down_revision = "0013"

_RUNS = "CREATE INDEX IF NOT EXISTS nexhealth_runs_started ON nexhealth_runs (started_at)"


def upgrade() -> None:
    """Create the index."""
    op.get_bind().exec_driver_sql(_RUNS)


def downgrade() -> None:
    """Not offered: a warehouse is only ever upgraded."""
    raise RuntimeError("a warehouse is only ever upgraded; restore a backup to go back")
