"""What could not be loaded is kept, once."""

from dataclasses import replace

import psycopg

from nexhealth_pipeline.warehouse.encode import Note
from nexhealth_pipeline.warehouse.quarantine import quarantine

from .conftest import Rows
from .kit import MINUTE, NOON

NOTE = Note(
    "12", "born", "no such day in the calendar", loaded=True, raw=b'{"id": 12, "born": "2024-02-30", "x": "\xff\x00"}'
)


def store(
    connection: psycopg.Connection, *notes: Note, institution_id: int = 7, location_id: int = 3, run_id: str = "r1"
) -> int:
    """How many were new."""
    new = quarantine(
        connection,
        notes,
        collection="gadgets",
        institution_id=institution_id,
        location_id=location_id,
        run_id=run_id,
    )
    return len(new)


def test_a_note_holds_reason_and_bytes(connection: psycopg.Connection, rows: Rows) -> None:
    assert store(connection, NOTE) == 1
    assert rows(
        "SELECT collection, institution_id, location_id, record_id, field, rule, loaded, raw, run_id, resolved_at"
        " FROM nexhealth_quarantine"
    ) == [("gadgets", 7, 3, "12", "born", NOTE.rule, True, NOTE.raw, "r1", None)]


def test_the_same_fault_read_again_is_not_new(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: a nightly sync ends with "something new to look at" for ever."""
    assert store(connection, NOTE, NOTE) == 1
    assert store(connection, NOTE, run_id="r2") == 0
    assert rows("SELECT run_id FROM nexhealth_quarantine") == [("r1",)]


def test_an_older_answer_that_comes_late_says_neither_where_nor_whose_it_is(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """Risk: a note of one patient, filed under the location of another: reads of neither close it."""

    def meet(minutes: int, location: int, patient: int) -> list[tuple[int, int]]:
        note = replace(NOTE, request={"patient_id": patient}, read_at=NOON + minutes * MINUTE)
        store(connection, note, location_id=location)
        return rows("SELECT location_id, (request ->> 'patient_id')::int FROM nexhealth_quarantine")

    assert meet(1, 4, 78) == [(4, 78)]
    assert meet(0, 3, 77) == [(4, 78)]
    assert meet(2, 3, 77) == [(3, 77)]


def test_another_institution_record_or_field_is_new(connection: psycopg.Connection) -> None:
    other_field = Note("12", "start_time", NOTE.rule, loaded=True, raw=NOTE.raw)
    other_record = Note("13", "born", NOTE.rule, loaded=True, raw=NOTE.raw)
    assert store(connection, NOTE, other_field, other_record) == 3
    assert store(connection, NOTE, institution_id=8) == 1


def test_what_does_not_say_which_record_it_is_is_told_by_its_content(connection: psycopg.Connection) -> None:
    nameless = Note("", "", "not a JSON object", loaded=False, raw=b"{")
    assert store(connection, nameless, replace(nameless, raw=b"[")) == 2
    assert store(connection, nameless) == 0


def test_notes_of_an_earlier_release_are_taken_over_and_nothing_is_new(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """They went by all of a record's bytes: one of each time that had moved, and no read closes that of an unreadable one."""
    store(connection, NOTE)
    connection.execute("UPDATE nexhealth_quarantine SET fingerprint = 'of all bytes'")
    columns = "collection, institution_id, location_id, record_id, field, rule, loaded, raw, run_id, request, read_at"
    connection.execute(
        f"INSERT INTO nexhealth_quarantine ({columns}, fingerprint)"
        f" SELECT {columns}, 'of others' FROM nexhealth_quarantine"
    )
    other = replace(NOTE, record_id="13")
    assert store(connection, other) == 1
    assert store(connection, NOTE) == 0
    assert rows("SELECT count(*) FROM nexhealth_quarantine WHERE resolved_at IS NULL AND record_id = '12'") == [(1,)]
    assert store(connection, NOTE, other) == 0


def test_a_faulty_record_whose_times_move_is_one_note_that_holds_the_newest(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """`last_sync_time` moves with each look at the practice system: every sync had something new, and read all again."""
    at = (1, 2, 0)  # the last answer is late
    notes = [replace(NOTE, raw=b'{"id": 12, "t": %d}' % minutes, read_at=NOON + minutes * MINUTE) for minutes in at]
    assert [store(connection, note) for note in notes] == [1, 0, 0]
    assert rows("SELECT convert_from(raw, 'UTF8') FROM nexhealth_quarantine") == [('{"id": 12, "t": 2}',)]


def test_nothing_to_note_costs_nothing(connection: psycopg.Connection) -> None:
    assert store(connection) == 0
