"""`nexhealth sandbox` as a process."""

import errno
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexhealth_pipeline.cli.household import nexhealth_command
from tests.cli.conftest import Run, small_world


@contextmanager
def running(*options: str) -> Iterator["subprocess.Popen[str]"]:
    """`nexhealth sandbox` on a free port, ended whatever the test does: else a failure would wait for it."""
    command = nexhealth_command("sandbox", "--port", "0", *options)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def small(tmp_path: Path) -> tuple[str, str]:
    """The option for few patients; the default ones take a second to make."""
    small_world(tmp_path)
    return "--state", str(tmp_path / "sandbox")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds a state served is told at once: the holder is not just ending."""
    monkeypatch.setattr("nexhealth_pipeline.sandbox.hold._PATIENCE_SECONDS", 0.1)


def test_it_prints_its_address_serves_there_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    """The address alone is on stdout, for `export NEXHEALTH_API_URL=$(...)` and for our own commands."""
    with running("--seed", "7", "--state", str(tmp_path / "state")) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/sandbox/stats", timeout=10) as answer:
            assert b'"seed":7' in answer.read()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert (out, err, process.returncode) == ("", "", 0)


def test_a_taken_port_is_named(nexhealth: Run, closed_port: int, small: tuple[str, str]) -> None:
    """The one thing that goes wrong."""
    ended = nexhealth("sandbox", "--port", str(closed_port), *small)
    assert ended.status == 2
    assert f"--port {closed_port}" in ended.err


def test_a_state_of_other_practices_is_refused(nexhealth: Run, tmp_path: Path) -> None:
    """It would silently serve others than asked for."""
    (tmp_path / "world.json").write_text(
        '{"format":1,"seed":1,"base":"2026-01-01T00:00:00+00:00","patients":5,"appointments_per_patient":1.0}'
    )
    ended = nexhealth("sandbox", "--seed", "2", "--state", str(tmp_path), "--port", "0")
    assert ended.status == 2
    assert "another seed" in ended.err


def test_a_state_that_another_process_serves_is_refused_until_that_one_has_ended(
    nexhealth: Run, small: tuple[str, str], impatient: None
) -> None:
    """Both would give new rows the same ids, and the next start would find a mixture."""
    with running(*small) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ended = nexhealth("sandbox", "--port", "0", *small)
        assert ended.status == 2
        assert f"process {process.pid} serves this state folder" in ended.err
        assert "use another folder" in ended.err

        process.kill()
        with running(*small) as second:
            assert second.stdout is not None
            assert second.stdout.readline().startswith("http://")


def test_a_state_folder_that_cannot_be_made_is_named(nexhealth: Run, tmp_path: Path) -> None:
    """It used to be called a fault of the port."""
    (tmp_path / "file").touch()
    ended = nexhealth("sandbox", "--port", "0", "--state", str(tmp_path / "file" / "state"))
    assert ended.status == 2
    assert "--state" in ended.err
    assert "cannot be used" in ended.err


def test_kept_changes_that_cannot_be_read_are_named(nexhealth: Run, tmp_path: Path) -> None:
    """They too used to be called a fault of the port."""
    (tmp_path / "state" / "changes.jsonl").mkdir(parents=True)
    ended = nexhealth("sandbox", "--port", "0", "--state", str(tmp_path / "state"))
    assert ended.status == 2
    assert f"--state '{tmp_path}/state'" in ended.err
    assert "cannot be used" in ended.err
    assert "--port" not in ended.err


def test_an_address_that_nobody_reads_is_no_fault_of_the_port(
    nexhealth: Run, small: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of all commands: whoever read the output went away."""

    def gone(_url: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("nexhealth_pipeline.cli.sandbox._announce", gone)
    ended = nexhealth("sandbox", "--port", "0", *small)
    assert (ended.status, ended.err) == (141, "")


@pytest.mark.parametrize("command", [("demo",), ("dev", "--demo")])
def test_a_demo_beside_another_says_which_one_to_end(
    nexhealth: Run, tmp_path: Path, impatient: None, command: tuple[str, ...]
) -> None:
    """They would change the same practices; what the second one says must be of use to whoever forgot the first."""
    home = tmp_path / "home"
    small_world(home)
    with running("--state", str(home / "sandbox")) as first:
        assert first.stdout is not None
        first.stdout.readline()
        ended = nexhealth(*command, NEXHEALTH_HOME=str(home))
    assert ended.status == 2
    assert f"already served by process {first.pid}" in ended.err
    assert "nexhealth dev --demo" in ended.err
