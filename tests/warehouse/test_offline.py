"""Which locations the source of an institution could not be read at when a pass began: absences there say nothing."""

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.seen import begin_seen, find_seen, mark_unreadable, offline_locations
from nexhealth_pipeline.warehouse.state import PassKey

from .kit import INSTITUTION, NOON, Table

KEY = PassKey("gadgets", INSTITUTION, 3, "", "all")


def test_a_pass_remembers_who_was_offline_when_it_began_and_what_it_could_not_read(
    connection: psycopg.Connection,
) -> None:
    source = {"sync_source_type": "x", "sync_source_name": "y", "read_status": "red", "institution_id": INSTITUTION}
    Table(connection, COLLECTIONS["sync_status"]).load({**source, "locations": [{"id": 3}, {"id": 4}]})
    pass_id = begin_seen(connection, KEY, datetime.now(UTC))
    connection.execute("UPDATE nexhealth_sync_status SET read_status = 'green'")
    mark_unreadable(connection, pass_id)
    found = find_seen(connection, KEY)
    assert found is not None
    assert (sorted(found.offline), found.unreadable, found.complete) == ([3, 4], True, False)


SAID_WHEN = {"read_status_at": "2026-03-01T11:00:00Z"}


@pytest.mark.parametrize(
    ("sources", "offline"),
    [
        ([{"read_status": None, **SAID_WHEN}], {3}),
        ([SAID_WHEN], {3}),
        ([{"read_status": "amber"}, {"read_status": "green"}], {3}),
        ([{"read_status": None}, {"read_status": "green"}], {3}),
        ([{"read_status": "green"}, {"read_status": None}], {4}),
        ([{"read_status": None}, {}], set()),
        ([{"read_status": "green"}, {"read_status": "green"}], set()),
    ],
    ids=["null", "none", "other", "null, another told", "another null", "never told of any", "green"],
)
def test_who_is_not_said_to_be_reached_is_offline_where_that_is_said_at_all(
    connection: psycopg.Connection, sources: list[dict[str, Any]], offline: set[int]
) -> None:
    """What could not be read looks like what was deleted; and a practice that never says would never be judged."""
    table = Table(connection, COLLECTIONS["sync_status"])
    for number, source in enumerate(sources, start=3):
        name = {"sync_source_type": "x", "sync_source_name": str(number), "institution_id": INSTITUTION}
        table.load({**name, **source, "locations": [{"id": number}]})
    assert offline_locations(connection, INSTITUTION) == offline
    assert offline_locations(connection, INSTITUTION + 1) == set()


@pytest.mark.parametrize("place", [{"name": "North"}, {"id": "North"}, {"id": None}, {"id": "9" * 30}, "3"])
def test_an_offline_source_that_does_not_say_which_locations_are_its_own_may_be_any(
    connection: psycopg.Connection, place: object
) -> None:
    """Neither may one office's odd text end the reading of the others."""
    Table(connection, COLLECTIONS["locations"]).load(*({"id": one, "institution_id": 7} for one in (3, 4)))
    source = {"sync_source_type": "x", "sync_source_name": "y", "read_status": "red", "institution_id": INSTITUTION}
    table = Table(connection, COLLECTIONS["sync_status"])
    table.load({**source, "locations": [{"id": "4"}]})
    assert offline_locations(connection, INSTITUTION) == {4}
    table.load({**source, "locations": [{"id": "4"}, place]}, read_at=NOON + timedelta(hours=1))
    assert offline_locations(connection, INSTITUTION) == {3, 4}
    begin_seen(connection, KEY, datetime.now(UTC))
