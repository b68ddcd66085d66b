"""When absences were last judged by each list under a row: whose turn in the rotation it is.

Not `read_at`: a list read for a webhook, for one patient or by a full sync says nothing of what is gone, and must
not put off the read that does.
"""

from alembic import op

revision = "0008"
down_revision = "0007"

_JUDGED = """
-- now(), and then the clock: a default that is the same for all rows writes none of them.
ALTER TABLE nexhealth_child_reads ADD COLUMN judged_at timestamptz NOT NULL DEFAULT now();
ALTER TABLE nexhealth_child_reads ALTER COLUMN judged_at SET DEFAULT clock_timestamp();
COMMENT ON COLUMN nexhealth_child_reads.judged_at IS
    'When it was last judged by this list what is gone; the first read counts, before which nothing was known. PHI class: none.';
"""


def upgrade() -> None:
    """Add the column; what was read before counts as judged now, and takes turns by when it was read."""
    op.get_bind().exec_driver_sql(_JUDGED.replace("%", "%%"))
