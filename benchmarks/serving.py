"""What a benchmark needs to stand: a local API and a PostgreSQL of its own, gone afterwards."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from nexhealth_pipeline.cli.household import Household
from nexhealth_pipeline.warehouse import embedded
from nexhealth_pipeline.warehouse.file_locks import try_exclusive

HERE = Path(__file__).parent


@contextmanager
def started(script: str, *options: object) -> Iterator[str]:
    """A server of this folder; its address."""
    command = [sys.executable, str(HERE / script), *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def reported(connection: Connection, seconds: float) -> Any:
    """What a process that was started beside this one has to say. Raises SystemExit where it died or says nothing so long."""
    with suppress(EOFError):
        if connection.poll(seconds):
            return connection.recv()
    raise SystemExit(f"a sending process died, or did not report within {seconds:g} s")


def asked(url: str) -> Any:
    """The data that a local API answers with."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)["data"]


@contextmanager
def server(*, tcp: bool = False, durable: bool = True) -> Iterator[tuple[embedded.EmbeddedServer, Path]]:
    """An embedded PostgreSQL in a folder of its own; the server and that folder."""
    with tempfile.TemporaryDirectory(prefix="nexhealth-bench-") as folder:
        Path(folder).chmod(0o711)
        home = Path(folder) / "home"
        found = embedded.ensure(home, durable=durable, tcp=tcp)
        try:
            yield found, home
        finally:
            embedded.release(home)
            _await_end(found)


def _await_end(server: embedded.EmbeddedServer) -> None:
    """Wait until nobody writes into its folder any more, or half a minute."""
    deadline = time.monotonic() + 30
    while server.place.folder.exists() and time.monotonic() < deadline:
        lock = try_exclusive(server.place.supervisor_lock)
        if lock is not None:
            os.close(lock)
            return
        time.sleep(0.05)


@contextmanager
def daemon(home: Path, given: dict[str, str]) -> Iterator[Path]:
    """Dagster's daemon and code server of an instance in `home`, which this process has as well; the workspace's file."""
    from nexhealth_pipeline.orchestration.instance import dagster_home, workspace_file
    from nexhealth_pipeline.settings import load_settings

    at_home = {**given, "NEXHEALTH_HOME": str(home)}
    folder = dagster_home(load_settings(at_home, environ={}, env_file=None), start=Path("/"))
    workspace = workspace_file(folder)
    environ = {**environment(home, **given), "DAGSTER_HOME": str(folder)}
    with Household(5.0) as household:
        # What daemon and runs say of their end would stand among the figures.
        quiet = ["/bin/sh", "-c", 'exec "$@" >"$0" 2>&1', str(home / "daemon.log")]
        command = [sys.executable, "-P", "-m", "dagster._daemon", "run", "-w", str(workspace), "--log-level", "error"]
        household.start("daemon", [*quiet, *command], environment=environ, folder=folder)
        os.environ.update({name: environ[name] for name in (*given, "DAGSTER_HOME", "NEXHEALTH_HOME")})
        yield workspace


@contextmanager
def served(given: dict[str, str]) -> Iterator[str]:
    """Dagster's webserver of an instance, started now; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        [*command, "-w", str(HERE.parent / "workspace.yaml")],
        env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield _ready(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        process.wait()


def _ready(url: str, process: subprocess.Popen[bytes]) -> str:
    while process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/server_info").close()
        except OSError:
            time.sleep(0.2)
        else:
            return url
    raise SystemExit(f"the webserver ended with status {process.returncode}")


def environment(home: Path, **settings: object) -> dict[str, str]:
    """What a process of the project is given: of its settings only those named here, and NEXHEALTH_HOME."""
    ours = ("NEXHEALTH_", "DATABASE_URL", "DAGSTER_")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**plain, "NEXHEALTH_HOME": str(home), **{name: str(value) for name, value in settings.items()}}
