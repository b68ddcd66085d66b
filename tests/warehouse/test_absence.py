"""Which rows count as missing: those that a complete read lacked and that nothing excuses."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.absence import Figures, Ground, Missing, is_placed
from nexhealth_pipeline.warehouse.judgements import judged
from nexhealth_pipeline.warehouse.quarantine import quarantine
from nexhealth_pipeline.warehouse.seen import (
    begin_seen,
    complete_seen,
    find_seen,
    forget_seen,
    record_seen,
    record_staged,
    seen_passes,
)
from nexhealth_pipeline.warehouse.state import PassKey, database_time
from nexhealth_pipeline.warehouse.tables import ensure_indexes
from tests.effort import pages_looked_at

from .conftest import Rows
from .kit import GADGETS, INSTITUTION, MINUTE, NOON, Table, gadget

KEY = PassKey("gadgets", INSTITUTION, 3, "", "all")
HOUR = timedelta(hours=1)


@pytest.fixture
def table(connection: psycopg.Connection) -> Table:
    """Four gadgets at location 3, one at 4, one nowhere."""
    table = Table(connection)
    table.load(*(gadget(number) for number in (1, 2, 3, 4)), gadget(5, location_id=4), gadget(6, location_id=None))
    return table


def met(connection: psycopg.Connection, keys: Iterable[object], key: PassKey = KEY) -> int:
    """A complete pass that met `keys`, begun now."""
    pass_id = begin_seen(connection, key, database_time(connection))
    record_seen(connection, pass_id, map(str, keys))
    complete_seen(connection, pass_id, NOON + HOUR)
    return pass_id


def ground(connection: psycopg.Connection, *passes: int, collection: Collection = GADGETS, **changes: Any) -> Ground:
    made = Ground(
        collection=collection,
        institution_id=INSTITUTION,
        locations=(3,),
        nowhere=False,
        read=(3,),
        active=(3, 4),
        passes=passes,
        begun_at=database_time(connection),
        started_at=NOON + HOUR,
    )
    return replace(made, **changes)


def missing_ids(missing: Missing) -> list[int]:
    return missing.unconfirmed(99)


def test_what_no_read_of_the_institution_met_is_missing(connection: psycopg.Connection, table: Table) -> None:
    """Listed under another location, or in another month, is there."""
    mine = met(connection, [1])
    met(connection, [2], replace(KEY, location_id=4))
    missing = Missing(connection, ground(connection, mine))
    assert missing.find() == Figures(live=4, seen=1, missing=2, empty=False)
    assert missing_ids(missing) == [3, 4]


def test_a_read_of_long_ago_is_no_word_that_a_record_is_there(connection: psycopg.Connection, table: Table) -> None:
    """Its location may have become inactive since: nobody would ever take that word back."""
    mine = met(connection, [1])
    for days, number in ((6, 2), (8, 3), (-3, 4)):  # the last one's by a clock that was ahead
        old = met(connection, [number], replace(KEY, location_id=10 + number))
        connection.execute(
            "UPDATE nexhealth_seen_passes SET begun_at = begun_at - %s WHERE id = %s", (timedelta(days=days), old)
        )
    missing = Missing(connection, ground(connection, mine))
    assert (missing.find().missing, missing_ids(missing)) == (2, [3, 4])


def test_a_row_written_since_the_read_began_is_excused(connection: psycopg.Connection, table: Table) -> None:
    """By us (a webhook, one patient's refresh): the read may have been there before."""
    began = database_time(connection)
    mine = met(connection, [1])
    table.load(gadget(2, note="new", updated_at="2026-03-01T11:00:00Z"))
    table.load(gadget(3, note="new", updated_at="2026-03-01T11:00:00Z"), read_at=NOON + 2 * HOUR)
    missing = Missing(connection, ground(connection, mine, begun_at=began))
    assert missing.find().missing == 1
    assert missing_ids(missing) == [4]
    # By a request that was made since, and whose commit the clock of another database cannot be compared with.
    missing = Missing(connection, ground(connection, mine))
    assert (missing.find().missing, missing_ids(missing)) == (2, [2, 4])


def test_a_row_written_between_finding_and_marking_stays(
    connection: psycopg.Connection, table: Table, rows: Rows
) -> None:
    missing = Missing(connection, ground(connection, met(connection, [1, 2])))
    assert missing.find().missing == 2
    table.load(gadget(3, note="new", updated_at="2026-03-01T11:00:00Z"))
    assert missing.mark(NOON + 2 * HOUR) == 1
    assert rows("SELECT id, deleted_by, deleted_at FROM nexhealth_gadgets WHERE deleted_at IS NOT NULL") == [
        (4, "absence", NOON + 2 * HOUR)
    ]


def many_elsewhere(connection: psycopg.Connection) -> None:
    """Ten thousand more rows, of another location: over a hundred pages."""
    connection.execute(
        "INSERT INTO nexhealth_gadgets (institution_id, id, location_id, raw, source_read_at, synced_at, row_hash)"
        " SELECT 7, generate_series(101, 10100), 9, '{}', now(), now(), ''"
    )


def pages_for(connection: psycopg.Connection, statement: sql.Composed, made: Ground) -> int:
    return pages_looked_at(connection, statement, {**made.params(), "at": NOON + HOUR})


def test_rows_are_marked_by_their_key_without_a_look_at_the_others(
    connection: psycopg.Connection, table: Table
) -> None:
    """A reconcile makes a thousand judgements a night, and a practice has millions of rows; nobody knows the tables yet."""
    many_elsewhere(connection)
    made = ground(connection, met(connection, [1, 2]))
    missing = Missing(connection, made)
    assert missing.find().missing == 2
    # Twenty are usual; the table alone has over a hundred.
    assert 0 < pages_for(connection, missing._sql.mark, made) < 100


@pytest.mark.parametrize("name", ["find", "count"])
def test_the_rows_of_a_location_are_looked_for_without_a_look_at_the_others(
    connection: psycopg.Connection, table: Table, name: str
) -> None:
    """Each database of an institution is judged by itself, so each look at all rows is one for each of them."""
    many_elsewhere(connection)
    ensure_indexes(connection, [GADGETS])
    connection.execute("ANALYZE nexhealth_gadgets")
    made = ground(connection, met(connection, [1, 2]))
    missing = Missing(connection, made)
    assert missing.find() == Figures(live=4, seen=2, missing=2, empty=False)
    connection.execute("DELETE FROM nexhealth_missing")
    assert 0 < pages_for(connection, getattr(missing._sql, name), made) < 100


def test_few_missing_rows_are_looked_for_elsewhere_without_a_look_at_all_that_was_met(
    connection: psycopg.Connection, table: Table
) -> None:
    """A night meets millions of records, and some rows are missing at each of hundreds of locations."""
    foreign = met(connection, [], replace(KEY, institution_id=INSTITUTION + 1))
    connection.execute("INSERT INTO nexhealth_seen SELECT %s, generate_series(1, 50000)", (foreign,))
    mine = met(connection, [1])
    for location in range(4, 14):
        met(connection, [location], replace(KEY, location_id=location))
    connection.execute("ANALYZE nexhealth_seen, nexhealth_seen_passes")
    made = ground(connection, mine)
    missing = Missing(connection, made)
    assert missing.find().missing == 2, "the third is listed elsewhere"
    assert 0 < pages_for(connection, missing._sql.elsewhere, made) < 100


RECALLS = COLLECTIONS["patient_recalls"]


@pytest.mark.parametrize("name", ["find", "count"])
def test_the_rows_of_a_locations_patients_are_looked_for_without_a_look_at_the_others(
    connection: psycopg.Connection, name: str
) -> None:
    """Ten thousand recalls of an institution, four of whose patients are this location's; one is nobody's."""
    with connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO nexhealth_patient_recalls (institution_id, id, patient_id, raw, source_read_at, synced_at, row_hash)"
            " SELECT 7, n, nullif(n, 6) * (n <> 5)::int, '{}', %s, %s, '' FROM generate_series(1, 10000) n",
            (NOON, NOON),
        )
        connection.execute(
            "INSERT INTO nexhealth_patient_locations (institution_id, patient_id, location_id, first_seen)"
            " SELECT 7, n, CASE WHEN n < 5 THEN 3 ELSE 4 END, %s FROM generate_series(1, 10000) n WHERE n NOT IN (5, 6)",
            (NOON,),
        )
        ensure_indexes(connection, [RECALLS])
        connection.execute("ANALYZE nexhealth_patient_recalls, nexhealth_patient_locations")
        key = replace(KEY, collection=RECALLS.name)
        made = ground(connection, met(connection, [1, 2], key), collection=RECALLS)
        missing = Missing(connection, made)
        assert missing.find() == Figures(live=4, seen=2, missing=2, empty=False)
        connection.execute("DELETE FROM nexhealth_missing")
        assert 0 < pages_for(connection, getattr(missing._sql, name), made) < 100
        nobodys = Missing(connection, replace(made, locations=(), nowhere=True))
        assert (nobodys.find().missing, missing_ids(nobodys)) == (2, [5, 6]), "of patient 0, and of none"


def test_a_record_in_open_quarantine_is_excused(connection: psycopg.Connection, table: Table) -> None:
    """It was there and could not be loaded; once that is resolved it counts again."""
    connection.execute(
        "INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded, raw,"
        " fingerprint, run_id, resolved_at) SELECT 'gadgets', 7, 3, id::text, 'f', 'r', true, '', id::text::bytea, 'x',"
        " CASE id WHEN 4 THEN now() END FROM unnest(ARRAY[3, 4]) id"
    )
    missing = Missing(connection, ground(connection, met(connection, [1, 2])))
    assert (missing.find().missing, missing_ids(missing)) == (1, [4])


def test_a_fault_met_before_the_read_began_excuses_nothing(connection: psycopg.Connection, table: Table) -> None:
    """Nothing closes the note of a record that is deleted: its row would never be marked."""
    connection.execute(
        "INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded, raw,"
        " fingerprint, run_id, read_at) SELECT 'gadgets', 7, 3, id::text, 'f', 'r', true, '', id::text::bytea, 'x',"
        " CASE id WHEN 3 THEN %(started)s ELSE %(started)s - interval '1 second' END FROM unnest(ARRAY[3, 4]) id",
        {"started": NOON + HOUR},
    )
    missing = Missing(connection, ground(connection, met(connection, [1, 2])))
    assert (missing.find().missing, missing_ids(missing)) == (1, [4])


def test_rows_of_no_location_belong_to_a_judgement_of_their_own(connection: psycopg.Connection, table: Table) -> None:
    mine = met(connection, [1])
    nowhere = Missing(connection, ground(connection, mine, locations=(), nowhere=True))
    assert nowhere.find() == Figures(live=1, seen=1, missing=1, empty=False)
    assert missing_ids(nowhere) == [6]


def test_a_location_that_lists_nothing_is_empty_though_its_sibling_is_not(
    connection: psycopg.Connection, table: Table
) -> None:
    north, south = met(connection, [1, 2, 3]), met(connection, [], replace(KEY, location_id=4))
    both = Missing(connection, ground(connection, north, south, locations=(3, 4)))
    assert both.find() == Figures(live=5, seen=3, missing=2, empty=True)
    one = Missing(connection, ground(connection, north))
    assert one.find().empty is False


def test_what_the_api_itself_deleted_is_not_missing(connection: psycopg.Connection, table: Table) -> None:
    table.bury(4, NOON)
    found = Missing(connection, ground(connection, met(connection, [1, 2, 3]))).find()
    assert (found.live, found.missing) == (3, 0)


def test_only_confirmed_rows_are_marked_where_a_single_read_is_possible(
    connection: psycopg.Connection, table: Table, rows: Rows
) -> None:
    asked = replace(GADGETS, by_id="/gadgets/{id}")
    missing = Missing(connection, ground(connection, met(connection, [1, 2]), collection=asked))
    missing.find()
    missing.confirm([3], gone=True)
    missing.confirm([4], gone=False)
    assert missing_ids(missing) == []
    assert missing.mark(NOON + 2 * HOUR) == 1
    assert rows("SELECT id FROM nexhealth_gadgets WHERE deleted_at IS NOT NULL") == [(3,)]


def test_a_marked_row_is_revived_by_a_read_begun_after_the_mark(connection: psycopg.Connection, table: Table) -> None:
    """The mark is in the API's time, as the reads' are; and the read that brings it back says so."""
    missing = Missing(connection, ground(connection, met(connection, [1, 2, 3])))
    missing.find()
    missing.mark(NOON + 2 * HOUR)
    assert table.load(gadget(4), read_at=NOON + HOUR) == (0, 0)
    pass_id = begin_seen(connection, KEY, database_time(connection))
    stage = table.stage(gadget(4), gadget(1), read_at=NOON + 3 * HOUR)
    stage.fill()
    record_staged(connection, pass_id, GADGETS, stage.name)
    stage.merge(None)
    found = find_seen(connection, KEY)
    assert found is not None
    assert (found.revived, table.value("deleted_at", 4)) == (1, None)


def test_a_pass_begun_anew_forgets_its_own_and_is_no_longer_complete(
    connection: psycopg.Connection, table: Table, rows: Rows
) -> None:
    other = replace(KEY, window_key="2026-03")
    met(connection, [9], other)
    mine = met(connection, [1])
    missing = Missing(connection, ground(connection, mine))
    assert missing.still_complete()
    assert begin_seen(connection, KEY, database_time(connection)) == mine
    assert not missing.still_complete()
    assert rows("SELECT key FROM nexhealth_seen") == [("9",)]
    forget_seen(connection, other)
    assert list(seen_passes(connection, "gadgets", INSTITUTION)) == [KEY]
    assert rows("SELECT key FROM nexhealth_seen") == []


def test_a_pass_that_is_held_is_begun_anew_only_when_it_was_judged_by(
    connection: psycopg.Connection, other: psycopg.Connection, table: Table
) -> None:
    missing = Missing(connection, ground(connection, met(connection, [1])))
    other.execute("SET lock_timeout = '200ms'")
    with connection.transaction():
        assert missing.hold()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            begin_seen(other, KEY, database_time(other))
    begin_seen(other, KEY, database_time(other))
    with connection.transaction():
        assert not missing.hold()


def test_judging_forgets_what_was_met_but_not_what_another_run_meets_since(
    connection: psycopg.Connection, table: Table, rows: Rows
) -> None:
    met(connection, [1])
    old = find_seen(connection, KEY)
    assert old is not None
    fresh = met(connection, [1, 2])
    judged(connection, GADGETS, [old])
    assert rows("SELECT count(*), (SELECT judged_at FROM nexhealth_seen_passes) FROM nexhealth_seen") == [(2, None)]
    now = find_seen(connection, KEY)
    assert now is not None
    judged(connection, GADGETS, [now])
    assert rows("SELECT count(*) FROM nexhealth_seen") == [(0,)]
    assert not Missing(connection, ground(connection, fresh)).still_complete()


def members(connection: psycopg.Connection, *rows: tuple[int, int, datetime | None]) -> None:
    for patient, location, gone_at in rows:
        connection.execute(
            "INSERT INTO nexhealth_patient_locations VALUES (7, %s, %s, %s, %s)", (patient, location, NOON, gone_at)
        )


def test_a_patient_belongs_to_where_it_is_listed_or_else_was(connection: psycopg.Connection) -> None:
    """One that an unread database lists as well, or only a closed office, is left alone."""
    patients = COLLECTIONS["patients"]
    table = Table(connection, patients)
    table.load(*({"id": number, "updated_at": "2026-03-01T10:00:00Z"} for number in range(1, 7)))
    places = Table(connection, COLLECTIONS["locations"])
    places.load(*({"id": number, "institution_id": 7, "inactive": number == 5} for number in (3, 4, 5)))
    members(
        connection, (1, 3, None), (2, 3, NOON), (3, 3, None), (3, 4, None), (4, 5, None), (5, 3, NOON), (5, 4, None)
    )
    mine = met(connection, [99], PassKey("patients", 7, 3, "", "all"))
    missing = Missing(connection, ground(connection, mine, collection=patients))
    missing.find()
    assert missing_ids(missing) == [1, 2]
    nowhere = Missing(connection, ground(connection, mine, collection=patients, locations=(), nowhere=True))
    nowhere.find()
    assert missing_ids(nowhere) == [6]


def test_lists_under_a_row_are_judged_for_the_rows_that_were_answered(
    connection: psycopg.Connection, rows: Rows
) -> None:
    documents = COLLECTIONS["documents"]
    for patient, number in ((1, 11), (1, 12), (2, 21)):
        Table(connection, documents, {"patient_id": patient}).load({"id": number})
    mine = met(connection, [11, "of 1"], PassKey("documents", 7, 3, "", "rows"))
    missing = Missing(connection, ground(connection, mine, collection=documents))
    assert missing.find() == Figures(live=2, seen=1, missing=1, empty=False)
    assert missing_ids(missing) == [12]
    connection.execute("DELETE FROM nexhealth_documents")


def test_notes_of_the_lists_of_rows_that_are_marked_are_closed(connection: psycopg.Connection, rows: Rows) -> None:
    """Nobody reads these lists any more; a note met since the read began is of a patient who was there."""
    patients = COLLECTIONS["patients"]
    Table(connection, patients).load(*({"id": number, "updated_at": "2026-03-01T10:00:00Z"} for number in (1, 2)))
    for number, patient, minutes in ((11, 1, 0), (12, 1, 61), (21, 2, 0)):
        papers = Table(connection, COLLECTIONS["documents"], {"patient_id": patient})
        papers.load(b'{"id": %d, "filename": "\xff"}' % number, read_at=NOON + minutes * MINUTE)
        quarantine(
            connection, papers.notes, collection="documents", institution_id=INSTITUTION, location_id=3, run_id="r"
        )
    members(connection, (1, 3, None), (2, 3, None))
    asked = replace(patients, by_id=None)
    mine = met(connection, [2], PassKey("patients", INSTITUTION, 3, "", "all"))
    missing = Missing(connection, ground(connection, mine, collection=asked))
    missing.find()
    assert missing.mark(NOON + 2 * HOUR) == 1
    assert missing.mark_lists(NOON + 2 * HOUR) == {}
    assert rows("SELECT record_id FROM nexhealth_quarantine WHERE resolved_at IS NULL ORDER BY 1") == [("12",), ("21",)]


def test_rows_without_an_id_are_known_by_their_key(connection: psycopg.Connection, rows: Rows) -> None:
    addresses = COLLECTIONS["patient_addresses"]
    for patient in (1, 2):
        Table(connection, addresses, {"patient_id": patient}).load({"city": "x"})
    mine = met(connection, [1, "of 1", "of 2"], PassKey("patient_addresses", 7, 3, "", "rows"))
    missing = Missing(connection, ground(connection, mine, collection=addresses))
    assert missing.find().missing == 1
    assert missing.mark(NOON + HOUR) == 1
    assert rows("SELECT patient_id FROM nexhealth_patient_addresses WHERE deleted_by = 'absence'") == [(2,)]
    connection.execute("DELETE FROM nexhealth_patient_addresses")


def test_the_catalog_says_where_rows_belong() -> None:
    """A list read by location whose rows say nothing of it could only be judged when everything was read."""
    assert {
        name for name, one in COLLECTIONS.items() if one.scope == "location" and not one.per and not one.inside
    } <= {name for name, one in COLLECTIONS.items() if is_placed(one)}


def test_what_a_closed_office_had_of_its_own_is_not_judged(connection: psycopg.Connection) -> None:
    """Kinds of visits have their office in a column of another name, and only sometimes."""
    kinds = COLLECTIONS["appointment_types"]
    table = Table(connection, kinds)
    table.load(*({"id": number, "parent_type": "Location", "parent_id": number} for number in (3, 5)))
    table.load({"id": 7, "parent_type": "Institution", "parent_id": 7})
    mine = met(connection, [99], PassKey("appointment_types", 7, 0, "", "all"))
    missing = Missing(connection, ground(connection, mine, collection=kinds, nowhere=True))
    missing.find()
    assert missing_ids(missing) == [3, 7]
    connection.execute("DELETE FROM nexhealth_appointment_types")


def test_memberships_of_a_location_of_its_own_end_with_what_it_lists(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Nobody else closes them; an empty answer closes none."""
    patients = COLLECTIONS["patients"]
    Table(connection, patients).load(*({"id": number, "updated_at": "2026-03-01T10:00:00Z"} for number in (1, 2)))
    members(connection, (1, 3, None), (2, 3, None), (2, 4, None))
    nobody = met(connection, [], PassKey("patients", 7, 3, "", "all"))
    empty = Missing(connection, ground(connection, nobody, collection=patients, begun_at=NOON))
    assert empty.find().missing == 0
    assert empty.leave_locations() == 0
    mine = met(connection, [1], PassKey("patients", 7, 3, "", "all"))
    met(connection, [2], PassKey("patients", 7, 4, "", "all"))
    missing = Missing(connection, ground(connection, mine, collection=patients))
    assert missing.find().missing == 0
    assert missing.leave_locations() == 1
    assert rows("SELECT patient_id, location_id FROM nexhealth_patient_locations WHERE gone_at IS NULL ORDER BY 1") == [
        (1, 3),
        (2, 4),
    ]
