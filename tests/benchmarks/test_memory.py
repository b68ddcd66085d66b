"""Memory of a run: a figure that grows with the records, or is above what a run may take, is a failure, not a note."""

import os
import sys
from pathlib import Path

import memory
import pytest


@pytest.mark.parametrize(
    ("most", "many", "daemon", "status"),
    [(159.0, 190.0, 190.0, 0), (170.0, 150.0, 150.0, 1), (150.0, 201.0, 150.0, 1), (150.0, 150.0, 201.0, 1)],
)
def test_a_peak_too_far_above_the_least_or_above_what_a_run_may_take_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: float, many: float, daemon: float, status: int
) -> None:
    peaks = {(1, 10): 150.0, (1, 100): most, (memory.LOCATIONS, 100): many}
    monkeypatch.setattr(memory, "loaded", lambda locations, records: peaks[locations, records])
    monkeypatch.setattr(memory, "loaded_by_daemon", lambda _: daemon)
    monkeypatch.setattr(
        sys, "argv", ["memory.py", "--records", "10", "100", "--rounds", "1", "--json", str(tmp_path / "x")]
    )
    assert memory.main() == status
    assert (tmp_path / "x").exists(), "what was found is told all the same"


def test_the_peak_is_that_of_the_process_by_the_kernel() -> None:
    assert memory.peak_so_far(None) == 0.0
    assert memory.peak_so_far(2**22 + 1) == 0.0, "no process has such a number"
    assert memory.peak_so_far(os.getpid()) > 20.0
