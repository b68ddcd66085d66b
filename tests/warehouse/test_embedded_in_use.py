"""An embedded server that stands still, or is killed, while processes use it that ask for it no more."""

import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.warehouse import embedded, supervisor
from nexhealth_pipeline.warehouse.embedded import ensure
from nexhealth_pipeline.warehouse.supervisor import Order
from tests.waiting import until

from .embedded_kit import postmaster, processes_of, value


def answers(url: str) -> bool:
    """Whether a connection is to be had."""
    try:
        return value(url, "SELECT 1") == 1
    except psycopg.OperationalError:
        return False


def supervisors(home: Path) -> list[str]:
    return [command for command in processes_of(home).values() if "supervisor.py" in command]


def test_whether_a_server_answers_is_found_out_in_seconds(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that stands still accepts connections and says nothing: every command waited for ever, deaf to Ctrl-C."""
    monkeypatch.setattr(embedded, "_ANSWER_SECONDS", 2)
    server = ensure(home, durable=False)
    stopped = postmaster(home)
    os.kill(stopped, signal.SIGSTOP)
    # A process, since libpq waits with no thread of this one running.
    with subprocess.Popen(["sh", "-c", f"sleep 15; kill -CONT {stopped}"]) as going_on:
        try:
            assert not embedded._answers(server)
            assert going_on.poll() is None, "found out when it went on"
        finally:
            going_on.kill()
            os.kill(stopped, signal.SIGCONT)
    until(lambda: embedded._answers(server), "it goes on")


def test_a_server_that_is_killed_comes_back_for_those_who_use_it(home: Path) -> None:
    """A receiver, or Dagster's daemon, asks for a server once and runs for weeks: it answered 503 for ever."""
    url = ensure(home, durable=False).url("postgres")
    with closing(psycopg.connect(url, autocommit=True)) as connection:
        connection.pgconn.send_query(
            b"SELECT count(*) FROM generate_series(1, 5000000)"
        )  # till it ends, starts are refused
        for _ in range(2):
            os.kill(postmaster(home), signal.SIGKILL)
            until(lambda: answers(url), "it is started again")
    assert len(supervisors(home)) == 1


def test_a_server_that_somebody_stopped_stays_so(home: Path) -> None:
    """Whoever stops it by hand means it; the next who asks for one starts it."""
    url = ensure(home, durable=False).url("postgres")
    os.kill(postmaster(home), signal.SIGINT)
    until(lambda: not processes_of(home), "server and supervisor have ended")
    assert ensure(home, durable=False).url("postgres") == url


@pytest.mark.parametrize("begun", [True, False], ids=["in use", "before it served anybody"])
def test_a_server_that_is_killed_at_every_start_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: bool
) -> None:
    """It would be started again and again for ever, and its log grow."""
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/postmaster.pid"
    file.write_text("999999999\n")
    starts: list[int] = []

    class Killed(subprocess.Popen[bytes]):
        def __init__(self, *_args: object, **_options: object) -> None:
            super().__init__(["true"])
            if begun:
                file.write_text(f"{self.pid}\n")
            starts.append(self.wait())

    monkeypatch.setattr(subprocess, "Popen", Killed)
    monkeypatch.setattr(supervisor, "_AWAY_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "_TRY_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(supervisor._Users, "none_left", lambda self: False)
    before = signal.getsignal(signal.SIGTERM)
    supervisor._supervise(order(tmp_path))
    signal.signal(signal.SIGTERM, before)
    assert (2 <= len(starts) < 12) if begun else (len(starts) == 1)


def test_a_supervisor_that_is_ended_while_it_starts_the_server_stops_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody else would."""
    done: list[str] = []

    def start(_server: object) -> None:
        done.append("started")
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(supervisor._Server, "start", start)
    monkeypatch.setattr(supervisor._Server, "runs", lambda self: True)
    monkeypatch.setattr(supervisor._Server, "stop", lambda self: done.append("stopped"))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        supervisor._supervise(order(tmp_path))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert done == ["started", "stopped"]


def order(folder: Path) -> Order:
    return Order(
        folder=str(folder),
        socket=str(folder),
        programs=str(folder),
        port=5432,
        tcp=False,
        durable=False,
        uid=-1,
        gid=-1,
        lock=-1,
    )
