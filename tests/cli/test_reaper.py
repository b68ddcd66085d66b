"""The end of processes that a command started, however the command ends."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.cli import reaper
from nexhealth_pipeline.cli.household import Household, _end_put_off, end_like_interrupt, nexhealth_command
from nexhealth_pipeline.errors import PipelineError

FAMILY = """
import os, subprocess, sys, time, signal
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""
"""A process that starts another one, as Dagster's pages start a code server, and tells the numbers of both."""

OWNER = f"""
import sys, time
from nexhealth_pipeline.cli.household import Household
with Household(5.0) as household:
    household.start("family", [sys.executable, "-S", "-c", {FAMILY!r}], answers=True)
    print(household.answer("family", 20), flush=True)
    time.sleep(60)
"""


def family(*words: str) -> list[str]:
    return [sys.executable, "-S", "-c", FAMILY, *words]


def pids_of(household: Household) -> list[int]:
    """The numbers of both processes of a family."""
    return [int(word) for word in household.answer("family", 20).split()]


def runs(pid: int) -> bool:
    """Whether a process runs; one that nobody collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def soon(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_all_generations_have_ended_when_the_context_ends() -> None:
    """Dagster leaves its children behind at times; a left-over code server holds memory and a port."""
    with Household(5.0) as household:
        household.start("family", family(), answers=True)
        child, grandchild = pids_of(household)
        assert runs(child)
        assert runs(grandchild)
    assert not runs(child)
    assert not runs(grandchild)


def test_what_does_not_listen_is_killed_after_the_grace() -> None:
    """A hung process must not keep the user from his shell."""
    with Household(0.2) as household:
        household.start("family", family("deaf"), answers=True)
        child, _ = pids_of(household)
    assert not runs(child)


@pytest.fixture
def owner() -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        yield process, pids
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_after_the_command_was_ended(
    owner: tuple["subprocess.Popen[str]", list[int]], number: signal.Signals
) -> None:
    """`kill -9` runs no code of ours: the reaper sees its pipe close."""
    process, pids = owner
    assert all(runs(pid) for pid in pids)
    process.send_signal(number)
    process.wait(timeout=10)
    assert soon(lambda: not any(runs(pid) for pid in pids))


def test_a_killed_reaper_is_stood_in_for() -> None:
    """The command ends its processes itself then."""
    with Household(2.0) as household:
        household.start("family", family(), answers=True)
        pids = pids_of(household)
        household._reaper.kill()
    assert not any(runs(pid) for pid in pids)


def test_where_the_reaper_was_killed_nothing_more_is_started_and_what_runs_ends() -> None:
    """What it was told last stays in the pipe: once more refused at the end, it kept every process from being ended."""
    with pytest.raises(PipelineError, match="the second is not started"), Household(2.0) as household:  # noqa: PT012
        household.start("family", family(), answers=True)
        pids = pids_of(household)
        household._reaper.kill()
        household._reaper.wait()
        household.start("second", family())
    assert not any(runs(pid) for pid in pids)
    assert all(member.returncode is not None for member in household._members.values())


def test_a_process_that_ends_by_itself_is_named() -> None:
    """`dev` ends as a whole when one of its parts does, and says which."""
    with Household(1.0) as household:
        household.start("short", [sys.executable, "-S", "-c", ""])
        assert soon(lambda: household.ended() == "short")


def test_a_process_that_ends_without_an_answer_is_an_error() -> None:
    """Waiting for an address that never comes would look like a hang."""
    with Household(1.0) as household:
        household.start("mute", [sys.executable, "-S", "-c", ""], answers=True)
        with pytest.raises(PipelineError, match="the mute does not start"):
            household.answer("mute", 20)


def test_a_module_in_the_working_folder_hides_none_of_ours(tmp_path: Path) -> None:
    """A practice's folder may hold a `click.py` of its own."""
    (tmp_path / "click.py").write_text("raise SystemExit('wrong click')")
    command = nexhealth_command("--version")
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_moment_of_a_start_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """It ran already, and nobody knew its number: it lived on, or the command waited for it for ever."""
    started: list[int] = []

    class Struck(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self.pid)
            signal.raise_signal(number)

    def start() -> None:
        with Household(1.0) as household:
            monkeypatch.setattr(subprocess, "Popen", Struck)
            household.start("struck", [sys.executable, "-S", "-c", "import time; time.sleep(60)"])

    end_like_interrupt()
    with pytest.raises(KeyboardInterrupt):
        start()
    assert len(started) == 1
    assert not runs(started[0])


@pytest.mark.parametrize("late", [False, True], ids=["before it is set", "after it is set"])
@pytest.mark.parametrize("moment", range(6))
def test_a_signal_while_the_end_is_put_off_or_no_more_leaves_every_handler_as_it_was(
    monkeypatch: pytest.MonkeyPatch, moment: int, *, late: bool
) -> None:
    """Three handlers are changed and changed back; one left behind would be deaf to `kill` for ever."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in ending:  # whoever started the tests may ignore one
        signal.signal(number, signal.default_int_handler)
    end_like_interrupt()
    before = [signal.getsignal(number) for number in ending]
    calls = itertools.count()
    change = signal.signal

    def struck(number: int, handler: Any) -> Any:
        now = next(calls) == moment
        if now and not late:
            raise KeyboardInterrupt
        change(number, handler)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr(signal, "signal", struck)
    with pytest.raises(KeyboardInterrupt), _end_put_off():
        pass
    assert [signal.getsignal(number) for number in ending] == before


def test_a_signal_that_is_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """`nohup nexhealth sync &` must outlive its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end_like_interrupt()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_without_proc_a_group_is_judged_by_asking_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no /proc."""
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert reaper.lives(os.getpgid(0))
    with subprocess.Popen([sys.executable, "-S", "-c", ""], start_new_session=True) as gone:
        gone.wait()
    assert not reaper.lives(gone.pid)
