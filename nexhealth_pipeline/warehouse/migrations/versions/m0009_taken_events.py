"""Events that a process is working on, noted before it begins: one that ends its process every time is known by that.

A claim is a row lock, which goes with its process and leaves no trace.
"""

from alembic import op
from sqlalchemy.exc import OperationalError

revision = "0009"
down_revision = "0008"

_TRIES = 60
_TAKEN = """
SET LOCAL lock_timeout = '1s';
ALTER TABLE nexhealth_webhook_events
    ADD COLUMN taken integer NOT NULL DEFAULT 0,
    ADD COLUMN taken_by text;
COMMENT ON COLUMN nexhealth_webhook_events.taken IS
    'How often work on it was begun that came to no end: it is done, or its process was killed. PHI class: none.';
COMMENT ON COLUMN nexhealth_webhook_events.taken_by IS 'Run that works on it, or was killed while it did. PHI class: none.';
SET LOCAL lock_timeout = DEFAULT;
"""


def upgrade() -> None:
    """Add the columns; no row is written for that.

    A run may hold the table for as long as it asks the API, and whoever waits for all of it makes the receiver wait: so
    this waits a second at a time.
    """
    connection = op.get_bind()
    for left in reversed(range(_TRIES)):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(_TAKEN.replace("%", "%%"))
        except OperationalError:
            if not left:
                raise
        else:
            return


def downgrade() -> None:
    """Not offered: a warehouse is only ever upgraded."""
    raise RuntimeError("a warehouse is only ever upgraded; restore a backup to go back")
