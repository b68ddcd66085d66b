"""What a sync's first child decides before anything is read: what filters reach the runs, when nothing can be planned."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import InvalidSetting, TryLater, WarehouseError, WarehouseOutdated, WarehouseUnreachable
from nexhealth_pipeline.orchestration import forked
from nexhealth_pipeline.orchestration.config import SyncConfig
from nexhealth_pipeline.orchestration.forked import (
    _config,
    _require_practices,
    _sweep,
    _troubles,
    catch_up,
    discover,
    failure_of,
    finish,
)
from nexhealth_pipeline.orchestration.request import SyncRequest
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.filters import Filters
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.migrate import HEAD

from .kit import DESERT, NORTH, House

REPO = Path(__file__).resolve().parents[2]
SETTINGS = load_settings({}, environ={}, env_file=None)
ACME = Practices((Institution(1, "acme", "Acme", frozenset()),), ())
ANY = SyncRequest(Mode.INCREMENTAL)
FILTERS = Filters("inactive", (5, 6), datetime(2026, 1, 2, 3, tzinfo=UTC))


def row(status: str, pages: int, exit_status: int = 0, collection: str = "locations") -> dict[str, Any]:
    return {
        "collection": collection,
        "status": status,
        "reason": f"{collection}: why",
        "exit_status": exit_status,
        "counts": {"pages": pages},
    }


def test_filters_reach_the_runs_as_they_were_asked_for() -> None:
    """Through JSON and Dagster's config: one that is lost on the way reads everything and calls it complete."""
    config = _config(SyncRequest(Mode.FULL, filters=FILTERS), {})
    assert SyncConfig(**config).options(SETTINGS, datetime.now(UTC)).filters == FILTERS
    assert not {"status", "providers", "updated_since"} & set(_config(SyncRequest(Mode.FULL), {}))


def test_a_filtered_full_sync_is_no_sweep() -> None:
    """It would close a killed sync of everything as if that had come to its end."""
    nobody = cast(psycopg.Connection, None)
    assert _sweep(nobody, SETTINGS, SyncRequest(Mode.FULL, filters=FILTERS)) == (None, None)


def test_one_tenants_refused_key_stops_no_other() -> None:
    """Every list of discovery fails by that key, and holds what the other keys reach."""
    _require_practices(ACME, [row("failed", 1, 2)] * 3, ANY, SETTINGS)
    missing = load_settings({"NEXHEALTH_SUBDOMAINS": "acme,gone"}, environ={}, env_file=None)
    _require_practices(ACME, [row("failed", 1, 2)] * 3, ANY, missing)
    with pytest.raises(InvalidSetting, match="'gone'"):
        _require_practices(ACME, [row("succeeded", 2)] * 3, ANY, missing)


@pytest.mark.parametrize(("exit_status", "error"), [(2, InvalidSetting), (3, TryLater), (4, WarehouseError)])
def test_where_no_key_is_answered_nothing_else_is_tried(exit_status: int, error: type[Exception]) -> None:
    """Thousands of slices that all end alike, each after its retries."""
    with pytest.raises(error, match="why"):
        _require_practices(ACME, [row("failed", 0, exit_status)] * 3, ANY, SETTINGS)
    with pytest.raises(error, match="why"):
        _require_practices(Practices((), ()), [row("failed", 1, exit_status), row("succeeded", 1)], ANY, SETTINGS)


@pytest.mark.parametrize(("exit_status", "error"), [(2, InvalidSetting), (3, TryLater)])
def test_a_location_is_not_called_unknown_where_their_list_could_not_be_read(
    exit_status: int, error: type[Exception]
) -> None:
    """Who asked for a new one was told to check the key, while the API was out."""
    read = [row("succeeded", 1, collection="institutions"), row("succeeded", 1, collection="sync_status")]
    unlisted = [*read, row("failed", 0, exit_status)]
    one = SyncRequest(Mode.INCREMENTAL, locations=("acme.3",))
    with pytest.raises(error, match="locations: why"):
        _require_practices(ACME, unlisted, one, SETTINGS)
    _require_practices(ACME, unlisted, ANY, SETTINGS)
    known = Practices(ACME.institutions, (Location(3, "North", ACME.institutions[0], False, 3, False),))
    _require_practices(known, unlisted, one, SETTINGS)
    another = SyncRequest(Mode.INCREMENTAL, locations=("acme.3", "acme.4"))
    with pytest.raises(error, match="locations: why"):
        _require_practices(known, unlisted, another, SETTINGS)
    _require_practices(ACME, [row("failed", 0, 3, "sync_status"), row("succeeded", 1)], one, SETTINGS)


def test_institutions_without_any_location_are_told_of_once() -> None:
    """All lists were read, and nothing of any office: exit 0 would look like a copy. A list that failed says it itself."""
    read = [row("succeeded", 1, collection=one) for one in ("institutions", "locations", "sync_status")]
    ((label, reason),) = _troubles(ACME, read)
    assert (label, "acme" in reason) == ("locations", True)
    closed = Practices(ACME.institutions, (Location(3, "North", ACME.institutions[0], True, 3, False),))
    assert _troubles(closed, read) == _troubles(Practices((), ()), read) == []
    assert _troubles(ACME, [*read[1:], row("failed", 0, 3)]) == []


def test_a_dry_sync_leaves_a_warehouse_of_an_earlier_release_as_it_is(environment: dict[str, str]) -> None:
    """It says that it writes nothing, and the release at work would be locked out."""
    before = (f"{int(HEAD) - 1:04}",)
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = %s", before)
        with pytest.raises(WarehouseOutdated, match="run `nexhealth db upgrade`"):
            discover(load_settings(), environment["DATABASE_URL"], SyncRequest(Mode.FULL, dry_run=True), "sandbox")
        assert db.execute("SELECT version_num FROM nexhealth_alembic_version").fetchall() == [before]


def test_failed_slices_are_no_failure_of_their_run_and_hide_none(known: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that came to its end and one that broke off in the middle both have failed, and are red in Dagit."""
    known.box.faults.add("status", path="/operatories", location_id=348513, status=400)

    def failure() -> Exception | None:
        result = known.run(Scope.LOCATION, [NORTH, DESERT], assets=["operatories"])
        assert not result.success
        return failure_of(result)

    def crash(*_: object) -> None:
        raise ZeroDivisionError("Jane Doe")

    def lose(*_: object) -> None:
        raise OperationalError("INSERT", {}, Exception("Jane Doe"))

    def refuse(*_: object) -> None:
        raise WarehouseError("no room")

    assert failure() is None
    monkeypatch.setattr(SyncSession, "index", refuse)
    broken = failure()
    assert (type(broken), str(broken)) == (WarehouseError, "no room")
    monkeypatch.setattr(SyncSession, "index", crash)
    assert str(failure()).startswith("unexpected ZeroDivisionError at ")
    assert "Jane" not in str(failure())
    monkeypatch.setattr(SyncSession, "index", lose)
    assert str(failure()) == "the run failed (OperationalError); its log is in Dagster"


def test_the_changes_at_the_end_of_a_reconcile_that_was_gone_on_with_are_read_without_its_leave(
    known: House, environment: dict[str, str]
) -> None:
    """A run that reconciles nothing refuses the leave for mass deletes: the sync would end by that."""
    request = SyncRequest(Mode.RECONCILE, resources=("patients",), allow_mass_delete=True)
    jobs = catch_up(load_settings(), environment["DATABASE_URL"], request, {})["jobs"]
    assert jobs
    for job in jobs:
        assert SyncConfig(**job["config"]).options(SETTINGS, datetime.now(UTC)).mode is Mode.INCREMENTAL


@pytest.mark.parametrize(
    ("step", "act"),
    [
        ("end_dead_runs", lambda url: discover(load_settings(), url, SyncRequest(Mode.FULL), "sandbox")),
        ("load_practices", lambda url: discover(load_settings(), url, SyncRequest(Mode.FULL), "sandbox")),
        ("load_practices", lambda url: catch_up(load_settings(), url, SyncRequest(Mode.FULL), {})),
        ("finish_sweep", lambda url: finish(url, 1)),
    ],
)
def test_a_warehouse_that_is_lost_on_the_way_is_told_as_such(
    step: str, act: Callable[[str], object], known: House, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again later; as an unexpected error it would look like a bug of ours."""

    def lose(*arguments: object) -> None:
        (connection,) = (one for one in arguments if isinstance(one, psycopg.Connection))
        connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setenv("DAGSTER_HOME", str(REPO))
    monkeypatch.setattr(forked, step, lose)
    with pytest.raises(WarehouseUnreachable, match="ing a sync: the connection to PostgreSQL was lost"):
        act(environment["DATABASE_URL"])
