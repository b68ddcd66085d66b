"""Keeping house once a day: only what is done counts as done, and no clock is believed that is far from another."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from nexhealth_pipeline.errors import ClocksDiffer, MissingRights, WarehouseError
from nexhealth_pipeline.orchestration import housekeeping
from nexhealth_pipeline.orchestration.housekeeping import keep_house, keep_house_daily
from nexhealth_pipeline.orchestration.retention import remove_old_records
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse import housekeeping as kept
from nexhealth_pipeline.warehouse.migrate import upgrade


@pytest.fixture
def warehouse(database_url: str) -> str:
    upgrade(database_url)
    return database_url


def _let_pass(url: str, interval: str) -> None:
    with psycopg.connect(url) as db:
        db.execute("UPDATE nexhealth_housekeeping SET begun_at = begun_at - %s::interval", (interval,))


def test_what_fails_is_tried_again_after_an_hour_and_what_is_done_the_next_day(
    warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: payloads stay for another day each time the server is restarted meanwhile. At once it would only fail again."""
    tries: list[str] = []

    def fails_first(*_: Any) -> dict[str, int]:
        tries.append("removed" if tries else "failed")
        if len(tries) == 1:
            raise WarehouseError("the server was restarted")
        return {}

    monkeypatch.setattr(housekeeping, "remove_old", fails_first)
    with pytest.raises(WarehouseError, match="restarted"):
        keep_house_daily(load_settings(), warehouse, None)
    keep_house_daily(load_settings(), warehouse, None)
    assert tries == ["failed"]
    _let_pass(warehouse, "61 minutes")
    keep_house_daily(load_settings(), warehouse, None)
    assert tries == ["failed", "removed"]
    _let_pass(warehouse, "19 hours")
    keep_house_daily(load_settings(), warehouse, None)
    assert tries == ["failed", "removed"]
    _let_pass(warehouse, "61 minutes")
    stop = threading.Event()
    stop.set()
    for number in (3, 4):
        keep_house_daily(load_settings(), warehouse, None, stop)
        assert len(tries) == number, "what was stopped is not done either"
        _let_pass(warehouse, "61 minutes")


def test_what_takes_long_is_not_begun_again_beside_it(warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second finds Dagster's part taken, would call all of it done, and the first may be killed."""
    begun: list[int] = []

    def takes_hours(*_: Any) -> dict[str, int]:
        begun.append(1)
        if len(begun) == 1:
            _let_pass(warehouse, "3 hours")
            keep_house_daily(load_settings(), warehouse, None)
        return {}

    monkeypatch.setattr(housekeeping, "remove_old", takes_hours)
    keep_house_daily(load_settings(), warehouse, None)
    assert begun == [1]


def test_what_a_right_is_missing_for_is_told_once_a_day(warehouse: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails the watchdog's run, and an hour brings no right."""
    tries: list[int] = []

    def refused(*_: Any) -> dict[str, int]:
        tries.append(1)
        raise MissingRights("permission denied")

    monkeypatch.setattr(housekeeping, "remove_old", refused)
    with pytest.raises(MissingRights):
        keep_house_daily(load_settings(), warehouse, None)
    _let_pass(warehouse, "19 hours")
    keep_house_daily(load_settings(), warehouse, None)
    assert tries == [1]
    _let_pass(warehouse, "61 minutes")
    with pytest.raises(MissingRights):
        keep_house_daily(load_settings(), warehouse, None)


def test_the_clock_of_a_second_server_is_looked_at_as_well(
    warehouse: str, other_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster's records are told old by their own database's; the watchdog's run is not to fail each hour for it."""
    there = conninfo_to_dict(other_database_url)["dbname"]

    def ahead(connection: psycopg.Connection) -> datetime:
        return datetime.now(UTC) + timedelta(days=365 * (connection.info.dbname == there))

    monkeypatch.setattr(kept, "database_time", ahead)
    begun: list[int] = []
    monkeypatch.setattr(housekeeping, "remove_old", lambda *_: begun.append(1) or {})
    with pytest.raises(ClocksDiffer, match=f"database {there} it is"):
        keep_house_daily(load_settings(), warehouse, other_database_url)
    _let_pass(warehouse, "61 minutes")
    keep_house_daily(load_settings(), warehouse, other_database_url)
    assert begun == [1], "the warehouse's own go, once a day"


@pytest.mark.parametrize("days", [365, -365])
def test_nothing_goes_by_a_database_s_clock_that_is_far_from_the_host_s(
    warehouse: str, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """Risk: a clock that is a year ahead for a quarter of an hour, and history and payloads are gone for good."""
    told: list[dict[str, str]] = []
    monkeypatch.setattr(housekeeping._LOG, "warning", lambda _, extra: told.append(extra["nexhealth"]))
    with psycopg.connect(warehouse, autocommit=True) as db:
        db.execute("INSERT INTO nexhealth_sweeps (mode, scope_hash, started_at) VALUES ('full', 'a', '2024-01-01')")
        with monkeypatch.context() as patch:
            wrong = datetime.now(UTC) + timedelta(days=days)
            patch.setattr(kept, "database_time", lambda _: wrong)
            keep_house_daily(load_settings(), warehouse, None)
            with pytest.raises(WarehouseError) as refused:
                keep_house(load_settings(), warehouse, None)
            with pytest.raises(WarehouseError, match="what is old cannot be told"):
                remove_old_records(warehouse, 30)  # Dagster's may be another server, with a clock of its own
        assert db.execute("SELECT count(*) FROM nexhealth_sweeps").fetchone() == (1,)
        (warning,) = told
        assert str(wrong.year) in warning["reason"]
        assert str(refused.value)[:60] == warning["reason"][:60]
        keep_house_daily(load_settings(), warehouse, None)
        assert db.execute("SELECT count(*) FROM nexhealth_sweeps").fetchone() == (0,), "as soon as it is right"
