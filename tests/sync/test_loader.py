"""Loading answers again whose transaction was rolled back."""

from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.practice import Institution, Location
from nexhealth_pipeline.sync.slices import Slice

ACME = Institution(7, "acme", "Acme", frozenset())
NORTH = Location(3, "North", ACME, inactive=False, owner_id=3, shared=False)
VISIT = b'{"id":1,"location_id":3,"pin":1,"start_time":"2026-03-01T10:00:00Z","updated_at":"2026-03-01T10:00:00Z"}'
PLAN = b'{"id":1,"pin":1,"updated_at":"2026-03-01T10:00:00Z","procedures":[{"id":9}]}'


@pytest.mark.parametrize(
    ("name", "record"), [("appointments", VISIT), ("treatment_plans", PLAN)], ids=["months", "lists inside"]
)
def test_what_was_rolled_back_is_counted_once_when_it_is_loaded_again(
    name: str, record: bytes, database_url: str
) -> None:
    """A transaction that PostgreSQL ended because of another one's is made again, from what was encoded once."""
    page = Page(1, [record, b'{"id":"none"}'], "", False, datetime.now(UTC), 1, 0, 0.0, 0, None, None)
    with psycopg.connect(database_url, autocommit=True) as connection:
        loader = Loader(connection, Slice(COLLECTIONS[name], ACME, NORTH), run_id="r", dry_run=False)
        loader.open()
        encoded, mark = [loader.encode(page, {"location_id": 3})], loader.mark()
        told = []
        for rolled_back in (True, False):
            with connection.transaction(force_rollback=rolled_back):
                counts = loader.load(encoded, None).counts
            told.append((counts, list(loader.changes), loader.nested_changes, loader.new_notes, loader.refused))
            if rolled_back:
                loader.go_back(mark)
        assert told[0] == told[1]
        assert (told[1][0].inserted, loader.new_notes, loader.refused) == (1, 1, 1)
        assert loader.changes or loader.nested_changes
        drifts = connection.execute("SELECT field FROM nexhealth_schema_drift WHERE kind = 'new'").fetchall()
        assert drifts == [("pin",)], "noted though what met it was rolled back"
