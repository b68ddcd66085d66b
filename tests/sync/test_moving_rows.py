"""Rows that move while a list is read in parts: what is listed at every moment is never marked as gone."""

import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync import fault_points
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .kit import Rows, first_test_month, sync_all

pytestmark = pytest.mark.small_box(visits=2)

FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
IN_HALVES = {
    "insurance_coverages": "active",
    "payment_types": "active",
    "adjustment_types": "active",
    "fee_schedules": "active",
    "document_types": "active",
    "working_hours": "active",
    "providers": "inactive",
    "nex_staff": "inactive",
}
"""Collections that are read by activity, and what says it."""


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url}
    return load_settings(given | {"NEXHEALTH_SUBDOMAINS": "willow-dental"}, environ={}, env_file=None)


def test_these_are_all_that_are_read_in_halves() -> None:
    """Each has the pass that catches what moves between the halves."""
    halves = {name for name, one in COLLECTIONS.items() if {"active", "inactive"} <= {x.name for x in one.passes}}
    assert halves == IN_HALVES.keys()
    for name in halves:
        *_, again = COLLECTIONS[name].passes
        assert again.reconcile_only
        assert again.params == COLLECTIONS[name].passes[0].params


@pytest.mark.parametrize("name", IN_HALVES)
def test_a_row_that_becomes_active_between_the_halves_is_not_gone(
    settings: Settings, box: SandboxServer, rows: Rows, name: str
) -> None:
    """It is in neither: the active ones came before, the inactive ones after."""
    word = IN_HALVES[name]
    only = {"patients", name}
    sync_all(settings, FULL, only=only)
    table = f"nexhealth_{name}"
    dormant = f"SELECT id FROM {table} WHERE {word} = {'true' if word == 'inactive' else 'false'} ORDER BY id"
    (victim,) = rows(dormant)[0]
    moved: list[str] = []

    def wake(point: fault_points.Point, collection: str) -> None:
        if (point, collection) == ("after_commit", name) and not moved:
            moved.append(collection)
            box.state.update(name, victim, {word: word == "active"})

    fault_points.armed = wake
    try:
        results = sync_all(settings, RECONCILE, only=only)
    finally:
        fault_points.armed = None
    assert moved
    assert {str(one.status) for one in results} <= {"succeeded", "skipped"}, [one.reason for one in results]
    assert rows(f"SELECT id FROM {table} WHERE deleted_by = 'absence'") == []


@pytest.mark.parametrize("name", ["insurance_coverages", "fee_schedules"])
def test_a_row_that_is_neither_active_nor_inactive_is_not_gone(
    settings: Settings, box: SandboxServer, rows: Rows, name: str
) -> None:
    """The API declares that `active` may be null there: such a row is in no half, and answered by its id."""
    only = {"patients", name}
    sync_all(settings, FULL, only=only)
    ((victim,),) = rows(f"SELECT min(id) FROM nexhealth_{name}")
    box.state.update(name, victim, {"active": None})
    results = sync_all(settings, RECONCILE, only=only)
    assert {str(one.status) for one in results} <= {"succeeded", "skipped"}, [one.reason for one in results]
    assert rows(f"SELECT deleted_by, active FROM nexhealth_{name} WHERE id = {victim}") == [(None, None)]


def test_a_visit_that_is_taken_back_between_the_lists_is_asked_for_by_id(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """It is in neither: those kept came before, those cancelled after."""
    visits = box.state.store("appointments").rows.values()
    visit = min(one.id for one in visits if one.facts["location_id"] == 348511)
    times = {f"{name}_time": f"{first_test_month()}T{hour}:00:00.000Z" for name, hour in (("start", 15), ("end", 16))}
    box.state.update("appointments", visit, {"cancelled": True, **times})
    sync_all(settings, FULL, only={"appointments"})
    moved: list[str] = []

    def take_back(point: fault_points.Point, collection: str) -> None:
        if (point, collection) == ("after_commit", "appointments") and not moved:
            moved.append(collection)
            box.state.update("appointments", visit, {"cancelled": False})

    box.requests.clear()
    fault_points.armed = take_back
    try:
        sync_all(settings, SyncOptions(mode=Mode.RECONCILE, concurrency=1), only={"appointments"})
    finally:
        fault_points.armed = None
    assert moved
    assert [one.path for one in box.requests if one.path.startswith("/appointments/")] == [f"/appointments/{visit}"]
    assert rows("SELECT id FROM nexhealth_appointments WHERE deleted_by IS NOT NULL") == []
    assert rows(f"SELECT cancelled FROM nexhealth_appointments WHERE id = {visit}") == [(False,)]
