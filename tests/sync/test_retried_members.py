"""A patient whose record only a retry could load belongs to the location that listed it, as after a sync."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from .test_retry_quarantine import NOON, ONE, THREE, TWO, Desk, person

MEMBERS = "SELECT patient_id, location_id, first_seen, gone_at IS NULL FROM nexhealth_patient_locations ORDER BY 1, 2"
_PRACTICE = (
    "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, raw, synced_at, source_read_at, row_hash)"
    " VALUES (7, 7, 'acme', '{}', now(), now(), '');"
    "INSERT INTO nexhealth_locations (institution_id, id, synced_at, source_read_at, row_hash)"
    " SELECT 7, id, now(), now(), '' FROM generate_series(3, 4) AS id;"
    "INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, locations, synced_at,"
    " source_read_at, row_hash) VALUES (7, 'x', 'y', '[{\"id\": 3}]', now(), now(), '')"
)


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    """Of office 3, which has a database of its own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(_PRACTICE)
        yield Desk(database_url, connection)


def mend(desk: Desk) -> None:
    """A later release reads what this one refused."""
    for (number,) in desk.rows("SELECT record_id::int FROM nexhealth_quarantine"):
        desk.connection.execute(
            "UPDATE nexhealth_quarantine SET raw = %s WHERE record_id = %s",
            (json.dumps(person(number, born=None)).encode(), str(number)),
        )


def refused(number: int) -> bytes:
    return b'{"id": %d, "email": "\xff"}' % number


def test_who_was_refused_whole_is_listed_since_then(desk: Desk) -> None:
    """Else missing from the location's figures until its next whole read, months later perhaps."""
    desk.load("patients", refused(5))
    desk.load("patients", refused(6), at=TWO)
    assert desk.rows(MEMBERS) == []
    mend(desk)
    assert desk.retry() == (2, 2, 0, 0)
    assert desk.rows(MEMBERS) == [(5, 3, ONE, True), (6, 3, TWO, True)]


@pytest.mark.parametrize(
    "other",
    [
        """UPDATE nexhealth_sync_status SET locations = '[{"id": 3}, {"id": 4}]'""",
        "UPDATE nexhealth_locations SET inactive = true WHERE id = 3",
        "DELETE FROM nexhealth_locations WHERE id = 3",
    ],
    ids=["shared", "inactive", "gone"],
)
def test_the_list_of_a_database_that_is_shared_or_read_no_more_says_nothing_of_that(desk: Desk, other: str) -> None:
    """It holds the patients of all who share it; whose they are is asked for apart."""
    desk.load("patients", refused(5))
    mend(desk)
    desk.connection.execute(other)
    assert desk.retry() == (1, 1, 0, 0)
    assert desk.rows(MEMBERS) == []


@pytest.mark.parametrize(("gone_at", "listed"), [(THREE, (NOON, False)), (ONE, (TWO, True))], ids=["since", "before"])
def test_what_ended_since_is_not_brought_back(desk: Desk, gone_at: object, listed: tuple[object, bool]) -> None:
    """The patient's own read may have told that it is elsewhere now."""
    desk.connection.execute("INSERT INTO nexhealth_patient_locations VALUES (7, 5, 3, %s, %s)", (NOON, gone_at))
    desk.load("patients", refused(5), at=TWO)
    mend(desk)
    assert desk.retry() == (1, 1, 0, 0)
    assert desk.rows(MEMBERS) == [(5, 3, *listed)]


def test_who_was_found_absent_since_is_listed_nowhere(desk: Desk) -> None:
    desk.load("patients", person(5, born=None), at=NOON)
    desk.load("patients", refused(5))
    desk.connection.execute("UPDATE nexhealth_patients SET deleted_at = %s, deleted_by = 'absence'", (TWO,))
    mend(desk)
    assert desk.retry() == (1, 1, 0, 0)
    assert desk.rows(MEMBERS) == []
