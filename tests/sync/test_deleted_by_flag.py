"""Appointments that the API still gives although they are deleted (API.md H): a flag that says so is believed, and a list
that holds them without one is not read."""

from datetime import UTC, datetime
from typing import Any

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .kit import Rows, sync_all

FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
ONLY = {"appointments"}


def visit_of(box: SandboxServer, place: int = 0) -> int:
    """One that is neither cancelled nor a block."""
    rows = box.state.store("appointments").rows.values()
    return sorted(row.id for row in rows if not row.facts["cancelled"] and row.facts["patient_id"])[place]


def state_of(rows: Rows, visit: int) -> tuple[Any, ...]:
    return rows(f"SELECT deleted_by, deleted_at = updated_at FROM nexhealth_appointments WHERE id = {visit}")[0]


def in_view(rows: Rows, visit: int) -> bool:
    return bool(rows(f"SELECT 1 FROM nexhealth_current.appointments WHERE id = {visit}"))


def test_a_visit_that_is_answered_as_deleted_is_deleted_and_comes_back_without_the_flag(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """No list that is read holds it; its single read says what became of it, and when."""
    visit = visit_of(box)
    sync_all(settings, FULL, only=ONLY)
    box.state.delete("appointments", visit, flagged=True)
    sync_all(settings, only=ONLY)
    assert in_view(rows, visit), "the lists that an incremental sync reads do not hold it"
    sync_all(settings, RECONCILE, only=ONLY)
    assert state_of(rows, visit) == ("source", True)
    assert not in_view(rows, visit)

    written = f"SELECT ctid::text, xmin::text FROM nexhealth_appointments WHERE id = {visit}"
    before = rows(written)
    sync_all(settings, RECONCILE, only=ONLY)
    assert rows(written) == before, "a second read of the same is no change"

    box.state.update("appointments", visit, {}, drop=("deleted",))
    sync_all(settings, only=ONLY)
    assert state_of(rows, visit) == (None, None)
    assert in_view(rows, visit)
    causes = f"SELECT changed_fields @> '{{deleted_at}}' FROM nexhealth_history WHERE id = {visit} ORDER BY version"
    assert rows(causes) == [(True,), (True,)]


def test_a_visit_that_a_list_still_holds_without_a_word_is_deleted(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Risk: v3's list without `cancelled` holds deleted ones, which no key tells apart: live for ever, or brought back."""
    visit, since_ever = visit_of(box, 0), visit_of(box, 1)
    box.state.delete("appointments", since_ever, listed=True)
    sync_all(settings, FULL, only=ONLY)
    box.state.delete("appointments", visit, listed=True)
    for options in (RECONCILE, FULL, RECONCILE):
        sync_all(settings, options, only=ONLY)
        assert state_of(rows, visit)[0] == "absence"
        assert not in_view(rows, visit)
    assert rows(f"SELECT 1 FROM nexhealth_appointments WHERE id = {since_ever}") == []
    box.state.update("appointments", visit, {})
    sync_all(settings, only=ONLY)
    assert state_of(rows, visit) == (None, None)


def test_a_flag_in_the_lists_that_every_sync_reads_holds_at_once(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """No shape of it but `true` deletes; one without a time is deleted since it was read, and not anew each time."""
    gone, timeless, kept, unsaid = (visit_of(box, place) for place in range(4))
    sync_all(settings, FULL, only=ONLY)
    began = datetime.now(UTC)
    for number, fields in (
        (gone, {"deleted": True}),
        (timeless, {"deleted": True, "updated_at": None}),
        (kept, {"deleted": False}),
        (unsaid, {"deleted": None}),
    ):
        box.state.update("appointments", number, fields)
        # As a server that does not leave them out of any list.
        box.state.row("appointments", number).facts["deleted"] = None
    sync_all(settings, only=ONLY)
    assert [state_of(rows, one) for one in (gone, kept, unsaid)] == [("source", True), (None, None), (None, None)]
    ((by, since),) = rows(f"SELECT deleted_by, deleted_at FROM nexhealth_appointments WHERE id = {timeless}")
    assert by == "source"
    assert abs((since - began).total_seconds()) < 600
    sync_all(settings, FULL, only=ONLY)
    assert rows(f"SELECT deleted_at FROM nexhealth_appointments WHERE id = {timeless}") == [(since,)]
    assert rows("SELECT field FROM nexhealth_schema_drift WHERE collection = 'appointments'") == []


def test_a_missing_visit_that_is_answered_as_deleted_is_not_there(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """No list holds it, and its single read answers 200: that alone used to bring it back to life."""
    visit, hidden = visit_of(box, 0), visit_of(box, 1)
    sync_all(settings, FULL, only=ONLY)
    box.state.delete("appointments", visit, flagged=True)
    for number in (visit, hidden):  # of no location's list
        row = box.state.row("appointments", number)
        box.state.store("appointments").remove(number)
        row.facts["location_id"] = 0
        box.state.store("appointments").put(row)
    box.requests.clear()
    results = sync_all(settings, RECONCILE, only=ONLY)
    asked = {one.path for one in box.requests if one.path.startswith("/appointments/")}
    assert asked == {f"/appointments/{visit}", f"/appointments/{hidden}"}
    assert (state_of(rows, visit), state_of(rows, hidden)) == (("source", True), (None, None))
    absences = [one.absence for one in results if one.absence is not None and not one.absence.quiet]
    assert [sum(getattr(one, name) for one in absences) for name in ("missing", "confirmed", "found")] == [2, 1, 1]
    assert sum(one.tombstoned for one in absences) == 0, "the API says so, nothing was inferred"
