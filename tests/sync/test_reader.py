"""One slice: for whom it waits, and what it tells of its rows."""

from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import Cancelled, PipelineError, ServerFailed
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.reader import SliceReader
from nexhealth_pipeline.sync.slices import Slice

from .kit import open_session, sync_all


@pytest.mark.parametrize(("stopped", "outcome"), [(True, Cancelled), (False, ServerFailed)])
def test_a_sibling_without_its_owner_is_cancelled_when_stopped_and_failed_else(
    settings: Settings, stopped: bool, outcome: type[PipelineError]
) -> None:
    """Risk: Ctrl-C while the owner is read reports its siblings as failures to look into."""
    sync_all(settings, only=set())
    with open_session(settings) as session, session.pool.connection() as connection:
        sibling = next(one for one in session.practices().active() if one.shared and not one.is_owner)
        reader = SliceReader(session, Slice(COLLECTIONS["patients"], sibling.institution, sibling), SyncOptions())
        if stopped:
            session.stop.set()
        with pytest.raises(outcome):
            reader.passes(connection)


def test_a_month_counts_no_rows_that_its_location_has_left_at_another_institution(
    settings: Settings, database_url: str
) -> None:
    """Where it moved it keeps its id: Dagit showed both institutions' visits as the partition's."""
    sync_all(settings, only=set())
    month = f"{datetime.now(UTC):%Y-%m}"
    with open_session(settings) as session:
        location = session.practices().active()[0]
        with psycopg.connect(database_url) as db:
            db.execute(
                "INSERT INTO nexhealth_appointments"
                " (institution_id, id, location_id, start_time, raw, synced_at, source_read_at, row_hash)"
                " VALUES (99, 1, %s, date_trunc('month', now(), 'UTC'), '{}', now(), now(), '')",
                (location.id,),
            )
        piece = Slice(COLLECTIONS["appointments"], location.institution, location, month)
        result = SliceReader(session, piece, SyncOptions()).read()
    assert result.rows == sum(change.rows for change in result.changes if change.month == month)
