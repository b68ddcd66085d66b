"""Which patients' lists are due."""

import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse import child_reads
from nexhealth_pipeline.warehouse.child_reads import (
    ChildRead,
    DueRow,
    due_rows,
    record_child_reads,
    record_unknown,
    witnesses,
)
from nexhealth_pipeline.warehouse.knowledge import record_membership
from nexhealth_pipeline.warehouse.state import database_time
from tests.effort import pages_looked_at

from .conftest import Rows
from .kit import INSTITUTION, MINUTE, NOON, Table

VERSION = "2026-03-01T10:00:00+00:00"


@pytest.fixture
def practice(connection: psycopg.Connection) -> psycopg.Connection:
    """A practice in the module's database."""
    return made(connection)


@pytest.fixture
def unknown(database_url: str) -> Iterator[psycopg.Connection]:
    """The same in a database of its own, of whose tables PostgreSQL has not yet looked at one, and will at none."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        made(connection)
        for name in ("patients", "patient_locations", "child_reads", "locations"):
            connection.execute(f"ALTER TABLE nexhealth_{name} SET (autovacuum_enabled = off)")
        yield connection


def made(connection: psycopg.Connection) -> psycopg.Connection:
    """Active locations 3 and 4, an inactive 2; patients 1 to 4 listed at 3, 3 and 4, 4, and nowhere."""
    offices = Table(connection, COLLECTIONS["locations"])
    for number in (2, 3, 4):
        record: dict[str, Any] = {"id": number, "inactive": number == 2, "institution_id": INSTITUTION}
        offices.load(record)
    patients = Table(connection, COLLECTIONS["patients"])
    patients.load(*({"id": number, "updated_at": VERSION} for number in range(1, 5)))
    for location, ids in ((3, [1, 2]), (4, [2, 3]), (2, [1, 3])):
        record_membership(connection, institution_id=INSTITUTION, location_id=location, patient_ids=ids, seen_at=NOON)
    return connection


def due(connection: psycopg.Connection, location_id: int = 3, **changes: Any) -> list[int]:
    """In order of their ids: they come in none."""
    given: dict[str, Any] = {"read_before": None, "rotation_days": 30} | changes
    found = due_rows(
        connection, collection=COLLECTIONS["documents"], institution_id=INSTITUTION, location_id=location_id, **given
    )
    return sorted(patient.id for patient in found)


def read(connection: psycopg.Connection, *ids: int, hours_ago: float = 0, version: str | None = VERSION) -> None:
    of = None if version is None else datetime.fromisoformat(version)
    record_child_reads(
        connection,
        collection=COLLECTIONS["documents"],
        institution_id=INSTITUTION,
        reads=[ChildRead(DueRow(number, of), 2, time.monotonic()) for number in ids],
    )
    connection.execute(
        "UPDATE nexhealth_child_reads SET read_at = read_at - ago, judged_at = judged_at - ago"
        " FROM make_interval(secs => %s) ago WHERE patient_id = ANY(%s)",
        (hours_ago * 3600, list(ids)),
    )


def test_lists_are_noted_by_id_in_whatever_order_they_came(practice: psycopg.Connection, rows: Rows) -> None:
    """Risk: two reads that lock each other's rows in a circle, one of which PostgreSQL ends, and its slice with it."""
    read(practice, 4, 1, 3)
    assert rows("SELECT patient_id FROM nexhealth_child_reads ORDER BY ctid") == [(1,), (3,), (4,)]


def test_a_patient_belongs_to_the_lowest_active_location_that_lists_it(practice: psycopg.Connection) -> None:
    """Each patient's list is one request: it must be in exactly one slice. Nowhere listed = the lowest of all."""
    assert due(practice, 3) == [1, 2, 4]
    assert due(practice, 4) == [3]
    assert due(practice, 2) == []


def test_a_patient_who_left_a_location_is_read_at_the_next(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patient_locations SET gone_at = now() WHERE patient_id = 2 AND location_id = 3")
    assert due(practice, 4) == [2, 3]


def test_a_read_list_is_due_again_when_the_patient_changed(practice: psycopg.Connection) -> None:
    read(practice, 1, 2, 4)
    assert due(practice) == []
    Table(practice, COLLECTIONS["patients"]).load(
        {"id": 2, "updated_at": "2026-03-02T00:00:00Z"}, read_at=NOON + MINUTE
    )
    assert due(practice) == [2]


def test_a_patient_without_a_version_is_read_once(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patients SET updated_at = NULL WHERE id = 1")
    read(practice, 2, 4)
    assert due(practice) == [1]
    read(practice, 1, version=None)
    assert due(practice) == []


def test_a_full_read_asks_for_all_that_were_read_before_it_began(practice: psycopg.Connection) -> None:
    """The resume point of a killed full read: what it had read is not asked again."""
    read(practice, 1, 2, hours_ago=2)
    read(practice, 4, hours_ago=0)
    began = practice.execute("SELECT clock_timestamp() - interval '1 hour'").fetchone()
    assert began is not None
    assert due(practice, read_before=began[0]) == [1, 2]


def test_a_deleted_patients_list_is_not_read(practice: psycopg.Connection) -> None:
    practice.execute("UPDATE nexhealth_patients SET deleted_at = now(), deleted_by = 'absence' WHERE id = 1")
    assert due(practice) == [2, 4]


@pytest.mark.parametrize(("days", "count"), [(30, 2), (60, 1), (40, 1), (1, 60)])
def test_rotation_takes_a_nights_share_oldest_first(practice: psycopg.Connection, days: int, count: int) -> None:
    """Documents change without their patient; within a month every list has been looked at again."""
    patients = only_patients(practice, 60)
    for number in patients:
        read(practice, number, hours_ago=24 + number / 1000)  # the highest id is the oldest
    expected = sorted(patients)[-count:]
    assert due(practice, rotation_days=days) == expected


def test_what_was_read_is_noted_once_a_patient(practice: psycopg.Connection, rows: Rows) -> None:
    read(practice, 1)
    again = [ChildRead(DueRow(1, None), 5, time.monotonic() - 3600)]
    record_child_reads(practice, collection=COLLECTIONS["documents"], institution_id=INSTITUTION, reads=again)
    hours = "round(extract(epoch FROM clock_timestamp() - read_at) / 3600)"
    found = rows(f"SELECT patient_id, patient_version, rows, {hours} FROM nexhealth_child_reads")
    assert found == [(1, None, 5, 1)]


def test_a_list_that_is_to_be_asked_for_again_is_due_and_keeps_its_turn(
    practice: psycopg.Connection, rows: Rows
) -> None:
    """Of a patient without a version as well; of one whose list was never read there is nothing to note."""
    practice.execute("UPDATE nexhealth_patients SET updated_at = NULL WHERE id = 1")
    read(practice, 1, version=None)
    read(practice, 2)
    kept = "SELECT patient_id, read_at, judged_at, rows FROM nexhealth_child_reads ORDER BY 1"
    before = rows(kept)
    record_child_reads(practice, collection=COLLECTIONS["documents"], institution_id=INSTITUTION, again=[4, 2, 1])
    assert rows(kept) == before
    assert due(practice) == [1, 2, 4]
    read(practice, 1, version=None)
    read(practice, 2, 4)
    assert due(practice) == []


def test_a_list_that_lost_records_to_another_holds_no_more_than_are_there(
    practice: psycopg.Connection, rows: Rows
) -> None:
    """Noted after its own read, which may be of before they moved; one that was read since holds what it held."""
    documents = COLLECTIONS["documents"]
    for patient, papers in ((1, range(3)), (3, range(3, 6)), (4, range(6, 8))):
        Table(practice, documents, {"patient_id": patient}).load(*({"id": number} for number in papers))
    practice.execute("UPDATE nexhealth_documents SET deleted_at = now(), deleted_by = 'absence' WHERE id = 0")
    reads = [
        ChildRead(DueRow(number, None), rows_then, time.monotonic()) for number, rows_then in ((1, 4), (3, 2), (4, 9))
    ]
    record_child_reads(practice, collection=documents, institution_id=INSTITUTION, reads=reads, left=[99, 3, 1])
    assert rows("SELECT patient_id, rows FROM nexhealth_child_reads ORDER BY 1") == [(1, 2), (3, 2), (4, 9)]
    practice.execute("DELETE FROM nexhealth_documents")


def only_patients(practice: psycopg.Connection, count: int) -> range:
    """So many patients, and no others."""
    patients = range(101, 101 + count)
    practice.execute("DELETE FROM nexhealth_patients")
    Table(practice, COLLECTIONS["patients"]).load(*({"id": number, "updated_at": VERSION} for number in patients))
    return patients


class Office:
    """An office's syncs as time goes by: what each of them reads in turn, and is judged by."""

    def __init__(self, practice: psycopg.Connection, count: int, nights: int = 30) -> None:
        self._practice, self._nights = practice, nights
        self.hour = 0.0
        self.judged = dict.fromkeys(only_patients(practice, count), 0.0)
        """When each list was judged last."""
        self.oldest = 0.0
        """Hours that a list has waited at most."""
        read(practice, *self.judged)

    def sync(self, hours: float, new: int = 0, changed: Iterable[int] = (), *, judges: bool = True) -> int:
        """A sync so many hours after the last one, which finds `new` patients; returns how many came in turn."""
        added = [max(self.judged) + one for one in range(1, new + 1)]
        Table(self._practice, COLLECTIONS["patients"]).load(*({"id": one, "updated_at": VERSION} for one in added))
        self._practice.execute(
            "UPDATE nexhealth_child_reads SET read_at = read_at - ago, judged_at = judged_at - ago"
            " FROM make_interval(secs => %s) ago",
            (hours * 3600,),
        )
        self.hour += hours
        last = self._practice.execute("SELECT clock_timestamp() - make_interval(secs => %s)", (hours * 3600,))
        (begun,) = last.fetchone() or (None,)
        in_turn = set(due(self._practice, last_begun=begun, rotation_days=self._nights)) - set(added)
        taken = in_turn | set(added) | set(changed)
        read(self._practice, *taken)
        if judges:
            self._practice.execute(
                "UPDATE nexhealth_child_reads SET judged_at = clock_timestamp() WHERE patient_id = ANY(%s)",
                (list(taken),),
            )
            self.judged |= dict.fromkeys(taken, self.hour)
        self.oldest = max(self.oldest, *(self.hour - one for one in self.judged.values()))
        return len(in_turn)


DAY = 24.0


def test_every_list_comes_up_within_the_nights_at_an_even_pace(practice: psycopg.Connection) -> None:
    """What left a list is noticed in its turn at the latest; an office that grows by a fifth meanwhile included."""
    office = Office(practice, 100)
    lots = [office.sync(DAY + 0.2 * (-1) ** night, new=night % 6 == 0) for night in range(1, 120)]
    assert office.oldest < 30 * DAY
    assert max(lots) <= 6
    assert sum(lots) <= sum(-(-len(office.judged) // 30) for _ in lots)


def test_a_days_lot_is_the_same_however_many_syncs_share_it(practice: psycopg.Connection) -> None:
    """Risk: a sync each hour takes a thirtieth each hour, and every list is read daily."""
    office = Office(practice, 22, nights=4)
    days = [sum(office.sync(1) for _ in range(24)) for _ in range(9)]
    assert max(days) <= 6
    assert 22 / 4 * 8 <= sum(days) <= 22 / 4 * 9.5
    assert office.oldest < 4 * DAY + 1


def test_syncs_soon_after_the_nights_read_nothing_more(practice: psycopg.Connection) -> None:
    office = Office(practice, 300)
    assert office.sync(DAY) == 10
    assert [office.sync(0.1) for _ in range(20)] == [0] * 20
    assert office.sync(DAY - 2) == 10


def test_patients_that_change_daily_or_are_new_take_nobodys_turn(practice: psycopg.Connection) -> None:
    """Risk: their reads are counted as the day's lot, and the others are never judged."""
    office = Office(practice, 100)
    first = range(101, 121)
    for _ in range(70):
        office.sync(DAY, new=5, changed=first)
        assert office.oldest < 31 * DAY


def test_missed_nights_are_made_up_for_by_and_by(practice: psycopg.Connection) -> None:
    """Two weeks without a sync cost no day half of all lists, and no list its turn."""
    office = Office(practice, 300)
    for _ in range(40):
        office.sync(DAY)
    lots = [office.sync(15 * DAY)] + [office.sync(DAY) for _ in range(14)]
    assert max(lots) <= 20
    assert sum(lots) >= 290
    for _ in range(10):
        office.sync(DAY)
    assert all(office.hour - one <= 31 * DAY for one in office.judged.values())


def test_hourly_syncs_make_up_for_them_little_faster(practice: psycopg.Connection) -> None:
    office = Office(practice, 300)
    assert office.sync(15 * DAY) == 20
    assert 20 <= sum(office.sync(1) for _ in range(24)) <= 48


def test_reads_that_come_to_no_judgement_cost_no_more_a_day(practice: psycopg.Connection) -> None:
    """An office that is offline for weeks: its lists are read in vain, and stay the first in turn."""
    office = Office(practice, 300)
    for _ in range(20):
        assert office.sync(DAY, judges=False) <= 20
    assert sum(office.sync(1, judges=False) for _ in range(24)) <= 48


def test_rows_that_the_api_does_not_know_have_had_their_turn(practice: psycopg.Connection) -> None:
    read(practice, 1, 2, 4, hours_ago=40 * 24)
    assert due(practice, rotation_days=2) == [1, 2, 4]
    record_unknown(practice, collection="documents", institution_id=INSTITUTION, ids=[1, 4, 99])
    assert due(practice, rotation_days=2) == [2]


def test_a_read_that_does_not_judge_puts_off_no_turn(practice: psycopg.Connection) -> None:
    """Risk: a patient whose lists a webhook brings every few days would never be looked at for what is gone."""
    read(practice, 1, 2, 4, hours_ago=24)
    practice.execute("UPDATE nexhealth_child_reads SET judged_at = judged_at - interval '9 days' WHERE patient_id = 2")
    again = [ChildRead(DueRow(2, datetime.fromisoformat(VERSION)), 2, time.monotonic())]
    record_child_reads(practice, collection=COLLECTIONS["documents"], institution_id=INSTITUTION, reads=again)
    assert due(practice, rotation_days=9) == [2]


def test_witnesses_are_lists_that_had_records_read_lately_but_not_now(practice: psycopg.Connection) -> None:
    read(practice, 1, hours_ago=30)
    read(practice, 2, hours_ago=24)
    read(practice, 4, hours_ago=0)
    practice.execute("UPDATE nexhealth_child_reads SET rows = 0 WHERE patient_id = 3")
    row = practice.execute("SELECT clock_timestamp() - interval '1 hour'").fetchone()
    assert row is not None

    def found(most: int) -> list[int]:
        rows = witnesses(
            practice,
            collection=COLLECTIONS["documents"],
            institution_id=INSTITUTION,
            location_id=3,
            read_before=row[0],
            most=most,
        )
        return [one.id for one in rows]

    assert found(5) == [1, 2]
    assert found(1) == [2]


def crowd(practice: psycopg.Connection, count: int, locations: int = 1) -> None:
    """So many more patients, at so many locations in turn from 3 on, without a list that was read."""
    practice.execute(
        "INSERT INTO nexhealth_patients (institution_id, id, updated_at, raw, source_read_at, synced_at, row_hash)"
        " SELECT %s, generate_series(1001, 1000 + %s), now(), '{}', now(), now(), ''",
        (INSTITUTION, count),
    )
    practice.execute(
        "INSERT INTO nexhealth_patient_locations (institution_id, patient_id, location_id, first_seen)"
        " SELECT institution_id, id, 3 + id %% %s, now() FROM nexhealth_patients WHERE id > 1000",
        (locations,),
    )


def test_due_rows_take_no_memory_that_grows_with_them(
    practice: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large institution has 600,000 coverages, each with a list of its own."""
    monkeypatch.setattr(child_reads, "_AT_ONCE", 100)
    crowd(practice, 5000)
    tracemalloc.start()
    try:
        count = sum(
            1
            for _ in due_rows(
                practice,
                collection=COLLECTIONS["documents"],
                institution_id=INSTITUTION,
                location_id=3,
                read_before=None,
                rotation_days=30,
            )
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 5003
    assert peak < 300_000


def test_a_database_without_room_for_the_due_rows_says_so(practice: psycopg.Connection) -> None:
    """They are kept as the transaction ends; the cursor that then cannot be closed must not be what is told."""
    crowd(practice, 5000)
    practice.execute("SET work_mem = '64kB'")
    practice.execute("SET temp_file_limit = 0")
    with pytest.raises(psycopg.errors.ConfigurationLimitExceeded):
        due(practice)
    practice.execute("RESET temp_file_limit")
    assert len(due(practice)) == 5003


class Explained:
    """A connection that counts what a cursor's question looks at instead of answering it."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        self.transaction = connection.transaction
        self.blocks = 0

    def cursor(self, name: str, **how: Any) -> Any:
        return self._Cursor(self)

    def execute(self, query: str) -> None:
        self._connection.execute(query)

    @dataclass
    class _Cursor(AbstractContextManager[Any]):
        asked: "Explained"
        itersize: int = 0

        def execute(self, query: sql.Composed, values: dict[str, Any]) -> None:
            declared = sql.SQL("DECLARE due CURSOR WITH HOLD FOR ") + query
            self.asked.blocks += pages_looked_at(self.asked._connection, declared, values)

        def __iter__(self) -> Iterator[Any]:
            return iter(())

        def __exit__(self, *failure: object) -> None:
            return None


@pytest.mark.parametrize("location", [3, 12, 22])
def test_what_is_due_is_found_by_keys_before_postgresql_knows_the_tables(
    unknown: psycopg.Connection, location: int
) -> None:
    """It took 600,000 blocks, and minutes of a large practice in the night after its first load."""
    practice, patients = unknown, 20 * 50
    practice.execute(
        "INSERT INTO nexhealth_locations (institution_id, id, raw, source_read_at, synced_at, row_hash)"
        " SELECT %s, generate_series(5, 22), '{}', now(), now(), ''",
        (INSTITUTION,),
    )
    crowd(practice, patients, locations=20)
    practice.execute(
        "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, rows)"
        " SELECT 'documents', institution_id, id, now(), 0 FROM nexhealth_patients WHERE id > 1000"
    )
    counting = Explained(practice)
    due(counting, location)  # type: ignore[arg-type]  # it asks one question
    # Of the lowest location all patients are looked at: somebody must have those whom no location lists.
    # Nine or ten a patient are usual.
    assert 0 < counting.blocks < 20 * (patients if location == 3 else patients // 20)


def test_a_list_that_was_read_later_than_now_was_read_long_ago(practice: psycopg.Connection) -> None:
    """By a clock that was ahead: a full read would leave it out, and its turn come so much later."""
    read(practice, 1, 2, 4, hours_ago=-72)
    assert due(practice, read_before=database_time(practice)) == [1, 2, 4]
    assert len(due(practice)) == 1
