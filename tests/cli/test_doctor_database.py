"""What `nexhealth doctor` says of the way to PostgreSQL, and of Dagster's database there."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.cli.doctor_database import _on_the_way, _read_only
from nexhealth_pipeline.errors import MissingRights
from nexhealth_pipeline.orchestration.storage import NexHealthDagsterStorage, psycopg2_url
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, SandboxServer
from tests.cli.conftest import Run
from tests.commands import commands as forked_commands
from tests.poolers import pooler


@pytest.mark.parametrize(
    ("address", "warned"),
    [("203.0.113.9", True), ("2001:db8::9", True), ("127.0.0.1", False), ("::1", False), ("", False)],
)
def test_a_way_without_encryption_is_a_warning_where_it_leaves_the_machine(
    nexhealth: Run, database_url: str, monkeypatch: pytest.MonkeyPatch, address: str, *, warned: bool
) -> None:
    """libpq's own default takes what the server offers, and says nothing where that is no encryption."""
    monkeypatch.setattr(psycopg.ConnectionInfo, "hostaddr", property(lambda self: address))
    told = json.loads(nexhealth("doctor", "--json", DATABASE_URL=database_url).out)["findings"]
    found = [one for one in told if one["check"] == "encryption"]
    assert [one["level"] for one in found] == ["warning"] * warned
    assert all("sslmode=verify-full" in one["fix"] for one in found)


def test_so_is_dagster_s_own_way(
    nexhealth: Run, database_url: str, empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two addresses are written one by one, and the second is the one where sslmode is forgotten."""
    elsewhere = psycopg.conninfo.conninfo_to_dict(empty_database_url)["dbname"]
    away = property(lambda self: "203.0.113.9" if self.dbname == elsewhere else "")
    monkeypatch.setattr(psycopg.ConnectionInfo, "hostaddr", away)
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    told = json.loads(nexhealth("doctor", "--json", **urls).out)["findings"]
    (found,) = (one for one in told if one["check"] == "encryption")
    assert found["level"] == "warning"
    assert found["fix"].endswith(" to DAGSTER_DATABASE_URL.")


@pytest.mark.parametrize("encrypted", [True, False])
def test_an_encrypted_way_is_none(*, encrypted: bool) -> None:
    """The tests' own server cannot encrypt."""
    stub: Any = SimpleNamespace(hostaddr="203.0.113.9", host="db.example.com", ssl_in_use=encrypted)
    connection = cast(psycopg.Connection, SimpleNamespace(info=stub, pgconn=stub))
    assert len(list(_on_the_way(connection, "DATABASE_URL", "what is sent"))) == (not encrypted)


@pytest.mark.parametrize("dagsters", [False, True])
def test_a_database_that_takes_no_rows_is_told_with_the_statement_that_lets_it(
    nexhealth: Run, database_url: str, empty_database_url: str, *, dagsters: bool
) -> None:
    """All rights are there, and the first statement of a sync would be refused."""
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    with psycopg.connect(urls["DAGSTER_DATABASE_URL" if dagsters else "DATABASE_URL"], autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        (found,) = (one for one in findings_of(nexhealth, **urls) if one["check"] == "read_only")
        assert found["level"] == "failed"
        assert connection.info.dbname in found["message"]
        connection.execute(found["fix"].partition(": ")[2].encode())
        try:
            assert not [one for one in findings_of(nexhealth, **urls) if one["check"] == "read_only"]
        finally:
            connection.execute(sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} RESET ALL").format(name))


def test_a_standby_is_told_with_the_setting_that_names_it() -> None:
    """The tests' own server follows no other."""
    row = (True, True, "pipeline", "nexhealth")
    stub: Any = SimpleNamespace(fetchone=lambda: row, host="replica.example.com")
    connection = cast(psycopg.Connection, SimpleNamespace(execute=lambda query: stub, info=stub))
    (found,) = _read_only(connection, "DAGSTER_DATABASE_URL")
    assert "replica.example.com is a standby" in found.message
    assert found.fix == "Name the primary server in DAGSTER_DATABASE_URL."


@pytest.mark.parametrize(
    "setting", ["log_min_duration_statement = 60000", "log_statement = mod", "log_transaction_sample_rate = 0.001"]
)
def test_a_log_that_holds_bodies_of_webhooks_is_told_with_the_statement_that_keeps_them_out(
    nexhealth: Run, database_url: str, setting: str
) -> None:
    """Slow statements are written down with all that they were given, and nobody looks after the server's log."""
    assert "log" not in [one["check"] for one in findings_of(nexhealth, DATABASE_URL=database_url)]
    with psycopg.connect(database_url, autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER DATABASE {} SET {}").format(name, sql.SQL(setting)))
        (found,) = (one for one in findings_of(nexhealth, DATABASE_URL=database_url) if one["check"] == "log")
        assert found["level"] == "warning"
        connection.execute(found["fix"].partition(": ")[2].encode())
        try:
            assert "log" not in [one["check"] for one in findings_of(nexhealth, DATABASE_URL=database_url)]
        finally:
            connection.execute(sql.SQL("ALTER ROLE CURRENT_USER IN DATABASE {} RESET ALL").format(name))


@pytest.mark.parametrize("sessions", [True, False])
def test_a_pooler_that_gives_sessions_away_is_told_of_each_address(
    nexhealth: Run, database_url: str, empty_database_url: str, *, sessions: bool
) -> None:
    """Nothing else tells of it: all statements are taken, and locks do not hold."""
    with pooler(database_url, sessions=sessions) as one, pooler(empty_database_url, sessions=sessions) as other:
        told = findings_of(nexhealth, DATABASE_URL=one, DAGSTER_DATABASE_URL=other)
    found = [(one["level"], one["message"].split()[0]) for one in told if one["check"] == "pooler"]
    assert found == ([] if sessions else [("failed", "DATABASE_URL"), ("failed", "DAGSTER_DATABASE_URL")])


@pytest.fixture
def lodger(empty_database_url: str) -> Iterator[str]:
    """The address of a database by which a role comes that may connect to it and no more."""
    name = f"lodger_{os.getpid()}"
    role = sql.Identifier(name)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        yield empty_database_url.replace("postgres@", f"{name}@")
        connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
        connection.execute(sql.SQL("DROP ROLE {}").format(role))


def findings_of(nexhealth: Run, **urls: str) -> list[dict[str, str]]:
    return list(json.loads(nexhealth("doctor", "--json", **urls).out)["findings"])


def told_of_dagster(nexhealth: Run, **urls: str) -> list[dict[str, str]]:
    return [one for one in findings_of(nexhealth, **urls) if one["check"].startswith("dagster")]


def start_dagster(url: str) -> None:
    """Let it make its tables, as the role of `url`."""
    NexHealthDagsterStorage(psycopg2_url(url)).event_log_storage.dispose()


def carry_out(fixes: list[dict[str, str]], url: str) -> None:
    """As the administrator that the findings ask for."""
    with psycopg.connect(url, autocommit=True) as connection:
        for one in fixes:
            asked, _, statement = one["fix"].partition(": ")
            assert asked == "There, as an administrator"
            connection.execute(statement.encode())


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("schema", ["", "REVOKE ALL ON SCHEMA public FROM PUBLIC"])
def test_who_may_connect_to_dagster_s_database_and_not_make_its_tables_is_told_the_statement(
    nexhealth: Run,
    database_url: str,
    empty_database_url: str,
    lodger: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    beside: bool,
    schema: str,
) -> None:
    """An administrator made it as their own; since PostgreSQL 15 nobody else may create in it."""
    name = psycopg.conninfo.conninfo_to_dict(lodger)["dbname"]
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": lodger}
    if beside:
        monkeypatch.setattr("nexhealth_pipeline.warehouse.connect.DAGSTER_DATABASE", name)
        warehouse = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
        urls = {"DATABASE_URL": lodger.replace(f"/{name}?", f"/{warehouse}?")}
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(schema.encode())
    (found,) = told_of_dagster(nexhealth, **urls)
    assert found["level"] == "failed"
    assert found["message"].endswith(f"lacks the right to create in schema public in Dagster's database {name}")
    carry_out([found], empty_database_url)
    assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]
    start_dagster(lodger)
    assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]


def test_a_sync_of_theirs_ends_with_the_statement_too(
    shared_sandbox: SandboxServer, database_url: str, empty_database_url: str, lodger: str, tmp_path: Path
) -> None:
    """It was an unexpected error, a bug of ours, and exit status 1; also where another role has made the tables."""
    account = {"NEXHEALTH_API_URL": shared_sandbox.url, "NEXHEALTH_API_KEY": SANDBOX_API_KEY}
    places = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": lodger, "NEXHEALTH_HOME": str(tmp_path)}
    with forked_commands(tmp_path, account | places) as forked:
        said = forked.run("sync", "--resource", "locations", status=4)
        assert f"GRANT USAGE, CREATE ON SCHEMA public TO lodger_{os.getpid()};" in said
        start_dagster(empty_database_url)
        said = forked.run("sync", "--resource", "locations", status=4)
        assert "which another role made: `nexhealth doctor` names the statements" in said


def test_rights_on_the_warehouse_s_tables_are_named_and_none_beside_them(nexhealth: Run, database_url: str) -> None:
    """A team that keeps other tables there had the role given all of them, which whoever pastes the statement does not see."""
    name = f"loader_{os.getpid()}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        role = sql.Identifier(name)
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(role))
        try:
            connection.execute("CREATE TABLE payroll (id int)")
            connection.execute(sql.SQL("GRANT SELECT ON nexhealth_patients TO {}").format(role))
            url = database_url.replace("postgres@", f"{name}@")
            found = [one for one in findings_of(nexhealth, DATABASE_URL=url) if one["check"] == "rights"]
            on_tables = [one for one in found if " on public." in one["message"]]
            assert len(on_tables) == 2
            assert any(
                "lacks the right INSERT, UPDATE, DELETE on public.nexhealth_patients" in one["message"] for one in found
            )
            for one in found:
                connection.execute(one["fix"].partition(": ")[2].encode())
            again = findings_of(nexhealth, DATABASE_URL=url)
            assert [one["level"] for one in again if one["check"] == "rights"] == ["ok"]
            right = connection.execute("SELECT has_table_privilege(%s, 'payroll', 'SELECT')", (name,)).fetchone()
            assert right == (False,)
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}").format(role))
            connection.execute(sql.SQL("DROP ROLE {}").format(role))


def test_a_role_that_may_not_look_into_the_warehouse_is_told_one_thing(
    nexhealth: Run, empty_database_url: str, lodger: str
) -> None:
    """Asking for a table by name is an error there, which came as a second finding: "try again"."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    told = json.loads(nexhealth("doctor", "--json", DATABASE_URL=lodger).out)["findings"]
    failed = [one["check"] for one in told if one["level"] == "failed" and one["group"] == "database"]
    assert failed
    assert "database" not in failed


def test_rights_on_tables_that_another_role_made_are_named_and_none_beside_them(
    nexhealth: Run, database_url: str, empty_database_url: str, lodger: str
) -> None:
    """Whoever runs the pages made them. Where both addresses are of one database, a role of Dagster's own was to be given
    all patients.
    """
    start_dagster(empty_database_url)
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": lodger}
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE nexhealth_patients (id serial); GRANT INSERT ON runs TO PUBLIC")
        found = told_of_dagster(nexhealth, **urls)
        assert [one["level"] for one in found] == ["failed"] * 3
        some, one, numbers = (one["message"].partition(" lacks the right ")[2] for one in found)
        assert some.startswith("SELECT, INSERT, UPDATE, DELETE on public.alembic_version and ")
        assert one.startswith("SELECT, UPDATE, DELETE on public.runs in ")
        assert numbers.startswith("to use sequences in ")
        carry_out(found, empty_database_url)
        assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]
        role = f"lodger_{os.getpid()}"
        patients = "SELECT has_table_privilege(%s, 'nexhealth_patients', 'SELECT, INSERT, UPDATE, DELETE')"
        assert connection.execute(patients, (role,)).fetchone() == (False,)
        numbered = "SELECT has_sequence_privilege(%s, 'nexhealth_patients_id_seq', 'USAGE')"
        assert connection.execute(numbered, (role,)).fetchone() == (False,)


def test_dagster_s_tables_may_be_in_the_schema_that_the_role_has_for_itself(
    nexhealth: Run, database_url: str, empty_database_url: str, lodger: str
) -> None:
    """PostgreSQL looks there first; doctor had it granted public, and read a migration that is not there."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA AUTHORIZATION lodger_{os.getpid()}".encode())
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": lodger}
    assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]
    start_dagster(lodger)
    assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]


def test_a_schema_that_the_role_is_sent_to_and_may_not_use_is_named(
    nexhealth: Run, database_url: str, empty_database_url: str, lodger: str
) -> None:
    """A right on another one helps nobody."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        change = f"""CREATE SCHEMA "its own"; ALTER ROLE lodger_{os.getpid()} SET search_path = "its own" """
        connection.execute(change.encode())
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": lodger}
    found = told_of_dagster(nexhealth, **urls)
    assert [one["fix"].partition(" TO ")[0] for one in found] == [
        'There, as an administrator: GRANT USAGE, CREATE ON SCHEMA "its own"'
    ]
    with pytest.raises(MissingRights, match='GRANT USAGE, CREATE ON SCHEMA "its own" TO'):
        start_dagster(lodger)
    carry_out(found, empty_database_url)
    assert [one["level"] for one in told_of_dagster(nexhealth, **urls)] == ["ok"]


def test_what_is_refused_in_dagster_s_database_is_told_as_that_one_s(
    nexhealth: Run, database_url: str, empty_database_url: str
) -> None:
    """It was the warehouse's, which was as it should be."""
    start_dagster(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("DROP TABLE alembic_version")
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    told = json.loads(nexhealth("doctor", "--json", **urls).out)["findings"]
    failed = [(one["check"], one["message"]) for one in told if one["level"] == "failed" and one["group"] == "database"]
    assert failed == [("dagster", "checking Dagster's database: PostgreSQL refused (42P01 UndefinedTable)")]


@pytest.mark.parametrize(
    ("revision", "fix"),
    [
        ("7e2f3204cf8e", "run `dagster instance migrate`"),
        ("ffffffffffff", "A newer Dagster made these: install it here"),
    ],
)
def test_tables_of_another_dagster_are_told_with_what_brings_both_together(
    nexhealth: Run, database_url: str, empty_database_url: str, revision: str, fix: str
) -> None:
    """Of the two commands of an upgrade the second is forgotten, or one host of several, where that cannot work."""
    start_dagster(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        connection.execute("UPDATE alembic_version SET version_num = %s", (revision,))
    urls = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    found = [one for one in told_of_dagster(nexhealth, **urls) if one["level"] != "ok"]
    assert [(one["check"], one["level"]) for one in found] == [("dagster_migrations", "warning")]
    assert revision in found[0]["message"]
    assert fix in found[0]["fix"]
