"""Collections that the vendor enables per practice: read in full when they appear or reappear, and once more a day later.

Once finance is enabled, NexHealth takes up to a day to fill it from the practice system (API.md K).
"""

from datetime import datetime, timedelta

import psycopg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.warehouse.knowledge import FOR_LONG, enabled_at, refused_since
from nexhealth_pipeline.warehouse.state import PassState

__all__ = ["FILLED_AFTER", "full_read_due"]

FILLED_AFTER = timedelta(hours=24)
"""So long the vendor may take to fill a collection after enabling it."""


def full_read_due(connection: psycopg.Connection, collection: Collection, stored: PassState, now: datetime) -> bool:
    """Whether the collection is to be read in full by what is known of its being offered (`now`: API's time).

    It was refused for long until now, or the second full read, after the vendor has filled it, is still to be made.
    """
    if not collection.may_be_disabled:
        return False
    key = stored.key
    where = {"institution_id": key.institution_id, "location_id": key.location_id}
    refused = refused_since(connection, **where, collection=collection.name)
    if refused is not None and now - refused > FOR_LONG:
        # Its state may still be there. What has asked for everything since is not made again for one list that fails.
        return stored.last_full_at is None or stored.last_full_at < refused
    enabled = enabled_at(connection, **where, collection=collection.name)
    if enabled is None or now < enabled + FILLED_AFTER:
        return False
    return stored.last_full_at is None or stored.last_full_at < enabled + FILLED_AFTER
