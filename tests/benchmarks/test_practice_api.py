"""The local API that requests are paced against: what it lists, and that it counts and limits what arrives."""

import asyncio
import json
import time
from datetime import UTC, datetime
from urllib.parse import urlencode

import practice_api
import pytest


@pytest.fixture
def app() -> practice_api.App:
    return practice_api.App(practice_api.Practices(locations=60, patients=25), latency=0.0)


def ask(app: practice_api.App, path: str, **query: str) -> tuple[int, dict]:
    """One request as uvicorn hands it over."""
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "query_string": urlencode(query).encode()}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def listed(app: practice_api.App, path: str, **query: str) -> list[int]:
    """Ids of all pages."""
    ids: list[int] = []
    cursor = ""
    while True:
        _, answer = ask(app, path, location_id="100003", per_page="7", end_cursor=cursor, **query)
        ids += [one["id"] for one in answer["data"]]
        if not answer["page_info"]["has_next_page"]:
            return ids
        cursor = answer["page_info"]["end_cursor"]


def test_every_location_has_an_institution_and_a_database_of_its_own(app):
    institutions = ask(app, "/institutions")[1]["data"]
    assert [len(one["locations"]) for one in institutions] == [50, 10]
    statuses = ask(app, "/sync_status")[1]["data"]
    assert len({one["sync_source_name"] for one in statuses}) == 60
    assert {one["locations"][0]["id"] for one in statuses} == {
        place["id"] for one in institutions for place in one["locations"]
    }


def test_pages_hold_every_patient_once_and_a_change_only_those_it_changed(app):
    everyone = listed(app, "/patients")
    assert everyone == [100_003 * practice_api.SPAN + index for index in range(25)]
    since = datetime.now(UTC).isoformat()
    assert listed(app, "/patients", updated_since=since) == []
    assert ask(app, "/bench/change", every="10")[1]["data"] == 2 * 60 * 3
    assert listed(app, "/patients", updated_since=since) == everyone[::10]


def test_kept_and_cancelled_appointments_are_all_appointments(app):
    window = {"start": "1900-01-01T00:00:00+0000", "end": "2200-01-01T00:00:00+0000"}
    kept, cancelled = (listed(app, "/appointments", cancelled=word, **window) for word in ("false", "true"))
    assert len(cancelled) == 2
    assert sorted(kept + cancelled) == listed(app, "/appointments", **window) == listed(app, "/patients")


def test_what_is_under_a_patient_is_empty_and_the_patient_is_the_one_asked_for(app):
    own = 100_003 * practice_api.SPAN + 4
    assert ask(app, f"/patients/{own}/documents")[1]["data"] == []
    assert ask(app, f"/patients/{own}")[1]["data"]["id"] == own


def test_arrivals_are_counted_and_those_beyond_a_limit_refused(app, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1_800_000_000.0)
    ask(app, "/bench/begin", limits="1")
    window = {"start": "2026-01-01T00:00:00+0000", "end": "2026-02-01T00:00:00+0000", "location_id": "100003"}
    answers = [ask(app, "/appointments", **window)[0] for _ in range(11)]
    assert answers == [200] * 10 + [429]
    arrivals = ask(app, "/bench/arrivals")[1]["data"]
    assert arrivals == [[1_800_000_000.0, "/appointments", status] for status in answers]
