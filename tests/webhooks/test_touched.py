"""Which slices a run of events reports, and what that costs where there are many."""

from collections.abc import Iterator
from datetime import UTC, date, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.plan import slices_of
from nexhealth_pipeline.sync.practice import Practices, load_practices
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.webhooks.applying import touched
from nexhealth_pipeline.webhooks.applying.touched import Touched
from tests.effort import counted

from .kit import INSTITUTION, LOCATION, SUBDOMAIN, T0, complete_elsewhere, load_page, mark_complete

OTHERS = range(71, 79)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Slice]:
    """The slices that are made."""
    made: list[Slice] = []

    def noted(collection: Collection, practices: Practices, today: date) -> Iterator[Slice]:
        for piece in slices_of(collection, practices, today):
            made.append(piece)
            yield piece

    monkeypatch.setattr(touched, "slices_of", noted)
    return made


@pytest.fixture
def practices(practice: psycopg.Connection) -> Practices:
    """An institution with many locations."""
    records = [{"id": one, "institution_id": INSTITUTION, "name": str(one), "inactive": False} for one in OTHERS]
    load_page(practice, "locations", records, institution=False)
    return load_practices(practice)


def test_only_slices_of_what_was_touched_are_made(
    practice: psycopg.Connection, practices: Practices, built: list[Slice]
) -> None:
    """All of a thousand locations are 53,000 months, at the end of each run for one event."""
    all_months = months.month_keys(datetime.now(UTC).date())
    month = all_months[0]
    mark_complete(practice, "appointments", month)
    key = f"{SUBDOMAIN}.{LOCATION}|{month}"
    touched = Touched(practices)
    touched.note(COLLECTIONS["appointments"], practices.institutions[0], key, 1, {1})
    (piece,) = touched.slices(practice)
    assert (piece.partition_key, piece.complete, piece.as_of) == (key, True, T0)
    assert {one.location_id for one in built} == {LOCATION}
    assert len(built) == len(all_months)


def test_watermarks_of_other_institutions_are_not_read(practice: psycopg.Connection, practices: Practices) -> None:
    """A thousand locations have 106,000 of months: half a second of work each time the doorbell rings."""
    month = months.month_keys(datetime.now(UTC).date())[0]
    mark_complete(practice, "appointments", month)
    mark_complete(practice, "patients")
    for name in ("appointments", "patients"):
        complete_elsewhere(practice, name, 300)
    touched = Touched(practices)
    keys = {"appointments": f"{SUBDOMAIN}.{LOCATION}|{month}", "patients": f"{SUBDOMAIN}.{LOCATION}"}
    for name, key in keys.items():
        touched.note(COLLECTIONS[name], practices.institutions[0], key, 1, {1})
    with counted() as effort:
        found = touched.slices(practice)
    assert [(one.partition_key, one.as_of) for one in found] == [(key, T0) for key in keys.values()]
    assert 0 < effort.rows < 10


def test_what_is_read_of_a_whole_institution_is_complete_once_each_of_its_locations_is(
    practice: psycopg.Connection, practices: Practices
) -> None:
    """Where its list has to be asked for at each of them."""
    practice.execute(
        "UPDATE nexhealth_institutions SET raw = raw || jsonb_build_object(%s::text, true)",
        (COLLECTIONS["appointment_types"].per_location_if,),
    )
    practices = load_practices(practice)
    touched = Touched(practices)
    touched.note(COLLECTIONS["appointment_types"], practices.institutions[0], SUBDOMAIN, 1, {1})
    for location in (LOCATION, *OTHERS):
        assert [one.complete for one in touched.slices(practice)] == [False]
        mark_complete(practice, "appointment_types", location=location)
    assert [(one.partition_key, one.complete) for one in touched.slices(practice)] == [(SUBDOMAIN, True)]


def test_rows_of_no_known_location_are_reported_as_no_slice(
    practice: psycopg.Connection, practices: Practices, built: list[Slice]
) -> None:
    touched = Touched(practices)
    touched.note(COLLECTIONS["patients"], practices.institutions[0], None, 1, {1})
    assert [(one.partition_key, one.rows, one.complete) for one in touched.slices(practice)] == [(None, 1, False)]
    assert built == []
