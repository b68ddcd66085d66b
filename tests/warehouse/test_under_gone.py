"""What stands in lists under rows that are gone: marked with them, however late it came, and nothing that is newer."""

from collections.abc import Iterator

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.warehouse.absence import Missing
from nexhealth_pipeline.warehouse.quarantine import quarantine
from nexhealth_pipeline.warehouse.state import PassKey, database_time
from nexhealth_pipeline.warehouse.tables import ensure_tables
from nexhealth_pipeline.warehouse.under_gone import mark_come_since

from .conftest import Rows
from .kit import INSTITUTION, MINUTE, NOON, Table
from .test_absence import HOUR, ground, met

PATIENTS = COLLECTIONS["patients"]
GONE = "SELECT id, deleted_at FROM nexhealth_documents WHERE deleted_by = 'absence' ORDER BY 1"


@pytest.fixture(autouse=True)
def _leaves_nothing(connection: psycopg.Connection) -> Iterator[None]:
    """The database is the module's."""
    names = ("charges", "claim_payouts", "documents")
    ensure_tables(connection, [COLLECTIONS[name] for name in names])
    yield
    for name in names:
        connection.execute(f"DELETE FROM nexhealth_{name}")


@pytest.fixture
def people(connection: psycopg.Connection) -> Table:
    """Two patients, each with a document that was read at noon."""
    people = Table(connection, PATIENTS)
    people.load(*({"id": number, "updated_at": "2026-03-01T10:00:00Z"} for number in (1, 2)))
    for patient in (1, 2):
        papers(connection, patient).load({"id": 10 * patient})
    return people


def papers(connection: psycopg.Connection, patient: int) -> Table:
    """Documents, as the list of a patient gives them."""
    return Table(connection, COLLECTIONS["documents"], {"patient_id": patient})


def test_what_came_between_the_read_and_the_single_read_goes_with_its_row(
    connection: psycopg.Connection, people: Table, rows: Rows
) -> None:
    """Hours lie between them where a reconcile is cut and gone on with: a list read meanwhile is older than the 404."""
    mine = met(connection, [2], PassKey("patients", INSTITUTION, 3, "", "all"))
    began = database_time(connection)
    missing = Missing(
        connection, ground(connection, mine, collection=PATIENTS, locations=(), nowhere=True, begun_at=began)
    )
    assert missing.find().missing == 1
    missing.confirm([1], gone=True)
    asked = NOON + HOUR + 30 * MINUTE
    papers(connection, 1).load({"id": 11}, read_at=asked)
    spoilt = papers(connection, 1)
    spoilt.load(b'{"id": 12, "filename": "\xff"}', read_at=asked)
    quarantine(connection, spoilt.notes, collection="documents", institution_id=INSTITUTION, location_id=3, run_id="r")
    papers(connection, 1).load({"id": 13}, read_at=NOON + 3 * HOUR)
    marked = NOON + 2 * HOUR
    assert missing.mark(marked) == 1
    assert missing.mark_lists(marked) == {"documents": 2}
    assert rows(GONE) == [(10, marked), (11, marked)], "the last one is of a list that was asked for since"
    assert rows("SELECT count(*) FROM nexhealth_quarantine WHERE resolved_at IS NULL") == [(0,)]


def test_what_is_committed_after_its_row_was_marked_is_marked_by_the_next_look(
    connection: psycopg.Connection, people: Table, rows: Rows
) -> None:
    """Risk: nobody asks for that list any more, so its rows stay live for ever."""
    marked = NOON + 2 * HOUR
    people.bury(1, marked)
    papers(connection, 1).load({"id": 11}, read_at=marked - MINUTE)
    papers(connection, 1).load({"id": 12}, read_at=marked + MINUTE)
    connection.execute(
        "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, rows)"
        " SELECT 'documents', %s, id, clock_timestamp(), 1 FROM generate_series(1, 2) id",
        (INSTITUTION,),
    )
    assert mark_come_since(connection, PATIENTS, INSTITUTION + 1) == {}
    assert mark_come_since(connection, PATIENTS, INSTITUTION) == {"documents": 2}
    assert rows(GONE) == [(10, marked), (11, marked)], "the last one is of a list that was asked for since"
    assert rows("SELECT patient_id FROM nexhealth_child_reads") == [(2,)], "should it come back, its list is due"
    before = papers(connection, 1).places()
    assert mark_come_since(connection, PATIENTS, INSTITUTION) == {}
    assert papers(connection, 1).places() == before
    # Even what that look marked late comes back with a list that was asked for before it.
    papers(connection, 1).load({"id": 11}, read_at=marked + MINUTE)
    assert rows(GONE) == [(10, marked)]


def test_where_no_single_read_says_that_a_row_is_gone_what_came_since_is_left_alone(
    connection: psycopg.Connection, rows: Rows
) -> None:
    """What a read lacked may have been there again when its list was read."""
    charges = COLLECTIONS["charges"]
    assert charges.by_id is None
    table = Table(connection, charges)
    table.load({"id": 1, "updated_at": "2026-03-01T10:00:00Z"})
    table.bury(1, NOON + HOUR)
    payouts = Table(connection, COLLECTIONS["claim_payouts"], {"charge_id": 1})
    payouts.load({"claim_id": 5})
    assert mark_come_since(connection, charges, INSTITUTION) == {}
    assert rows("SELECT count(*) FROM nexhealth_claim_payouts WHERE deleted_at IS NULL") == [(1,)]
