"""What passes keep of what they met once absences were judged by them, and what that says of rows of other locations."""

from collections.abc import Iterable
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.absence import Ground, Missing, never_had
from nexhealth_pipeline.warehouse.judgements import judged
from nexhealth_pipeline.warehouse.knowledge import record_capability, record_freshness
from nexhealth_pipeline.warehouse.seen import SeenPass, begin_seen, complete_seen, find_seen, record_seen
from nexhealth_pipeline.warehouse.state import PassKey, database_time

from .conftest import Rows
from .kit import INSTITUTION, MINUTE, NOON, Table


def met(connection: psycopg.Connection, location: int, keys: Iterable[object]) -> SeenPass:
    """A complete pass of kinds of payment that met `keys`."""
    key = PassKey("payment_types", INSTITUTION, location, "", "all")
    pass_id = begin_seen(connection, key, database_time(connection))
    record_seen(connection, pass_id, map(str, keys))
    complete_seen(connection, pass_id, NOON)
    found = find_seen(connection, key)
    assert found is not None
    return found


def test_of_what_only_the_request_places_that_is_kept_which_others_may_list(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Of a whole collection it would be as many keys as rows, for ever."""
    types = COLLECTIONS["payment_types"]
    for location, number in ((3, 1), (4, 2)):
        Table(connection, types, {"location_id": location}).load({"id": number, "updated_at": "2026-03-01T10:00:00Z"})
    kept = "SELECT location_id, key FROM nexhealth_seen JOIN nexhealth_seen_passes p ON p.id = pass_id ORDER BY 1, 2"
    strange = (9, "9" * 30, "a name")
    alone, shared = met(connection, 3, [1, 2, *strange]), met(connection, 5, [1, 7])
    judged(connection, types, [alone, shared], {shared.id})
    assert rows(kept) == [(3, "2"), (5, "1"), (5, "7")]
    assert rows("SELECT count(*) FROM nexhealth_seen_passes WHERE judged_at IS NULL") == [(0,)]
    judged(connection, COLLECTIONS["operatories"], [alone, shared], {shared.id})
    assert rows(kept) == [], "their rows say themselves where they are"
    connection.execute("DELETE FROM nexhealth_payment_types")


def test_a_row_that_only_another_location_lists_moves_there_unless_that_one_is_closed(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Nobody would read it there, nor judge it, ever again."""
    types = COLLECTIONS["payment_types"]
    for number in (1, 2):
        Table(connection, types, {"location_id": 3}).load({"id": number, "updated_at": "2026-03-01T10:00:00Z"})
    mine, _, _ = met(connection, 3, [9]), met(connection, 4, [1]), met(connection, 5, [2])
    ground = Ground(
        collection=types,
        institution_id=INSTITUTION,
        locations=(3,),
        nowhere=False,
        read=(3,),
        active=(3, 4),
        passes=(mine.id,),
        begun_at=database_time(connection),
        started_at=NOON + MINUTE,
    )
    missing = Missing(connection, ground)
    assert missing.find().missing == 0
    assert [missing.relocate() for _ in range(2)] == [1, 0]
    assert rows("SELECT id, location_id FROM nexhealth_payment_types ORDER BY 1") == [(1, 4), (2, 3)]
    connection.execute("DELETE FROM nexhealth_payment_types")


def test_who_never_had_a_collection_has_neither_read_it_nor_a_row_of_it(connection: psycopg.Connection) -> None:
    """Risk: rows of no location are judged without an office that lists them too, or for ever wait for one that does not."""
    types = COLLECTIONS["payment_types"]

    def refused(location: int, collection: str = types.name, institution: int = INSTITUTION) -> dict[str, Any]:
        place: dict[str, Any] = {"institution_id": institution, "location_id": location, "collection": collection}
        record_capability(connection, **place, status="not_enabled", evidence="403", at=NOON)
        return place

    def read(place: dict[str, Any], complete: bool = True) -> None:
        through = NOON if complete else None
        record_freshness(connection, **place, complete_through=through, last_full_at=through, changed=False)

    refused(3)
    read(refused(4))
    read(refused(5), complete=False)
    refused(6)
    Table(connection, types, {"location_id": 6}).load({"id": 6, "updated_at": "2026-03-01T10:00:00Z"})
    record_capability(
        connection,
        institution_id=INSTITUTION,
        location_id=7,
        collection=types.name,
        status="supported",
        evidence="rows",
        at=NOON,
    )
    # What others have read, or this office of other collections, is no word of it.
    read(refused(3, "charges"))
    read(refused(3, institution=INSTITUTION + 1))
    assert never_had(connection, types, INSTITUTION) == {3, 5}
