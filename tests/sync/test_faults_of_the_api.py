"""An API at its worst, a different trouble for each slice at once: each fails in its own words, and heals."""

import gzip
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status

from .killed import facts, open_rows
from .kit import Rows, sync_all
from .reconciled import DESERT
from .spoiler import Spoiler, Steps, drip, spoiling

FULL = SyncOptions(mode=Mode.FULL)
IMPATIENT = RetryPolicy(attempts=3, sleep=lambda _: None)
ONLY = {"operatories", "patients", "working_hours"}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BEGUN = HEAD + b'Content-Length: 9000\r\n\r\n{"code":true,'

ON_THE_WIRE: dict[str, tuple[Steps, str]] = {
    "stops in the middle of the body": ([BEGUN, 30.0], "no answer in time"),
    "drips its headers": ([b"HTTP/1.1 200 OK\r\nX: ", *drip(b"x", 0.1, 100)], "too long to arrive"),
    "drips its body": ([BEGUN, *drip(b" ", 0.1, 100)], "too long to arrive"),
    "100 MB": ([HEAD + b"Content-Length: 104857600\r\n\r\n", *[b" " * 1048576] * 100], "larger than"),
    "a gzip bomb": (
        [HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(b" " * 104857600, 1)],
        "larger than",
    ),
}
BY_THE_SERVER: list[tuple[str, dict[str, Any], str]] = [
    ("redirect", {"target": "http://127.0.0.1:9/"}, "a redirect, which is never followed"),
    ("empty_page", {}, "an empty page"),
    ("cut", {}, "ended before its end"),
    # Neither `token_expired`, which would take the token of every slice, and twice in a row end an innocent one, nor 401:
    # what it means depends on whether others are answered meanwhile.
    ("html", {}, "no NexHealth answer"),
    ("status", {"status": 302}, "a redirect, which is never followed"),
]


@pytest.fixture
def box() -> Iterator[SandboxServer]:
    with SandboxServer(patients=20, appointments_per_patient=1, limits=False) as box:
        yield box


@pytest.fixture
def spoiler(box: SandboxServer) -> Iterator[Spoiler]:
    with spoiling(box.url) as spoiler:
        yield spoiler


@pytest.fixture
def behind(spoiler: Spoiler, box: SandboxServer, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a sync behind the spoiler, with a client that waits for less than a minute."""

    def hasty(**given: Any) -> NexHealthClient:
        # Far apart: what is silent for two seconds must not be over because it took five on a busy machine.
        short = {"timeout_seconds": 2.0, "answer_seconds": 5.0, "body_limit": 4 * 1024 * 1024}
        return NexHealthClient(**{**given, **short})

    monkeypatch.setattr("nexhealth_pipeline.sync.session.NexHealthClient", hasty)
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    given = {"NEXHEALTH_API_URL": spoiler.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url}
    return load_settings(given, environ={}, env_file=None)


def test_every_trouble_fails_its_slice_in_its_own_words_and_the_next_sync_heals(
    behind: Settings, spoiler: Spoiler, box: SandboxServer, database_url: str, rows: Rows
) -> None:
    """Ten locations' worth of trouble must not stop, delay or spoil one slice that has none."""
    sync_all(behind, FULL, only=set(), retry=IMPATIENT)
    locations = [location for (location,) in rows("SELECT id FROM nexhealth_locations WHERE NOT inactive ORDER BY id")]
    assert len(locations) >= 5
    expected = {}
    for location, (steps, words) in zip(locations, ON_THE_WIRE.values(), strict=False):
        spoiler.spoilt["/operatories", str(location)] = steps
        expected["operatories", location] = words
    for location, (kind, options, words) in zip(locations, BY_THE_SERVER, strict=False):
        box.faults.add(kind, path="/working_hours", location_id=location, **options)
        expected["working_hours", location] = words
    began = time.monotonic()
    results = sync_all(behind, FULL, only=ONLY, retry=IMPATIENT)
    assert time.monotonic() - began < 60
    failed = {(one.slice.collection.name, one.slice.location_id): one for one in results if one.status is Status.FAILED}
    assert set(failed) == set(expected), {name: one.reason for name, one in failed.items() if name not in expected}
    for place, words in expected.items():
        assert words in (failed[place].reason or ""), (place, failed[place].reason)
    assert open_rows(database_url) == []
    box.faults.clear()
    spoiler.spoilt.clear()
    healed = sync_all(behind, only=ONLY, retry=IMPATIENT)
    assert {str(one.status) for one in healed} == {"succeeded"}
    after_trouble = facts(database_url)
    with psycopg.connect(database_url) as connection:
        for name in (*ONLY, "patient_locations", "sync_state"):
            connection.execute(f"TRUNCATE nexhealth_{name} CASCADE")
    sync_all(behind, FULL, only=ONLY, retry=IMPATIENT)
    assert facts(database_url) == after_trouble


@pytest.mark.parametrize("status", [400, 404])
def test_a_cursor_that_has_expired_begins_its_pass_again_and_loses_nothing(
    status: int,
    behind: Settings,
    box: SandboxServer,
    database_url: str,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A practice that was offline over the weekend: the cursor stored on Friday is refused on Monday."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 2)
    box.faults.add("status", path="/patients", query="end_cursor=.", skip=1, status=500)
    cut_short = sync_all(behind, FULL, only={"patients"}, retry=IMPATIENT)
    assert "failed" in {str(one.status) for one in cut_short}
    box.faults.clear()
    refused = box.faults.add("status", path="/patients", query="end_cursor=.", status=status, count=1)
    healed = sync_all(behind, FULL, only={"patients"}, retry=IMPATIENT)
    assert refused.fired == 1
    assert {str(one.status) for one in healed} == {"succeeded"}
    assert rows("SELECT count(*), count(DISTINCT id) FROM nexhealth_patients") == [
        (len(box.state.ids("patients")),) * 2
    ]
    assert open_rows(database_url) == []


def test_pages_that_repeat_after_a_cursor_has_expired_are_not_gone_on_with(
    behind: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two troubles in one pass: the one was seen to, and in it the other left its distrusted page for the next sync."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 1)
    went_on = {"path": "/patients", "query": "end_cursor=.", "location_id": DESERT}
    stored = f"SELECT cursor <> '' FROM nexhealth_sync_state WHERE collection = 'patients' AND location_id = {DESERT}"
    box.faults.add("status", **went_on, skip=1, status=500)
    sync_all(behind, FULL, only={"patients"}, retry=IMPATIENT)
    assert rows(stored) == [(True,)]
    box.faults.clear()
    refused = box.faults.add("status", **went_on, count=1, status=400)
    box.faults.add("repeated_page", **went_on)
    (failed,) = [one for one in sync_all(behind, FULL, only={"patients"}, retry=IMPATIENT) if one.status == "failed"]
    assert (refused.fired, failed.slice.location_id) == (1, DESERT)
    assert "repeats one already read" in str(failed.reason)
    assert rows(stored) == [(False,)]
    box.faults.clear()
    assert {str(one.status) for one in sync_all(behind, FULL, only={"patients"}, retry=IMPATIENT)} == {"succeeded"}
    assert rows("SELECT count(*) FROM nexhealth_patients") == [(len(box.state.ids("patients")),)]
