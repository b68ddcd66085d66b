"""`make bench`: what scripts say is kept, whatever becomes of them."""

from pathlib import Path

import pytest
import run
from results import NOT_HERE, Part, keep, kept

STRUCTURED = """
import sys
from pathlib import Path
from results import Part, Table, arguments, show
show(Part("one", "One", tables=[Table(["a"], [["1"]])]), arguments("").parse_args().json)
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(run.HERE))
    return tmp_path


def script(folder: Path, text: str) -> run.Script:
    (folder / "one.py").write_text(text)
    return run.Script("one", file=str(folder / "one.py"))


def test_a_script_that_fails_keeps_what_it_found_and_is_said_to_have_failed(folder):
    assert not run.run(script(folder, STRUCTURED), folder, quick=False)
    part = kept(folder / "one.json")
    assert part.failed
    assert part.tables[0].rows == [["1"]]
    assert not list(folder.glob("*.new"))


@pytest.mark.parametrize(("status", "fine"), [(1, False), (2, False), (NOT_HERE, True)])
def test_a_script_that_found_nothing_leaves_what_was_found_before(folder, status, fine):
    """An hour's figures must not go because a server did not start, or because a machine has no browser; a wrong option is a fault."""
    keep(Part("one", "One", "of yesterday"), folder / "one.json")
    assert run.run(script(folder, f"raise SystemExit({status})"), folder, quick=False) is fine
    part = kept(folder / "one.json")
    assert (part.text, part.failed) == ("of yesterday", False)


def test_an_unknown_name_is_refused_before_anything_is_set_up(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run.py", "nothing"])
    monkeypatch.setattr(run, "set_up", lambda: pytest.fail("set up"))
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "no benchmark 'nothing'" in capsys.readouterr().err
