"""What a terminal shows of a sync while it runs: how far it is and for how long, however narrow."""

import io
import re

import pytest

from nexhealth_pipeline.cli.progress import BarlessLines, showing_progress
from nexhealth_pipeline.orchestration.launch import Progress


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


def drawn(monkeypatch: pytest.MonkeyPatch, width: int, progress: Progress) -> list[str]:
    """The lines of the last state of the bar on a terminal of that width."""
    monkeypatch.delenv("NO_COLOR", raising=False)  # without colours what is not yet done of the bar is blank
    for name, value in {"COLUMNS": str(width), "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with showing_progress(json=False) as show:
        assert show is not None
        before = len(terminal.getvalue())
        show(progress)
        state = terminal.getvalue()[before:]
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", state).splitlines()


@pytest.mark.parametrize("width", [60, 80, 140])
def test_slices_and_time_are_seen_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Of a first load of days neither bar nor count nor time was to be seen on 80 columns: "rea… s… 1,204,331 records"."""
    progress = Progress("appointments harbor-smiles.348621|2024-06", 1822, 1_204_331, 123, 3402)
    (line,) = drawn(monkeypatch, width, progress)
    assert line.startswith("reading ━")
    assert re.search(r" 123/3402 slices 0:00:0\d 1,204,331", line)
    assert len(line) <= width


def test_where_nobody_knows_how_many_there_will_be_no_slices_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of one patient "0 of 0 slices, 35 records on 30 pages" was told."""
    progress = Progress("alerts", 30, 35, 0, 0)
    BarlessLines(0.0)(progress)
    assert capsys.readouterr().out == "35 records on 30 pages; alerts\n"
    (line,) = drawn(monkeypatch, 80, progress)
    assert re.search(r"0:00:0\d 35 records on 30 pages; alerts", line)
    assert "slices" not in line
