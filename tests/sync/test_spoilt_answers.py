"""Answers spoilt on their way: asked for again at once; what stayed unreadable is asked for by the next sync."""

from collections.abc import Iterator

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .killed import facts
from .kit import Rows, sync_all

FULL = SyncOptions(mode=Mode.FULL)
HASTY = RetryPolicy(sleep=lambda _: None)
OF_EACH_KIND = {
    "patients": "/patients",
    "recall_types": "/recall_types",
    "appointments": "/appointments",
    "insurance_plans": "/insurance_plans",
    "documents": "/patients/[0-9]+/documents",
}
"""Pages, an unpaged list, months, an institution's pages, lists under a patient: where a record may lose its id."""
SINGLE = {"patient_addresses": "/patients/[0-9]+", "coverage_subscribers": "/insurance_coverages/[0-9]+"}
ALL = {*OF_EACH_KIND, *SINGLE, "insurance_coverages"}


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=12, appointments_per_patient=2, limits=False) as box:
        yield box


def forget(url: str) -> None:
    """Empty the warehouse, so that the same practice can be read again."""
    with psycopg.connect(url, autocommit=True) as connection:
        names = [f"nexhealth_{name}" for name in (*ALL, "patient_locations", "sync_state", "child_reads", "quarantine")]
        connection.execute(f"TRUNCATE {', '.join(names)}, nexhealth_history, nexhealth_sweeps CASCADE")


@pytest.mark.parametrize("kind", ["garbled", "wrong_object", "null_data"])
def test_one_spoilt_answer_to_each_request_changes_nothing(
    settings: Settings, box: SandboxServer, database_url: str, rows: Rows, kind: str
) -> None:
    sync_all(settings, FULL, only=ALL, retry=HASTY)
    undisturbed = facts(database_url)
    forget(database_url)
    rule = box.faults.add(kind, path="/(?!authenticates).*", count=1, per_url=True)
    results = sync_all(settings, FULL, only=ALL, retry=HASTY)
    assert rule.fired > 50
    assert {str(one.status) for one in results} == {"succeeded"}
    assert rows("SELECT count(*) FROM nexhealth_quarantine") == [(0,)]
    assert facts(database_url) == undisturbed


def test_records_that_lost_their_ids_are_brought_by_the_next_sync_and_their_notes_closed(
    settings: Settings, box: SandboxServer, database_url: str, rows: Rows
) -> None:
    """The first sync cannot know them; its watermark must not be the reason that nobody ever asks for them again."""
    sync_all(settings, FULL, only=ALL, retry=HASTY)
    undisturbed = facts(database_url)
    forget(database_url)
    for path in OF_EACH_KIND.values():  # each list, and each second look at it
        box.faults.add("garbled", path=path, count=3, per_url=True)
    results = sync_all(settings, FULL, only=ALL, retry=HASTY)
    assert {str(one.status) for one in results} == {"succeeded"}, "one bad record stops nothing"
    spoilt = {name for (name,) in rows("SELECT DISTINCT collection FROM nexhealth_quarantine WHERE record_id = ''")}
    assert spoilt == set(OF_EACH_KIND)
    box.faults.clear()
    lacking = facts(database_url)
    assert all(lacking[name] != undisturbed[name] for name in OF_EACH_KIND)
    sync_all(settings, only=ALL, retry=HASTY)
    healed = facts(database_url)
    assert {name: healed[name] for name in ALL} == {name: undisturbed[name] for name in ALL}
    open_notes = "SELECT collection, count(*) FROM nexhealth_quarantine WHERE resolved_at IS NULL GROUP BY 1"
    assert rows(open_notes) == []


def test_lists_that_a_full_read_met_spoilt_are_asked_for_by_the_next_sync_though_they_were_read_before(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Their rows have not changed since, so that nothing but their turn would bring them."""
    under_rows = {name: path for name, path in (OF_EACH_KIND | SINGLE).items() if COLLECTIONS[name].per}
    read = {"patients", "insurance_coverages", *under_rows}
    sync_all(settings, FULL, only=read, retry=HASTY)
    for path in under_rows.values():
        box.faults.add("garbled", path=path, count=3, per_url=True)
    sync_all(settings, FULL, only=read, retry=HASTY)
    open_notes = "SELECT DISTINCT collection FROM nexhealth_quarantine WHERE resolved_at IS NULL"
    assert ("documents",) in rows(open_notes)
    box.faults.clear()
    sync_all(settings, only=read, retry=HASTY)
    assert rows(open_notes) == []


def test_what_can_never_be_read_is_asked_for_once_more_and_then_left(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """A record that is broken at its source must not make every night a full one."""
    box.faults.add("garbled", path="/patients")
    sync_all(settings, FULL, only={"patients"}, retry=HASTY)
    notes = rows("SELECT count(*) FROM nexhealth_quarantine")
    assert notes > [(0,)]
    asked = [_patients_asked(settings, box) for _ in range(3)]
    assert asked[0]["whole"] > 0, "once more"
    assert asked[1]["whole"] == asked[2]["whole"] == 0
    assert rows("SELECT count(*) FROM nexhealth_quarantine") == notes


def _patients_asked(settings: Settings, box: SandboxServer) -> dict[str, int]:
    """What a plain sync asks of the list of patients: requests for everything, and for changes."""
    before = len(box.requests)
    sync_all(settings, only={"patients"}, retry=HASTY)
    asked = list(box.requests)[before:]
    lists = [one for one in asked if one.path == "/patients" and one.param("location_strict") != "true"]
    changes = sum(one.param("updated_since") is not None for one in lists)
    return {"whole": len(lists) - changes, "changes": changes}
