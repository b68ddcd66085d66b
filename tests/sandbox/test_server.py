"""Starting and stopping, in a thread and in the foreground."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

import nexhealth_pipeline.sandbox as sandbox
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, FolderHeldError, SandboxServer, build_app, hold, holder_of

from .calls import BASE, Caller

SMALL: dict[str, Any] = {"patients": 20, "appointments_per_patient": 1, "base": BASE}


def test_it_serves_on_a_free_port_and_leaves_no_thread(caller: Caller) -> None:
    """Risk: tests run side by side; nothing may be left behind."""
    with SandboxServer(**SMALL) as server:
        assert server.url != caller.server.url
        other = Caller(server)
        assert other.get("/institutions").status_code == 200
        other.close()
        assert sum(thread.name == "sandbox" for thread in threading.enumerate()) == 2
    assert sum(thread.name == "sandbox" for thread in threading.enumerate()) == 1
    with pytest.raises(requests.ConnectionError):
        requests.get(server.url + "/institutions", timeout=1)


def test_a_running_server_can_be_given_another_world(caller: Caller) -> None:
    """Risk: a server per test costs a tenth of a second; the world must really be exchanged."""
    before = caller.server.state
    caller.server.replace(build_app(**SMALL, limits=False))
    caller.authenticate()
    assert caller.server.state is not before
    assert caller.get("/institutions").status_code == 200
    assert len(caller.server.requests) == 2


def test_a_taken_port_is_an_error_at_once(caller: Caller) -> None:
    """Risk: two demos at the same time."""
    port = int(caller.server.url.rpartition(":")[2])
    with pytest.raises(OSError, match="in use"):
        SandboxServer(**SMALL, port=port).start()


def test_a_state_folder_is_one_servers_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Risk: two that write the same journal give new rows the same ids."""
    monkeypatch.setattr(hold, "_PATIENCE_SECONDS", 0.1)  # these holders are not just ending
    first = SandboxServer(**SMALL, state_dir=tmp_path)
    with first:
        with pytest.raises(FolderHeldError, match=f"process {os.getpid()} serves"):
            SandboxServer(state_dir=tmp_path)
        assert holder_of(tmp_path) == os.getpid()
    assert holder_of(tmp_path) is None
    assert holder_of(Path("/tmp") / ("a" * 300)) is None, "nobody can serve it, as whoever tries is told"
    with pytest.raises(ValueError, match="another seed"):
        SandboxServer(state_dir=tmp_path, seed=99)
    with SandboxServer(state_dir=tmp_path), pytest.raises(FolderHeldError):
        first.start()
    with first:
        assert requests.get(first.url + "/sandbox/stats", timeout=5).status_code == 200


def test_a_state_folder_on_a_full_disk_is_let_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Risk: it stays locked as long as the process lives, by nobody who could be named."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(ValueError, match=r"cannot be used \(No space left"):
            SandboxServer(**SMALL, state_dir=tmp_path)
    assert holder_of(tmp_path) is None


def test_stopping_does_not_wait_for_a_hanging_answer() -> None:
    """Risk: a test suite that waits for its own timeouts."""
    before = set(threading.enumerate())
    with SandboxServer(**SMALL) as server:
        server.faults.add("hang", seconds=60)
        with pytest.raises(requests.Timeout):
            requests.get(server.url + "/institutions", timeout=0.05)
    assert not set(threading.enumerate()) - before


def test_serve_tells_its_address_and_ends_on_a_signal(tmp_path: Path) -> None:
    """Risk: `nexhealth sandbox` runs it as a process of its own."""
    script = (
        "import sys; from nexhealth_pipeline.sandbox import serve; "
        "serve(port=0, state_dir=sys.argv[1], patients=20, appointments_per_patient=1, "
        "on_ready=lambda url: print(url, flush=True))"
    )
    child = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        url = child.stdout.readline().strip()
        answer = requests.post(url + "/authenticates", headers={"Authorization": SANDBOX_API_KEY}, timeout=5)
        assert answer.status_code == 201
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == 0
    finally:
        child.kill()
        child.wait()
        if child.stdout:
            child.stdout.close()
    assert json.loads((tmp_path / "world.json").read_text())["patients"] == 20


def test_every_public_name_is_there_and_sorted() -> None:
    """Risk: the command line imports from here."""
    assert all(hasattr(sandbox, name) for name in sandbox.__all__)
    constants = [name for name in sandbox.__all__ if name.isupper()]
    assert constants == sorted(constants)
