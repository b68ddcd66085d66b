"""A new collection is one declaration: all that the rooms say and do of it follows from that alone."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.client.stub import Reply, Seen, Stub, envelope, running

from .kit import Rows

SCRIPT = Path(__file__).with_name("made_up.py")
V1, V2 = "2026-03-01T10:00:00Z", "2026-03-02T10:00:00Z"


def cursor_page(records: list[dict[str, Any]], end_cursor: str | None, *, more: bool = False) -> Reply:
    info = {"has_previous_page": False, "has_next_page": more, "start_cursor": "", "end_cursor": end_cursor}
    return envelope(records, page_info=info)


class Office(Stub):
    """An API of one institution with one office, two patients, and the two made-up lists."""

    def __init__(self) -> None:
        super().__init__()
        self.patients = {5: V1, 6: V1}
        self.referrals: dict[int, list[dict[str, Any]]] = {
            5: [self.referral(51), self.referral(52, deleted_at=V1)],
            6: [],
        }
        self.answer = self.serve

    @staticmethod
    def referral(number: int, **fields: Any) -> dict[str, Any]:
        base = {"fee": {"amount": "12.50", "currency": "USD"}, "stamps": [{"by": ["a", None]}], "sender": {"name": "Ó"}}
        return {"id": number, "text": "t\x00", "ssn": "1", "updated_at": V1, "deleted_at": None} | base | fields

    def serve(self, seen: Seen) -> Reply:
        match seen.path.strip("/").split("/"):
            case ["institutions"]:
                return envelope([{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case ["locations"]:
                return envelope(
                    [{"id": 1, "locations": [{"id": 11, "name": "N", "institution_id": 1, "inactive": False}]}]
                )
            case ["sync_status"]:
                return envelope([])
            case ["patients"]:
                return cursor_page([{"id": number, "updated_at": at} for number, at in self.patients.items()], "p")
            case ["patients", patient, "referrals"]:
                shown = seen.query.get("include_deleted") == "true"
                return envelope([one for one in self.referrals[int(patient)] if shown or not one["deleted_at"]])
            case ["chairs"]:
                return self.chairs(seen)
        return Reply(404, b'{"code": false, "error": ["no such path"], "data": null, "description": ""}')

    @staticmethod
    def chairs(seen: Seen) -> Reply:
        if "updated_since" in seen.query:
            return cursor_page([{"id": 2, "colour": "green", "updated_at": V2}], "c")
        if seen.query.get("end_cursor"):
            return cursor_page([{"id": 2, "colour": "blue", "updated_at": V1}], "c2")
        return cursor_page([{"id": 1, "colour": "red", "updated_at": V1}], "c1", more=True)

    def paths(self) -> list[str]:
        found = [seen.path for seen in self.data_requests]
        self.seen.clear()
        return found


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


def made_up(*words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def sync(office: Office, database_url: str, mode: str) -> dict[str, Any]:
    found = made_up(office.url, database_url, mode)
    assert {status for status, _ in found["slices"].values()} == {"succeeded"}, found
    return found


def test_a_declaration_is_all_a_new_collection_needs(office: Office, database_url: str, rows: Rows) -> None:
    """Risk: somewhere in the rooms a list of collections is kept by hand."""
    found = sync(office, database_url, "full")
    assert found["changes"] == ["created table nexhealth_referrals", "created table nexhealth_chairs"]
    assert {"referrals willow.11", "chairs willow.11"} <= set(found["slices"])
    assert rows(
        "SELECT institution_id, patient_id, id, text, fee::text, fee_currency, stamps, sender_name, deleted_by, raw ? 'ssn'"
        " FROM nexhealth_referrals ORDER BY id"
    ) == [
        (1, 5, 51, "t␀", "12.50", "USD", [{"by": ["a", None]}], "Ó", None, False),
        (1, 5, 52, "t␀", "12.50", "USD", [{"by": ["a", None]}], "Ó", "source", False),
    ]
    assert rows("SELECT id, colour FROM nexhealth_chairs ORDER BY id") == [(1, "red"), (2, "blue")]
    assert rows("SELECT id, sender_name FROM nexhealth_current.referrals") == [(51, "Ó")], "without the deleted one"
    assert rows(
        "SELECT obj_description('nexhealth_referrals'::regclass), col_description('nexhealth_referrals'::regclass, attnum)"
        " FROM pg_attribute WHERE attrelid = 'nexhealth_referrals'::regclass AND attname = 'sender_name'"
    ) == [("A made-up letter about a patient.", "Who wrote it. PHI class: contact.")]
    assert rows(
        "SELECT collection, location_id, complete_through IS NOT NULL, last_full_at IS NOT NULL FROM nexhealth_freshness"
        " WHERE collection IN ('referrals', 'chairs') ORDER BY 1"
    ) == [("chairs", 11, True, True), ("referrals", 11, True, True)]
    assert rows("SELECT patient_id, rows FROM nexhealth_child_reads WHERE collection = 'referrals' ORDER BY 1") == [
        (5, 2),
        (6, 0),
    ]
    assert rows(
        "SELECT asset, pages, records_read, inserted, status FROM nexhealth_sync_logs"
        " WHERE collection IN ('referrals', 'chairs') ORDER BY 1"
    ) == [("nexhealth_chairs", 2, 2, 2, "succeeded"), ("nexhealth_referrals", 2, 2, 2, "succeeded")]
    assert sorted(office.paths())[-3:] == ["/patients/5/referrals", "/patients/6/referrals", "/sync_status"]

    office.patients[5] = V2
    office.referrals[5] = [office.referral(51, deleted_at=V2, updated_at=V2), office.referral(52, updated_at=V2)]
    found = sync(office, database_url, "incremental")
    assert found["changes"] == []
    paths = office.paths()
    assert "/patients/5/referrals" in paths
    assert "/patients/6/referrals" not in paths
    assert rows("SELECT id, deleted_by FROM nexhealth_referrals ORDER BY id") == [(51, "source"), (52, None)]
    assert rows("SELECT id, colour FROM nexhealth_chairs ORDER BY id") == [(1, "red"), (2, "green")]


def test_dagster_the_command_and_readme_know_what_is_declared() -> None:
    """Risk: as above; who adds a collection would find out in Dagit that it is in no job, or is never checked."""
    found = made_up()
    referrals, chairs = found["referrals"], found["chairs"]
    assert (referrals["group"], chairs["group"]) == ("clinical", "practice")
    assert (referrals["description"], chairs["description"]) == (
        "A made-up letter about a patient.",
        "A made-up piece of furniture.",
    )
    assert "nexhealth_patients" in referrals["under"]
    for name, one in found.items():
        assert (one["partitions"], one["in its job"]) == ("nexhealth_locations", True)
        assert one["taken"] == [name, name], "by --resource"
        assert {"fresh", "own_institution", "quarantine_empty", "schema_as_declared"} <= set(one["checks"])
    assert {"lists_complete", "money_readable"} <= set(referrals["checks"])
    assert {"sender_name", "fee_currency", "patient_id"} <= set(referrals["columns"])
    assert chairs["row"] == [
        "| `nexhealth_chairs` | A made-up piece of furniture. | `GET /chairs`, updated_since | location |"
    ]
    assert len(referrals["row"]) == 1
