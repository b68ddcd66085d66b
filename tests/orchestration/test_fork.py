"""Side by side in forked children: answers, errors, Ctrl-C, and nobody left behind.

Each test runs a small script: the test process has threads of its own, and one does not fork from those.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(30)

SLEEPER = """
import os, sys, time
from nexhealth_pipeline.orchestration.fork import run_side_by_side
def say(text):
    os.write(1, (text + "\\n").encode())  # in one piece, or two children's lines mix
def sleeper():
    first = True
    while True:
        try:
            if first:
                first = False
                say(f"child {{os.getpid()}}")
            while True:  # a signal just before a long sleep would be noticed at its end alone
                time.sleep(0.05)
        except KeyboardInterrupt:
            if {stubborn}:
                say("stays")
                continue
            say("stopped")
            raise
print([outcome.status for outcome in run_side_by_side([sleeper, sleeper])], flush=True)
"""


@contextmanager
def _python(script: str) -> "Iterator[subprocess.Popen[str]]":
    """A running script, ended with its children (they notice) whatever the test does."""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _run(script: str, seconds: float = 20) -> tuple[str, str]:
    with _python(script) as process:
        return process.communicate(timeout=seconds)


def _children(process: "subprocess.Popen[str]") -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline().split()[1]) for _ in range(2)]


def test_each_task_answers_for_itself_and_one_that_fails_leaves_the_others_alone() -> None:
    """Order must hold, and an error must keep its exit status and its text across the fork."""
    script = """
import os, signal
from nexhealth_pipeline.errors import Unreachable
from nexhealth_pipeline.orchestration.fork import run_side_by_side
def unreachable(): raise Unreachable("no answer")
def bug(): raise ZeroDivisionError("Jane Doe")
def killed(): os.kill(os.getpid(), signal.SIGKILL)
def leaves(): raise SystemExit(7)
ticks = []
outcomes = run_side_by_side(
    [lambda: {"rows": 200_000 * [1]}, unreachable, bug, killed, lambda: os.getpid(), leaves],
    tick=lambda: ticks.append(1), every=0.01,
)
assert len(outcomes[0].result["rows"]) == 200_000 and outcomes[4].result != os.getpid() and ticks
print([outcome.status for outcome in outcomes], outcomes[1].message)
"""
    output, errors = _run(script)
    assert output == "[0, 3, 1, -9, 0, 1] no answer\n", errors
    assert "unexpected ZeroDivisionError\n" in errors
    assert "<string>:6 in bug\n" in errors
    assert "Jane" not in errors, "what a driver says may quote a row"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_the_parent_stops_every_child_gently(sent: signal.Signals) -> None:
    """SIGTERM reaches the parent alone: without passing it on, children would sync on unseen."""
    with _python(SLEEPER.format(stubborn=False)) as process:
        _children(process)
        process.send_signal(sent)
        output, errors = process.communicate(timeout=20)
    assert output.splitlines() == ["stopped", "stopped", "[130, 130]"], errors


@pytest.mark.parametrize("first", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_closes_kills_nobody_however_often_it_is_told(first: signal.Signals) -> None:
    """By the shell, and by the kernel once that has ended: the page under way was lost, and runs stayed open."""
    with _python(SLEEPER.format(stubborn=True)) as process:
        assert process.stdout is not None
        _children(process)
        process.send_signal(first)
        assert [process.stdout.readline() for _ in range(2)] == ["stays\n", "stays\n"]
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert process.poll() is None, "no child was killed"
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert output == "[130, 130]\n"


def test_a_terminal_that_closes_is_no_matter_under_nohup() -> None:
    """`nohup nexhealth sync &` must outlive it, its children too."""
    script = """
import os, signal
from nexhealth_pipeline.orchestration.fork import run_side_by_side
signal.signal(signal.SIGHUP, signal.SIG_IGN)
print(run_side_by_side([lambda: os.kill(os.getpid(), signal.SIGHUP)], tick=lambda: os.kill(os.getpid(), signal.SIGHUP)))
"""
    output, errors = _run(script)
    assert "status=0" in output, errors


def test_a_second_signal_ends_children_that_do_not_stop() -> None:
    """A child that waits for a dead network must not hold the terminal."""
    with _python(SLEEPER.format(stubborn=True)) as process:
        assert process.stdout is not None
        _children(process)
        process.send_signal(signal.SIGINT)
        assert [process.stdout.readline() for _ in range(2)] == ["stays\n", "stays\n"]
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=20)
    assert output == "[130, 130]\n", "killed because its user wanted it so"


@pytest.mark.parametrize(
    ("cut", "outcome"),
    [
        ("return 0, '{\"result\": [1, 2'", "(None, 0, '')"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", "(None, 130, '')"),
    ],
)
def test_an_answer_that_was_cut_is_none(cut: str, outcome: str) -> None:
    """A signal may come while a child tells what it has done."""
    script = f"""
import os, signal, time
from nexhealth_pipeline.orchestration import fork
def cut(task): {cut}
fork._call = cut
print(tuple(fork.run_side_by_side([lambda: None])[0]))
"""
    output, errors = _run(script)
    assert output == f"{outcome}\n", errors


@pytest.mark.timeout(150)
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_after_the_last_child_has_ended_is_not_swallowed(sent: str) -> None:
    """It was counted, and nobody looked: the sync went on with its next part."""
    script = f"""
import os, signal
from nexhealth_pipeline.orchestration import fork
from nexhealth_pipeline.orchestration.launch import raise_unless_answered
from nexhealth_pipeline.errors import Cancelled
def ended(pid, ended=fork._ended):
    try:
        return ended(pid)
    finally:
        os.kill(os.getpid(), signal.{sent})
fork._ended = ended
outcome = fork.run_side_by_side([lambda: 7])[0]
try:
    raise_unless_answered(outcome)
except Cancelled:
    print(tuple(outcome))
"""
    output, errors = _run(script, seconds=120)  # it imports Dagster, which takes long on a busy machine
    assert output == "(7, 130, '')\n", errors


def test_children_stop_when_their_parent_is_killed() -> None:
    """After kill -9 of the command nothing of it may run on."""
    with _python(SLEEPER.format(stubborn=False)) as process:
        pids = _children(process)
        process.kill()
        process.communicate(timeout=20)
    assert _gone(pids)


def test_children_are_stopped_and_waited_for_where_the_parent_cannot_go_on() -> None:
    """They would sync on beside whoever starts the next command."""
    script = """
import os, time
from nexhealth_pipeline.orchestration.fork import run_side_by_side
ready, begun = os.pipe()
def sleeper():
    try:
        os.write(begun, b".")
        while True:
            time.sleep(0.05)
    except KeyboardInterrupt:
        time.sleep(0.3)  # ends on a committed page
        os.write(1, b"stopped\\n")
        raise
def tick():
    for _ in range(2):
        os.read(ready, 1)
    raise OSError("no space left")
try:
    run_side_by_side([sleeper, sleeper], tick=tick)
except OSError as error:
    os.write(1, f"{error}\\n".encode())
"""
    output, errors = _run(script)
    assert output.splitlines() == ["stopped", "stopped", "no space left"], errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_what_this_process_cannot_print_keeps_nothing_from_running() -> None:
    """A line of progress that a full disk refused waits in the stream when the next children are forked."""
    script = """
import os, sys
from nexhealth_pipeline.orchestration.fork import run_side_by_side
sys.stdout = open("/dev/full", "w")
sys.stdout.write("a line")
os.write(2, str(run_side_by_side([lambda: 7])[0].result).encode())
os._exit(0)
"""
    assert _run(script) == ("", "7")


def test_a_process_with_threads_is_not_forked() -> None:
    """A lock that another thread holds stays locked in the child: a hang once in a thousand runs."""
    script = """
import threading
from nexhealth_pipeline.orchestration.fork import run_side_by_side
done = threading.Event()
threading.Thread(target=done.wait).start()
try:
    run_side_by_side([lambda: None])
except RuntimeError as error:
    print(error)
finally:
    done.set()
"""
    output, errors = _run(script)
    assert "before any thread" in output, errors


def _gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if not any(_runs(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return Path("/proc").exists() is False and _answers(pid)


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
