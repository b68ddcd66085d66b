"""Keeping house once a day: only what is done counts as done."""

import threading
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.orchestration import housekeeping
from nexhealth_pipeline.orchestration.housekeeping import keep_house_daily
from nexhealth_pipeline.settings import load_settings
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
