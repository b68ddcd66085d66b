"""Dagster's own programs in a folder with a space: they come up, do what the UI asks for, and leave nobody behind.

Plain `dagster dev` with nothing set; webserver and daemon, as in production, with the addresses they need.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.warehouse import connect, embedded
from tests.conftest import room_for_databases
from tests.orchestration.kit import event_transactions
from tests.test_phi_canary import (
    CANARY,
    KEY,
    PLAIN,
    assert_silent,
    beside_the_copy,
    harbors,
    holds_canary,
    patient_event,
    plain_columns,
    plain_values_in,
    tables,
)
from tests.webhooks.kit import store

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout() -> Iterator[Path]:
    """A copy of the repository's own files in a path with a space, and with its server's, gone after use.

    Not below `tmp_path`: that is closed to the account of root's server, which would then be kept below /var/lib.
    """
    root = Path(tempfile.mkdtemp(prefix="nexhealth tests ", dir=room_for_databases()))
    root.chmod(0o711)
    folder = root / "a checkout"
    folder.mkdir()
    shutil.copytree(REPO / "nexhealth_pipeline", folder / "nexhealth_pipeline")
    for name in ("pyproject.toml", "dagster.yaml", "workspace.yaml"):
        shutil.copy(REPO / name, folder / name)
    yield folder
    embedded.release(folder / ".nexhealth")  # this process looked into it, and would keep it up
    deadline = time.monotonic() + 30  # where the test failed, its server may be ending just now
    while _naming(str(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    shutil.rmtree(root, ignore_errors=True)


@pytest.mark.dagster
@pytest.mark.timeout(300)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_dagster_dev_comes_up_with_nothing_set_and_each_of_its_processes_can_be_ended(checkout: Path) -> None:
    """The first thing a newcomer types. A process that stays would hold the port and the server."""
    with _started(checkout, lambda port: [[sys.executable, "-m", "dagster", "dev", "--port", port]]) as (
        programs,
        port,
    ):
        _wait_until(lambda: _location(port) != "LOADING", "the code is not loaded", 120)
        assert _location(port) == "LOADED"
        assert _ask(port, "{ assetNodes { assetKey { path } } }")["assetNodes"]
        runs = _ask(port, "{ runsOrError { ... on Runs { results { runId } } } }")["runsOrError"]
        assert runs == {"results": []}
        run = _ask(port, _LAUNCH, {"job": "nexhealth_practice"})["launchRun"]["run"]["runId"]
        _wait_until(lambda: _status(port, run) == "FAILURE", "a run without a key goes on", 120)
        assert "NEXHEALTH_API_KEY" in str(_ask(port, _FAILED, {"id": run})["runOrError"]["eventConnection"])
        assert len(_members(programs)) >= 4
        assert not (checkout / "history").exists(), "the storage must be PostgreSQL"
        assert (checkout / ".nexhealth" / "postgres").is_dir()
        for pid in sorted(_members(programs)):
            _end(pid)
        _wait_until(lambda: not _members(programs), "processes stay", 60)
    _server_has_gone(checkout)


@pytest.mark.dagster
@pytest.mark.timeout(400)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes through /proc")
def test_a_backfill_of_two_locations_by_six_months_runs_from_the_ui(checkout: Path, tmp_path: Path) -> None:
    """One location that fails must not stop the other, whichever way Dagster cuts the backfill into runs.

    Its daemon follows one that was killed while an event waited, which is applied beside it (promise 11). Nothing of the
    people it copied is in Dagster's database or in a log after it (promise 10).
    """
    today = datetime.now(UTC).date()
    months = [month for month in month_keys(today) if month <= f"{today:%Y-%m}"][-6:]
    server = embedded.ensure(checkout / ".nexhealth", durable=False)
    server.create_database("ware")
    addresses = {"DATABASE_URL": server.url("ware"), "DAGSTER_HOME": str(checkout)}
    half_a_day_away = f"0 {(datetime.now(UTC).hour + 12) % 24} * * *"  # else at two the night would begin
    timetable = dict.fromkeys(("NEXHEALTH_NIGHTLY", "NEXHEALTH_CATCHUP"), half_a_day_away)
    with SandboxServer(patients=20, limits=False, api_keys={KEY: None}) as box:
        settings = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "NEXHEALTH_DATA_KIND": "sandbox"}
        settings |= addresses | timetable | _impatient(tmp_path, checkout)
        planted = _plant(box)
        with _started(checkout, _webserver_and_daemon, **settings) as (programs, port):
            _wait_until(lambda: _location(port) == "LOADED", "the code is not loaded", 120)
            run = _ask(port, _LAUNCH, {"job": "nexhealth_practice"})["launchRun"]["run"]["runId"]
            _wait_until(lambda: _status(port, run) == "SUCCESS", "discovery does not end", 120)
            patient = harbors(box, "patients")[0]
            with _ware(server) as db:
                store(db, patient_event(patient, last_name=CANARY))
                _kill(programs[1:])
                assert db.execute(_EVENTS).fetchall() == [("pending",)]
            programs.extend(_run(checkout, _webserver_and_daemon(str(port))[1:], settings))
            box.faults.add("status", path="/appointments", location_id=348622, status=403)
            keys = [f"harbor-smiles.{number}|{month}" for number in (348621, 348622) for month in months]
            backfill = _ask(port, _BACKFILL, {"keys": keys})["launchPartitionBackfill"]["backfillId"]
            _wait_until(lambda: _backfill(port, backfill)["status"] == "COMPLETED_FAILED", "the backfill goes on", 240)
            runs = [one["status"] for one in _backfill(port, backfill)["runs"]]
            assert sorted(runs) == ["FAILURE", "SUCCESS"]
            (box_of_months,) = _ask(port, _COLOURS)["assetNodeOrError"]["assetPartitionStatuses"]["ranges"]
            assert box_of_months == {
                "primaryDimStartKey": months[0],
                "primaryDimEndKey": months[-1],
                "secondaryDim": {
                    "materializedPartitions": ["harbor-smiles.348621"],
                    "failedPartitions": ["harbor-smiles.348622"],
                },
            }
            with _ware(server) as db:
                _wait_until(lambda: db.execute(_EVENTS).fetchall() == [("applied",)], "the event waits on", 60)
                assert db.execute("SELECT id, last_name FROM nexhealth_patients").fetchall() == [(patient, CANARY)]
            assert plain_values_in(server.url("ware")) >= planted
            _assert_silent(checkout, server.url("ware"), box.auth.issued)
            _assert_written_in_bulk(server.url("dagster"), len(months))
            for pid in sorted(_members(programs)):
                _end(pid)
            _wait_until(lambda: not _members(programs), "processes stay", 60)


_EVENTS = "SELECT status FROM nexhealth_webhook_events"


def _ware(server: embedded.EmbeddedServer) -> psycopg.Connection:
    return psycopg.connect(server.url("ware"), autocommit=True)


def _webserver_and_daemon(port: str) -> list[list[str]]:
    programs = Path(sys.executable).parent
    webserver = [str(programs / "dagster-webserver"), "-w", "workspace.yaml", "--port", port]
    return [webserver, [str(programs / "dagster-daemon"), "run", "-w", "workspace.yaml"]]


_HURRY = """
import sys
if any(one.endswith("dagster-daemon") for one in sys.orig_argv):
    import dagster._daemon.controller
    dagster._daemon.controller.DEFAULT_DAEMON_INTERVAL_SECONDS = 2
"""
"""Dagster has no setting for the half minute between two looks for backfills, of which this test waits for several."""


def _impatient(folder: Path, checkout: Path) -> dict[str, str]:
    """A `PYTHONPATH` that has the daemon look sooner, and everybody take the checkout's code, not what is installed."""
    (folder / "sitecustomize.py").write_text(_HURRY)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{checkout}"}


def _plant(box: SandboxServer) -> set[tuple[str, str]]:
    """A word and plain values in every visit, but for when it is: by that it is listed. Table and columns of the values."""
    visits = COLLECTIONS["appointments"]
    columns = [one for one in plain_columns(visits) if one.name not in {"start_time", "end_time"}]
    told = {"note": CANARY, "provider_name": CANARY, **{one.path[-1]: PLAIN[one.type] for one in columns}}
    for visit in box.state.ids(visits.name):
        box.state.update(visits.name, visit, told)
    return {(visits.table, one.name) for one in columns}


def _assert_silent(checkout: Path, warehouse: str, tokens: tuple[str, ...]) -> None:
    home = checkout / ".nexhealth"
    ours = tables(warehouse)
    assert holds_canary(ours["nexhealth_appointments"])
    given = {"NEXHEALTH_HOME": str(home), "DATABASE_URL": warehouse}
    dagster = connect.dagster_url(load_settings(given, environ={}, env_file=None))
    assert tokens
    output = {"output": (checkout / _LOG).read_text()}
    assert_silent(beside_the_copy(ours, dagster, home) | output, KEY, *tokens)


def _assert_written_in_bulk(dagster: str, slices: int) -> None:
    """Each event in a transaction of its own is what made a night's events cost minutes: the daemon plans a backfill's."""
    planned = event_transactions(dagster, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    assert sorted(planned.values())[-2:] == [(slices, 1), (slices, 1)]


_LAUNCH = """mutation($job: String!) { launchRun(executionParams: {mode: "default", selector: {jobName: $job,
    repositoryName: "__repository__", repositoryLocationName: "nexhealth_pipeline"}, runConfigData: {}}) {
    ... on LaunchRunSuccess { run { runId } } } }"""
_FAILED = """query($id: ID!) { runOrError(runId: $id) { ... on Run { eventConnection { events {
    ... on ExecutionStepFailureEvent { error { message causes { message } } } } } } } }"""
_BACKFILL = """mutation($keys: [String!]!) { launchPartitionBackfill(backfillParams: {partitionNames: $keys,
    assetSelection: [{path: ["nexhealth_appointments"]}]}) { ... on LaunchBackfillSuccess { backfillId } } }"""
_COLOURS = """{ assetNodeOrError(assetKey: {path: ["nexhealth_appointments"]}) { ... on AssetNode {
    assetPartitionStatuses { ... on MultiPartitionStatuses { ranges { primaryDimStartKey primaryDimEndKey
    secondaryDim { ... on DefaultPartitionStatuses { materializedPartitions failedPartitions } } } } } } } }"""


def _status(port: int, run: str) -> str:
    asked = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
    return str(_ask(port, asked, {"id": run})["runOrError"]["status"])


def _backfill(port: int, backfill: str) -> dict[str, Any]:
    asked = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
        ... on PartitionBackfill { status runs { status } } } }"""
    found: dict[str, Any] = _ask(port, asked, {"id": backfill})["partitionBackfillOrError"]
    return found


_LOG = "dagster.log"
Commands = Callable[[str], list[list[str]]]
"""What to start, by the port that it is to answer at."""
Programs = list["subprocess.Popen[bytes]"]


@contextmanager
def _started(checkout: Path, commands: Commands, **settings: str) -> Iterator[tuple[Programs, int]]:
    """Dagster's programs, ready to answer at the port. What is left of them, and of those added, is killed by pid."""
    processes, port = _start(checkout, commands, settings)
    try:
        if _ended(processes, port) and "address already in use" in (checkout / _LOG).read_text().lower():
            _kill(processes)  # somebody else took the port since it was found to be free
            (checkout / _LOG).unlink()
            processes, port = _start(checkout, commands, settings)
        assert not _ended(processes, port), (checkout / _LOG).read_text()
        yield processes, port
    finally:
        _kill(processes)


def _start(checkout: Path, commands: Commands, settings: Mapping[str, str]) -> tuple[Programs, int]:
    port = _free_port()
    return _run(checkout, commands(str(port)), settings), port


def _run(checkout: Path, commands: list[list[str]], settings: Mapping[str, str]) -> Programs:
    """Each program in a session of its own."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(checkout), **settings}
    with (checkout / _LOG).open("a") as log:
        return [
            subprocess.Popen(command, cwd=checkout, env=environment, stdout=log, stderr=log, start_new_session=True)
            for command in commands
        ]


def _ended(processes: Programs, port: int) -> bool:
    """Whether one has ended by itself before they answered at `port`."""
    _wait_until(lambda: any(one.poll() is not None for one in processes) or _answers(port), "nobody answers", 120)
    return any(one.poll() is not None for one in processes)


def _kill(processes: Programs) -> None:
    for pid in _members(processes):
        _end(pid, signal.SIGKILL)
    for one in processes:
        one.wait(30)


def _server_has_gone(checkout: Path) -> None:
    """The embedded server ends with its last user. This process becomes one to learn where it is, and leaves."""
    home = checkout / ".nexhealth"
    settings = load_settings({"NEXHEALTH_HOME": str(home)}, environ={}, env_file=None)
    with psycopg.connect(connect.dagster_url(settings)) as db:
        assert db.execute("SELECT count(*) > 0 FROM daemon_heartbeats").fetchone() == (True,), "not this server"
    embedded.release(home)
    _wait_until(lambda: not _naming(str(checkout)), "a server stays", 60)


def _members(processes: Programs) -> list[int]:
    """Living processes of these programs' sessions: all that they started."""
    sessions, found = {one.pid for one in processes}, []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, sid = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(sid) in sessions and state != "Z":
                found.append(int(folder.name))
    return found


def _naming(text: str) -> list[int]:
    """Processes with `text` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if text.encode() in command:
                found.append(int(folder.name))
    return found


def _end(pid: int, sent: signal.Signals = signal.SIGTERM) -> None:
    try:
        os.kill(pid, sent)
    except ProcessLookupError:
        return


def _wait_until(true: Any, otherwise: str, seconds: float) -> None:
    """Looks twice a second: what Dagster is asked costs it processor time that others wait for."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.5)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/server_info", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _ask(port: int, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        json.dumps({"query": query, "variables": variables or {}}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        data: dict[str, Any] = json.loads(answer.read())["data"]
    return data


def _location(port: int) -> str:
    """LOADING, LOADED, or why the code location could not be loaded."""
    workspace = _ask(
        port,
        """{ workspaceOrError { ... on Workspace { locationEntries {
            loadStatus locationOrLoadError { ... on PythonError { message } } } } } }""",
    )["workspaceOrError"]
    (entry,) = workspace["locationEntries"] or [{"loadStatus": "LOADING", "locationOrLoadError": None}]
    return str((entry["locationOrLoadError"] or {}).get("message") or entry["loadStatus"])


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
