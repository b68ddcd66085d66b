"""A location that shares its EHR database waits for the one that reads it."""

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
