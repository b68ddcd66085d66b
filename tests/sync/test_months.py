"""Month slices leave no gap and keep their keys."""

from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest

from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.months import month_keys, month_window, widest_window

TODAY = date(2026, 11, 23)


@pytest.fixture(autouse=True)
def _real_months(_few_months: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(months, "FIRST_MONTH", date(2024, 7, 1))
    monkeypatch.setattr(months, "MONTHS_AHEAD", 24)


def test_keys_run_from_the_fixed_first_month_to_two_years_ahead() -> None:
    keys = month_keys(TODAY)
    assert (keys[0], keys[-1], len(keys)) == ("2024-07", "2028-11", 53)
    assert keys == sorted(set(keys))
    assert "2024-12" in keys
    assert keys[keys.index("2024-12") + 1] == "2025-01"


@pytest.mark.parametrize("today", [date(2026, 12, 31), date(2027, 1, 1), date(2024, 7, 1), date(2028, 2, 29)])
def test_keys_only_ever_grow(today: date) -> None:
    """A partition key must mean the same for ever: Dagster's history hangs on it."""
    later = month_keys(today + timedelta(days=40))
    assert later[: len(month_keys(today))] == month_keys(today)


def test_windows_cover_all_time_without_a_gap() -> None:
    """Risk: an appointment between two windows is in no slice."""
    windows = [month_window(key, TODAY) for key in month_keys(TODAY)]
    assert windows[0][0] == datetime(1900, 1, 1, tzinfo=UTC)
    assert windows[-1][1] == datetime(2200, 1, 1, tzinfo=UTC)
    assert (windows[0][0], windows[-1][1]) == widest_window()
    for (_, end), (start, _) in pairwise(windows):
        assert end - start == timedelta(days=2)


@pytest.mark.parametrize(
    ("key", "start", "end"),
    [
        ("2026-02", "2026-01-31", "2026-03-02"),
        ("2026-12", "2026-11-30", "2027-01-02"),
        ("2028-02", "2028-01-31", "2028-03-02"),
        ("2024-07", "1900-01-01", "2024-08-02"),
        ("2028-11", "2028-10-31", "2200-01-01"),
    ],
)
def test_a_month_is_read_a_day_wider_on_both_sides(key: str, start: str, end: str) -> None:
    assert month_window(key, TODAY) == (
        datetime.fromisoformat(start).replace(tzinfo=UTC),
        datetime.fromisoformat(end).replace(tzinfo=UTC),
    )
