"""`nexhealth sync --explain`: figures before a single request."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.cli.explain import _figures
from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, SandboxServer
from tests.cli.conftest import Run

PRACTICES = """
INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, raw, synced_at, source_read_at, row_hash)
VALUES (7, 7, 'Acme Dental', 'acme', '{}', now(), now(), '');
INSERT INTO nexhealth_locations (institution_id, id, name, synced_at, source_read_at, row_hash)
SELECT 7, id, 'Acme ' || id, now(), now(), '' FROM generate_series(1, 5) AS id;
INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, locations, synced_at, source_read_at,
    row_hash)
SELECT 7, 'DataSource', id::text, jsonb_build_array(jsonb_build_object('id', id)), now(), now(), ''
FROM generate_series(1, 5) AS id;
"""
"""Offices with a practice system each."""


@pytest.fixture
def account(shared_sandbox: SandboxServer, database_url: str) -> dict[str, str]:
    """An account whose practices are known."""
    with psycopg.connect(database_url) as connection:
        connection.execute(PRACTICES)
    return {
        "NEXHEALTH_API_URL": shared_sandbox.url,
        "NEXHEALTH_API_KEY": SANDBOX_API_KEY,
        "DATABASE_URL": database_url,
    }


def test_it_counts_requests_and_asks_nothing(
    nexhealth: Run, account: dict[str, str], shared_sandbox: SandboxServer
) -> None:
    """Whoever shares a key with others wants to know before."""
    asked = len(shared_sandbox.requests.matching(".*"))
    ended = nexhealth("sync", "--explain", "--mode", "full", **account)
    assert ended.status == 0
    assert len(shared_sandbox.requests.matching(".*")) == asked
    assert "GET /appointments" in ended.out
    assert "Nothing was asked or written." in ended.out


READ = """
INSERT INTO nexhealth_sync_state (collection, institution_id, location_id, window_key, pass, mode, filter_hash, cursor,
    page, records, run_id, watermark)
SELECT 'patients', 7, id, '', 'all', 'full', '', '', 1, 60, '', now() FROM generate_series(1, 4) AS id
"""


def test_what_costs_a_request_a_patient_is_not_said_to_cost_nothing_before_they_are_known(
    nexhealth: Run, account: dict[str, str], database_url: str
) -> None:
    """On the first day, the day on which it is asked, 170 requests were told instead of 75,000, and nothing beside."""
    lists = ["patient_addresses", "alerts", "documents", "coverage_subscribers"]
    asked = ["sync", "--explain", "--mode", "full", *(word for name in lists for word in ("--resource", name))]

    def told() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(nexhealth(*asked, "--json", **account).out)
        return found

    first = told()
    assert first["unknown"] == lists
    assert {one["collection"]: one["uncounted"] for one in first["collections"] if one["uncounted"]} == {
        "patient_addresses": 5,
        "alerts": 5,
        "documents": 5,
        "coverage_subscribers": 1,
    }
    ended = nexhealth(*asked, **account)
    (line,) = (one for one in ended.out.splitlines() if one.startswith("documents"))
    assert line.endswith("not counted: its patients are not known yet (a request each)")
    assert f"at least {first['requests']:,} requests" in ended.out
    assert f"It will be more: {', '.join(lists)} cost a request for each patient or coverage" in ended.out
    with psycopg.connect(database_url) as connection:
        connection.execute(READ)
        connection.execute(
            "INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)"
            " SELECT 7, id, now(), now(), '' FROM generate_series(1, 300) AS id"
        )
        connection.execute(
            "INSERT INTO nexhealth_capabilities (institution_id, location_id, collection, status, evidence)"
            " VALUES (7, 0, 'insurance_coverages', 'not_enabled', '403')"
        )
    some = {one["collection"]: one for one in told()["collections"]}
    assert [some[name]["uncounted"] for name in lists] == [1, 1, 1, 0]
    assert some["documents"]["requests"] == 300
    assert some["documents"]["why"].endswith("; in part not counted: of 1 slice(s) not all are known yet")
    with psycopg.connect(database_url) as connection:
        connection.execute(READ.replace("generate_series(1, 4)", "generate_series(5, 5)"))
    every = nexhealth(*asked, **account).out
    assert "It will be more" not in every
    assert "at least" not in every
    assert told()["unknown"] == []


def test_what_is_known_of_some_is_not_said_to_be_known_of_none(
    nexhealth: Run, account: dict[str, str], database_url: str
) -> None:
    """Of four locations of five nothing was due, and all five were told as not counted."""
    with psycopg.connect(database_url) as connection:
        connection.execute(READ)
    (found,) = json.loads(nexhealth("sync", "--explain", "--json", "--resource", "alerts", **account).out)[
        "collections"
    ][3:]
    assert (found["slices"], found["requests"], found["uncounted"]) == (5, 0, 1)
    assert found["why"].endswith("; in part not counted: of 1 slice(s) not all are known yet")


def test_a_list_that_was_never_read_is_not_said_to_have_one_page(
    nexhealth: Run, account: dict[str, str], database_url: str
) -> None:
    """On the first day 5 requests were told instead of 1,500, and "about"."""
    asked = ["sync", "--explain", "--mode", "full", "--resource", "patients", "--resource", "appointments"]
    found = json.loads(nexhealth(*asked, "--json", **account).out)
    months = next(one["slices"] for one in found["collections"] if one["collection"] == "appointments")
    assert found["unknown"] == ["patients", "appointments"]
    assert [one["uncounted"] for one in found["collections"]] == [0, 0, 0, 5, months]
    said = nexhealth(*asked, **account).out
    assert f"at least {found['requests']:,} requests" in said
    assert "only the first page is counted" in said
    assert "a request for each patient" not in said
    with psycopg.connect(database_url) as connection:
        connection.execute(READ)
        connection.execute(
            "INSERT INTO nexhealth_capabilities (institution_id, location_id, collection, status, evidence)"
            " SELECT 7, id, 'appointments', 'not_enabled', '403' FROM generate_series(1, 5) AS id"
        )
    (*_, patients, visits) = json.loads(nexhealth(*asked, "--json", **account).out)["collections"]
    assert (patients["uncounted"], visits["uncounted"]) == (1, 0)
    assert patients["why"].endswith("; of 1 slice(s) never read the first page alone is counted")
    with psycopg.connect(database_url) as connection:
        connection.execute(READ.replace("generate_series(1, 4)", "generate_series(5, 5)"))
    said = nexhealth(*asked, **account).out
    assert "about " in said
    assert "at least" not in said
    assert "It may be more" not in said


def test_filters_make_it_less(nexhealth: Run, account: dict[str, str]) -> None:
    """One location of five costs about a fifth."""

    def requests(*filters: str) -> dict[str, int]:
        found = json.loads(nexhealth("sync", "--explain", "--json", *filters, **account).out)
        return {one["collection"]: one["requests"] for one in found["collections"]}

    everything, one = requests(), requests("--location", "Acme 3", "--resource", "appointments")
    assert set(one) == {"institutions", "locations", "sync_status", "appointments"}
    assert one["appointments"] * 5 == everything["appointments"]


def test_row_filters_leave_out_what_cannot_be_filtered(nexhealth: Run, account: dict[str, str]) -> None:
    """And each list's passes that do not fit; of appointments one wide read a location."""
    ended = nexhealth("sync", "--explain", "--json", "--mode", "full", "--status", "active", **account)
    assert ended.err == ""
    found = json.loads(ended.out)
    requests = {one["collection"]: one["requests"] for one in found["collections"]}
    assert not {"appointments", "documents", "operatories"} & set(requests)
    assert (requests["providers"], requests["document_types"], requests["patients"]) == (1, 5, 5)
    words = "--updated-since 2026-01-02 --resource appointments --location 3"
    (one,) = json.loads(nexhealth("sync", "--explain", "--json", *words.split(), **account).out)["collections"][3:]
    assert (one["slices"], one["requests"], one["uncounted"]) == (1, 2, 0)
    assert "updated since" in one["why"]
    ended = nexhealth("sync", "--explain", "--resource", "documents", "--status", "active", **account)
    assert (ended.status, "documents cannot be filtered by status" in ended.err) == (2, True)


def test_an_unknown_location_is_named_with_the_choices(nexhealth: Run, account: dict[str, str]) -> None:
    """As in a sync."""
    ended = nexhealth("sync", "--explain", "--location", "Nowhere", **account)
    assert ended.status == 2
    assert "'Nowhere'" in ended.err
    assert "acme.3 (Acme 3)" in ended.err


def test_a_fresh_warehouse_explains_its_discovery(nexhealth: Run, database_url: str) -> None:
    """Before the first sync no location is known; saying 3 requests and no more would be a lie."""
    ended = nexhealth("sync", "--explain", NEXHEALTH_API_KEY=SANDBOX_API_KEY, DATABASE_URL=database_url)
    assert ended.status == 0
    assert "No location is known yet" in ended.out


def test_a_location_cannot_be_chosen_before_any_is_known(nexhealth: Run, database_url: str) -> None:
    """The key is not to blame."""
    account = {"NEXHEALTH_API_KEY": SANDBOX_API_KEY, "DATABASE_URL": database_url}
    ended = nexhealth("sync", "--explain", "--location", "acme.3", **account)
    assert (ended.status, ended.out) == (2, "")
    assert "No location is known yet" in ended.err
    assert "'acme.3'" in ended.err
    assert "key" not in ended.err


def test_an_inactive_location_is_refused_as_by_a_sync(
    nexhealth: Run, account: dict[str, str], database_url: str
) -> None:
    """No slices and no requests would read as: nothing is due."""
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE nexhealth_locations SET inactive = true WHERE id = 3")
    ended = nexhealth("sync", "--explain", "--location", "acme.3", **account)
    assert (ended.status, ended.out) == (2, "")
    assert "location acme.3 is inactive" in ended.err


def test_a_warehouse_without_tables_is_not_touched(nexhealth: Run, empty_database_url: str) -> None:
    """It does nothing, so it makes no tables either."""
    ended = nexhealth("sync", "--explain", NEXHEALTH_API_KEY=SANDBOX_API_KEY, DATABASE_URL=empty_database_url)
    assert ended.status == 4
    assert "nexhealth db upgrade" in ended.err


def test_a_table_that_may_not_be_read_is_the_databases_error(
    nexhealth: Run, account: dict[str, str], database_url: str
) -> None:
    """It was told as a bug, with status 1, which says that something was done."""
    role = f"explains_{os.getpid()}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};"
            f" REVOKE SELECT ON nexhealth_sync_state FROM {role}"
        )
        try:
            limited = account | {"DATABASE_URL": database_url.replace("postgres@", f"{role}@")}
            ended = nexhealth("sync", "--explain", "--json", **limited)
        finally:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert ended.status == 4
    told = json.loads(ended.out)
    assert (told["exit_status"], told["error"].startswith("explaining a sync: ")) == (4, True)
    assert "bug" not in ended.err


def test_it_starts_without_dagster(account: dict[str, str], tmp_path: Path) -> None:
    """It runs nothing: seconds of imports for a look into the catalog."""
    program = (
        "import sys; from nexhealth_pipeline.cli import main; main(['sync', '--explain', '--json'])\n"
        "print([name for name in ('dagster', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **account},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_days_are_told_as_days() -> None:
    """The figure for scripts stays in seconds."""
    found = {"unknown": [], "requests": 3_000_000, "rate_share": 0.8, "floor_seconds": 225_000.0}
    assert _figures(found).endswith("allow them in 225,000 s (2 d 14 h) at an even rate")
