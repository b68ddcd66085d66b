"""What the brake holds up rests for a week like what was judged, and what came to no end for another reason does not."""

from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Add when the brake held."""
    op.get_bind().exec_driver_sql(
        "ALTER TABLE nexhealth_seen_passes ADD COLUMN IF NOT EXISTS held_at timestamptz;"
        " COMMENT ON COLUMN nexhealth_seen_passes.held_at IS"
        " 'When too much was missing to be marked unasked; the ids are kept, and the pass can be judged again.'"
    )
