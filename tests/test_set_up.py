"""Setting up: nothing twice, nothing half done, and a clear word to a Python that is too old."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """scripts/set_up.py as a module whose commands are written down instead of run."""
    spec = importlib.util.spec_from_file_location("set_up", ROOT / "scripts" / "set_up.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__dict__["commands"] = []
    monkeypatch.setattr(module, "run", lambda *command: remember(module.commands, command))
    return module


def remember(commands: list[str], command: tuple[str, ...]) -> None:
    """Note which command it was, and do what the later ones rely on."""
    if "venv" in command:
        python = Path(command[-1]) / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
    commands.append("venv" if "venv" in command else "packages" if "-r" in command else "project")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A clone with a lock and a project file."""
    (tmp_path / "requirements.lock").write_text("a==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    return tmp_path


def test_a_finished_set_up_is_not_done_again(tool: ModuleType, project: Path) -> None:
    """Every make target begins with it, so it has to be nothing when there is nothing to do."""
    tool.set_up(project)
    assert tool.commands == ["venv", "packages", "project"]
    tool.set_up(project)
    assert tool.commands == ["venv", "packages", "project"]


def test_a_changed_project_file_installs_the_project_alone(tool: ModuleType, project: Path) -> None:
    """A new lint rule must not cost minutes of downloads."""
    tool.set_up(project)
    (project / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    tool.set_up(project)
    assert tool.commands == ["venv", "packages", "project", "project"]


@pytest.mark.parametrize("change", ["lock", "python", "moved"])
def test_what_the_packages_depend_on_makes_a_new_environment(
    tool: ModuleType, project: Path, change: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A package that left the lock would hide a missing dependency; scripts name the folder they were made in."""
    tool.set_up(project)
    if change == "lock":
        (project / "requirements.lock").write_text("a==2\n")
    elif change == "python":
        (project / ".venv" / "bin" / "python").unlink()
    else:
        project = project.rename(tmp_path_factory.mktemp("elsewhere") / "clone")
    tool.set_up(project)
    assert tool.commands == ["venv", "packages", "project"] * 2


@pytest.mark.parametrize("last", ["venv", "packages", "project"])
def test_an_interrupted_set_up_is_begun_again(
    tool: ModuleType, project: Path, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip that is killed while it unpacks leaves a package that looks installed."""

    def interrupted(*command: str) -> None:
        remember(tool.commands, command)
        if tool.commands[-1] == last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tool.set_up(project)
    tool.commands.clear()
    tool.set_up(project)
    assert tool.commands == ["venv", "packages", "project"]


def test_the_environment_that_runs_the_set_up_is_made_anew(tmp_path: Path) -> None:
    """It is the first `python3` where it is activated: removed, it cannot make another."""
    folder = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (folder / "old").touch()
    program = (
        "import set_up, sys; from pathlib import Path; run = set_up.run;"
        "set_up.run = lambda *command: run(*command, '--without-pip');"  # which takes seconds
        "set_up.make_venv(Path(sys.argv[1]))"
    )
    command = [str(folder / "bin" / "python"), "-c", program, str(folder)]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT / "scripts")}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "bin" / "python").exists()
    assert not (folder / "old").exists()


def test_a_python_that_is_too_old_is_named(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error must not be one of pip's, five minutes later."""
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    with pytest.raises(tool.SetUpFailed, match=r"is Python 3\.9; 3\.11 to 3\.14 is needed"):
        tool.main([])


def test_make_says_what_to_do_when_it_finds_no_python(tmp_path: Path) -> None:
    """The first thing that can go wrong on a bare machine."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    command = [make, "-f", str(ROOT / "Makefile"), "venv"]
    done = subprocess.run(command, env={"PATH": "/nowhere"}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make PYTHON=/path/to/python3.12" in done.stderr
