"""Old refusals, found at once: they have a bound of their own, and lie among rows of events, which stay for years."""

from nexhealth_pipeline.warehouse.migrations.waiting import in_short_waits

revision = "0010"
down_revision = "0009"

_REFUSALS = """
CREATE INDEX nexhealth_webhook_events_refusals ON nexhealth_webhook_events (received_at) WHERE status = 'rejected'
"""


def upgrade() -> None:
    """Create the index. What the receiver cannot store while the table is read, NexHealth posts again."""
    in_short_waits(_REFUSALS)
