"""Events that a process is working on, noted before it begins: one that ends its process every time is known by that.

A claim is a row lock, which goes with its process and leaves no trace.
"""

from nexhealth_pipeline.warehouse.migrations.waiting import in_short_waits

revision = "0009"
down_revision = "0008"

_TAKEN = """
ALTER TABLE nexhealth_webhook_events
    ADD COLUMN taken integer NOT NULL DEFAULT 0,
    ADD COLUMN taken_by text;
COMMENT ON COLUMN nexhealth_webhook_events.taken IS
    'How often work on it was begun that came to no end: it is done, or its process was killed. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.taken_by IS 'Run that works on it, or was killed while it did. PHI class: none.';
"""


def upgrade() -> None:
    """Add the columns; no row is written for that."""
    in_short_waits(_TAKEN)
