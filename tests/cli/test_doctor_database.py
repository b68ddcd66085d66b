"""What `nexhealth doctor` says of the way to PostgreSQL."""

import json
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest

from nexhealth_pipeline.cli.doctor_database import _on_the_way
from tests.cli.conftest import Run


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
