"""Changes of appointments: asked for as soon as a month was read, and from where the earliest read began."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.months import month_keys, month_window

from .kit import Rows, sync_all
from .reconciled import DESERT, FULL, practice

pytestmark = pytest.mark.small_box(visits=2)

QUICK = RetryPolicy(sleep=lambda _: None)
ONLY = {"appointments"}


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def window_of(key: str) -> str:
    """How the requests for a month begin their window."""
    return f"start={month_window(key, datetime.now(UTC).date())[0]:%Y-%m-%d}"


def busiest(rows: Rows) -> str:
    """The month with most of an office's visits."""
    month = "to_char(start_time AT TIME ZONE 'UTC', 'YYYY-MM')"
    where = f"location_id = {DESERT} AND NOT cancelled"
    found = rows(
        f"SELECT {month} FROM nexhealth_appointments WHERE {where} GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1"
    )
    months = month_keys(datetime.now(UTC).date())
    return min(max(str(found[0][0]), months[0]), months[-1])


def changes_since(box: SandboxServer) -> list[datetime]:
    """Since when changes were asked for, by request."""
    asked = [one.param("updated_since") for one in box.requests.matching("/appointments")]
    return [datetime.strptime(since, "%Y-%m-%dT%H:%M:%S%z") for since in asked if since is not None]


def test_a_month_that_cannot_be_read_for_weeks_keeps_no_other_from_being_refreshed(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: one bad record spoils a month's list, and the visits of all others stay as the first load found them."""
    failing = month_keys(datetime.now(UTC).date())[2]
    box.faults.add("status", path="/appointments", query=window_of(failing), status=400)
    first = sync_all(settings, FULL, only=ONLY, retry=QUICK)
    assert {one.slice.window_key for one in first if str(one.status) == "failed"} == {failing}
    number = int(str(rows(f"SELECT min(id) FROM nexhealth_appointments WHERE location_id = {DESERT}")[0][0]))
    box.state.move(number, days=1 / 24)
    results = sync_all(settings, only=ONLY, retry=QUICK)
    assert {one.slice.window_key for one in results if str(one.status) == "failed"} == {failing}
    start = box.state.row("appointments", number).record()["start_time"]
    assert rows(f"SELECT start_time = '{start}' FROM nexhealth_appointments WHERE id = {number}") == [(True,)]


def test_the_first_changes_are_asked_for_since_the_earliest_read_that_is_gone_on_with(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a month was read half, hours before the others; what changed in that half since lies before their begin."""
    sync_all(settings, FULL, only=ONLY)
    begins = window_of(busiest(rows))
    rows("DELETE FROM nexhealth_sync_state WHERE collection = 'appointments' RETURNING 1")
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 1)
    box.faults.add("status", path="/appointments", location_id=DESERT, query=begins, skip=1, status=400)
    sync_all(settings, replace(FULL, batch_pages=1), only=ONLY, retry=QUICK)
    half = (
        "UPDATE nexhealth_sync_state SET pass_started_at = pass_started_at - interval '5 hours' WHERE watermark IS NULL"
    )
    assert len(rows(f"{half} AND cursor <> '' RETURNING 1")) == 1
    box.faults.clear()
    box.requests.clear()
    sync_all(settings, only=ONLY)
    long_ago = datetime.now(UTC) - timedelta(hours=5)
    mine = [since for since in changes_since(box) if since < long_ago]
    assert len(mine) >= 2, "those kept and those cancelled"
