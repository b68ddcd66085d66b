"""Which release has prepared a warehouse: an older one leaves it alone, even where no migration lies between."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline import __version__
from nexhealth_pipeline.errors import WarehouseError, WarehouseNewer, WarehouseOutdated
from nexhealth_pipeline.warehouse import migrate, tables

NOTED = "SELECT release FROM nexhealth_alembic_version"
NOTE = "UPDATE nexhealth_alembic_version SET release = %s"
OTHER_VIEW = (
    "DROP VIEW nexhealth_current.operatories;"
    " CREATE VIEW nexhealth_current.operatories AS SELECT 1 AS of_a_newer_release;"
    " GRANT SELECT ON nexhealth_current.operatories TO pg_read_all_settings"
)
GRANTED = (
    "SELECT has_table_privilege('pg_read_all_settings', 'nexhealth_current.operatories', 'SELECT')"
    " FROM pg_views WHERE schemaname = 'nexhealth_current' AND viewname = 'operatories'"
)


def at(patch: pytest.MonkeyPatch, release: str) -> None:
    patch.setattr(migrate, "__version__", release)


def test_an_older_release_leaves_views_of_a_newer_one_and_what_was_granted_on_them(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: a release that changes the catalog alone has no migration, and the one before drops its views."""
    at(monkeypatch, "99.0.0")
    assert migrate.upgrade(database_url) == ["prepared by release 99.0.0"]
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(OTHER_VIEW)
        monkeypatch.undo()
        told = rf"release 99\.0\.0 has prepared .*this one is {__version__}: install a newer nexhealth-pipeline"
        for act in (migrate.upgrade, migrate.check, lambda url: migrate.prepare(url, "real", dry_run=True)):
            with pytest.raises(WarehouseNewer, match=told):
                act(database_url)
        with pytest.raises(WarehouseNewer, match=told):
            migrate.require_release(db)
        assert db.execute(GRANTED).fetchall() == [(True,)]


def test_an_older_release_that_waited_for_a_newer_one_to_end_is_refused_and_leaves_its_views(database_url: str) -> None:
    """Both start in the same minute, as a rolling deployment has them; the older one had looked before it waited."""
    waiting = (
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = %s AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with (
        psycopg.connect(database_url, autocommit=True) as watcher,
        psycopg.connect(database_url) as newer,
        ThreadPoolExecutor(1) as pool,
    ):
        newer.execute("SELECT pg_advisory_xact_lock(%s)", (tables._LOCK,))
        older = pool.submit(migrate.upgrade, database_url)
        while not watcher.execute(waiting, (tables._LOCK,)).fetchone():
            assert not older.done()
        newer.execute(OTHER_VIEW)
        newer.execute(NOTE, ("99.0.0",))
        newer.commit()
        with pytest.raises(WarehouseNewer, match=r"release 99\.0\.0 has prepared"):
            older.result(30)
        assert watcher.execute(GRANTED).fetchall() == [(True,)]


def test_of_two_that_found_nothing_noted_the_newer_is_noted_with_what_it_prepares(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one's note came in between, the newer one's was lost, and the older one went on with its warehouse."""
    ensure_tables, noted = tables.ensure_tables, []

    def meanwhile(connection: psycopg.Connection, **options: Any) -> list[str]:
        monkeypatch.undo()
        migrate.upgrade(database_url)
        at(monkeypatch, "99.0.0")
        changes = ensure_tables(connection, **options)
        noted.extend(connection.execute(NOTED).fetchall())
        return changes

    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(NOTE, (None,))
        at(monkeypatch, "99.0.0")
        monkeypatch.setattr(migrate, "ensure_tables", meanwhile)
        assert migrate.upgrade(database_url)[-1] == "prepared by release 99.0.0"
        assert noted == db.execute(NOTED).fetchall() == [("99.0.0",)]


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        pytest.param("99.9.0", "99.10.0", id="numbers, not letters"),
        pytest.param("99.0.0.dev3", "99.0.0", id="built on the way to it"),
        pytest.param("99.0.0rc1", "99.0.0", id="its candidate"),
        pytest.param("99.0.0", "99.0.0.post1", id="after it"),
    ],
)
def test_releases_follow_each_other_as_their_versions_do(
    database_url: str, monkeypatch: pytest.MonkeyPatch, older: str, newer: str
) -> None:
    for release in (older, newer, newer):
        at(monkeypatch, release)
        migrate.upgrade(database_url)
        migrate.check(database_url)
    at(monkeypatch, older)
    with pytest.raises(WarehouseNewer):
        migrate.check(database_url)
    with psycopg.connect(database_url) as db:
        assert db.execute(NOTED).fetchall() == [(newer,)]


def test_a_release_that_waited_to_migrate_is_told_that_a_newer_one_has(database_url: str) -> None:
    """Alembic would end it with a traceback: it knows no such migration."""
    with psycopg.connect(database_url) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = '9999'")
    with pytest.raises(WarehouseNewer):
        migrate._migrate(database_url)


def test_one_and_the_same_version_goes_on_and_notes_nothing_again(database_url: str) -> None:
    """Of a checkout each state has it: what they know differently is told apart by migrations alone."""
    with psycopg.connect(database_url) as db:
        assert db.execute(NOTED).fetchall() == [(__version__,)]
    assert migrate.upgrade(database_url) == []


def test_a_warehouse_from_before_releases_were_noted_is_brought_up(empty_database_url: str) -> None:
    """Doctor and the schedules look at it before anything has migrated it."""
    migrate._migrate(empty_database_url, "0019")
    with pytest.raises(WarehouseOutdated, match="at migration 0019"):
        migrate.check(empty_database_url)
    assert migrate.upgrade(empty_database_url)[-1] == f"prepared by release {__version__}"
    migrate.check(empty_database_url)


def test_a_dry_run_of_the_next_release_locks_nobody_out(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, "99.0.0")
    migrate.prepare(database_url, "real", dry_run=True)
    monkeypatch.undo()
    migrate.check(database_url)


def test_the_release_before_goes_on_where_the_next_one_could_not_prepare_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(
            "DROP VIEW nexhealth_current.operatories;"
            "CREATE VIEW nexhealth_current.operatories AS SELECT 1 AS of_somebody;"
            "CREATE VIEW theirs AS SELECT * FROM nexhealth_current.operatories"
        )
    at(monkeypatch, "99.0.0")
    with pytest.raises(WarehouseError, match="other views are built on it"):
        migrate.upgrade(database_url)
    monkeypatch.undo()
    migrate.check(database_url)
