"""Promise 9: what a load holds does not grow with the number of records."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import pytest

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.sync import confirm
from nexhealth_pipeline.sync.loader import EncodedPage, Loaded, Loader
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from tests.client.stub import Reply, Seen, Stub, envelope, refusal, running
from tests.effort import peak

from .kit import settings_of, sync_all
from .test_new_collection import cursor_page

A_PAGE = 40
OPTIONS = SyncOptions(mode=Mode.FULL, batch_pages=2)
"""Few pages a transaction, so that ten fill all that may wait: the one encoded, those loaded, those fetched ahead."""

RECONCILING = SyncOptions(mode=Mode.RECONCILE, batch_pages=2, allow_mass_delete=True)


class Office(Stub):
    """One office with any number of pages of patients, each of which is made when it is asked for."""

    def __init__(self, a_page: int = A_PAGE, width: int = 5000) -> None:
        super().__init__()
        self.pages, self.first = 0, 1
        self.a_page, self.width = a_page, width
        self.fetched = self.encoded = 0
        """Pages of the list that is being read, as the client has them and as the database takes them."""
        self.gone: int | None = None
        """Every so many patients one is not listed any more, nor found by its id."""
        self.answer = self.serve

    def serve(self, seen: Seen) -> Reply:
        self.seen.clear()  # what a test remembers is none of what it measures
        match seen.path.strip("/").split("/"):
            case ["institutions"]:
                return envelope([{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case ["locations"]:
                return envelope([{"id": 1, "locations": [{"id": 11, "name": "N", "institution_id": 1}]}])
            case ["patients"]:
                page = int(seen.query.get("end_cursor") or 0)
                first = self.first + page * self.a_page
                records = [
                    {"id": one, "updated_at": "2026-03-01T10:00:00Z", "name": f"{one} {'x' * self.width}"}
                    for one in range(first, first + self.a_page)
                    if not (self.gone and one % self.gone == 0)
                ]
                return cursor_page(records, str(page + 1), more=page + 1 < self.pages)
            case ["patients", _]:
                return refusal(404, "no such patient")
        return envelope([])


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


@pytest.fixture
def loads_wait(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until all is fetched and encoded that may be meanwhile: else it is chance how much of it is held at once."""
    pages, encode, load = NexHealthClient.pages, Loader.encode, Loader.load

    def fetching(client: NexHealthClient, request: ApiRequest, **more: Any) -> Iterator[Page]:
        for page in pages(client, request, **more):
            office.fetched = int(page.end_cursor or 0)
            yield page

    def encoding(loader: Loader, page: Page, request: Mapping[str, int]) -> EncodedPage:
        encoded = encode(loader, page, request)
        office.encoded = int(page.end_cursor or 0)
        return encoded

    def waiting(loader: Loader, batch: list[EncodedPage], not_before: datetime | None) -> Loaded:
        loaded, deadline = int(batch[-1].page.end_cursor or 0), time.monotonic() + 60
        if loaded:
            # Two encoded, of which one waits to be handed over, and behind them as many that are not.
            while office.encoded < min(loaded + 2, office.pages) or office.fetched < min(loaded + 4, office.pages):
                assert time.monotonic() < deadline, "less is fetched ahead than there was room for"
                time.sleep(0.002)
        return load(loader, batch, not_before)

    monkeypatch.setattr(NexHealthClient, "pages", fetching)
    monkeypatch.setattr(Loader, "encode", encoding)
    monkeypatch.setattr(Loader, "load", waiting)


def load(office: Office, database_url: str, pages: int) -> int:
    """Bytes that were held at once while so many pages of new patients were loaded."""
    office.first, office.pages = office.first + office.pages * A_PAGE, pages
    held, results = peak(lambda: sync_all(settings_of(office, database_url), OPTIONS, only={"patients"}))
    counts = results[-1].counts
    assert (results[-1].status, counts.pages, counts.inserted) == ("succeeded", pages, pages * A_PAGE)
    return held


@pytest.mark.usefixtures("loads_wait")
def test_a_load_of_five_times_as_many_pages_holds_no_more_at_once(office: Office, database_url: str) -> None:
    """A million patients must not need more memory than ten thousand."""
    load(office, database_url, 3)  # what is imported, compiled and cached by the first load stays
    few, many = load(office, database_url, 10), load(office, database_url, 50)
    assert many < 1.3 * few, f"{few:,} bytes at 10 pages, {many:,} at 50"


def reconcile(office: Office, database_url: str, pages: int) -> int:
    """Bytes that were held at once while so many pages, all known, were reconciled, and lacked some patients."""
    office.pages, office.gone = pages, None
    settings = settings_of(office, database_url)
    sync_all(settings, OPTIONS, only={"patients"})
    office.gone = 40
    held, results = peak(lambda: sync_all(settings, RECONCILING, only={"patients"}))
    marked = sum(one.counts.tombstoned for one in results)
    assert marked == pages * office.a_page // office.gone
    return held


@pytest.mark.usefixtures("loads_wait")
def test_a_reconcile_of_three_times_as_many_pages_holds_no_more_at_once(
    office: Office, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has to know of each patient whether it was met, and whether it is gone: the database does."""
    monkeypatch.setattr(confirm, "_AT_ONCE", 20)  # as above, so that twenty pages lack more than are asked for at once
    office.a_page, office.width = 160, 50
    reconcile(office, database_url, 2)
    few, many = reconcile(office, database_url, 20), reconcile(office, database_url, 60)
    assert many < 1.25 * few, f"{few:,} bytes at 20 pages, {many:,} at 60"
