"""Lists that NexHealth is said to give whole, should they come in pages one day: all of them are read."""

from collections.abc import Iterator
from typing import Any

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sync.options import SyncOptions
from tests.client.stub import Reply, Seen, Stub, envelope, refusal, running

from .kit import Rows, settings_of, sync_all
from .test_new_collection import cursor_page

QUICK = RetryPolicy(attempts=2, sleep=lambda _: None)
ONLY = {"patients", "documents", "document_types"}


class Office(Stub):
    """An API of one institution with two offices, whose lists without cursors come in pages of one record."""

    def __init__(self) -> None:
        super().__init__()
        self.broken = False
        """Whether pages after the first are answered with errors."""
        self.answer = self.serve

    def serve(self, seen: Seen) -> Reply:
        mine = seen.query.get("location_id") == "11"
        match seen.path.strip("/").split("/"):
            case ["institutions"]:
                return self.paged(seen, [{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case ["locations"]:
                return self.paged(
                    seen, [{"id": 1, "locations": [{"id": one, "name": "N", "institution_id": 1}]} for one in (11, 12)]
                )
            case ["sync_status"]:
                return self.paged(seen, [])
            case ["patients"]:
                return cursor_page([{"id": 5, "updated_at": "2026-03-01T10:00:00Z"}] if mine else [], "p")
            case ["patients", "5", "documents"]:
                return self.paged(seen, [{"id": 51, "filename": "a"}, {"id": 52, "filename": "b"}])
            case ["document_types"] if mine and seen.query["active"] == "true":
                return self.paged(seen, [{"id": one, "name": "kind", "active": True} for one in (1, 2)])
            case ["document_types"]:
                return self.paged(seen, [])
        return refusal(404, "no such path")

    def paged(self, seen: Seen, records: list[dict[str, Any]]) -> Reply:
        begin = int(seen.query.get("end_cursor") or 0)
        if begin and self.broken:
            return refusal(500)
        info = {"has_next_page": begin + 1 < len(records), "end_cursor": str(begin + 1)}
        return envelope(records[begin : begin + 1], count=len(records), page_info=info)


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


def test_the_first_page_of_a_list_that_is_said_to_come_whole_is_not_all(
    office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: the other offices are never copied, and a reconcile marks what stands on later pages as gone."""
    results = sync_all(settings_of(office, database_url), SyncOptions(batch_pages=100), only=ONLY)
    assert {str(one.status) for one in results} == {"succeeded"}
    assert rows("SELECT id FROM nexhealth_locations ORDER BY 1") == [(11,), (12,)]
    assert rows("SELECT id FROM nexhealth_document_types ORDER BY 1") == [(1,), (2,)]
    assert rows("SELECT id FROM nexhealth_documents ORDER BY 1") == [(51,), (52,)]
    counted = "SELECT total FROM nexhealth_sync_state WHERE collection = 'document_types' AND records > 0"
    assert rows(counted) == [(2,)], "once, and not with each page"


def test_a_killed_read_of_such_a_list_is_read_anew(office: Office, database_url: str, rows: Rows) -> None:
    """What the API counts is compared with the records of all its pages, of which a later run would know but the last."""
    settings = settings_of(office, database_url)
    sync_all(settings, only=set())
    office.broken = True
    results = sync_all(settings, SyncOptions(batch_pages=1), only={"document_types"}, retry=QUICK)
    assert "failed" in {str(one.status) for one in results if one.slice.location_id == 11}
    assert rows("SELECT id FROM nexhealth_document_types") == [(1,)]
    office.broken = False
    office.seen.clear()
    results = sync_all(settings, only={"document_types"}, retry=QUICK)
    assert {str(one.status) for one in results} == {"succeeded"}
    asked = [one.query for one in office.data_requests if one.path == "/document_types"]
    of_mine = [one.get("end_cursor") for one in asked if (one["location_id"], one["active"]) == ("11", "true")]
    assert of_mine == [None, "1"]
    assert rows("SELECT id FROM nexhealth_document_types ORDER BY 1") == [(1,), (2,)]
