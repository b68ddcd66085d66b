"""A judgement that came to no end is made by whoever goes on with the reconcile, by what it had read."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.confirm import Confirmation
from nexhealth_pipeline.sync.slices import SliceResult

from .kit import Rows, sync_all
from .reconciled import DESERT, FULL, NORTH, RECONCILE, at, at_patient, gone, practice, told

pytestmark = pytest.mark.small_box(visits=0)

QUICK = RetryPolicy(sleep=lambda _: None)


@pytest.fixture
def settings(box: SandboxServer, database_url: str) -> Settings:
    return practice(box, database_url, "willow-dental")


def single_read_fails(box: SandboxServer, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    box.faults.add("status", path="/patients/[0-9]+")
    return {}


def status_cannot_be_asked(box: SandboxServer, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Once the lists are read; before them it could."""

    def then(label: str, pages: int, records: int) -> None:
        if label.startswith("patients"):
            box.faults.add("status", path="/sync_status")

    return {"on_progress": then}


def stopped_while_asking(box: SandboxServer, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    def stopped(self: Confirmation, width: int) -> None:
        raise Cancelled("stopped")

    patch.setattr(Confirmation, "run", stopped)
    return {}


@pytest.mark.parametrize(
    ("goes_wrong", "status"),
    [(single_read_fails, "failed"), (status_cannot_be_asked, "skipped"), (stopped_while_asking, "cancelled")],
)
def test_a_reconcile_that_could_not_mark_is_gone_on_with(
    settings: Settings,
    box: SandboxServer,
    rows: Rows,
    goes_wrong: Callable[[SandboxServer, pytest.MonkeyPatch], dict[str, Any]],
    status: str,
) -> None:
    """Risk: repeated from its failure it finds its reads made and its judgement made, is green, and has marked nothing."""
    sync_all(settings, FULL, only={"patients"})
    victim = at_patient(rows, DESERT)
    box.state.delete("patients", victim, hard=True)
    began = rows("SELECT clock_timestamp()")[0][0]
    options = replace(RECONCILE, fresh_after=began)
    with pytest.MonkeyPatch.context() as patch:
        more = goes_wrong(box, patch)
        results = sync_all(settings, options, only={"patients"}, retry=QUICK, **more)
    assert told(results, "patients")[f"willow-dental.{DESERT}"][0] == status
    assert gone(rows, "patients") == set()
    box.faults.clear()
    box.requests.clear()
    sync_all(settings, options, only={"patients"})
    assert gone(rows, "patients") == {victim}
    assert box.requests.matching("/patients") == [], "by what was read"
    assert _judgements(sync_all(settings, options, only={"patients"})) == [], "what is decided stays so"
    assert rows("SELECT count(*) FROM nexhealth_seen") == [(0,)]


@pytest.mark.parametrize("answered", [True, False])
def test_the_read_that_a_judgement_takes_is_told(
    settings: Settings, box: SandboxServer, rows: Rows, answered: bool
) -> None:
    """Risk: a row of the log that nobody is told of. Its failure is the judgement's to tell, not one of what was asked for."""
    sync_all(settings, FULL, only={"patients"})
    box.state.delete("patients", at_patient(rows, DESERT), hard=True)
    with pytest.MonkeyPatch.context() as patch:
        more = {} if answered else status_cannot_be_asked(box, patch)
        results = sync_all(settings, RECONCILE, only={"patients"}, retry=QUICK, **more)
    run, ended = rows("SELECT run_id, status FROM nexhealth_runs ORDER BY started_at DESC LIMIT 1")[0]
    logged = rows(f"SELECT collection, status, requests FROM nexhealth_sync_logs WHERE run_id = '{run}' ORDER BY id")
    assert sum(one.counts.requests for one in results) == sum(requests for *_, requests in logged)
    statuses = [one.status.value for one in results if one.slice.collection.name == "sync_status"]
    assert statuses == ["succeeded", "succeeded" if answered else "skipped"]
    assert [status for name, status, _ in logged if name == "sync_status"][1] == ("succeeded" if answered else "failed")
    assert ended == "succeeded"
    if not answered:
        assert told(results, "patients")[f"willow-dental.{DESERT}"][0] == "skipped", "the judgement says so"


def test_what_the_brake_held_up_is_told_again_and_marked_once_it_is_allowed(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """Of the database alone: what was judged of the other one stays so."""
    sync_all(settings, FULL, only={"operatories"})
    room, rooms = at(rows, "operatories", NORTH)[0], at(rows, "operatories", DESERT)
    for number in (room, *rooms):
        box.state.delete("operatories", number, hard=True)
    options = replace(RECONCILE, fresh_after=rows("SELECT clock_timestamp()")[0][0])
    for _ in range(2):
        results = sync_all(settings, options, only={"operatories"})
        assert told(results, "operatories")[f"willow-dental.{DESERT}"][0] == "failed"
        assert gone(rows, "operatories") == {room}
    noted = "SELECT DISTINCT location_id, judged_at IS NOT NULL, held_at IS NOT NULL FROM nexhealth_seen_passes"
    states = rows(f"{noted} WHERE collection = 'operatories' ORDER BY 1")
    assert [(judged, held) for place, judged, held in states if place == DESERT] == [(False, True)], (
        "the nights let it rest"
    )
    assert {(judged, held) for place, judged, held in states if place != DESERT} == {(True, False)}
    assert [one.slice.location_id for one in _judgements(results)] == [DESERT]
    sync_all(settings, replace(options, allow_mass_delete=True), only={"operatories"})
    assert gone(rows, "operatories") == {room, *rooms}


def test_what_was_read_long_ago_is_read_again_before_it_is_judged_by(
    settings: Settings, box: SandboxServer, rows: Rows
) -> None:
    """A reconcile may be re-executed from its failure days later, and what it lacked may be there again.

    A sync that met it unchanged left no trace of that, and no answer to a single id is asked for.
    """
    only = {"operatories"}
    sync_all(settings, FULL, only=only)
    back, *others = at(rows, "operatories", DESERT)
    kept = {number: box.state.row("operatories", number) for number in (back, *others)}
    for number in kept:
        box.state.delete("operatories", number, hard=True)
    first = rows("SELECT clock_timestamp()")[0][0]
    results = sync_all(settings, replace(RECONCILE, fresh_after=first), only=only)
    assert told(results, "operatories")[f"willow-dental.{DESERT}"][0] == "failed", "the brake"

    box.state.create("operatories", kept[back].record(), subdomain="willow-dental")
    sync_all(settings, only=only)
    assert gone(rows, "operatories") == set()
    days = "interval '3 days'"
    rows(
        f"UPDATE nexhealth_operatories SET synced_at = synced_at - {days}, source_read_at = source_read_at - {days} RETURNING 1"
    )
    ages = ", ".join(f"{name} = {name} - {days}" for name in ("begun_at", "started_at"))
    rows(f"UPDATE nexhealth_seen_passes SET {ages} RETURNING 1")
    again = replace(RECONCILE, fresh_after=first - timedelta(days=3), allow_mass_delete=True)
    box.requests.clear()
    sync_all(settings, again, only=only)
    assert gone(rows, "operatories") == {*others}
    assert len(box.requests.matching("/operatories")) == 3, "a list of each location"
    box.requests.clear()
    assert _judgements(sync_all(settings, again, only=only)) == []
    assert box.requests.matching("/operatories") == [], "once is enough"


def _judgements(results: list[SliceResult]) -> list[SliceResult]:
    return [one for one in results if one.absence is not None]
