"""Memory of a run: a figure that grows with the records is a failure, not a note."""

import sys
from pathlib import Path

import memory
import pytest
from nightly import Run


@pytest.mark.parametrize(("most", "status"), [(159.0, 0), (220.0, 1)])
def test_a_peak_far_above_the_least_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: float, status: int
) -> None:
    peaks = {10: 150.0, 100: most}
    monkeypatch.setattr(memory, "loaded", lambda records: Run(1.0, 0.0, [], 1.0, 1.0, peaks[records], 1))
    monkeypatch.setattr(sys, "argv", ["memory.py", "--records", "10", "100", "--json", str(tmp_path / "x")])
    assert memory.main() == status
    assert (tmp_path / "x").exists(), "what was found is told all the same"
