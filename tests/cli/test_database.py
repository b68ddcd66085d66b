"""`nexhealth db`: the address alone, migrations, a SQL shell."""

import io
import os
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
from psycopg import conninfo

from nexhealth_pipeline.cli import database
from nexhealth_pipeline.cli.embedded_warning import EMBEDDED_WARNING
from nexhealth_pipeline.warehouse import binaries, connect, embedded
from nexhealth_pipeline.warehouse.connect import database_and_server
from tests.cli.conftest import REAL_KEY, Run

HOME = "NEXHEALTH_HOME"


@pytest.fixture
def shared_home(server_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The session's embedded server, not asked to stay after its end."""
    monkeypatch.setattr(database, "_LINGER_SECONDS", 0.0)
    return {HOME: os.environ["NEXHEALTH_TEST_HOME"]}


def test_the_address_alone_is_on_stdout_and_leads_to_the_warehouse(nexhealth: Run, shared_home: dict[str, str]) -> None:
    """`psql $(nexhealth db url)` must work."""
    ended = nexhealth("db", "url", **shared_home)
    assert (ended.status, ended.err, ended.out.count("\n")) == (0, "", 1)
    with psycopg.connect(ended.out.strip()) as connection:
        assert connection.info.dbname == "nexhealth"


def test_the_demo_has_an_address_of_its_own(nexhealth: Run, shared_home: dict[str, str]) -> None:
    """Its rows are nowhere else; a DATABASE_URL in the environment does not count."""
    ended = nexhealth("db", "url", "--demo", **shared_home, DATABASE_URL="postgresql://real/warehouse")
    with psycopg.connect(ended.out.strip()) as connection:
        assert connection.info.dbname == "demo"


def test_an_address_of_the_settings_is_given_back_as_it_is(nexhealth: Run) -> None:
    """It was asked for, password and all; no server is started."""
    ended = nexhealth("db", "url", DATABASE_URL="postgres://me:word@db.example/ware")
    assert (ended.status, ended.out) == (0, "postgresql://me:word@db.example/ware\n")


@pytest.mark.parametrize("password", ["pässwört", "geh€im%40", "odd?x9"])
def test_an_address_means_the_same_in_every_encoding(nexhealth: Run, password: str) -> None:
    """Where stdout lacks a letter, a program would read `?` and be refused, or try another password."""
    ended = nexhealth("db", "url", DATABASE_URL=f"postgresql://me:{password}@db.example/ware")
    assert ended.out.isascii()
    told = conninfo.conninfo_to_dict(ended.out.strip())
    assert (told["password"], told["host"]) == (unquote(password), "db.example")


@pytest.mark.parametrize("password", ["Sec@ret9", "Sec/ret9"])
@pytest.mark.parametrize("setting", ["DATABASE_URL", "DAGSTER_DATABASE_URL"])
@pytest.mark.parametrize("command", [["db", "upgrade"], ["db", "prune"], ["doctor", "--json"]], ids=" ".join)
def test_a_password_that_is_not_encoded_is_told_as_such_and_not_shown(
    nexhealth: Run, database_url: str, command: list[str], setting: str, password: str
) -> None:
    """The half of it was printed as the host's name, and whoever read that looked for the mistake in the network."""
    address = f"postgresql://sync:{password}@db.example.com:5432/nexhealth"
    ended = nexhealth(*command, **{"DATABASE_URL": database_url} | {setting: address})
    told = ended.out + ended.err
    assert ("Sec" in told, "ret9" in told) == (False, False)
    if (command[-1], setting) != ("upgrade", "DAGSTER_DATABASE_URL"):  # which asks for Dagster's database not at all
        assert f"{setting}: cannot be read as an address: percent-encode" in told
        assert ended.status != 0


def test_the_embedded_server_stays_up_for_whoever_asked_and_listens_if_asked_to(nexhealth: Run, own_home: Path) -> None:
    """The command ends at once; a BI tool that got the address comes minutes later."""
    ended = nexhealth("db", "url", "--tcp", **{HOME: str(own_home)})
    assert ended.out.startswith("postgresql://postgres:")
    assert "@127.0.0.1:" in ended.out
    with psycopg.connect(ended.out.strip()) as connection:
        assert connection.info.dbname == "nexhealth"
    place = embedded.ensure(own_home).place
    stays = float((place.folder / "linger").read_text()) - time.monotonic()
    assert 300 < stays <= 600


def test_prune_says_what_it_removed_and_then_that_nothing_is_old(
    nexhealth: Run, database_url: str, empty_database_url: str
) -> None:
    """For a cron of one's own, and for who has just shortened a setting; Dagster may never have been started."""
    with psycopg.connect(database_url) as db:
        db.execute("INSERT INTO nexhealth_sweeps (mode, scope_hash, started_at) VALUES ('full', 'a', '2024-01-01')")
    places = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    first = nexhealth("db", "prune", **places)
    assert (first.status, first.out.split()) == (0, ["1", "sweeps"])
    second = nexhealth("db", "prune", **places)
    assert (second.status, second.out) == (0, "nothing is old enough to go\n")


def test_upgrade_says_what_it_made_and_then_that_nothing_is_left(nexhealth: Run, empty_database_url: str) -> None:
    """Whoever deploys wants to see it in their log."""
    first = nexhealth("db", "upgrade", DATABASE_URL=empty_database_url)
    assert first.status == 0
    assert "created table nexhealth_patients" in first.out
    second = nexhealth("db", "upgrade", DATABASE_URL=empty_database_url)
    assert (second.status, second.out.splitlines()[1:]) == (0, ["the warehouse is up to date"])


def test_upgrade_says_first_which_database_it_is(nexhealth: Run, empty_database_url: str) -> None:
    """An empty DATABASE_URL, or one of last week's, is not noticed otherwise."""
    given = conninfo.conninfo_to_dict(empty_database_url)
    ended = nexhealth("db", "upgrade", DATABASE_URL=empty_database_url)
    assert ended.out.splitlines()[0] == f"warehouse: database {given['dbname']} at {given['host']}"
    assert ended.err == ""
    name, server = database_and_server("postgresql://me:secret@db.example/ware?sslmode=require")
    assert (name, server) == ("ware", "db.example:5432")


def test_upgrade_warns_of_real_data_on_the_embedded_server_as_a_sync_does(
    nexhealth: Run, shared_home: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where DATABASE_URL did not come through, it is the first command, and the last moment to notice."""
    monkeypatch.setattr(connect, "home_folder", lambda settings: tmp_path)  # where nobody has been warned yet
    monkeypatch.setattr(connect, "ensure", lambda home, **options: embedded.ensure(Path(shared_home[HOME]), **options))
    first = nexhealth("db", "upgrade", NEXHEALTH_API_KEY=REAL_KEY)
    assert first.status == 0
    assert first.out.splitlines()[0] == "warehouse: database nexhealth of the embedded PostgreSQL"
    assert EMBEDDED_WARNING in first.err
    assert EMBEDDED_WARNING not in nexhealth("db", "upgrade", NEXHEALTH_API_KEY=REAL_KEY).err


@pytest.mark.parametrize(("level", "told"), [({}, False), ({"NEXHEALTH_LOG_LEVEL": "INFO"}, True)])
def test_upgrade_logs_what_takes_long_where_that_was_chosen(
    nexhealth: Run, database_url: str, level: dict[str, str], told: bool
) -> None:
    """An index of a large table takes minutes."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)"
            " VALUES (7, 1, now(), now(), '')"
        )
    ended = nexhealth("db", "upgrade", DATABASE_URL=database_url, **level)
    assert (ended.status, "making indexes" in ended.err) == (0, told)
    assert "nexhealth_patients" in ended.out


def test_upgrade_refuses_a_newer_warehouse(nexhealth: Run, database_url: str) -> None:
    """An older release must not write what it does not understand."""
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE nexhealth_alembic_version SET version_num = '9999'")
    ended = nexhealth("db", "upgrade", DATABASE_URL=database_url)
    assert ended.status == 4
    assert "install a newer" in ended.err


def test_psql_runs_on_the_embedded_server_with_the_words_given(nexhealth: Run, shared_home: dict[str, str]) -> None:
    """Nobody needs to install PostgreSQL to look at the rows; psql's status is the command's."""
    ended = nexhealth("db", "psql", "--", "-At", "-c", "SELECT current_database()", **shared_home)
    assert (ended.status, ended.out) == (0, "nexhealth\n")
    assert nexhealth("db", "psql", "--demo", "-c", "SELECT nonsense", **shared_home).status == 1


def test_psql_gets_the_password_where_other_users_cannot_read_it() -> None:
    """A command line is world-readable."""
    address = "postgresql://me:pass%20word@db.example:6432/ware?sslmode=require"
    command, environment = database._without_passwords("psql", address, ("-c", "SELECT 1"), io.StringIO())
    assert not [word for word in command if "pass" in word]
    assert environment["PGPASSWORD"] == "pass word"
    assert "PGSERVICEFILE" not in environment
    assert "sslmode=require" in command[2]
    assert command[-2:] == ["-c", "SELECT 1"]


def test_psql_gets_the_password_of_a_key_where_other_users_cannot_read_it(
    nexhealth: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libpq has no variable for it, and takes it from the file of a service."""
    if not Path("/proc/self/cmdline").exists():
        pytest.skip("this system has no /proc")
    address = f"{database_url}&sslpassword=Canary"
    show = r"\! tr '\0' ' ' < /proc/$PPID/cmdline; echo; cat $PGSERVICEFILE"
    ended = nexhealth("db", "psql", "-At", "-c", show, "-c", "SELECT current_database()", DATABASE_URL=address)
    line, *rest = ended.out.splitlines()
    assert (ended.status, "service=nexhealth" in line, "Canary" in line) == (0, True, False)
    assert rest == ["[nexhealth]", "sslpassword=Canary", conninfo.conninfo_to_dict(database_url)["dbname"]]
    with tempfile.TemporaryFile("w+") as service, monkeypatch.context() as patch:
        _, environment = database._without_passwords("psql", address, (), service)
        patch.setenv("PGSERVICEFILE", environment["PGSERVICEFILE"])
        patch.setenv("PGSERVICE", "nexhealth")
        taken = {one.keyword: one.val for one in psycopg.pq.Conninfo.get_defaults()}
    assert taken[b"sslpassword"] == b"Canary"


def test_a_service_of_ones_own_is_asked_to_hold_the_password_of_the_key(nexhealth: Run) -> None:
    """There is but one service; refused as a setting, without the value."""
    ended = nexhealth("db", "psql", DATABASE_URL="postgresql:///ware?service=mine&sslpassword=Canary")
    assert ended.status == 2
    assert "write it into the service's file" in ended.err
    assert "Canary" not in ended.err


def test_psql_of_a_database_url_is_the_systems_or_the_embedded_one(
    nexhealth: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without PostgreSQL's client still gets its shell."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    ended = nexhealth("db", "psql", "-c", "SELECT 1 AS one", DATABASE_URL=database_url)
    assert ended.status == 0
    assert "one" in ended.out


def test_without_any_psql_it_is_told_what_to_install(
    nexhealth: Run, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the image. Nobody should be told to set DATABASE_URL, which is set, or to look for a server that is there."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(binaries, "_PACKAGE", "no_such_wheel")
    ended = nexhealth("db", "psql", "-c", "SELECT 1", DATABASE_URL=database_url)
    assert ended.status == 2
    assert "psql: not found; install PostgreSQL's client" in ended.err
    assert "DATABASE_URL" not in ended.err
