"""What passes left behind that are not made any more is forgotten.

Nobody moves it on: fields that the API has stopped sending would count as met by them for ever, and a note of a record
that is gone as one that they may still bring back.
"""

from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    """Forget the state of those passes."""
    op.get_bind().exec_driver_sql(
        "DELETE FROM nexhealth_sync_state"
        " WHERE (collection, pass) IN (('appointments', 'unfiltered'), ('nex_staff', 'all'))"
    )
