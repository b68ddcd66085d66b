"""The events' benchmark: rounds by turns, and each without what its start took."""

import sys
from pathlib import Path

import events
import pytest
from events import OURS, STOCK, Noted
from results import kept


def test_rounds_come_by_turns_and_a_start_is_taken_off_in_time_and_in_both_cpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A slow minute of the machine would be one storage's alone, and PostgreSQL's CPU had the start in it."""
    asked: list[tuple[str, int]] = []

    def one(name: str, partitions: int) -> Noted:
        asked.append((name, partitions))
        slow = 1.0 if name == OURS else 10.0
        start = Noted(2.0 + len(asked), 1.5, 0.5, 2)
        if partitions == 1:
            return start
        return Noted(start.wall - 1 + slow, start.client_cpu + slow / 2, start.server_cpu + slow / 4, 2 * partitions)

    monkeypatch.setattr(events, "one", one)
    monkeypatch.setattr(
        sys, "argv", ["events.py", "--partitions", "50", "--rounds", "2", "--json", str(tmp_path / "x")]
    )
    events.main()
    assert asked == [(STOCK, 1), (STOCK, 50), (OURS, 1), (OURS, 50)] * 2
    stock, ours = kept(tmp_path / "x").tables[0].rows
    assert stock == [STOCK, "100", "10.0 (10.0-10.0)", "5.0 (5.0-5.0) + 2.5 (2.5-2.5)", "5.0 (3.0-7.0)"]
    assert ours == [OURS, "100", "1.0 (1.0-1.0)", "0.5 (0.5-0.5) + 0.2 (0.2-0.2)", "7.0 (5.0-9.0)"]
