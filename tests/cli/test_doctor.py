"""Every state that `nexhealth doctor` tells apart, each produced for real."""

import json
import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.cli.findings import Finding, Group, Level, exit_status
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, SandboxServer
from tests.cli.conftest import REAL_KEY, Run, findings, read_every_office

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture
def online(sandbox: SandboxServer) -> SandboxServer:
    """A sandbox without an offline office."""
    read_every_office(sandbox)
    return sandbox


@pytest.fixture
def settings(online: SandboxServer, database_url: str) -> dict[str, str]:
    """Everything as it should be; each test breaks one thing."""
    return {"NEXHEALTH_API_URL": online.url, "NEXHEALTH_API_KEY": REAL_KEY, "DATABASE_URL": database_url}


def test_a_sound_installation_gets_0_and_says_what_it_looked_at(nexhealth: Run, settings: dict[str, str]) -> None:
    """Whoever sets this up wants to see that it is right, not only that nothing is wrong."""
    ended = nexhealth("doctor", **settings)
    assert (ended.status, ended.err) == (0, "")
    assert "accepts the API key" in ended.out
    assert "institutions reached: willow-dental, harbor-smiles" in ended.out
    assert all(line.startswith("ok") for line in ended.out.splitlines())


def test_a_schedule_that_never_comes_is_named(nexhealth: Run, settings: dict[str, str]) -> None:
    """Every sync would end by it."""
    ended = nexhealth("doctor", **settings | {"NEXHEALTH_NIGHTLY": "0 25 * * *"})
    assert ended.status == 2
    assert "NEXHEALTH_NIGHTLY (value: '0 25 * * *')" in ended.err


def test_without_a_key_the_setting_is_named(nexhealth: Run, database_url: str) -> None:
    """The first thing everybody meets."""
    ended = nexhealth("doctor", "--json", DATABASE_URL=database_url)
    assert ended.status == 2
    assert "NEXHEALTH_API_KEY" in findings(ended)["key"]["message"]


@pytest.mark.parametrize(
    ("content", "words"), [(None, "keys.toml cannot be read"), ("", "keys.toml holds no key")], ids=["missing", "empty"]
)
def test_a_file_of_keys_that_holds_none_to_read_is_to_be_corrected(
    nexhealth: Run, database_url: str, tmp_path: Path, content: str | None, words: str
) -> None:
    """Another key beside it would not help."""
    keys = tmp_path / "keys.toml"
    if content is not None:
        keys.write_text(content)
    ended = nexhealth("doctor", "--json", DATABASE_URL=database_url, NEXHEALTH_API_KEYS_FILE=str(keys))
    assert ended.status == 2
    key = findings(ended)["key"]
    assert words in key["message"]
    assert (key["fix"].startswith("Correct "), "NEXHEALTH_API_KEY " in key["fix"]) == (True, False)


def test_a_refused_key_is_told_from_an_unreachable_host(nexhealth: Run, settings: dict[str, str]) -> None:
    """One needs another key, the other a network; the key itself is never shown."""
    ended = nexhealth("doctor", "--json", **settings | {"NEXHEALTH_API_KEY": "wrong-" + REAL_KEY})
    assert ended.status == 2
    assert "refuses the API key" in findings(ended)["key"]["message"]
    assert REAL_KEY not in ended.out + ended.err


def test_an_unreachable_host_is_named(nexhealth: Run, settings: dict[str, str], closed_port: int) -> None:
    """A typing error in NEXHEALTH_API_URL, or no network."""
    url = f"http://127.0.0.1:{closed_port}"
    ended = nexhealth("doctor", "--json", **settings | {"NEXHEALTH_API_URL": url})
    assert ended.status == 3
    said = findings(ended)["reach"]["message"]
    assert said.startswith(f"{url} cannot be asked: ")
    assert "no connection: check NEXHEALTH_API_URL, the network and proxies" in said


@pytest.mark.parametrize(
    ("url", "key", "kind", "warned"),
    [
        ("http://nexhealth.invalid", REAL_KEY, "real", True),
        ("https://nexhealth.invalid", REAL_KEY, "real", False),
        ("http://localhost:1", REAL_KEY, "real", False),
        ("http://[::1]:1", REAL_KEY, "real", False),
        ("http://nexhealth.invalid", REAL_KEY, "sandbox", False),
        ("http://nexhealth.invalid", SANDBOX_API_KEY, "real", False),
    ],
)
def test_a_key_that_goes_in_clear_to_another_machine_is_a_warning(
    nexhealth: Run, settings: dict[str, str], url: str, key: str, kind: str, *, warned: bool
) -> None:
    """One letter of the address, and everything works as before."""
    asked = {"NEXHEALTH_API_URL": url, "NEXHEALTH_API_KEY": key, "NEXHEALTH_DATA_KIND": kind}
    ended = nexhealth("doctor", "--json", **settings | asked)
    found = [one for one in json.loads(ended.out)["findings"] if one["check"] == "encryption"]
    assert [one["level"] for one in found] == ["warning"] * warned
    assert all("nexhealth.invalid is not encrypted" in one["message"] for one in found)


def test_certificates_that_are_not_there_are_named_and_the_rest_is_checked(
    nexhealth: Run, settings: dict[str, str]
) -> None:
    """A variable of the machine that nobody thinks of: the address and the network are as they should be."""
    environment = {"NEXHEALTH_API_URL": "https://nexhealth.invalid", "REQUESTS_CA_BUNDLE": "/nowhere/company.pem"}
    ended = nexhealth("doctor", "--json", **settings | environment)
    assert ended.status == 2
    assert findings(ended)["reach"]["message"].startswith("REQUESTS_CA_BUNDLE: /nowhere/company.pem is no file")
    assert "database" in {one["check"] for one in json.loads(ended.out)["findings"]}


def test_an_answer_that_is_not_nexhealths_is_told_apart(
    nexhealth: Run, settings: dict[str, str], online: SandboxServer
) -> None:
    """A captive portal or a proxy's page answers, too."""
    online.faults.add("html")
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 3
    assert "not as NexHealth does" in findings(ended)["reach"]["message"]


def test_a_used_up_rate_limit_is_told_apart(nexhealth: Run, settings: dict[str, str], online: SandboxServer) -> None:
    """Another program with the same key eats the limit; neither key nor network is to blame."""
    online.faults.add("throttle", retry_after="none")
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 3
    assert "rate limit" in findings(ended)["limit"]["message"]


def test_an_unknown_subdomain_is_named_with_the_known_ones(nexhealth: Run, settings: dict[str, str]) -> None:
    """NexHealth answers an unknown subdomain with 403, which says nothing to anybody."""
    ended = nexhealth("doctor", "--json", **settings | {"NEXHEALTH_SUBDOMAINS": "harbor-smiles,Willow-Dental"})
    assert ended.status == 2
    found = findings(ended)["subdomain"]
    assert "Willow-Dental" in found["message"]
    assert "harbor-smiles" not in found["message"]
    assert "willow-dental" in found["fix"]


@pytest.mark.parametrize(
    ("location", "words"),
    [("willow-dental.1", "not reachable"), ("Nowhere", "not reachable"), ("348514", "switched off")],
)
def test_a_location_that_cannot_be_reached_is_named_with_the_choices(
    nexhealth: Run, settings: dict[str, str], location: str, words: str
) -> None:
    """A mistyped key and a closed office need different things done."""
    ended = nexhealth("doctor", "--json", "--location", location, **settings)
    assert ended.status == 2
    assert words in findings(ended)["location"]["message"]


def test_a_listed_location_that_refuses_to_be_read_is_told_apart(
    nexhealth: Run, settings: dict[str, str], online: SandboxServer
) -> None:
    """The list names it, yet every request about it is refused: only the vendor can help."""
    online.faults.add("status", status=403, path="/operatories", location_id=348511)
    ended = nexhealth("doctor", "--json", "--location", "Willow North", **settings)
    assert ended.status == 3
    assert "cannot be read" in findings(ended)["location"]["message"]
    assert nexhealth("doctor", "--location", "harbor-smiles.348621", **settings).status == 0


def test_an_offline_office_is_a_warning_with_its_name(
    nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer
) -> None:
    """The copy is as old as NexHealth's own: no sync can help, somebody must look at the office's server."""
    red = sandbox.state.ids("sync_status")[-1]
    sandbox.state.update("sync_status", red, {"read_status": "red"})
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 1
    assert "harbor-smiles.348622 (Harbor Île d'Or): offline" in findings(ended)["office"]["message"]


def test_the_office_of_a_location_that_is_switched_off_is_nobodys_to_look_at(
    nexhealth: Run, settings: dict[str, str], online: SandboxServer
) -> None:
    """It is never read again: the warning would stay for ever, and hide the next office that goes offline."""
    source = online.state.ids("sync_status")[1]
    online.state.update("sync_status", source, {"read_status": "red"})
    assert nexhealth("doctor", **settings).status == 1
    for location in (348513, 348514):  # all that share its database
        online.state.update("locations", location, {"inactive": True})
    ended = nexhealth("doctor", "--json", **settings)
    assert (ended.status, findings(ended)) == (0, {})


def test_an_office_that_was_not_read_for_long_is_a_warning(
    nexhealth: Run, settings: dict[str, str], online: SandboxServer
) -> None:
    """NexHealth reports an outage late or not at all: green with an old time is one."""
    at = datetime.now(UTC) - timedelta(days=3)
    stamp = at.astimezone(timezone(timedelta(hours=-5))).isoformat(timespec="milliseconds")
    online.state.update("sync_status", online.state.ids("sync_status")[0], {"read_status_at": stamp})
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 1
    said = findings(ended)["office"]["message"]
    assert "said to be online" in said
    assert f"since {at:%Y-%m-%d %H:%M} UTC" in said


@pytest.fixture(params=[700.0, -700.0, 3 * 86_400.0, -3 * 86_400.0])
def skewed(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    with SandboxServer(
        patients=5,
        appointments_per_patient=1,
        limits=False,
        api_keys={REAL_KEY: None},
        clock=lambda: time.time() + request.param,
    ) as server:
        read_every_office(server)
        yield server


def test_a_clock_that_is_off_is_a_warning_with_side_and_size(
    nexhealth: Run, settings: dict[str, str], skewed: SandboxServer
) -> None:
    """Watermarks are corrected for it, and so is the age of what an office was read; schedules and log times are not."""
    ended = nexhealth("doctor", "--json", **settings | {"NEXHEALTH_API_URL": skewed.url})
    clock = findings(ended)["clock"]
    ahead = skewed.app.clock() - time.time()
    assert ended.status == 1
    told = re.fullmatch(r"this machine's clock is ([\d,]+) s (behind|ahead of) NexHealth's", clock["message"])
    assert told is not None
    assert (told[2], "syncs correct for it" in clock["fix"]) == ("behind" if ahead > 0 else "ahead of", True)
    assert abs(ahead) == pytest.approx(int(told[1].replace(",", "")), abs=10)
    assert "office" not in findings(ended)


def test_a_database_that_does_not_answer_is_named(nexhealth: Run, settings: dict[str, str], closed_port: int) -> None:
    """The other half of what can be unreachable."""
    url = f"postgresql://me:secret-word@127.0.0.1:{closed_port}/db"
    ended = nexhealth("doctor", "--json", **settings | {"DATABASE_URL": url})
    assert ended.status == 4
    assert f"127.0.0.1:{closed_port}" in findings(ended)["database"]["message"]
    assert "secret-word" not in ended.out + ended.err


def test_missing_migrations_are_told_from_a_missing_database(
    nexhealth: Run, settings: dict[str, str], empty_database_url: str
) -> None:
    """A fresh database is no fault of anybody; it only needs its tables."""
    ended = nexhealth("doctor", "--json", **settings | {"DATABASE_URL": empty_database_url})
    assert ended.status == 4
    found = findings(ended)["migrations"]
    assert "never made" in found["message"]
    assert "nexhealth db upgrade" in found["fix"]


@pytest.mark.parametrize(("revision", "words"), [("0000", "at migration 0000"), ("9999", "install a newer")])
def test_an_older_and_a_newer_warehouse_are_told_apart(
    nexhealth: Run, settings: dict[str, str], revision: str, words: str
) -> None:
    """One is upgraded here, the other needs a newer release here."""
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        connection.execute("UPDATE nexhealth_alembic_version SET version_num = %s", (revision,))
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 4
    assert words in findings(ended)["migrations"]["message"]


def test_a_warehouse_of_the_other_kind_is_refused(nexhealth: Run, settings: dict[str, str]) -> None:
    """A real practice's rows must not end up beside synthetic ones."""
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        connection.execute("INSERT INTO nexhealth_warehouse (kind) VALUES ('sandbox')")
    ended = nexhealth("doctor", "--json", **settings)
    assert ended.status == 4
    assert "holds sandbox data" in findings(ended)["kind"]["message"]


@pytest.fixture
def limited_role(server_url: str) -> Iterator[str]:
    name = f"limited_{os.getpid()}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def test_missing_rights_are_named_with_the_statements_that_give_them(
    nexhealth: Run, settings: dict[str, str], limited_role: str
) -> None:
    """The reader of the message is often not the administrator: they pass the statements on, and those suffice."""
    url = settings["DATABASE_URL"]
    as_limited = settings | {"DATABASE_URL": url.replace("postgres@", f"{limited_role}@")}
    ended = nexhealth("doctor", "--json", **as_limited)
    assert ended.status == 4
    found = json.loads(ended.out)["findings"]
    statements = [
        one["fix"].partition(": ")[2] for one in found if one["check"] in ("rights", "dagster") and one["fix"]
    ]
    assert any("INSERT" in one for one in statements)
    assert any("CREATE ON SCHEMA" in one for one in statements)
    assert any("CREATE DATABASE" in one for one in statements)
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            if not statement.startswith("CREATE DATABASE"):  # it would be left over
                connection.execute(statement.encode())
    again = nexhealth("doctor", "--json", **as_limited)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(limited_role)))
    assert "rights" not in findings(again)
    assert findings(again)["ownership"]["level"] == "warning"


def test_dagsters_own_address_is_checked(nexhealth: Run, settings: dict[str, str], closed_port: int) -> None:
    """The warehouse may answer while Dagster's database does not."""
    url = f"postgresql://127.0.0.1:{closed_port}/dagster"
    ended = nexhealth("doctor", "--json", **settings | {"DAGSTER_DATABASE_URL": url})
    assert ended.status == 4
    found = findings(ended)["dagster"]
    assert found["fix"] == "Correct DAGSTER_DATABASE_URL."
    assert f"127.0.0.1:{closed_port}" in found["message"]
    assert found["message"].endswith("correct DATABASE_URL (or DAGSTER_DATABASE_URL, if this is Dagster's)")


def test_a_real_key_on_the_embedded_server_is_one_loud_warning_with_its_fix(
    nexhealth: Run, settings: dict[str, str]
) -> None:
    """Patients' data in a file without encryption must be somebody's decision."""
    embedded = {name: value for name, value in settings.items() if name != "DATABASE_URL"}
    home = {"NEXHEALTH_HOME": os.environ["NEXHEALTH_TEST_HOME"]}
    assert nexhealth("db", "upgrade", **home).status == 0
    ended = nexhealth("doctor", **embedded, **home)
    assert ended.status == 1
    assert ended.out.count("no encryption") == 1
    assert "Set DATABASE_URL" in ended.out


def test_the_sandboxs_key_on_the_embedded_server_is_no_reason_to_warn(
    nexhealth: Run, shared_sandbox: SandboxServer
) -> None:
    """A warning that is not meant wears out the one that is."""
    home = os.environ["NEXHEALTH_TEST_HOME"]
    environment = {"NEXHEALTH_API_URL": shared_sandbox.url, "NEXHEALTH_API_KEY": SANDBOX_API_KEY}
    ended = nexhealth("doctor", "--json", NEXHEALTH_HOME=home, **environment)
    assert "encryption" not in findings(ended)


def test_a_setting_that_cannot_be_used_is_one_line(nexhealth: Run) -> None:
    """Nothing can be checked before the settings can be read."""
    ended = nexhealth("doctor", NEXHEALTH_RATE_SHARE="7")
    assert ended.status == 2
    assert "NEXHEALTH_RATE_SHARE (value: '7')" in ended.err
    assert len(ended.err.splitlines()) == 1


def test_own_keys_of_institutions_are_each_checked(nexhealth: Run, settings: dict[str, str], tmp_path: Path) -> None:
    """A keys file with one wrong line must not pass because the other lines are right."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'willow-dental = "{REAL_KEY}"\nunknown-dental = "{REAL_KEY}"\n')
    without_key = {name: value for name, value in settings.items() if name != "NEXHEALTH_API_KEY"}
    ended = nexhealth("doctor", "--json", **without_key, NEXHEALTH_API_KEYS_FILE=str(keys))
    assert ended.status == 2
    assert "unknown-dental" in findings(ended)["subdomain"]["message"]


def test_an_institution_that_has_no_key_is_named(nexhealth: Run, settings: dict[str, str], tmp_path: Path) -> None:
    """It stands in NEXHEALTH_SUBDOMAINS, and its line in the keys file is missing."""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'willow-dental = "{REAL_KEY}"\n')
    without_key = {name: value for name, value in settings.items() if name != "NEXHEALTH_API_KEY"}
    asked = {"NEXHEALTH_API_KEYS_FILE": str(keys), "NEXHEALTH_SUBDOMAINS": "willow-dental,acme"}
    ended = nexhealth("doctor", "--json", **without_key, **asked)
    assert (ended.status, ended.err) == (2, "")
    assert findings(ended)["subdomain"]["message"] == "the key reaches no institution acme"


def test_a_refused_key_of_several_is_named_and_the_others_are_checked(
    nexhealth: Run, settings: dict[str, str], online: SandboxServer, tmp_path: Path
) -> None:
    """Of fifty institutions two have an old key: which two, and how are the others?"""
    keys = tmp_path / "keys.toml"
    keys.write_text(f'acme = "wrong-{REAL_KEY}"\nbond = "old-{REAL_KEY}"\nwillow-dental = "{REAL_KEY}"\n')
    ended = nexhealth("doctor", "--json", **settings, NEXHEALTH_API_KEYS_FILE=str(keys))
    told = [(one["check"], one["level"], one["message"]) for one in json.loads(ended.out)["findings"]]
    accepting = online.url
    assert told[1:5] == [
        ("key", "failed", f"{accepting} refuses the key of acme"),
        ("key", "failed", f"{accepting} refuses the key of bond"),
        ("key", "ok", f"{accepting} accepts NEXHEALTH_API_KEY"),
        ("subdomain", "ok", "institutions reached: willow-dental, harbor-smiles"),
    ]
    assert ended.status == 2
    assert REAL_KEY not in ended.out + ended.err


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([], 0),
        ([(Level.WARNING, Group.DATABASE)], 1),
        ([(Level.FAILED, Group.DATABASE), (Level.WARNING, Group.API)], 4),
        ([(Level.FAILED, Group.DATABASE), (Level.FAILED, Group.API)], 3),
        ([(Level.FAILED, Group.SETTINGS), (Level.FAILED, Group.API)], 2),
    ],
)
def test_the_exit_status_is_that_of_the_first_group_that_failed(
    levels: list[tuple[Level, Group]], expected: int
) -> None:
    """Settings are corrected first: the rest may follow from them."""
    assert exit_status([Finding("x", level, group, "m") for level, group in levels]) == expected
