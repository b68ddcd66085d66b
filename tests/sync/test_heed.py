"""Answers that succeed and say that a parameter was ignored (API.md C.1): refused where rows would be wrong, else told."""

import logging
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.client.page import kept_page
from nexhealth_pipeline.errors import BadRequest
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.filters import NO_FILTERS
from nexhealth_pipeline.sync.heed import Heed
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import PassPlan, passes_of
from nexhealth_pipeline.sync.practice import Institution, Location
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status

from .kit import Rows, first_test_month, sync_all

FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
NORTH, SOUTH, DESERT = 348511, 348512, 348513
"""The first two share an EHR database, the third one with a closed office."""


def failed(results: list[SliceResult], name: str) -> dict[int, str]:
    """Why slices of a collection failed, by location."""
    mine = [one for one in results if one.slice.collection.name == name and one.absence is None]
    return {one.slice.location_id: one.reason or "" for one in mine if one.status is Status.FAILED}


def gone(rows: Rows, name: str) -> int:
    return int(rows(f"SELECT count(*) FROM nexhealth_{name} WHERE deleted_by = 'absence'")[0][0])


def test_nobody_is_noted_where_a_list_was_not_limited_to_its_location(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Each location would have all patients of the database it shares, be it with an office that is closed. Where none is
    shared nothing depends on it.
    """
    box.faults.add("ignored_parameter", path="/patients", parameter="location_strict")
    results = failed(sync_all(settings, FULL, only={"patients"}), "patients")
    assert results.keys() == {NORTH, SOUTH, DESERT}
    assert all("asked with location_strict" in one and "did not heed" in one for one in results.values())
    listed = "SELECT DISTINCT location_id FROM nexhealth_patient_locations ORDER BY 1"
    assert not results.keys() & {row[0] for row in rows(listed)}
    assert rows("SELECT count(*) FROM nexhealth_patients") == [(len(box.state.ids("patients")),)]

    box.faults.clear()
    assert failed(sync_all(settings, only={"patients"}), "patients") == {}
    assert results.keys() < {row[0] for row in rows(listed)}


@pytest.mark.parametrize(
    ("name", "path", "parameter"),
    [
        ("insurance_coverages", "/insurance_coverages", "active"),
        ("alerts", "/patients/.*/alerts", "include_disabled"),
        ("patient_addresses", "/patients/.*", "include[]"),
    ],
)
def test_what_a_list_hides_is_not_gone_where_it_was_not_opened(
    settings: Settings, box: SandboxServer, rows: Rows, name: str, path: str, parameter: str
) -> None:
    """Of an institution, of one patient, and inside the answer about one."""
    names = {"patients", name}
    sync_all(settings, FULL, only=names)
    box.faults.add("ignored_parameter", path=path, parameter=parameter)
    options = replace(RECONCILE, allow_mass_delete=True)
    results = failed(sync_all(settings, options, only=names), name)
    assert results
    assert all(f"asked with {parameter}" in one for one in results.values())
    assert gone(rows, name) == 0

    box.faults.clear()
    assert failed(sync_all(settings, RECONCILE, only=names), name) == {}


def test_an_ignored_parameter_that_costs_no_row_is_told_once_a_pass(
    settings: Settings,
    box: SandboxServer,
    rows: Rows,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The vendor's descriptions are mostly harmless: a sync must not stop for an order of pages that it did not get."""
    monkeypatch.setitem(MOST_A_PAGE, Paging.CURSOR, 5)
    box.faults.add("ignored_parameter", path="/patients", parameter="sort")
    with caplog.at_level(logging.INFO, "nexhealth_pipeline.sync.heed"):
        results = sync_all(settings, FULL, only={"patients"})
    assert failed(results, "patients") == {}
    told = [one.__dict__["nexhealth"] for one in caplog.records if one.name == "nexhealth_pipeline.sync.heed"]
    places = [(one["slice"], one["pass"]) for one in told]
    assert len(places) == len({*places}) >= 5
    assert {one["api"] for one in told} == {"The sort parameter is not supported by this endpoint and was ignored"}
    assert len(box.requests.matching("/patients")) > 2 * len(places)


def test_a_sync_of_an_api_without_faults_has_nothing_to_tell(
    settings: Settings, box: SandboxServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: a parameter that a list does not have, at a thousand locations, is a thousand warnings a night."""
    with caplog.at_level(logging.INFO, "nexhealth_pipeline.sync.heed"):
        sync_all(settings, RECONCILE)
    told = [one.__dict__["nexhealth"] for one in caplog.records if one.name == "nexhealth_pipeline.sync.heed"]
    assert told == []
    assert box.requests.matching("/locations/.*/appointment_descriptors")


def plan(name: str) -> PassPlan:
    """A pass of the patients of a location that shares its database."""
    home = Institution(7, "smile", "Smile", frozenset())
    place = Location(70, "Main", home, inactive=False, owner_id=70, shared=True)
    piece = Slice(COLLECTIONS["patients"], home, place)
    return next(one for one in passes_of(piece, first_test_month()) if one.pass_.name == name)


@pytest.mark.parametrize(
    ("name", "warning", "ignored", "refused"),
    [
        ("members", "Some parameters were ignored", (), True),
        ("members", "Some params were not recognized", (), True),
        ("members", "Ignored per_page", ("per_page",), False),
        ("members", "Invalid phone numbers are omitted", (), False),
        ("members", "Ignored location_id", ("location_id",), True),
        ("members", "The practice is being synchronised", (), False),
        ("all", "Some parameters were ignored", (), False),
        ("all", "Ignored location_id", ("location_id",), True),
        ("all", "Ignored location_strict", ("location_strict",), False),
        ("members", None, ("location_strict",), True),
    ],
)
def test_what_is_refused(name: str, warning: str | None, ignored: tuple[str, ...], refused: bool) -> None:
    """A pass that notes whom a location lists cannot do with an answer of which nobody knows what it heeded."""
    page = replace(kept_page(b"{}", datetime(2026, 1, 1, tzinfo=UTC)), warning=warning, ignored=frozenset(ignored))
    heed = Heed("patients smile.70", NO_FILTERS)
    if refused:
        with pytest.raises(BadRequest, match="did not heed"):
            heed.require(plan(name), [page])
    else:
        heed.require(plan(name), [page])
