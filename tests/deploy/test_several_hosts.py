"""Several hosts on one DATABASE_URL: one rate budget, one reader a slice. Over TCP, between network namespaces.

What is judged is the API's own log: when each request arrived by its clock, and for what.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.catalog.limits import LIMITS, RateClass, rate_classes
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY
from nexhealth_pipeline.warehouse.account import Account, server_account
from nexhealth_pipeline.warehouse.binaries import bin_folder_for
from tests.waiting import until

from .hosts import Host, hosts, why_none

SHARE = 0.8
SHARE_OF_A_SECOND = 0.6
"""Where the limit is that of a second: an API that waited 0.3 s for the processor saw more than ten arrive within one."""
PATIENTS = 400
PIER, ISLAND, NORTH = "harbor-smiles.348621", "harbor-smiles.348622", "willow-dental.348511"
ONE_LOCATION = ("--location", PIER, "--resource", "appointments")
PER_HOST = {"/authenticates", *(one.path for one in DECLARED if one.scope is Scope.PRACTICE)}
"""What each host asks for itself: its token, and which practices there are."""
_SERVE = """
import sys
from nexhealth_pipeline.sandbox import serve
serve(sys.argv[1], 8089, patients=int(sys.argv[2]), appointments_per_patient=4, on_ready=lambda url: print(url, flush=True))
"""
_SHORT = """
import sys
from datetime import date, timedelta
from nexhealth_pipeline.sync import months
months.FIRST_MONTH, months.MONTHS_AHEAD = (date.today() - timedelta(days=180)).replace(day=1), 1
from nexhealth_pipeline.cli import main
sys.exit(main())
"""
"""The command, with eight months: enough to keep two hosts busy at the same time for some seconds."""
_GET = "import sys, urllib.request; sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())"


@dataclass(frozen=True)
class Scene:
    """A host with PostgreSQL and the API, and others that sync."""

    hub: Host
    others: list[Host]
    folder: Path
    password: str

    @property
    def inside(self) -> str:
        """The warehouse for this test, which lives on no host."""
        return f"postgresql://nexhealth@/nexhealth?host={self.folder / 'socket'}"

    def sync(self, host: Host, *arguments: str, short: bool = False, share: float = SHARE) -> "subprocess.Popen[str]":
        """Start a sync on a host; a short one has eight months."""
        home = self.folder / host.namespace
        home.mkdir(exist_ok=True)
        environment = {
            "DATABASE_URL": f"postgresql://nexhealth:{self.password}@{self.hub.address}:5432/nexhealth",
            "NEXHEALTH_API_KEY": SANDBOX_API_KEY,
            "NEXHEALTH_API_URL": f"http://{self.hub.address}:8089",
            "NEXHEALTH_DATA_KIND": "sandbox",
            "NEXHEALTH_HOME": str(home),
            "NEXHEALTH_RATE_SHARE": str(share),
        }
        program = [sys.executable, "-c", _SHORT] if short else [str(Path(sys.executable).with_name("nexhealth"))]
        command = [*program, "sync", "--mode", "full", "--json", *arguments]
        return host.start(command, environment=environment, folder=home, output=home / "stderr")

    def asked(self) -> list[dict[str, Any]]:
        """The API's log."""
        address = f"http://{self.hub.address}:8089/sandbox/requests"
        log: list[dict[str, Any]] = json.loads(self.hub.run(sys.executable, "-c", _GET, address))
        return log

    def query(self, question: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Rows of the warehouse."""
        with psycopg.connect(self.inside) as connection:
            return connection.execute(question, parameters).fetchall()

    def keys_of(self, which: str) -> list[str]:
        """Arguments that name the active locations of some institutions."""
        found = self.query(
            "SELECT i.subdomain || '.' || l.id FROM nexhealth_locations l JOIN nexhealth_institutions i"
            f" ON i.id = l.institution_id WHERE {which} AND NOT coalesce(l.inactive, false)"
        )
        return [word for (key,) in found for word in ("--location", key)]

    def pages_of(self, answer: dict[str, Any], collection: str | None = None) -> int:
        """How many pages, of one collection or of all, one sync's runs brought into the warehouse."""
        question = (
            "SELECT coalesce(sum(pages), 0) FROM nexhealth_sync_logs"
            " WHERE run_id = ANY(%s) AND collection = coalesce(%s, collection)"
        )
        return int(self.query(question, answer["run_ids"], collection)[0][0])


@contextmanager
def database(hub: Host, folder: Path, account: Account, password: str) -> Iterator[None]:
    """PostgreSQL on `hub`, for TCP clients of the network with a password."""
    programs = bin_folder_for(account, folder)
    data, socket, secret = folder / "data", folder / "socket", folder / "secret"
    secret.write_text(password)
    for one in (data, socket):
        one.mkdir(mode=0o700)
    for one in (data, socket, secret):
        account.own(one)
    initdb: list[str | Path] = [
        programs / "initdb",
        "-D",
        data,
        "-U",
        "nexhealth",
        "-E",
        "UTF8",
        "--locale=C",
        "--auth-local=trust",
    ]
    initdb += ["--auth-host=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
    subprocess.run(initdb, check=True, cwd="/", capture_output=True, **account.options())
    with (data / "pg_hba.conf").open("a") as file:
        file.write("host all all 198.18.0.0/24 scram-sha-256\n")
    settings = {"listen_addresses": hub.address, "unix_socket_directories": socket, "fsync": "off"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    hub.start([str(programs / "postgres"), "-D", str(data), *options], as_user=(account.uid, account.gid))
    until(lambda: _made(f"postgresql://nexhealth@/postgres?host={socket}"), seconds=60)
    yield


def _made(admin: str) -> bool:
    try:
        with psycopg.connect(admin, autocommit=True) as connection:
            connection.execute("CREATE DATABASE nexhealth")
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="module")
def possible() -> None:
    """Skips the test where hosts cannot be made: tried where one is wanted, not wherever tests are collected."""
    if reason := why_none():
        pytest.skip(reason)


@pytest.fixture
def scene(possible: None) -> Iterator[Scene]:
    folder = Path(tempfile.mkdtemp(prefix="nexhealth-hosts-"))
    folder.chmod(0o711)
    account = server_account()
    assert account is not None
    try:
        with hosts(4) as (hub, *others), database(hub, folder, account, "not-a-secret"):
            api = hub.start([sys.executable, "-c", _SERVE, hub.address, str(PATIENTS)])
            assert api.stdout
            assert api.stdout.readline().startswith("http://")
            yield Scene(hub, others, folder, "not-a-secret")
    finally:
        shutil.rmtree(folder)


def summary(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a sync said at its end; it must have succeeded."""
    assert process.stdout
    answer = process.stdout.read()
    assert process.wait() == 0, answer[-2000:]
    found: dict[str, Any] = json.loads(answer)
    return found


def most_in_a_window(asked: list[dict[str, Any]], seconds: float) -> int:
    """Counted here, not by the API's limiter: the most arrivals in any window of that length."""
    times = sorted(one["arrived"] for one in asked)
    first, most = 0, 0
    for last, moment in enumerate(times):
        while times[first] <= moment - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


def nothing_was_read_twice(asked: list[dict[str, Any]], at_least: int = 100) -> None:
    """Every page that was answered was asked for once, whoever asked."""
    pages = Counter(
        (one["path"], one["query"]) for one in asked if one["path"] not in PER_HOST and one["status"] == 200
    )
    assert len(pages) > at_least
    assert [page for page, count in pages.items() if count > 1] == []


def limits_were_kept(asked: list[dict[str, Any]], felt: RateClass, share: float = SHARE) -> None:
    """No limit was exceeded in any window, and `felt` was in the way."""
    assert {one["status"] for one in asked} <= {200, 201, 403}  # 403: finance, where it is not enabled
    most = {
        name: most_in_a_window([one for one in asked if name in rate_classes(one["path"])], limit.window_seconds)
        for name, limit in LIMITS.items()
    }
    assert {name: most[name] for name, limit in LIMITS.items() if most[name] > limit.requests} == {}
    assert most[felt] > LIMITS[felt].requests * share / 2, "the limit was never felt"


def test_two_hosts_share_the_limit_of_a_second_and_what_both_are_to_read(scene: Scene) -> None:
    """They begin at once, on a warehouse without a table: each reads a location of its own and one of both."""
    both = ("--location", ISLAND, "--resource", "appointments")
    running = [
        scene.sync(host, "--location", own, *both, short=True, share=SHARE_OF_A_SECOND)
        for host, own in zip(scene.others, (PIER, NORTH), strict=False)
    ]
    answers = [summary(process) for process in running]
    asked = scene.asked()
    limits_were_kept(asked, RateClass.APPOINTMENT_LIST, SHARE_OF_A_SECOND)
    nothing_was_read_twice(asked, 40)
    assert min(scene.pages_of(answer, "appointments") for answer in answers) > 10


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_hosts_share_limits_and_work(scene: Scene) -> None:
    """Two hosts read locations of their own, a third one the same as the first: together they use no more of the
    limits than one, and read nothing twice."""
    scene.sync(scene.others[0], "--resource", "locations").wait()
    here = scene.keys_of("i.subdomain = 'harbor-smiles'")
    there = scene.keys_of("i.subdomain <> 'harbor-smiles'")
    before = len(scene.asked())
    running = [scene.sync(host, *chosen) for host, chosen in zip(scene.others, (here, there, here), strict=True)]
    answers = [summary(process) for process in running]
    asked = scene.asked()[before:]

    limits_were_kept(asked, RateClass.PATIENTS)
    nothing_was_read_twice(asked)
    first, second, rival = (scene.pages_of(answer) for answer in answers)
    assert first + rival > 100
    assert second > 100


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_host_that_vanishes_is_not_waited_for(scene: Scene) -> None:
    """It holds locks over connections that nobody closed: left to the system, the server keeps them for two hours.
    Another host goes on where it was."""
    gone, heir = scene.others[:2]
    held = (
        "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
        " WHERE l.locktype = 'advisory' AND a.datname = 'nexhealth' AND a.client_addr = %s::inet"
    )
    done = "SELECT count(*) >= 4 FROM nexhealth_sync_logs WHERE collection = 'appointments' AND status = 'succeeded'"
    scene.sync(gone, *ONE_LOCATION)
    until(
        lambda: scene.query("SELECT to_regclass('nexhealth_sync_logs') IS NOT NULL") == [(True,)],
        seconds=120,
        pause=0.1,
    )
    until(lambda: scene.query(done) == [(True,)], seconds=120, pause=0.1)
    gone.vanish()
    assert scene.query(held, gone.address)[0][0] > 1, "the run's lock and those of slices"
    answer = summary(scene.sync(heir, *ONE_LOCATION))
    assert scene.pages_of(answer) > 0
    assert scene.query(held, gone.address) == [(0,)]
