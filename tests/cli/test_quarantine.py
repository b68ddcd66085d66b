"""`nexhealth quarantine`: what is shown of a note, and what is not; another try and its exit status."""

import json
from collections.abc import Iterator

import psycopg
import pytest

from tests.cli.conftest import Run

CANARY = "Canaryson"
NOTES = """
INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at, row_hash)
VALUES (7, 7, 'Acme Dental', 'acme', now(), now(), '');
INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded, raw,
    fingerprint, run_id, first_seen_at, read_at, resolved_at)
VALUES ('patients', 7, 12, '41', 'bio_date_of_birth', 'no such day in the calendar', true,
        convert_to('{"id": 41, "bio": {"date_of_birth": "2024-02-30"}, "last_name": "Canaryson"}', 'UTF8'), 'a', 'r',
        '2026-03-01 12:00+00', '2026-03-01 12:00+00', NULL),
       ('documents', 8, 0, '', '', 'not a JSON object that can be stored', false, convert_to('Canaryson', 'UTF8'),
        'b', 'r', now(), now(), NULL),
       ('patients', 7, 12, '42', 'bio_date_of_birth', 'no such day in the calendar', true,
        convert_to('Canaryson', 'UTF8'), 'c', 'r', now(), now(), '2026-03-02 12:00+00');
"""


@pytest.fixture
def noted(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(NOTES)
        yield connection


@pytest.fixture
def url(noted: psycopg.Connection, database_url: str) -> str:
    return database_url


def test_it_says_what_and_why_and_never_the_record(nexhealth: Run, url: str) -> None:
    """Whoever mends it needs the place; the values are a patient's."""
    ended = nexhealth("quarantine", "list", DATABASE_URL=url)
    assert (ended.status, ended.err) == (0, "")
    head, _, first, second = ended.out.splitlines()
    assert head.split()[:3] == ["id", "collection", "institution"]
    for word in ("patients", "acme", "12", "41", "bio_date_of_birth", "no such day", "without it", "2026-03-01 12:00"):
        assert word in first
    assert second.split()[1:4] == ["documents", "8", "unknown"]
    assert "(the record)" in second
    everything = nexhealth("quarantine", "list", "--all", "--json", DATABASE_URL=url).out
    assert [one["record_id"] for one in json.loads(everything)["notes"]] == ["41", "", "42"]
    assert CANARY not in ended.out + everything
    assert "2024-02-30" not in ended.out + everything


@pytest.mark.parametrize(
    ("words", "count"),
    [
        ("--collection nexhealth_patients", 1),
        ("--collection patients --all", 2),
        ("--institution acme", 1),
        ("--institution 8", 1),
        ("--institution acme --collection documents", 0),
    ],
)
def test_it_can_be_narrowed(nexhealth: Run, url: str, words: str, count: int) -> None:
    found = nexhealth("quarantine", "list", "--json", *words.split(), DATABASE_URL=url)
    assert len(json.loads(found.out)["notes"]) == count


def test_a_retry_says_what_became_of_each_note(nexhealth: Run, url: str, noted: psycopg.Connection) -> None:
    """Exit status 1 while something is left to do."""
    ended = nexhealth("quarantine", "retry", DATABASE_URL=url)
    assert (ended.status, ended.err) == (1, "")
    assert ended.out == "2 notes tried: 0 loaded (0 rows inserted, 0 updated), 0 out of date, 2 still open\n"
    corrected = json.dumps({"id": 41, "bio": {"date_of_birth": "2024-02-28"}}).encode()
    noted.execute("UPDATE nexhealth_quarantine SET raw = %s WHERE record_id = '41'", (corrected,))
    done = nexhealth("quarantine", "retry", "--collection", "patients", "--json", DATABASE_URL=url)
    assert done.status == 0
    assert json.loads(done.out) == {
        "tried": 1,
        "loaded": 1,
        "outdated": 0,
        "still_open": 0,
        "inserted": 1,
        "updated": 0,
        "unchanged": 0,
    }
    assert nexhealth("quarantine", "retry", "1", DATABASE_URL=url).out == "no open note to try\n"
    assert CANARY not in ended.out + done.out + done.err
    status = nexhealth("status", DATABASE_URL=url)
    assert "in quarantine: 1 (`nexhealth quarantine list`" in status.out
    assert json.loads(nexhealth("status", "--json", DATABASE_URL=url).out)["open_notes"] == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("list --collection patient", ("'patient'", "patients")),
        ("list --institution acne", ("'acne'", "acme")),
        ("retry 99", ("99",)),
        ("retry 1 --collection patients", ("not both",)),
        ("retry x", ("'x'",)),
    ],
)
def test_wrong_use_is_2_and_names_value_and_choices(
    nexhealth: Run, url: str, words: str, named: tuple[str, ...]
) -> None:
    ended = nexhealth("quarantine", *words.split(), DATABASE_URL=url)
    assert (ended.status, ended.out) == (2, "")
    assert [word for word in named if word not in ended.err] == []


def test_a_warehouse_without_tables_is_an_error_that_names_the_fix(nexhealth: Run, empty_database_url: str) -> None:
    for words in ("list", "retry"):
        ended = nexhealth("quarantine", words, DATABASE_URL=empty_database_url)
        assert ended.status == 4
        assert "nexhealth db upgrade" in ended.err


def test_nothing_there_is_said(nexhealth: Run, database_url: str) -> None:
    assert nexhealth("quarantine", "list", DATABASE_URL=database_url).out == "nothing is in quarantine\n"
