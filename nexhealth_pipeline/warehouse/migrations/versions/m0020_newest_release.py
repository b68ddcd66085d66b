"""The warehouse notes which release has prepared it.

A release without a migration may still have made tables wider and views anew. One before it, which went by migrations
alone, made its own views again, and dropped those that it could not replace, with what was granted on them.
"""

from nexhealth_pipeline.warehouse.migrations.waiting import in_short_waits

revision = "0020"
down_revision = "0019"

_NOTE = """
ALTER TABLE nexhealth_alembic_version ADD COLUMN IF NOT EXISTS release text;
COMMENT ON TABLE nexhealth_alembic_version IS 'Which migration the warehouse is at, and which release has prepared it.';
COMMENT ON COLUMN nexhealth_alembic_version.release IS
    'Newest release that has prepared the warehouse; an older one refuses it. PHI class: none.';
"""


def upgrade() -> None:
    """Add the column where whoever asks for the migration looks already: no role needs another right.

    Receivers look there as well, and a backup holds all tables for hours.
    """
    in_short_waits(_NOTE)
