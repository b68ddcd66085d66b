"""kill -9 in the middle of a full sync: the next one goes on, and ends where an undisturbed one does."""

import random
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.sandbox.log import Asked
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.months import month_keys
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .kit import Rows, sync_all
from .test_full import assert_equal

SCRIPT = Path(__file__).with_name("plain_sync.py")
DISCOVERY = ("/institutions", "/locations", "/sync_status", "/authenticates")


def start(box: SandboxServer, database_url: str, mode: str = "full") -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), box.url, box.api_key, database_url, mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def asked_key(asked: Asked) -> tuple[object, ...]:
    return asked.path, tuple(sorted(asked.params))


def committed(box: SandboxServer, rows: Rows) -> set[tuple[object, ...]]:
    """Requests whose page the database holds: as many of each pass, in their order, as its state says."""
    passes: dict[tuple[object, ...], list[Asked]] = {}
    for asked in box.requests:
        if asked.status == 200:
            params = dict(asked.params)
            flag = (
                params.get("cancelled")
                or params.get("active")
                or params.get("inactive")
                or params.get("location_strict")
            )
            window = params.get("end", "")[:10]
            passes.setdefault(
                (asked.path, params.get("subdomain"), params.get("location_id"), window, flag), []
            ).append(asked)
    kept: set[tuple[object, ...]] = set()
    counts = rows(
        "SELECT s.collection, i.subdomain, nullif(s.location_id, 0)::text, s.window_key, s.pass, s.page"
        " FROM nexhealth_sync_state s JOIN nexhealth_institutions i ON i.id = s.institution_id WHERE s.pass <> 'patients'"
    )
    flags = {"kept": "false", "cancelled": "true", "members": "true"}
    for collection, subdomain, location, window, pass_name, pages in counts:
        for (path, sub, loc, end, flag), asks in passes.items():
            same = (path, sub, loc) == (f"/{collection}", subdomain, location)
            if same and (not window or _month_of(end) == window) and _same_flag(collection, pass_name, flag, flags):
                kept |= {asked_key(asked) for asked in asks[:pages]}
    for patient, subdomain in rows(
        "SELECT patient_id, subdomain FROM nexhealth_child_reads r JOIN nexhealth_institutions i ON i.id = r.institution_id"
    ):
        kept.add((f"/patients/{patient}/documents", (("subdomain", subdomain),)))
    return kept


def _same_flag(collection: str, pass_name: object, flag: str | None, flags: dict[str, str]) -> bool:
    if collection == "patients":
        return flag == ("false" if pass_name == "all" else "true")
    if collection == "providers":
        return flag == ("true" if pass_name == "inactive" else "false")
    if pass_name in ("active", "inactive"):
        return flag == ("true" if pass_name == "active" else "false")
    return flag == flags.get(str(pass_name)) if pass_name in flags else True


def _month_of(end: str) -> str:
    """A window ends a day after its month; the last one ends in 2200."""
    if end.startswith("2200"):
        return month_keys(datetime.now(UTC).date())[-1]
    return (date.fromisoformat(end) - timedelta(days=5)).strftime("%Y-%m")


def wait_for_work(database_url: str, pages: int, process: subprocess.Popen[str]) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            row = connection.execute("SELECT coalesce(sum(pages), 0) FROM nexhealth_sync_logs").fetchone()
            if row and row[0] >= pages:
                return
            time.sleep(0.01)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_sync_goes_on_at_the_next_page(seed: int, box: SandboxServer, database_url: str, rows: Rows) -> None:
    """A page asked for twice costs the practice's API budget; a page skipped costs its data."""
    chance = random.Random(seed)
    held: set[tuple[object, ...]] = set()
    for _ in range(2):
        process = start(box, database_url)
        wait_for_work(database_url, chance.randint(5, 120), process)
        process.kill()
        process.communicate()
        again = {asked_key(asked) for asked in box.requests if asked.path not in DISCOVERY} & held
        assert not again
        held |= committed(box, rows)
        box.requests.clear()
    process = start(box, database_url)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    again = {asked_key(asked) for asked in box.requests} & held
    assert not again
    assert held
    assert_equal(box, rows)
    assert rows("SELECT count(*) FROM nexhealth_sync_logs WHERE status = 'running'") == [(0,)]
    assert rows("SELECT count(*) > 0 FROM nexhealth_sync_logs WHERE status = 'interrupted'") == [(True,)]


def test_a_server_that_repeats_pages_is_never_believed_however_often_it_is_asked(
    settings: Settings, box: SandboxServer, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new sync resumed one page further and committed the repeated page, until the list looked complete."""
    monkeypatch.setattr("nexhealth_pipeline.sync.plan.PER_PAGE", 5)
    box.faults.add("repeated_page", path="/patients")
    for _ in range(6):
        results = sync_all(
            settings, SyncOptions(batch_pages=1), only={"patients"}, retry=RetryPolicy(sleep=lambda _: None)
        )
        read = [result for result in results if result.slice.collection.name == "patients"]
        assert {str(result.status) for result in read} == {"failed"}
    box.faults.clear()
    sync_all(settings)
    assert_equal(box, rows)


@pytest.mark.parametrize("ahead", [-7200, 300, 7200])
def test_a_clock_of_the_api_that_is_off_hides_no_change(
    ahead: int, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is fresh is judged by the database's clock: by the API's, a sync right after another read nothing."""
    with SandboxServer(patients=30, limits=False, clock=lambda: time.time() + ahead) as box:
        settings = load_settings(
            {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url},
            environ={},
            env_file=None,
        )
        for mode in (Mode.FULL, Mode.FULL, Mode.INCREMENTAL):
            box.state.update("patients", box.state.ids("patients")[0], {"first_name": mode})
            now = rows("SELECT clock_timestamp()")[0][0]
            assert isinstance(now, datetime)
            results = sync_all(settings, SyncOptions(mode=mode, fresh_after=now), only={"patients", "documents"})
            assert {str(result.status) for result in results} == {"succeeded"}
            assert rows("SELECT count(*) FROM nexhealth_patients WHERE first_name = '" + mode + "'") == [(1,)]
