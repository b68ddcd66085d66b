"""Promise 9: what a load holds does not grow with the number of records."""

import gc
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime

import pytest

from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.loader import EncodedPage, Loaded, Loader
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from tests.client.stub import Reply, Seen, Stub, envelope, running

from .kit import sync_all
from .test_new_collection import cursor_page

A_PAGE = 40
OPTIONS = SyncOptions(mode=Mode.FULL, batch_pages=2)
"""Few pages a transaction, so that ten fill all that may wait: the one encoded, those loaded, those fetched ahead."""


class Office(Stub):
    """One office with any number of pages of patients, each of which is made when it is asked for."""

    def __init__(self, a_page: int = A_PAGE, width: int = 5000) -> None:
        super().__init__()
        self.pages, self.first = 0, 1
        self.a_page, self.width = a_page, width
        self.answer = self.serve

    def serve(self, seen: Seen) -> Reply:
        match seen.path:
            case "/institutions":
                return envelope([{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case "/locations":
                return envelope([{"id": 1, "locations": [{"id": 11, "name": "N", "institution_id": 1}]}])
            case "/patients":
                page = int(seen.query.get("end_cursor") or 0)
                first = self.first + page * self.a_page
                records = [
                    {"id": one, "updated_at": "2026-03-01T10:00:00Z", "name": f"{one} {'x' * self.width}"}
                    for one in range(first, first + self.a_page)
                ]
                return cursor_page(records, str(page + 1), more=page + 1 < self.pages)
        return envelope([])


@pytest.fixture(autouse=True)
def loads_take_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that meanwhile all is fetched that may be: else it is chance how much of it waits at once."""
    load = Loader.load

    def slow(self: Loader, pages: list[EncodedPage], not_before: datetime | None) -> Loaded:
        time.sleep(0.05)
        return load(self, pages, not_before)

    monkeypatch.setattr(Loader, "load", slow)


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


def peak(office: Office, database_url: str, pages: int) -> int:
    """Bytes that were held at once while so many pages of new patients were loaded."""
    office.first, office.pages = office.first + office.pages * A_PAGE, pages
    given = {"NEXHEALTH_API_URL": office.url, "NEXHEALTH_API_KEY": "k", "DATABASE_URL": database_url}
    settings = load_settings(given, environ={}, env_file=None)
    gc.collect()
    tracemalloc.start()
    try:
        result = sync_all(settings, OPTIONS, only={"patients"})[-1]
        held = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (result.status, result.counts.pages, result.counts.inserted) == ("succeeded", pages, pages * A_PAGE)
    return held


def test_a_load_of_five_times_as_many_pages_holds_no_more_at_once(office: Office, database_url: str) -> None:
    """A million patients must not need more memory than ten thousand."""
    peak(office, database_url, 3)  # what is imported, compiled and cached by the first load stays
    few, many = peak(office, database_url, 10), peak(office, database_url, 50)
    assert many < 1.3 * few, f"{few:,} bytes at 10 pages, {many:,} at 50"
