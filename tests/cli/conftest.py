"""Running `nexhealth` in this process, leaving its settings, working folder, signals and logging as they were."""

import gc
import json
import logging
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import pytest

from nexhealth_pipeline.cli import doctor_api, main
from nexhealth_pipeline.sandbox import SandboxServer

REAL_KEY = "a-real-key-that-must-never-be-shown"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Run(Protocol):
    def __call__(self, *args: str, **environment: str) -> Ended: ...


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Commands own their process; a test's process goes on."""
    environment, folder = dict(os.environ), Path.cwd()
    root, room = logging.getLogger(), logging.getLogger("nexhealth_pipeline")
    handlers, levels = (list(root.handlers), list(room.handlers)), (root.level, room.level)
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    gc.unfreeze()
    logging.captureWarnings(capture=False)
    for number, handler in signals.items():
        signal.signal(number, handler)
    root.handlers[:], room.handlers[:] = handlers
    root.setLevel(levels[0])
    room.setLevel(levels[1])
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def nexhealth(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in a folder without `.env`; settings are given by name."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, **environment: str) -> Ended:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            capfd.readouterr()
            status = main(args)
        return Ended(status, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def shared_sandbox() -> Iterator[SandboxServer]:
    """A sandbox whose data nobody changes."""
    with SandboxServer(patients=20, appointments_per_patient=2, limits=False) as server:
        yield server


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    """A sandbox for one test, with a key of its own beside the known one."""
    with SandboxServer(patients=5, appointments_per_patient=1, limits=False, api_keys={REAL_KEY: None}) as server:
        yield server


def findings(ended: Ended) -> dict[str, dict[str, Any]]:
    """Findings that are not ok, by check."""
    return {one["check"]: one for one in json.loads(ended.out)["findings"] if one["level"] != "ok"}


def read_every_office(sandbox: SandboxServer) -> None:
    """Each has just been read, by the sandbox's own clock."""
    stamp = datetime.fromtimestamp(sandbox.app.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%S.000+00:00")
    for row_id in sandbox.state.ids("sync_status"):
        sandbox.state.update("sync_status", row_id, {"read_status": "green", "read_status_at": stamp})


def small_world(home: Path) -> None:
    """Let the demo's sandbox below `home` serve few patients: it starts a second sooner."""
    state = home / "sandbox"
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    origin = {"format": 1, "seed": 1, "base": "2026-01-01T00:00:00+00:00", "patients": 5}
    (state / "world.json").write_text(json.dumps(origin | {"appointments_per_patient": 1.0}))


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port where nothing listens, and nobody else can begin to."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield unused.getsockname()[1]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor's second attempts come at once."""
    monkeypatch.setattr(doctor_api, "_POLICY", replace(doctor_api._POLICY, sleep=lambda seconds: None))
