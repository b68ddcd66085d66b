"""`nexhealth dev`: ports, readiness, and an end that leaves nothing behind."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import pytest

from nexhealth_pipeline.cli import dev
from nexhealth_pipeline.cli.household import Household, nexhealth_command
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.errors import WarehouseRefused
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.migrate import declare_kind
from tests.cli.conftest import REAL_KEY, Run, small_world
from tests.cli.test_reaper import soon

PAGES = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
"""Stands for Dagster's pages."""


@pytest.fixture(autouse=True)
def _nobody_elses_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The default is everybody's: tests beside this one would take it between its choice and its use.

    While it is held like this, nobody who asks for any port is given it, and who asks for it by number can have it.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        monkeypatch.setattr(dev, "_PORT", held.getsockname()[1])
        yield


def standing_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[object]:
    """Let `dev` start `program` instead of Dagster; returns the realms it was asked for."""
    realms: list[object] = []

    def start(household: Household, realm: object, host: str, port: int) -> list[str]:
        realms.append(realm)
        household.start("webserver", [sys.executable, "-S", "-c", program, str(port)])
        return []

    monkeypatch.setattr(dev, "_start", start)
    return realms


def interrupt_when_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once the pages answer."""

    def interrupted(_household: Household) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 1

    monkeypatch.setattr(dev, "_until_one_ends", interrupted)


def test_it_prints_its_address_and_ends_with_0_when_asked_to(nexhealth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM (a service manager) is Ctrl-C; no key means the demo."""
    realms = standing_in(monkeypatch, PAGES)
    interrupt_when_ready(monkeypatch)
    port = dev._usable_port("127.0.0.1")
    monkeypatch.setattr(dev, "_PORT", 0)  # another than is asked for
    ended = nexhealth("dev", "--port", str(port))
    assert ended.status == 0
    assert f"Dagster is at http://127.0.0.1:{port} " in ended.out
    assert "ended, with everything it had started" in ended.err
    assert realms == [None]


def test_a_key_means_the_account_and_demo_wins_over_it(nexhealth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real data must not come up in a demo, nor a demo in place of real data."""
    realms = standing_in(monkeypatch, PAGES)
    interrupt_when_ready(monkeypatch)
    nexhealth("dev", NEXHEALTH_API_KEY=REAL_KEY)
    nexhealth("dev", "--demo", NEXHEALTH_API_KEY=REAL_KEY)
    assert realms[0] is not None
    assert realms[1] is None


def test_a_schedule_that_never_comes_starts_nothing(nexhealth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's pages would come up without anything on them; the demo has schedules of its own."""
    realms = standing_in(monkeypatch, PAGES)
    interrupt_when_ready(monkeypatch)
    ended = nexhealth("dev", NEXHEALTH_API_KEY=REAL_KEY, NEXHEALTH_CATCHUP="0 2 31 4 *")
    assert (ended.status, realms) == (2, [])
    assert "NEXHEALTH_CATCHUP (value: '0 2 31 4 *')" in ended.err
    assert nexhealth("dev", NEXHEALTH_CATCHUP="0 2 31 4 *").status == 0


@pytest.mark.parametrize("content", [None, "acme = ", ""], ids=["missing", "broken", "empty"])
def test_keys_that_cannot_be_read_start_nothing(
    nexhealth: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    """Dagster's pages would come up, and every run fail."""
    if content is not None:
        (tmp_path / "keys.toml").write_text(content)
    realms = standing_in(monkeypatch, PAGES)
    interrupt_when_ready(monkeypatch)
    ended = nexhealth("dev", NEXHEALTH_API_KEYS_FILE=str(tmp_path / "keys.toml"))
    assert (ended.status, realms) == (2, [])
    assert "NEXHEALTH_API_KEYS_FILE" in ended.err
    assert "nexhealth dev" not in ended.err, "which is what was just run"


def test_a_part_that_ends_by_itself_ends_everything_and_is_named(
    nexhealth: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that died unseen would be found out by missing nights."""
    standing_in(monkeypatch, "")
    ended = nexhealth("dev")
    assert ended.status == 1
    assert "the webserver does not start" in ended.err
    standing_in(monkeypatch, PAGES.replace("serve_forever()", "handle_request()"))
    ended = nexhealth("dev")
    assert ended.status == 1
    assert "the webserver ended by itself" in ended.err


def test_a_taken_port_that_was_asked_for_is_wrong_use(nexhealth: Run) -> None:
    """Another port than the one in the bookmark would be no help."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = nexhealth("dev", "--port", str(port))
    assert ended.status == 2
    assert f"--port {port}" in ended.err


def test_a_taken_default_port_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """3000 is everybody's default."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(dev, "_PORT", port)
        assert dev._usable_port("127.0.0.1") != port
    assert dev._usable_port("127.0.0.1") == port


def test_a_host_that_is_none_of_this_machine_is_wrong_use(nexhealth: Run) -> None:
    """An address of the documentation's range is nobody's."""
    ended = nexhealth("dev", "--host", "192.0.2.1")
    assert ended.status == 2
    assert "192.0.2.1" in ended.err


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")]
)
def test_the_address_printed_works_in_a_browser(host: str, shown: str) -> None:
    """ "Everywhere" is no address to go to."""
    assert dev._shown(host) == shown


class FakeHousehold:
    """Remembers what it was to start."""

    def __init__(self) -> None:
        self.started: dict[str, tuple[list[str], dict[str, Any]]] = {}

    def start(self, name: str, command: list[str], **options: Any) -> None:
        self.started[name] = (command, options)

    def answer(self, name: str, within: float) -> str:
        return "http://127.0.0.1:8090"


@pytest.fixture
def real(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Realm:
    """An account, from a folder without a `dagster.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NEXHEALTH_API_KEY", REAL_KEY)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("NEXHEALTH_HOME", str(tmp_path / "home"))
    return account()


def test_an_account_gets_dagster_on_its_own_warehouse(real: Realm, tmp_path: Path, database_url: str) -> None:
    """Its settings reach Dagster's processes as choices, and no secret stands on a command line."""
    household = FakeHousehold()
    (told,) = dev._start(cast("Household", household), real, "127.0.0.1", 4321)
    assert set(household.started) == {"webserver", "daemon"}
    assert "NEXHEALTH_WEBHOOK_KEY is not set" in told
    for command, options in household.started.values():
        assert REAL_KEY not in " ".join(command)
        assert options["folder"] == tmp_path / "home" / "dagster"
        assert options["environment"]["DAGSTER_HOME"] == str(options["folder"])
        seen = load_settings(environ=options["environment"] | {"DATABASE_URL": "what .env says"}, env_file=None)
        assert seen.database_url is not None
        assert seen.database_url.get_secret_value() == database_url
    assert "4321" in household.started["webserver"][0]


READING = """
import json, logging, os
from dagster._cli.utils import _inject_local_env_file
from nexhealth_pipeline.settings import load_settings
with _inject_local_env_file(logging.getLogger()):
    settings = load_settings()
    seen = settings.database_url.get_secret_value(), settings.api_keys()[""], settings.concurrency
    print(json.dumps([os.environ["DATABASE_URL"], *seen]))
"""
"""What each of Dagster's commands begins with, and what all of ours in such a process begin with."""


def test_dagsters_processes_work_on_the_accounts_warehouse_where_dotenv_names_another(
    real: Realm, tmp_path: Path, database_url: str
) -> None:
    """Dagster puts `.env` over what its process was given: it would read one practice into the warehouse of another."""
    shutil.copy(str(files("nexhealth_pipeline.orchestration") / "dagster.yaml"), tmp_path)
    other = "postgresql://nobody@127.0.0.1:9/another"
    (tmp_path / ".env").write_text(f"DATABASE_URL={other}\nNEXHEALTH_API_KEY=another\nNEXHEALTH_CONCURRENCY=2\n")
    household = FakeHousehold()
    dev._start(cast("Household", household), account(), "127.0.0.1", 4321)
    (_, given), (_, daemons) = household.started["webserver"], household.started["daemon"]
    assert given == daemons
    assert given["folder"] == tmp_path, "there it finds the file"
    ended = subprocess.run(
        [sys.executable, "-P", "-c", READING], env=given["environment"], cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(ended.stdout) == [other, database_url, REAL_KEY, 2]


@pytest.mark.parametrize(("name", "value"), [("NEXHEALTH_WEBHOOK_KEY", "k" * 32), ("NEXHEALTH_WEBHOOK_SECRETS", "s")])
def test_an_account_with_secrets_or_a_key_for_them_gets_the_receiver(
    real: Realm, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """On loopback: a tunnel or a proxy is the user's to set up."""
    monkeypatch.setenv(name, value)
    household = FakeHousehold()
    (told,) = dev._start(cast("Household", household), account(), "127.0.0.1", 4321)
    assert household.started["receiver"][0][-3:-1] == ["serve", "--port"]
    assert "http://127.0.0.1:8090/api/nexhealth-webhook" in told


def test_a_warehouse_of_the_other_kind_is_refused_before_anything_starts(real: Realm, database_url: str) -> None:
    """Runs would refuse it one by one."""
    declare_kind(database_url, "sandbox")
    household = FakeHousehold()
    with pytest.raises(WarehouseRefused, match="holds sandbox data"):
        dev._start(cast("Household", household), real, "127.0.0.1", 4321)
    assert household.started == {}


def family(mark: str) -> list[int]:
    """Processes whose environment holds `mark` and that have not ended."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return [pid for pid in found if pid != os.getpid()]


@pytest.mark.dagster
@pytest.mark.skipif(not Path("/proc").exists(), reason="counts processes through /proc")
def test_dagsters_pages_show_the_assets_and_ctrl_c_leaves_no_process(own_home: Path, tmp_path: Path) -> None:
    """The real thing once: webserver, daemon, code servers, sandbox; in a folder with a space and a bad `.env`."""
    (tmp_path / ".env").write_text("NEXHEALTH_SUBDOMAINS=acme\nNEXHEALTH_RATE_SHARE=none\n")
    small_world(own_home)
    mark = f"family-of-{os.getpid()}-{time.monotonic_ns()}"
    environment = os.environ | {"NEXHEALTH_HOME": str(own_home), "MARK": mark}
    with subprocess.Popen(
        nexhealth_command("dev", "--demo"),
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        watchdog = threading.Timer(240, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            url = next(line.split()[3] for line in process.stdout if line.startswith("Dagster is at"))
            loaded, assets = _loaded(url)
            assert len(family(mark)) >= 6
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(timeout=60)
            watchdog.cancel()
    assert "nexhealth_patients" in assets, loaded
    assert status == 0
    assert soon(lambda: not family(mark))


QUERY = """{
  workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { ... on PythonError { message } } } } }
  assetNodes { assetKey { path } }
}"""


def _loaded(url: str) -> tuple[object, set[str]]:
    """What Dagster's pages say of the code location, and the assets they know."""
    body = json.dumps({"query": QUERY}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        data = json.load(answer)["data"]
    return data["workspaceOrError"], {"/".join(one["assetKey"]["path"]) for one in data["assetNodes"]}
