"""A server that refuses a wide window is asked for its halves, and no appointment is lost between them."""

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status

from .kit import Rows, sync_all
from .test_full import assert_equal

VISITS = {"appointments"}


def test_changes_are_read_in_parts_where_the_whole_window_is_refused(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """The span that the API takes is not documented: 400 must not mean that changes stop coming."""
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=VISITS)
    ids = box.state.ids("appointments")
    for appointment in (ids[0], ids[len(ids) // 2], ids[-1]):
        box.state.update("appointments", appointment, {"note": "changed"})
    box.faults.add("status", path="/appointments", query="start=1900.*end=2200|end=2200.*start=1900", status=400)
    results = sync_all(settings, only=VISITS)
    assert {result.status for result in results} == {Status.SUCCEEDED}, [r.reason for r in results if r.reason]
    assert_equal(box, rows, VISITS)


def test_a_refusal_that_is_not_about_the_width_is_a_failure(settings: Settings, box: SandboxServer) -> None:
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=set())
    box.faults.add("status", path="/appointments", status=400)
    results = sync_all(settings, only=VISITS)
    assert {result.status for result in results if result.slice.collection.window} == {Status.FAILED}


@pytest.mark.parametrize("width_days", [40, 4000])
def test_halves_share_their_middle(width_days: int) -> None:
    """A row exactly in the middle comes twice rather than never."""
    from datetime import UTC, datetime, timedelta

    from nexhealth_pipeline.catalog.collection import Window
    from nexhealth_pipeline.client.request import ApiRequest
    from nexhealth_pipeline.sync.plan import api_time
    from nexhealth_pipeline.sync.wide_window import _bounds, _halves

    window = Window("start", "end", "start_time")
    start = datetime(2020, 1, 1, tzinfo=UTC)
    end = start + timedelta(days=width_days)
    early, late = _halves(ApiRequest("/appointments", (("start", api_time(start)), ("end", api_time(end)))), window)
    assert _bounds(early, window)[0] == start
    assert _bounds(early, window)[1] == _bounds(late, window)[0]
    assert _bounds(late, window)[1] == end


def test_a_server_that_is_down_is_not_asked_for_ever_smaller_windows(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Each window costs all its retries: twelve levels of halves held a sync for minutes."""
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=VISITS)
    location = rows("SELECT min(id) FROM nexhealth_locations WHERE NOT inactive")[0][0]
    box.faults.add("status", path="/appointments", location_id=location, status=500)
    box.requests.clear()
    results = sync_all(settings, only=VISITS, retry=RetryPolicy(sleep=lambda _: None))
    failed = [result for result in results if result.status is Status.FAILED]
    assert [(result.slice.collection.name, result.slice.location_id) for result in failed] == [
        ("appointments", location)
    ]
    asked = [one for one in box.requests.matching("/appointments") if one.param("location_id") == str(location)]
    assert len(asked) <= 20


@pytest.mark.parametrize("status", [405, 501])
def test_a_list_that_is_not_offered_at_all_is_asked_for_once(
    settings: Settings, box: SandboxServer, rows: Rows, status: int
) -> None:
    """No smaller window is offered either: down to the narrowest, three years took five requests and as many warnings."""
    sync_all(settings, SyncOptions(mode=Mode.FULL), only=VISITS)
    location = rows("SELECT min(id) FROM nexhealth_locations WHERE NOT inactive")[0][0]
    box.faults.add("status", path="/appointments", location_id=location, status=status)
    box.requests.clear()
    results = sync_all(settings, only=VISITS)
    failed = [result.slice.location_id for result in results if result.status is Status.FAILED]
    assert failed == [location]
    asked = [one for one in box.requests.matching("/appointments") if one.param("location_id") == str(location)]
    assert len(asked) == 1
