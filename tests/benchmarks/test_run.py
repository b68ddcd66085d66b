"""`make bench`: what scripts say is kept, whatever becomes of them."""

import pytest
import run
from results import kept

STRUCTURED = """
import sys
from pathlib import Path
from results import Part, Table, arguments, show
show(Part("one", "One", tables=[Table(["a"], [["1"]])]), arguments("").parse_args().json)
sys.exit(3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(run.HERE))
    return tmp_path


def test_what_a_script_only_prints_is_kept_as_it_is(folder):
    (folder / "plain.py").write_text("print('so', 'many')")
    assert run.run(run.Script("plain", "Plain", file=str(folder / "plain.py")), quick=True)
    part = kept(folder / "plain.json")
    assert (part.title, part.output, part.quick, part.failed) == ("Plain", "so many\n", True, False)


def test_a_script_that_fails_keeps_what_it_found_and_is_said_to_have_failed(folder):
    (folder / "one.py").write_text(STRUCTURED)
    assert not run.run(run.Script("one", file=str(folder / "one.py")), quick=False)
    part = kept(folder / "one.json")
    assert part.failed
    assert part.tables[0].rows == [["1"]]
    assert not list(folder.glob("*.new"))


def test_an_unknown_name_is_refused_before_anything_is_set_up(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run.py", "nothing"])
    monkeypatch.setattr(run, "set_up", lambda: pytest.fail("set up"))
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "no benchmark 'nothing'" in capsys.readouterr().err
