"""A sync out of one command: forked runs in Dagster's history, stopped and killed at bad moments."""

import errno
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.errors import Cancelled
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.fork import Outcome
from nexhealth_pipeline.orchestration.housekeeping import dagster_database
from nexhealth_pipeline.orchestration.launch import Progress, SyncRequest
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.options import Mode
from tests.forks import Forks, forks

from .kit import BATCH_SIZE, event_transactions

REPO = Path(__file__).resolve().parents[2]
WILLOW = 11201
ONE_PRACTICE = ["348511", "348512", "348513"]
"""Willow's: its lists under rows begin only once all its patients are read; another practice's would before that."""
JOBS = {
    "nexhealth_practice",
    "nexhealth_institutions",
    "nexhealth_locations",
    "nexhealth_appointments",
    "nexhealth_appointment_changes",
}


@dataclass
class Command:
    """A sync that was begun, to be stopped, killed or waited for."""

    pid: int
    output: Path
    ended: bool = False


class Shell:
    """Runs syncs as a command would, in a process of their own, and looks at what they leave."""

    def __init__(
        self,
        forks: Forks,
        folder: Path,
        box: SandboxServer,
        instance: dg.DagsterInstance,
        warehouse: psycopg.Connection,
    ) -> None:
        dagster = dagster_database(instance)
        assert dagster is not None
        self.dagster = dagster
        self.folder = folder
        self.forks, self.box, self.instance, self.warehouse = forks, box, instance, warehouse
        self.commands: list[Command] = []

    def start(self, mode: str, **asked: object) -> Command:
        environment = dict(os.environ) | {
            "DAGSTER_HOME": str(REPO),
            "NEXHEALTH_API_URL": self.box.url,
            "NEXHEALTH_API_KEY": self.box.api_key,
        }
        environment.pop(BATCH_SIZE, None)
        output = self.folder / f"output {len(self.commands)}"
        pid = self.forks.start(mode=mode, asked=asked, environment=environment, output=str(output))
        self.commands.append(Command(pid, output))
        return self.commands[-1]

    def end(self, command: Command) -> dict[str, Any]:
        status = self.wait(command)
        said = Path(f"{command.output}.said").read_text()
        assert command.output.exists(), said
        answer: dict[str, Any] = json.loads(command.output.read_text())
        assert status == answer["exit_status"], said
        return answer

    def wait(self, command: Command) -> int:
        command.ended = True
        return self.forks.wait(command.pid)

    def sync(self, mode: str, **asked: object) -> dict[str, Any]:
        return self.end(self.start(mode, **asked))

    def rows(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        return self.warehouse.execute(query, params).fetchall()

    def leave_old_rows(self) -> None:
        """A row in each database that nobody needs any more."""
        self.warehouse.execute(
            "INSERT INTO nexhealth_sweeps (mode, scope_hash, started_at, finished_at)"
            " VALUES ('full', 'old', now() - interval '31 days', now())"
        )
        with psycopg.connect(self.dagster) as db:
            db.execute(
                "INSERT INTO event_logs (run_id, event, timestamp) VALUES ('old', '', now() - interval '31 days')"
            )

    def old_rows(self) -> tuple[int, int]:
        """How many of those are left in each."""
        (sweeps,) = self.rows("SELECT count(*) FROM nexhealth_sweeps WHERE scope_hash = 'old'")[0]
        with psycopg.connect(self.dagster) as db:
            found = db.execute("SELECT count(*) FROM event_logs WHERE run_id = 'old'").fetchone()
        assert found is not None
        return sweeps, found[0]

    def runs(self, ids: list[str]) -> dict[str, str]:
        """Status of each run by its job."""
        found = self.instance.get_runs(dg.RunsFilter(run_ids=ids))
        return {run.job_name: run.status.value for run in found}

    def statuses(self, run_id: str) -> set[str]:
        """How the slices of a run stand in the log."""
        return {row[0] for row in self.rows("SELECT status FROM nexhealth_sync_logs WHERE run_id = %s", run_id)}

    def wait_until_reading(self, collection: str, *, other_than: str = "") -> tuple[str, int]:
        """Run id and pid of the run that reads `collection`, while it does; a dead one looks so until it is closed."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            rows = self.rows(
                "SELECT r.run_id, r.pid FROM nexhealth_sync_logs l JOIN nexhealth_runs r USING (run_id)"
                " WHERE l.collection = %s AND l.status = 'running' AND r.finished_at IS NULL AND r.run_id <> %s",
                collection,
                other_than,
            )
            if rows:
                return rows[0]
            time.sleep(0.05)
        raise AssertionError(f"{collection} is never being read")


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """What starts the commands; it has their imports behind it."""
    with forks("tests.orchestration.sync_commands", tmp_path_factory.mktemp("syncs")) as started:
        yield started


@pytest.fixture
def shell(
    starter: Forks, box: SandboxServer, instance: dg.DagsterInstance, environment: dict[str, str], tmp_path: Path
) -> Iterator[Shell]:
    with psycopg.connect(environment["DATABASE_URL"], autocommit=True) as warehouse:
        made = Shell(starter, tmp_path, box, instance, warehouse)
        yield made
        for command in made.commands:
            if not command.ended:
                starter.kill(command.pid)
                starter.wait(command.pid)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no space left"), BrokenPipeError(), ValueError("I/O operation on closed file")]
)
def test_progress_that_cannot_be_shown_is_left_out(environment: dict[str, str], error: Exception) -> None:
    """A full disk, or `nexhealth sync | head`: the sync is what counts."""
    shown: list[Progress] = []

    def show(progress: Progress) -> None:
        shown.append(progress)
        raise error

    with launch._Watch(environment["DATABASE_URL"], {"jobs": [], "planned": 7}, show) as watch:
        watch.tick()
        watch.tick()
    assert shown == [Progress("", 0, 0, 0, 7)], "what failed once is not tried again"


def test_a_look_that_fails_is_not_the_last(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is busy now and then."""
    shown: list[Progress] = []
    with launch._Watch(environment["DATABASE_URL"], {"jobs": [], "planned": 7}, shown.append) as watch:
        with monkeypatch.context() as patch:
            patch.setattr(watch, "_url", "postgresql://127.0.0.1:9/none")
            watch.tick()
        watch.tick()
    assert len(shown) == 1


def test_a_run_that_was_stopped_at_once_has_not_failed(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a second Ctrl-C nobody is to be told that something went wrong, nor to run anything again for it."""
    plan = {
        "run_id": "r0",
        "results": [],
        "jobs": [{"run_id": "r1"}],
        "planned": 1,
        "sweep": None,
        "catch_up": None,
        "troubles": [],
    }
    outcomes = iter([[Outcome(plan, 0, "")], [Outcome(None, Cancelled.exit_status, "")]])
    monkeypatch.setattr(launch, "run_side_by_side", lambda *_, **__: next(outcomes))
    monkeypatch.setattr(launch, "pass_on", lambda **_: None)
    summary = launch.run_sync(load_settings(), SyncRequest(Mode.INCREMENTAL, dry_run=True), kind="sandbox")
    assert (summary.exit_status, summary.failures) == (130, [])


@pytest.mark.dagster
@pytest.mark.timeout(180)
def test_a_full_sync_then_an_incremental_one_are_runs_in_dagsters_history(shell: Shell) -> None:
    """The main job: what a shell does must be seen in Dagit, under its jobs, with equal counts."""
    shell.leave_old_rows()
    first = shell.sync("full", dry_run=True, resources=["operatories", "patients", "documents"])
    assert first["exit_status"] == 0
    assert shell.old_rows() == (1, 1), "a dry run changes nothing"
    done, expected = first["progress"][-1]
    assert done == expected > 3, "its children tell how far they are"
    counted = {one["name"]: one["counts"]["inserted"] for one in first["collections"]}
    assert counted["documents"] == len(shell.box.state.ids("documents"))
    assert shell.rows("SELECT count(*) FROM nexhealth_institutions") == [(0,)]
    assert shell.rows("SELECT kind FROM nexhealth_warehouse") == []
    assert shell.rows("SELECT count(*) FROM nexhealth_sync_logs") == [(0,)]
    full = shell.sync("full")
    assert full["exit_status"] == 0
    assert full["failures"] == []
    assert shell.old_rows() == (0, 0), "where no daemon runs, a command keeps house"
    with psycopg.connect(shell.dagster) as db:
        left = db.execute("SELECT count(*) FROM asset_check_executions").fetchone()
    assert left == (0,), "a sync runs no check, so Dagit must not say that it skipped some"
    planned = event_transactions(shell.dagster, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    assert max(planned.values())[0] > 20
    assert {written for _, written in planned.values()} == {1}, "each event for itself is dear"
    assert shell.runs(full["run_ids"]) == dict.fromkeys(JOBS - {"nexhealth_appointment_changes"}, "SUCCESS")
    for run in shell.instance.get_runs(dg.RunsFilter(run_ids=full["run_ids"])):
        assert run.tags[".dagster/repository"] == "__repository__@nexhealth_pipeline"
        assert run.tags["dagster/max_runtime"] == "0", "a daemon must not end a first sync that takes three days"
    logged = {
        name: (slices, read, requests)
        for name, slices, read, requests in shell.rows(
            "SELECT collection, count(*), sum(records_read)::bigint, sum(requests)::bigint FROM nexhealth_sync_logs"
            " WHERE run_id = ANY(%s) GROUP BY 1",
            full["run_ids"],
        )
    }
    summed = {
        one["name"]: (one["slices"], one["counts"]["records_read"], one["counts"]["requests"])
        for one in full["collections"]
    }
    assert summed == logged
    assert shell.rows("SELECT count(*) FROM nexhealth_sweeps WHERE finished_at IS NOT NULL") == [(1,)]
    assert full["progress"][-1][1] > 40
    shell.box.state.update(
        "providers", shell.rows("SELECT min(id) FROM nexhealth_providers")[0][0], {"npi": "1234567893"}
    )
    changed = shell.sync("incremental")
    assert changed["exit_status"] == 0
    assert shell.runs(changed["run_ids"]) == dict.fromkeys(JOBS - {"nexhealth_appointments"}, "SUCCESS")
    assert {one["name"]: one["counts"]["updated"] for one in changed["collections"] if one["counts"]["updated"]} == {
        "providers": 1
    }
    closed = shell.sync("incremental", locations=["348514"])
    assert (closed["exit_status"], "inactive" in closed["error"]) == (2, True)
    before = shell.rows("SELECT count(*) FROM nexhealth_sync_logs")
    dry = shell.sync("full", dry_run=True, resources=["operatories"])
    assert dry["exit_status"] == 0
    assert {one["name"] for one in dry["collections"]} == {"institutions", "locations", "sync_status", "operatories"}
    assert shell.rows("SELECT count(*) FROM nexhealth_sync_logs") == before


@pytest.mark.dagster
@pytest.mark.timeout(180)
def test_a_sync_that_is_killed_and_then_stopped_by_its_user_is_gone_on_with(shell: Shell) -> None:
    """A dead run that stays started hides what is missing; Ctrl-C must lose nothing, nor look like a failure."""
    asked = {"resources": ["providers", "patients", "documents"], "locations": ONE_PRACTICE}
    shell.box.faults.add("hang", path="/patients/[0-9]+/documents", seconds=0.4)
    command = shell.start("full", **asked)
    dead, pid = shell.wait_until_reading("documents")
    os.kill(pid, signal.SIGKILL)
    killed = shell.end(command)
    assert killed["exit_status"] == 1
    assert [label for label, _ in killed["failures"]] == ["run"]
    assert shell.runs([dead]) == {"nexhealth_locations": "STARTED"}

    shell.box.faults.clear()  # slower from here on: the next run must still be reading once all this has been looked at
    shell.box.faults.add("hang", path="/patients/[0-9]+/documents", seconds=1.0)
    command = shell.start("full", **asked)
    run_id, _ = shell.wait_until_reading("documents", other_than=dead)
    assert shell.runs([dead]) == {"nexhealth_locations": "FAILURE"}
    run = shell.instance.get_run_by_id(dead)
    assert run is not None
    assert run.tags["dagster/will_retry"] == "false", "a command's run is not the daemon's to repeat"
    assert shell.rows("SELECT status FROM nexhealth_runs WHERE run_id = %s", dead) == [("interrupted",)]
    assert shell.statuses(dead) == {"succeeded", "interrupted"}
    os.kill(command.pid, signal.SIGINT)
    stopped = shell.end(command)
    assert stopped["exit_status"] == 130
    assert shell.runs([run_id]) == {"nexhealth_locations": "CANCELED"}
    assert "cancelled" in shell.statuses(run_id)
    assert shell.rows("SELECT status FROM nexhealth_runs WHERE run_id = %s", run_id) == [("cancelled",)]
    assert shell.rows("SELECT finished_at FROM nexhealth_sweeps") == [(None,)]

    shell.box.faults.clear()
    shell.box.requests.clear()
    shell.box.state.update("patients", shell.box.state.ids("patients")[0], {"first_name": "Meanwhile"})
    again = shell.sync("full", **asked)
    assert again["exit_status"] == 0
    assert shell.rows("SELECT count(*) FROM nexhealth_patients WHERE first_name = 'Meanwhile'") == [(1,)]
    whole = [one for one in shell.box.requests.matching("/patients") if one.param("updated_since") is None]
    assert whole == [], "patients were read completely in this sweep; only what changed since is asked for"
    assert shell.rows("SELECT count(*), bool_and(finished_at IS NOT NULL) FROM nexhealth_sweeps") == [(1, True)]

    command = shell.start("full", **asked)
    deadline = time.monotonic() + 60
    while shell.rows("SELECT count(*) FROM nexhealth_sweeps") == [(1,)]:
        assert time.monotonic() < deadline, "it never begins a sweep"
        time.sleep(0.05)
    shell.forks.kill(command.pid)
    shell.wait(command)
    plain = shell.sync("incremental", **asked)
    assert plain["exit_status"] == 0
    assert shell.rows("SELECT count(*), bool_and(finished_at IS NOT NULL) FROM nexhealth_sweeps") == [(2, True)], (
        "a full sync begun later must read everything, not what a killed one left"
    )


FULL_DISK = """
CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
$body$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $body$;
CREATE TRIGGER full_disk BEFORE INSERT ON nexhealth_documents EXECUTE FUNCTION full_disk();
"""


@pytest.mark.dagster
@pytest.mark.timeout(180)
def test_a_failed_slice_hides_no_run_that_broke_off(shell: Shell) -> None:
    """Else the sync calls one slice failed, nobody learns of those never read, and the next one begins anew."""
    asked = {"resources": ["operatories", "patients", "documents"], "locations": ONE_PRACTICE}
    shell.box.faults.add("status", path="/operatories", location_id=348511, status=400)
    slow = shell.box.faults.add("hang", path="/patients/[0-9]+/documents", seconds=0.4)
    shell.warehouse.execute(FULL_DISK)
    broken = shell.sync("full", **asked)
    assert broken["exit_status"] == 4
    (label, _), (run, why) = broken["failures"]
    assert (label.partition(" ")[0], run) == ("operatories", "run")
    assert re.fullmatch(r"broke off after [0-9]+ slices: .*PostgreSQL has no room left \(53100\).*", why), why
    counted = {one["name"]: (one["slices"], one["failed"]) for one in broken["collections"]}
    assert counted["operatories"][1] == 1
    assert counted["patients"][0] > 1, "what it had read counts all the same"
    assert shell.rows("SELECT finished_at FROM nexhealth_sweeps") == [(None,)]

    shell.warehouse.execute("DROP TRIGGER full_disk ON nexhealth_documents")
    shell.box.faults.remove(slow.id)
    shell.box.requests.clear()
    failed = shell.sync("full", **asked)
    assert (failed["exit_status"], {label for label, _ in failed["failures"]}) == (1, {label})
    whole = [one for one in shell.box.requests.matching("/patients") if one.param("updated_since") is None]
    assert whole == [], "it goes on where the other one broke off"
    state = shell.box.state
    expected = sum(state.row("documents", one).institution_id == WILLOW for one in state.ids("documents"))
    assert shell.rows("SELECT count(*) FROM nexhealth_documents") == [(expected,)]
    assert shell.rows("SELECT count(*), bool_and(finished_at IS NOT NULL) FROM nexhealth_sweeps") == [(1, True)], (
        "a slice that failed keeps no sweep open"
    )
