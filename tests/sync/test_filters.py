"""Filtered reads: sent only where NexHealth honours them, and without a trace in what later syncs start from."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.filters import NO_FILTERS, Filters, choose, filtered_passes, moment_of, narrowed_by
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Status

from .kit import Rows, sync_all

SINCE = datetime(2026, 1, 2, 3, tzinfo=UTC)
LATER = "SELECT * FROM nexhealth_sync_state WHERE collection NOT IN ('institutions', 'locations', 'sync_status') ORDER BY 1, 2, 3, 4, 5"


def params(name: str, filters: Filters, *, owner: bool = True) -> list[tuple[tuple[str, str], ...]]:
    return [one.params for one in filtered_passes(COLLECTIONS[name], filters, owner=owner)]


def test_every_filter_has_a_parameter_that_the_sandbox_honours() -> None:
    """The sandbox's parameters are checked against the vendor's own file: a misspelt one would be ignored there too."""
    from nexhealth_pipeline.sandbox.routes import ROUTES

    routes = {route.path: route.known() for route in ROUTES}
    for one in DECLARED:
        for _, parameter in one.filters:
            if one.path in routes:
                assert parameter in routes[one.path], (one.name, parameter)


def test_nothing_asked_for_is_no_filter() -> None:
    assert not NO_FILTERS
    assert not SyncOptions().partial
    assert SyncOptions(filters=Filters(status="active")).partial


class TestPasses:
    def test_a_pass_that_fixes_the_parameter_is_made_only_where_it_fits(self) -> None:
        """Inactive=false and inactive=true in one request: the API would take either."""
        assert params("providers", Filters("inactive")) == [(("inactive", "true"),)]
        assert params("document_types", Filters("inactive")) == [(("active", "false"),)]

    def test_a_status_becomes_the_parameter_that_the_list_has(self) -> None:
        """`active` and `inactive` are opposites: mixed up they bring the other half."""
        (found,) = params("patients", Filters("active"))
        assert found == (("location_strict", "false"), ("inactive", "false"))

    def test_several_providers_are_asked_for_one_by_one(self) -> None:
        """A parameter given twice where the list takes one, or several with commas: the last one wins, silently."""
        wanted = Filters(providers=(5, 6, 5))
        assert params("procedures", wanted) == [(("provider_id", "5"),), (("provider_id", "6"),)]
        assert params("appointments", wanted) == [
            (("cancelled", cancelled), ("provider_ids[]", provider))
            for cancelled in ("false", "true")
            for provider in ("5", "6")
        ]

    def test_a_location_that_shares_its_database_brings_what_it_lists(self) -> None:
        """Its owner may not be asked for; reading nothing would look like an empty practice."""
        passes = filtered_passes(COLLECTIONS["patients"], Filters("active"), owner=False)
        strict = [one for one in passes if one.reader == "shared"]
        assert [(dict(one.params)["location_strict"], one.membership) for one in strict] == [("true", False)]


class TestChoice:
    def test_a_named_collection_without_the_filter_is_refused_with_those_that_have_it(self) -> None:
        """The API would ignore the parameter and answer with everything and a success."""
        named = [COLLECTIONS["patients"], COLLECTIONS["documents"]]
        with pytest.raises(InvalidSetting, match=r"documents cannot be filtered by status.*patients, ") as caught:
            choose(named, Filters("active"), named=True, known=DECLARED)
        assert "appointments" not in str(caught.value)

    def test_a_list_that_everything_begins_with_is_read_whole(self) -> None:
        """NexHealth can filter locations; a sync that knew only some of them would leave the others unread."""
        with pytest.raises(InvalidSetting, match=r"locations cannot be .* by status: every sync begins by reading all"):
            choose([COLLECTIONS["locations"]], Filters("active"), named=True, known=DECLARED)

    def test_without_names_those_are_left_that_have_all_filters(self) -> None:
        filters = Filters(providers=(5,), updated_since=SINCE)
        names = [one.name for one in choose(DECLARED, filters, named=False, known=DECLARED)]
        assert {"appointments", "procedures", "charges", "payments", "adjustments", "claims"} <= set(names)
        assert not {"patients", "working_hours", "documents"} & set(names)
        assert choose(DECLARED, NO_FILTERS, named=False, known=DECLARED) == list(DECLARED)

    def test_filters_that_nothing_has_together_are_refused(self) -> None:
        """A sync of nothing would be a success."""
        unlikely = [one for one in DECLARED if one.name == "patients"]
        with pytest.raises(InvalidSetting, match="status and provider"):
            choose(unlikely, Filters("active", (5,)), named=False, known=DECLARED)

    def test_lists_under_a_row_have_none(self) -> None:
        assert not any(narrowed_by(one) for one in DECLARED if one.per or one.inside)


class TestMoment:
    @pytest.mark.parametrize(
        ("text", "hour"), [("2026-01-02", 0), ("2026-01-02T03:00:00Z", 3), ("2026-01-02T03:00:00+02:00", 1)]
    )
    def test_it_is_a_time_in_utc(self, text: str, hour: int) -> None:
        assert moment_of("x", text) == datetime(2026, 1, 2, hour, tzinfo=UTC)

    @pytest.mark.parametrize(
        "text",
        [
            *("yesterday", "2026-02-30", "2026-01-02T03:00:00", "20260102Z", ""),
            # Years that no record is of, and a week's day, which is as long as a day.
            *("0026-01-31", "2300-01-01", "2026W05T05"),
            # In UTC these are before the first year and after the last.
            *("0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"),
        ],
    )
    def test_anything_else_is_named_with_the_way_to_write_it(self, text: str) -> None:
        """A time without a zone is off by a day's work."""
        with pytest.raises(InvalidSetting, match=re.escape(f"since '{text}': write a day")):
            moment_of("since", text)


def test_a_filtered_read_brings_its_rows_and_leaves_no_trace(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """A watermark or a membership taken from part of a list loses the rest of it for good."""
    people = box.state.ids("patients")
    for number in people[:3]:
        box.state.update("patients", number, {"inactive": True})
    results = sync_all(
        settings, SyncOptions(mode=Mode.FULL, filters=Filters("inactive")), only={"patients", "providers"}
    )
    mine = [result for result in results if result.slice.institution_id]
    assert {(result.status, result.complete) for result in mine} == {(Status.SUCCEEDED, False)}
    assert {row[0] for row in rows("SELECT DISTINCT inactive FROM nexhealth_patients")} == {True}
    assert {row[0] for row in rows("SELECT id FROM nexhealth_patients")} >= set(people[:3])
    assert {row[0] for row in rows("SELECT DISTINCT inactive FROM nexhealth_providers")} <= {True}
    assert rows(LATER) == []
    assert rows("SELECT count(*) FROM nexhealth_patient_locations") == [(0,)]
    assert rows("SELECT count(*) FROM nexhealth_freshness WHERE institution_id <> 0") == [(0,)]
    asked = [one for one in box.requests.matching("/patients") if one.param("inactive") != "true"]
    assert asked == []
    sync_all(settings, only={"patients"})
    assert rows("SELECT count(*) FROM nexhealth_patients") == [(len(people),)]
    state, members = rows(LATER), rows("SELECT * FROM nexhealth_patient_locations ORDER BY 1, 2, 3")
    filters = Filters("active", updated_since=datetime(2020, 1, 1, tzinfo=UTC))
    sync_all(settings, SyncOptions(filters=filters), only={"patients"})
    assert rows(LATER) == state
    assert rows("SELECT * FROM nexhealth_patient_locations ORDER BY 1, 2, 3") == members


def test_appointments_of_a_provider_are_one_wide_read_a_location(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Month by month it would cost fifty times the requests, at ten a second."""
    provider = box.state.row("appointments", box.state.ids("appointments")[0]).value("provider_id")
    wanted = {
        number
        for number in box.state.ids("appointments")
        if box.state.row("appointments", number).value("provider_id") == provider
    }
    results = sync_all(settings, SyncOptions(filters=Filters(providers=(provider,))), only={"appointments"})
    assert {result.status for result in results} == {Status.SUCCEEDED}
    assert {row[0] for row in rows("SELECT id FROM nexhealth_appointments")} == wanted
    assert {one.param("updated_since") for one in box.requests.matching("/appointments")} == {None}
    assert rows(LATER) == []
    box.requests.clear()
    sync_all(settings, SyncOptions(filters=Filters(providers=(provider,), updated_since=SINCE)), only={"appointments"})
    assert {one.param("updated_since") for one in box.requests.matching("/appointments")} == {
        "2026-01-02T03:00:00+0000"
    }


def test_an_answer_that_says_a_parameter_was_ignored_is_a_failure(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A success with everything in it: the rows that nobody asked for must not be taken for the answer."""
    pages = NexHealthClient.pages

    def misspelt(client: NexHealthClient, request: ApiRequest, **more: Any) -> Iterator[Page]:
        renamed = tuple((f"un{name}" if name == "inactive" else name, value) for name, value in request.params)
        yield from pages(client, replace(request, params=renamed), **more)

    monkeypatch.setattr(NexHealthClient, "pages", misspelt)
    results = sync_all(settings, SyncOptions(filters=Filters("active")), only={"patients"})
    mine = [result for result in results if result.slice.institution_id]
    assert {result.status for result in mine} == {Status.FAILED}
    assert all("did not heed every parameter" in (result.reason or "") for result in mine)
    assert rows("SELECT count(*) FROM nexhealth_patients") == [(0,)]
