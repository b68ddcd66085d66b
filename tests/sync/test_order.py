"""What waits for what, and what is read side by side."""

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sync.order import Lane, Order, lane_of
from nexhealth_pipeline.sync.practice import Institution, Location
from nexhealth_pipeline.sync.slices import Slice

WILLOW, HARBOR = (Institution(number, name, name, frozenset()) for number, name in ((1, "willow"), (2, "harbor")))
NORTH = Location(10, "North", WILLOW, False, 10, shared=True)
SOUTH = Location(11, "South", WILLOW, False, 10, shared=True)
DESERT = Location(12, "Desert", WILLOW, False, 12, shared=False)
PIER = Location(20, "Pier", HARBOR, False, 20, shared=False)


def piece(name: str, location: Location, window: str = "") -> Slice:
    return Slice(COLLECTIONS[name], location.institution, location, window)


def labels(slices: list[Slice]) -> list[str]:
    return [one.label for one in slices]


def test_a_sibling_waits_for_its_databases_owner_in_the_same_collection_and_month():
    owner, other_month = piece("appointments", NORTH, "2026-01"), piece("appointments", NORTH, "2026-02")
    sibling = piece("appointments", SOUTH, "2026-01")
    order = Order([sibling, other_month, owner])
    assert labels(order.ready()) == labels([owner, other_month])
    order.done(other_month)
    assert order.ready() == []
    order.done(owner)
    assert order.ready() == [sibling]


def test_a_sibling_whose_owner_is_not_read_waits_for_nobody():
    assert labels(Order([piece("patients", SOUTH)]).ready()) == ["patients willow.11"]


def test_lists_under_patients_wait_for_all_patients_of_their_institution_and_for_no_other():
    north, desert, pier = (piece("patients", one) for one in (NORTH, DESERT, PIER))
    under_north, under_pier = piece("documents", NORTH), piece("documents", PIER)
    order = Order([under_north, under_pier, north, desert, pier, piece("operatories", NORTH)])
    assert set(labels(order.ready())) == {"operatories willow.10", *labels([north, desert, pier])}
    order.done(pier)
    assert order.ready() == [under_pier]
    order.done(north)
    assert order.ready() == []
    order.done(desert)
    assert order.ready() == [under_north]


def test_what_others_wait_for_goes_first():
    order = Order([piece("operatories", NORTH), piece("documents", NORTH), piece("patients", NORTH)])
    assert labels(order.ready()) == ["patients willow.10", "operatories willow.10"]


def test_every_slice_is_handed_out_exactly_once():
    names = ("operatories", "patients", "documents", "alerts", "patient_addresses")
    slices = [piece(name, one) for name in names for one in (NORTH, SOUTH, DESERT, PIER)]
    order, seen = Order(slices), []
    while ready := order.ready():
        seen += labels(ready)
        for one in ready:
            order.done(one)
    assert sorted(seen) == sorted(labels(slices))


@pytest.mark.parametrize(
    ("name", "lane"),
    [
        ("patients", Lane.PATIENTS),
        ("appointments", Lane.PATIENTS),
        ("operatories", Lane.OTHER),
        ("patient_recalls", Lane.OTHER),
        ("documents", Lane.UNDER_ROWS),
    ],
)
def test_a_lane_is_what_one_minute_limit_holds_back(name, lane):
    assert lane_of(piece(name, NORTH)) is lane
