"""What passes left behind that are not made any more is forgotten.

Nobody moves it on: fields that the API has stopped sending would count as met by them for ever, and a note of a record
that is gone as one that they may still bring back. What they met keeps rows from being judged that no list holds.
"""

from alembic import op

revision = "0019"
down_revision = "0018"


_FORGET = """
DELETE FROM nexhealth_sync_state WHERE (collection, pass) IN (('appointments', 'unfiltered'), ('nex_staff', 'all'));
WITH gone AS (
    DELETE FROM nexhealth_seen_passes
    WHERE (collection, split_part(pass, ' ', 1)) IN (('appointments', 'unfiltered'), ('nex_staff', 'all'))
    RETURNING id)
DELETE FROM nexhealth_seen WHERE pass_id IN (SELECT id FROM gone)
"""
"""One that was set aside has a word after its name."""


def upgrade() -> None:
    """Forget the state of those passes, and what they met."""
    op.get_bind().exec_driver_sql(_FORGET)
