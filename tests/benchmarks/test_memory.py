"""Memory of a run: a figure that grows with the records, or is above what a run may take, is a failure, not a note."""

import sys
from pathlib import Path

import memory
import pytest


@pytest.mark.parametrize(
    ("most", "many", "dagster", "status"),
    [(159.0, 190.0, 190.0, 0), (170.0, 150.0, 150.0, 1), (150.0, 201.0, 150.0, 1), (150.0, 150.0, 201.0, 1)],
)
def test_a_peak_too_far_above_the_least_or_above_what_a_run_may_take_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: float, many: float, dagster: float, status: int
) -> None:
    peaks = {(1, 10): 150.0, (1, 100): most, (memory.LOCATIONS, 100): many}
    monkeypatch.setattr(memory, "loaded", lambda locations, records: peaks[locations, records])
    monkeypatch.setattr(memory, "loaded_by_dagster", lambda _: dagster)
    monkeypatch.setattr(
        sys, "argv", ["memory.py", "--records", "10", "100", "--rounds", "1", "--json", str(tmp_path / "x")]
    )
    assert memory.main() == status
    assert (tmp_path / "x").exists(), "what was found is told all the same"
