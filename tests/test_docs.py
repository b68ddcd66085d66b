"""The pages under docs/ are true: commands exist, SQL runs and does what is said of it, links lead somewhere."""

import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.practice import load_practices
from nexhealth_pipeline.warehouse import binaries
from nexhealth_pipeline.warehouse.changes import changes_since
from nexhealth_pipeline.warehouse.checks import CHECKS
from nexhealth_pipeline.warehouse.migrate import HEAD, check, upgrade
from nexhealth_pipeline.warehouse.webhook_health import HEALTH_RULES
from nexhealth_pipeline.webhooks.receiving.body import BodyLimits
from nexhealth_pipeline.webhooks.receiving.metrics import Metrics
from tests.command_lines import OURS, parse
from tests.waiting import until

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
LINKING = {
    **PAGES,
    **{path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", ROOT / "deploy/README.md")},
}
INSTITUTION, PATIENT, OTHER = 11201, 515000007, 515000070
"""Those of the examples, and somebody else whose number begins alike."""


def command_lines() -> Iterator[list[str]]:
    """Every command line of ours: lines of code blocks, and what stands in backticks."""
    for text in PAGES.values():
        # With their languages, else the end of a block in one is taken for the beginning of another.
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks = [block for language, block in fenced if not language]
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
        for line in [*(line for block in blocks for line in block.splitlines()), *spans]:
            # `nexhealth demo [OPTIONS]` is how one is called, and no call.
            if line.split(" ")[0] in OURS and " " in line and "[OPTIONS]" not in line:
                yield shlex.split(line, comments=True)


COMMANDS = sorted({tuple(line) for line in command_lines()})


def statements(heading: str) -> list[str]:
    """The SQL under a heading of the guide, block by block."""
    _, _, rest = GUIDE.partition(f"\n## {heading}\n")
    section, _, _ = rest.partition("\n## ")
    return re.findall(r"```sql\n(.*?)```", section, re.DOTALL)


@pytest.mark.parametrize("line", COMMANDS, ids=" ".join)
def test_every_command_exists_and_takes_its_options(line: tuple[str, ...]) -> None:
    parse(list(line))


def test_commands_are_found() -> None:
    """Else the test above could not fail."""
    assert {"dagster", "nexhealth"} <= {line[0] for line in COMMANDS}
    assert len(COMMANDS) > 20
    assert ("nexhealth", "serve", "--port", "8090") in COMMANDS


def test_services_are_whole_and_their_commands_exist() -> None:
    """A unit without [Install] is gone after a restart of the machine, and without User= it runs as root."""
    page = PAGES[ROOT / "docs" / "receiver.md"]
    unit, *others = re.findall(r"^```ini\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    read = configparser.ConfigParser()
    read.read_string(unit)
    folder = read["Service"]["WorkingDirectory"]
    assert read["Service"]["User"]
    assert read["Install"]["WantedBy"]
    assert len(re.findall(r"`/etc/systemd/system/nexhealth-\w+\.service`", page)) == 3
    # A unit with two commands is refused: each has a block of its own.
    found = [re.findall(r"^ExecStart=(.*)", block, re.MULTILINE) for block in (unit, *others)]
    assert [len(one) for one in found] == [1, 1, 1]
    lines = [line for one in found for line in one]
    # systemd takes no `export`, and a shell that reads the same file ends an address without quotes at its first `&`.
    (variables,) = [block for block in re.findall(r"^```sh\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "=" in block]
    given = dict(line.split("=", 1) for line in variables.splitlines() if not line.startswith("#"))
    assert {str(field.alias) for field in Settings.model_fields.values()} >= given.keys() - {"DAGSTER_HOME"}
    assert given["DAGSTER_HOME"] == folder
    assert [len([*shlex.shlex(one, posix=True, punctuation_chars="&;")]) for one in given.values()] == [1] * len(given)
    assert f"chmod 600 {read['Service']['EnvironmentFile']}\n" in page
    for line in lines:
        program, *words = shlex.split(line)
        assert Path(program).parent == Path(folder) / ".venv" / "bin"
        parse([Path(program).name, *[str(ROOT / word) if word == "workspace.yaml" else word for word in words]])


def test_the_proxy_lets_through_what_the_receiver_takes() -> None:
    """Its megabyte has a million bytes: an event between the two would be refused, and posted again for two days."""
    (size,) = re.findall(r"max_size (\S+)", PAGES[ROOT / "docs" / "receiver.md"])
    assert (size, BodyLimits().size) == ("1MiB", 1024 * 1024)


def test_every_variable_is_a_setting() -> None:
    known = {str(field.alias) for field in Settings.model_fields.values()}
    named = {name for text in PAGES.values() for name in re.findall(r"NEXHEALTH_[A-Z_]*[A-Z]", text)}
    assert named <= known
    assert len(named) > 5


def test_no_setting_is_said_to_be_emptied_for_one_command() -> None:
    """An empty value counts as unset: what `.env` says would hold, and the command do something else than is told."""
    found = {
        name: re.findall(r"\b(?:NEXHEALTH|DATABASE|DAGSTER)_\w+=['\"]{0,2} +\S+", text)
        for name, text in LINKING.items()
    }
    assert not any(found.values()), found


def test_every_metric_is_one_of_the_receiver_s() -> None:
    named = re.findall(r"`(nexhealth_webhook_(?:database|secrets|requests)\w*)`", GUIDE)
    metrics = Metrics()
    metrics.answered(503, "unavailable", 0.1)
    assert len(named) == 3
    assert not [name for name in named if f"\n{name}" not in metrics.text().decode()]


def test_every_check_that_is_named_applies_to_the_collection_of_its_repair() -> None:
    _, _, repairs = GUIDE.partition("\n## Repairs\n")
    rows = [row.split("|")[1:3] for row in repairs.splitlines() if row.startswith("| ")]
    known = {(one.rule.name, one.collection.name) for one in CHECKS}
    for symptom, command in rows:
        checks = {name for name, _ in known} & set(re.findall(r"`(\w+)`", symptom))
        asked = re.search(r"--resource (\w+)", command)
        assert not (checks and asked) or any((name, asked[1]) in known for name in checks), symptom
    named = set(re.findall(r"`([a-z]+_[a-z_]+)`", repairs))
    assert named == named & ({name for name, _ in known} | {one.name for one in HEALTH_RULES})
    assert len(named) > 5


@pytest.mark.parametrize("page", LINKING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", LINKING[page]):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Of every heading, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_backup_is_restored_into_an_empty_database(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    """By the page's own two lines, in a folder whose `.env` alone has the address, which may be one for SQLAlchemy."""
    dump, restore = (line for line in GUIDE.splitlines() if re.search(r"\bpg_(dump|restore) .*nexhealth\.dump", line))
    programs = f"{Path(sys.executable).parent}:{binaries.bin_folder()}:/usr/bin:/bin"
    with psycopg.connect(database_url) as connection:
        add(connection, COLLECTIONS["patients"], id=PATIENT, email="before")
        connection.execute("UPDATE nexhealth_patients SET email = 'after'")
    for line, url in ((dump, database_url), (restore, empty_database_url)):
        (tmp_path / ".env").write_text(f"DATABASE_URL='{url.replace('://', '+psycopg2://')}'\n")
        subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, env={"PATH": programs}, check=True)
    check(empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT email FROM nexhealth_current.patients").fetchall() == [("after",)]
        connection.execute("UPDATE nexhealth_patients SET email = 'later'")
        versions = connection.execute("SELECT fields ->> 'email' FROM nexhealth_history ORDER BY version").fetchall()
    assert versions == [("before",), ("after",)]
    assert not [one for one in upgrade(empty_database_url) if HEAD in one]


@pytest.fixture
def roles(server_url: str) -> Iterator[dict[str, str]]:
    """Names in the page's statements, and those to be used for them; roles and databases go after the test."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        mine = {one: f"test_docs_{one}" for one in ("nexhealth_pipeline", "analyst", "DATABASE nexhealth", "dagster")}
        mine = {one: name.replace(" ", "_").lower() for one, name in mine.items()}
        yield mine
        for name in (mine["DATABASE nexhealth"], mine["dagster"]):
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
        for name in (mine["analyst"], mine["nexhealth_pipeline"]):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))


def renamed(statement: str, names: dict[str, str]) -> bytes:
    for one, name in names.items():
        keyword, _, bare = one.rpartition(" ")
        statement = (
            re.sub(rf"\b{one}\b(?!_)", f"{keyword} {name}" if keyword else name, statement) if bare else statement
        )
    return statement.encode()


def test_the_rights_that_are_named_suffice(server_url: str, roles: dict[str, str]) -> None:
    """The pipeline's role makes a warehouse; an analyst reads its views, those of later releases too, and no table."""
    administrator, less, quiet, views, _ = statements("Rights")
    with psycopg.connect(server_url, autocommit=True) as connection:
        for statement in filter(str.strip, administrator.split(";")):
            connection.execute(renamed(statement, roles))
    database = make_conninfo(server_url, dbname=roles["DATABASE nexhealth"])
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(renamed("ALTER DATABASE nexhealth OWNER TO CURRENT_USER", roles))
        connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        connection.execute(renamed(less, roles))
        connection.execute(renamed(quiet, roles))
    pipeline = make_conninfo(database, user=roles["nexhealth_pipeline"])
    assert upgrade(pipeline)[0] == f"migrated to {HEAD}"
    with psycopg.connect(pipeline) as connection:
        assert connection.execute("SHOW log_parameter_max_length").fetchone() == ("0",)
        connection.execute("CREATE TEMPORARY TABLE stage (x integer)")
        connection.execute(renamed(views, roles))
        connection.execute("CREATE VIEW nexhealth_current.added_later AS SELECT id FROM nexhealth_patients")
        connection.execute(
            "INSERT INTO nexhealth_capabilities (institution_id, location_id, collection, status, evidence)"
            " VALUES (1, 2, 'charges', 'not_enabled', '')"
        )
    with psycopg.connect(make_conninfo(database, user=roles["analyst"]), autocommit=True) as connection:
        names = connection.execute("SELECT viewname FROM pg_views WHERE schemaname = 'nexhealth_current'").fetchall()
        assert len(names) > len(DECLARED)
        for (name,) in names:
            connection.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier("nexhealth_current", name)))
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT FROM public.nexhealth_patients")
        told = connection.execute("SELECT collection, capability FROM nexhealth_current.freshness").fetchall()
        assert told == [("charges", "not_enabled")]
        was = "SELECT FROM public.nexhealth_asof('patients', now())"
        with psycopg.connect(database, autocommit=True) as administrator_again:
            for rights in ("USAGE ON SCHEMA public", "SELECT ON nexhealth_patients", "SELECT ON nexhealth_history"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(was)
                administrator_again.execute(renamed(f"GRANT {rights} TO analyst", roles))
        connection.execute(was)


def test_the_rights_to_follow_the_change_feed_suffice(roles: dict[str, str], database_url: str) -> None:
    """README's own statements, by a role that may make nothing in `public` and read no table."""
    feed = statements("Rights")[-1]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, follow = re.findall(r"^(?:CREATE TABLE my_cursor|SELECT news).*?;$", readme, re.MULTILINE)
    with psycopg.connect(database_url, autocommit=True) as administrator:
        administrator.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        administrator.execute(renamed("CREATE ROLE analyst LOGIN", roles))
        url = make_conninfo(database_url, user=roles["analyst"])
        with psycopg.connect(url, autocommit=True) as analyst, pytest.raises(psycopg.Error):
            analyst.execute(begin)
        for statement in filter(str.strip, feed.split(";")):
            administrator.execute(renamed(statement, roles))
        with psycopg.connect(url, autocommit=True) as analyst:
            analyst.execute(begin)
            add(administrator, COLLECTIONS["patients"], id=PATIENT)
            until(lambda: analyst.execute(follow).fetchall())  # other tests have transactions on this server
            assert [one.id for one in changes_since(analyst, None)] == [PATIENT]
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                analyst.execute("SELECT FROM nexhealth_patients")


def test_what_takes_the_room_is_listed_by_table(database_url: str) -> None:
    """Partitions together: one by one, the largest table would be the last that anybody thinks of."""
    (listing,) = statements("A disk that fills")
    with psycopg.connect(database_url, autocommit=True) as connection:
        add(connection, COLLECTIONS["patients"], id=PATIENT)
        connection.execute(
            "UPDATE nexhealth_patients SET email = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 20000) n)"
        )
        connection.execute("UPDATE nexhealth_patients SET email = NULL")
        found = [name for name, _ in connection.execute(listing.encode()).fetchall()]
        assert "nexhealth_history" in found[:2]
        assert not [name for name in found if re.search(r"_\d{4}_\d\d", name)]
        connection.execute("VACUUM (FULL, ANALYZE) nexhealth_history")


def test_every_table_has_its_bound(database_url: str) -> None:
    """A table that is missing there is one that grows and nobody knows of."""
    _, _, section = GUIDE.partition("\n## What grows, and how far\n")
    named = set(re.findall(r"`(nexhealth_\w+)`", section.partition("\n## ")[0]))
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
            " AND NOT relispartition"
        )
        tables = {name for (name,) in found}
    assert tables - {one.table for one in DECLARED} == named


def test_persons_are_taken_out_of_rows_that_an_earlier_release_wrote(database_url: str) -> None:
    """And out of their superseded versions, and nothing else; what is taken out is not kept by history instead."""
    (clean,) = statements("Upgrading")
    # What lists of patients lack was left out from the first.
    concerned = [one for one in DECLARED if one.single_only and one.name != "patients"]
    records = {number: {"id": number, "odd": {"patient": "kept"}} for number in (1, 2)}
    with psycopg.connect(database_url, autocommit=True) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query.encode()).fetchall()

        for collection in concerned:
            persons = dict.fromkeys(collection.single_only, "a person")
            add(connection, collection, id=1, raw=json.dumps(records[1]))
            add(connection, collection, id=2, raw=json.dumps(records[2] | persons))
            connection.execute(f"UPDATE {collection.table} SET deleted_at = now()".encode())
        placed = {one.table: f"SELECT ctid FROM {one.table} WHERE id = 1" for one in concerned}
        before = {table: rows(query) for table, query in placed.items()}
        connection.execute(clean.encode())
        assert {table: rows(query) for table, query in placed.items()} == before
        for one in concerned:
            history = f"SELECT id, raw FROM nexhealth_history WHERE collection = '{one.name}' ORDER BY id"
            assert dict(rows(f"SELECT id, raw FROM {one.table}")) == records
            assert rows(history) == list(records.items())
            connection.execute(f"UPDATE {one.table} SET deleted_at = NULL".encode())
            assert len(rows(history)) == 4, "versions are kept again"


def test_a_warehouse_that_came_to_a_newer_postgresql_is_like_one_that_was_made_there(database_url: str) -> None:
    """What PostgreSQL 15 and 16 need comes along, and large reports stay slow where they need not."""
    _, _, paragraph = GUIDE.partition("\n**PostgreSQL.** ")
    (alter,) = re.findall(r"`(ALTER [^`]+)`", paragraph.partition("\n\n")[0])
    with psycopg.connect(database_url, autocommit=True) as connection:
        if connection.info.server_version < 170000:
            pytest.skip("needs PostgreSQL 17 or newer")
        query = "SELECT proparallel FROM pg_proc WHERE proname = 'nexhealth_zone'"
        made_there = connection.execute(query).fetchall()
        connection.execute("ALTER FUNCTION nexhealth_zone(text) PARALLEL UNSAFE")
        assert connection.execute(query).fetchall() != made_there
        connection.execute(alter.encode())
        assert connection.execute(query).fetchall() == made_there


def test_a_location_that_is_gone_is_left_out_once_somebody_says_so(database_url: str) -> None:
    location, _, status = statements("A location or institution joins or leaves")
    with psycopg.connect(database_url, autocommit=True) as connection:
        add(connection, COLLECTIONS["institutions"], id=INSTITUTION, subdomain="harbor-smiles", name="Harbor")
        for number in (348621, 348622):
            add(connection, COLLECTIONS["locations"], id=number)
        for source in ("the old one", "the new one"):
            add(connection, COLLECTIONS["sync_status"], sync_source_type="emr", sync_source_name=source)
        for statement in (location, status):
            assert connection.execute(statement.encode()).rowcount == 1
        assert [one.id for one in load_practices(connection).locations] == [348622]
        left = connection.execute("SELECT sync_source_name FROM nexhealth_sync_status WHERE deleted_at IS NULL")
        assert left.fetchall() == [("the new one",)]


def test_an_institution_that_is_gone_is_left_out_with_its_locations_and_its_rows_stay(database_url: str) -> None:
    """Naming all the others in NEXHEALTH_SUBDOMAINS instead would keep out whoever joins later."""
    _, gone, _ = statements("A location or institution joins or leaves")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for institution, subdomain, location in ((INSTITUTION, "harbor-smiles", 1), (11202, "willow-dental", 2)):
            named = {"institution_id": institution}
            add(connection, COLLECTIONS["institutions"], id=institution, subdomain=subdomain, name=subdomain, **named)
            add(connection, COLLECTIONS["locations"], id=location, **named)
            add(connection, COLLECTIONS["patients"], id=PATIENT, **named)
        assert connection.execute(gone.encode()).rowcount == 1
        left = load_practices(connection)
        assert [one.id for one in left.institutions] == [11202]
        assert [one.id for one in left.locations] == [2]
        rows = connection.execute("SELECT institution_id FROM nexhealth_current.patients ORDER BY 1").fetchall()
        assert rows == [(INSTITUTION,), (11202,)]


def add(connection: psycopg.Connection, collection: Collection, /, **values: object) -> None:
    """Insert a row; what its table requires and `values` lacks is made up."""
    row = {
        "institution_id": INSTITUTION,
        "synced_at": "now",
        "source_read_at": "now",
        "row_hash": b"",
        "raw": "{}",
        **values,
    }
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(collection.table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(map(sql.Literal, row.values())),
    )
    connection.execute(statement)
