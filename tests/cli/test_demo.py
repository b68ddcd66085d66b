"""`nexhealth demo` around the sync: its sandbox, its realm, its words, its end."""

import json
import os
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline import errors
from nexhealth_pipeline.cli import loop
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.launch import SyncRequest, SyncSummary
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode
from tests.cli.conftest import REAL_KEY, Run, small_world
from tests.cli.test_reaper import runs
from tests.cli.test_sync import summary


class Watching:
    """Stands for the sync and looks around."""

    def __init__(self) -> None:
        self.worlds: list[Any] = []
        self.seen: list[Settings] = []
        self.options: dict[str, Any] = {}
        self.end: SyncSummary | BaseException = summary()

    def __call__(self, settings: Settings, request: SyncRequest, **options: Any) -> SyncSummary:
        assert request == SyncRequest(mode=Mode.FULL)
        self.options = options
        with urllib.request.urlopen(f"{settings.api_url}/sandbox/stats", timeout=10) as answer:
            stats = json.load(answer)
        assert stats["settings"]["limits"] is True
        self.worlds.append(stats["world"])
        self.seen.append(load_settings())
        if isinstance(self.end, BaseException):
            raise self.end
        return self.end


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, server_url: str) -> Watching:
    watching = Watching()
    monkeypatch.setattr(launch, "run_sync", watching)
    # It needs what the sync reads; `make demo` runs it.
    monkeypatch.setattr(loop, "show_loop", lambda *_: None)
    monkeypatch.setenv("NEXHEALTH_HOME", os.environ["NEXHEALTH_TEST_HOME"])
    return watching


@pytest.fixture
def small(ran: Watching) -> Watching:
    small_world(Path(os.environ["NEXHEALTH_TEST_HOME"]))
    return ran


def sandbox_is_gone(ran: Watching) -> bool:
    try:
        urllib.request.urlopen(f"{ran.seen[-1].api_url}/sandbox/stats", timeout=5).close()
    except OSError:
        return True
    return False


def test_it_reads_everything_from_a_sandbox_that_keeps_its_practices(nexhealth: Run, ran: Watching) -> None:
    """A second demo must find the same rows, or it would change some."""
    shutil.rmtree(Path(os.environ["NEXHEALTH_TEST_HOME"]) / "sandbox", ignore_errors=True)
    account = {"NEXHEALTH_API_KEY": REAL_KEY, "DATABASE_URL": "postgresql://real/warehouse"}
    first = nexhealth("demo", **account)
    assert first.status == 0
    assert sandbox_is_gone(ran)
    assert nexhealth("demo").status == 0
    assert ran.worlds[0] == ran.worlds[1]
    assert ran.worlds[0]["rows"]["patients"] >= 2000
    assert ran.worlds[0]["rows"]["appointments"] >= 15000
    assert ran.options["kind"] == "sandbox"
    assert (ran.options["warehouse_database"], ran.options["dagster_database"]) == ("demo", "demo_dagster")
    assert all(REAL_KEY not in settings.api_keys().values() for settings in ran.seen)
    for words in ("patients", "15.5 s in all", "nexhealth db psql --demo", "nexhealth dev --demo", "README"):
        assert words in first.out


def test_json_is_one_object_on_stdout(nexhealth: Run, small: Watching) -> None:
    """For whoever tests with it."""
    ended = nexhealth("demo", "--json")
    assert json.loads(ended.out)["exit_status"] == 0


def test_json_does_not_say_that_all_went_well_before_the_change_was_shown(
    nexhealth: Run, small: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A monitor reads the object, and not what follows it: an exit status of 1, with 0 in the object."""

    def fails(*_: object) -> None:
        raise errors.PipelineError("no event of the patient came")

    monkeypatch.setattr(loop, "show_loop", fails)
    ended = nexhealth("demo", "--json")
    assert ended.status == 1
    assert json.loads(ended.out) == {"error": "no event of the patient came", "exit_status": 1}


@pytest.mark.parametrize(
    ("end", "status"), [(errors.ServerFailed("it fails"), 3), (KeyboardInterrupt(), 130), (summary(3), 3)]
)
def test_however_it_ends_the_sandbox_ends_and_success_is_not_claimed(
    nexhealth: Run, small: Watching, end: SyncSummary | BaseException, status: int
) -> None:
    """A left-over process, or "what to do next" below an error."""
    small.end = end
    ended = nexhealth("demo")
    assert ended.status == status
    assert sandbox_is_gone(small)
    assert "What to do next" not in ended.out


def test_runs_of_this_module_are_real_processes() -> None:
    """The helper that says whether a process runs can say no."""
    assert runs(os.getpid())
    assert not runs(2**22 + 1)
