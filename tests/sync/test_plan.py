"""Which slices a sync reads, and what each asks for: pure functions of catalog, practices and state."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.sync.months import CHANGES, month_keys
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import api_time, due_slices, filter_hash, passes_of, slices_of
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.state import PassKey

TODAY = datetime.now(UTC).date()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
WILLOW = Institution(1, "willow", "Willow", frozenset())
HARBOR = Institution(2, "harbor", "Harbor", frozenset({"appointment_types_location_scoped"}))
NORTH = Location(11, "North", WILLOW, inactive=False, owner_id=11, shared=True)
SOUTH = Location(12, "South", WILLOW, inactive=False, owner_id=11, shared=True)
CLOSED = Location(13, "Closed", WILLOW, inactive=True, owner_id=13, shared=False)
PIER = Location(21, "Pier", HARBOR, inactive=False, owner_id=21, shared=False)
PRACTICES = Practices((WILLOW, HARBOR), (NORTH, SOUTH, CLOSED, PIER))
APPOINTMENTS = COLLECTIONS["appointments"]
INCREMENTAL, FULL = SyncOptions(), SyncOptions(mode=Mode.FULL)


def labels(name: str) -> list[str]:
    return [piece.label for piece in slices_of(COLLECTIONS[name], PRACTICES, TODAY)]


def asked(piece: Slice) -> list[dict[str, str]]:
    return [dict(plan.request.params) for plan in passes_of(piece, TODAY)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("institutions", ["institutions"]),
        ("providers", ["providers willow", "providers harbor"]),
        ("patients", ["patients willow.11", "patients willow.12", "patients harbor.21"]),
        ("documents", ["documents willow.11", "documents willow.12", "documents harbor.21"]),
    ],
)
def test_a_collection_has_a_slice_for_each_of_its_scope_at_active_locations(name: str, expected: list[str]) -> None:
    assert labels(name) == expected


def test_a_windowed_collection_has_a_slice_for_each_location_and_month() -> None:
    slices = list(slices_of(APPOINTMENTS, PRACTICES, TODAY))
    assert len(slices) == 3 * len(month_keys(TODAY))
    assert slices[0].partition_key == f"willow.11|{month_keys(TODAY)[0]}"


def test_the_owner_of_a_database_reads_all_and_every_sharer_its_own_list() -> None:
    """Promise 1 where two locations share one EHR database: rows once, memberships of each."""
    north, south, pier = slices_of(COLLECTIONS["patients"], PRACTICES, TODAY)
    assert [params["location_strict"] for params in asked(north)] == ["false", "true"]
    assert [params["location_strict"] for params in asked(south)] == ["true"]
    assert [params["location_strict"] for params in asked(pier)] == ["false"]
    assert [params["location_id"] for params in asked(north)] == ["11", "11"]


def test_types_that_belong_to_locations_are_asked_for_at_each() -> None:
    willow, harbor = slices_of(COLLECTIONS["appointment_types"], PRACTICES, TODAY)
    assert asked(willow) == [{}]
    assert asked(harbor) == [{"location_id": "21"}]
    keys = [plan.key for plan in passes_of(harbor, TODAY)]
    assert keys == [PassKey("appointment_types", 2, 21, "", "all")]


def test_types_that_belong_to_locations_are_not_asked_for_where_no_location_is_active() -> None:
    """Risk: asked without a location the API refuses, so that such an institution fails every night."""
    closed = Practices((WILLOW, HARBOR), (NORTH, replace(PIER, inactive=True)))
    assert [piece.label for piece in slices_of(COLLECTIONS["appointment_types"], closed, TODAY)] == [
        "appointment_types willow"
    ]
    assert len([*slices_of(COLLECTIONS["providers"], closed, TODAY)]) == 2


def test_a_month_asks_for_kept_and_cancelled_rows_in_its_window() -> None:
    key = month_keys(TODAY)[2]
    piece = Slice(APPOINTMENTS, WILLOW, NORTH, key)
    plans = passes_of(piece, TODAY)
    assert [dict(plan.request.params)["cancelled"] for plan in plans] == ["false", "true"]
    assert {plan.key.window_key for plan in plans} == {key}
    for plan in plans:
        params = dict(plan.request.params)
        assert params["start"].endswith("T00:00:00+0000")
        assert params["sort"] == "updated_at"
        assert (plan.request.subdomain, plan.request.per_page, plan.request.path) == (
            "willow",
            1000,
            "/appointments",
        )


def test_the_change_slice_asks_for_all_time() -> None:
    (kept, _) = asked(Slice(APPOINTMENTS, WILLOW, NORTH, CHANGES))
    assert (kept["start"], kept["end"]) == ("1900-01-01T00:00:00+0000", "2200-01-01T00:00:00+0000")


@pytest.mark.parametrize("collection", DECLARED, ids=lambda collection: collection.name)
def test_every_slice_has_a_pass_and_every_pass_its_own_state(collection: object) -> None:
    slices = list(slices_of(COLLECTIONS[collection.name], PRACTICES, TODAY))  # type: ignore[attr-defined]
    keys = [plan.key for piece in slices for plan in passes_of(piece, TODAY)]
    assert all(passes_of(piece, TODAY) for piece in slices)
    assert len(set(keys)) == len(keys)


def watermarks(*pieces: Slice) -> dict[PassKey, datetime]:
    return {plan.key: NOON for piece in pieces for plan in passes_of(piece, TODAY)}


def due(known: dict[PassKey, datetime], options: SyncOptions) -> list[tuple[int, str]]:
    only_north = Practices((WILLOW,), (NORTH,))
    found = due_slices([APPOINTMENTS], only_north, known, options, TODAY)
    return [(piece.location_id, piece.window_key) for piece in found]


def every_month() -> list[Slice]:
    return [Slice(APPOINTMENTS, WILLOW, NORTH, key) for key in month_keys(TODAY)]


def test_an_incremental_sync_reads_unread_months_and_the_changes_of_the_others() -> None:
    """Risk: before one month is complete there is no watermark to begin from; and one that fails must not hold up all."""
    months = every_month()
    keys = [(11, piece.window_key) for piece in months]
    assert due({}, INCREMENTAL) == keys
    assert due(watermarks(months[0]), INCREMENTAL) == [*keys[1:], (11, CHANGES)]
    assert due(watermarks(*months[1:]), INCREMENTAL) == [keys[0], (11, CHANGES)]
    assert due(watermarks(*months), INCREMENTAL) == [(11, CHANGES)]


def test_a_month_whose_read_broke_off_is_unread() -> None:
    months = every_month()
    known = watermarks(*months[:3], *months[4:])
    assert due(known, INCREMENTAL) == [(11, months[3].window_key), (11, CHANGES)]


def test_a_month_with_one_pass_of_two_is_unread() -> None:
    months = every_month()
    known = watermarks(*months)
    half = passes_of(months[0], TODAY)
    del known[half[1].key]
    assert due(known, INCREMENTAL) == [(11, months[0].window_key), (11, CHANGES)]
    assert (11, CHANGES) not in due({half[0].key: NOON}, INCREMENTAL)


def test_a_new_month_stops_no_changes() -> None:
    """On the first of each month a new last month is unread; the night's changes must come all the same."""
    months = every_month()
    known = watermarks(*months[:-1], replace(months[0], window_key=CHANGES))
    assert due(known, INCREMENTAL) == [(11, months[-1].window_key), (11, CHANGES)]


def test_a_full_sync_reads_every_month_again() -> None:
    months = every_month()
    assert due(watermarks(*months), FULL) == [(11, piece.window_key) for piece in months]


def test_an_asked_window_reads_the_months_it_touches() -> None:
    keys = month_keys(TODAY)
    first = date.fromisoformat(f"{keys[2]}-10")
    options = SyncOptions(start=first, end=first)
    assert due({}, options) == [(11, keys[2])]
    first, fourth = (date.fromisoformat(f"{keys[place]}-01") for place in (2, 5))
    assert due({}, SyncOptions(start=first, end=fourth - timedelta(days=1))) == [(11, key) for key in keys[2:5]]
    assert due({}, SyncOptions(start=first, end=fourth)) == [(11, key) for key in keys[2:6]]
    assert due({}, SyncOptions(end=date(1950, 1, 1))) == [(11, keys[0])]
    assert due({}, SyncOptions(start=date(2190, 1, 1))) == [(11, keys[-1])]


def test_one_without_window_is_due_whatever_its_state() -> None:
    found = due_slices([COLLECTIONS["providers"]], PRACTICES, {}, INCREMENTAL, TODAY)
    assert [piece.label for piece in found] == ["providers willow", "providers harbor"]


def test_a_cursor_is_valid_for_its_path_scope_and_filters_only() -> None:
    """Risk: going on with another request's cursor skips rows in silence."""
    (plan,) = passes_of(Slice(COLLECTIONS["operatories"], WILLOW, NORTH), TODAY)
    request = plan.request
    others = [
        replace(request, path="/x"),
        replace(request, subdomain="harbor"),
        replace(request, params=(*request.params, ("updated_since", "2026"))),
        replace(request, params=()),
    ]
    assert filter_hash(request) == filter_hash(replace(request))
    assert len({filter_hash(one) for one in [request, *others]}) == 5


def test_requests_carry_what_the_declaration_says() -> None:
    (plan,) = passes_of(Slice(COLLECTIONS["documents"], WILLOW, NORTH), TODAY)
    assert (plan.request.paging, plan.request.legacy_accept) == (Paging.NONE, True)
    assert "location_id" not in dict(plan.request.params)  # the path names the patient
    (described,) = passes_of(Slice(COLLECTIONS["appointment_descriptors"], WILLOW, NORTH), TODAY)
    assert described.request.path == "/locations/11/appointment_descriptors"
    assert (described.request.subdomain, described.request.key_name) == (None, "willow")
    (whole,) = passes_of(Slice(COLLECTIONS["locations"]), TODAY)
    assert (whole.request.subdomain, whole.request.records_at) == (None, ("locations",))


def test_times_are_written_as_the_api_recommends() -> None:
    moment = datetime(2026, 3, 1, 9, 8, 7, 999, tzinfo=UTC)
    assert api_time(moment) == "2026-03-01T09:08:07+0000"
    assert api_time(moment.astimezone(ZoneInfo("Asia/Kolkata"))) == api_time(moment)
