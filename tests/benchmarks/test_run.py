"""`make bench`: what scripts say is kept, whatever becomes of them."""

import subprocess
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


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A folder of benchmarks whose environment takes a package that no index has."""
    (tmp_path / "requirements.txt").write_text("nothing\n")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(run, "VENV", tmp_path / ".venv")
    return tmp_path


def commands_of(monkeypatch, statuses: dict[str, int]) -> list[str]:
    """Which commands of the set-up are run from now on: `venv` makes a Python, each ends with its status."""
    commands: list[str] = []

    def called(command, *, check):
        words = [str(word) for word in command]
        commands.append("venv" if "venv" in words else "pip")
        if commands[-1] == "venv":
            (run.VENV / "bin").mkdir(parents=True, exist_ok=True)
            (run.VENV / "bin" / "python").touch()
        return subprocess.CompletedProcess(words, statuses.get(commands[-1], 0))

    monkeypatch.setattr(subprocess, "run", called)
    return commands


def test_without_a_network_one_line_says_what_is_missing(bench, monkeypatch):
    """Not a traceback, and nothing that looks finished the next time."""
    commands = commands_of(monkeypatch, {"pip": 1})
    with pytest.raises(SystemExit, match=r"^benchmarks/\.venv cannot be set up: .*network.* pip .*requirements\.txt$"):
        run.set_up()
    assert commands == ["venv", "pip"]
    assert not (run.VENV / "stamp").exists()


@pytest.mark.parametrize("lost", ["python", "what is in it"])
def test_a_set_up_that_lost_its_python_or_was_interrupted_is_begun_again(bench, monkeypatch, lost):
    """A Python of the system that was removed leaves a link that leads nowhere; `venv --clear` may end half way."""
    commands = commands_of(monkeypatch, {})
    run.set_up()
    run.set_up()
    assert commands == ["venv", "pip"]
    if lost == "python":
        (run.VENV / "bin" / "python").unlink()
    else:
        (bench / "requirements.txt").write_text("other\n")
        with monkeypatch.context() as patch:
            commands_of(patch, {"venv": 1})
            with pytest.raises(SystemExit):
                run.set_up()
        (bench / "requirements.txt").write_text("nothing\n")
    run.set_up()
    assert commands == ["venv", "pip"] * 2


def test_an_unknown_name_is_refused_before_anything_is_set_up(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run.py", "nothing"])
    monkeypatch.setattr(run, "set_up", lambda: pytest.fail("set up"))
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "no benchmark 'nothing'" in capsys.readouterr().err
