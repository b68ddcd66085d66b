"""Bringing a warehouse's schema to this release, and telling whether it is there.

Alembic owns system tables, functions and roles; :mod:`.tables` owns the collections' tables.
"""

from pathlib import Path

import psycopg
from packaging.version import Version
from psycopg.errors import DeadlockDetected, DependentObjectsStillExist

from nexhealth_pipeline import __version__
from nexhealth_pipeline.errors import (
    MissingRights,
    WarehouseError,
    WarehouseNewer,
    WarehouseOutdated,
    WarehouseRefused,
)
from nexhealth_pipeline.warehouse.connect import connect, driver_errors
from nexhealth_pipeline.warehouse.sessions import require_sessions
from nexhealth_pipeline.warehouse.tables import ensure_indexes, ensure_tables, missing_tables

__all__ = ["HEAD", "check", "current_revision", "declare_kind", "prepare", "require_release", "upgrade"]

_VERSIONS = Path(__file__).parent / "migrations" / "versions"
HEAD: str = max(path.stem[1:5] for path in _VERSIONS.glob("m[0-9]*.py"))
"""Number of the newest migration."""
_LOCK = 0x4E48_0002
_TRIES = 5
"""Each begins once PostgreSQL has ended a deadlock, after a second."""
_BUILT_ON = """
SELECT DISTINCT format('%%I.%%I', n.nspname, v.relname) AS name
FROM pg_depend d
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class v ON v.oid = r.ev_class AND v.oid <> d.refobjid
JOIN pg_namespace n ON n.oid = v.relnamespace
JOIN pg_class t ON d.refclassid = 'pg_class'::regclass AND t.oid = d.refobjid
WHERE strpos(%s, t.oid::regclass::text) > 0 AND (t.relnamespace = to_regnamespace('nexhealth_current')
    OR t.relnamespace = 'public'::regnamespace AND t.relname LIKE 'nexhealth%%')
ORDER BY 1
"""
"""Views on tables and views of ours that a text names; by regclass, as the server names them in its errors."""


def current_revision(connection: psycopg.Connection) -> str | None:
    """Number of the migration the warehouse is at; None = never set up."""
    return _noted(connection)[0]


def _noted(connection: psycopg.Connection) -> tuple[str | None, str | None]:
    """Number of the migration the warehouse is at, and the newest release that has prepared it; None = not noted."""
    with connection.transaction():
        exists = connection.execute("SELECT to_regclass('public.nexhealth_alembic_version')").fetchone()
        if exists is None or exists[0] is None:
            return None, None
        # By its name in JSON: a warehouse of before migration 20 has no such column.
        row = connection.execute(
            "SELECT version_num::text, to_jsonb(v) ->> 'release' FROM public.nexhealth_alembic_version v"
        ).fetchone()
    return (None, None) if row is None else (row[0], row[1])


def upgrade(url: str, *, indexes: bool = False) -> list[str]:
    """Bring an empty or older warehouse up to date, and note this release; returns the changes made, one text each.

    With `indexes` also those that a run makes at its end, however long it takes.
    Raises WarehouseNewer when a newer release has prepared it, MissingRights when the role may not create, WarehouseError where
    something of somebody's is built on a table or view that must be replaced: then nothing is changed.
    """
    with connect(url) as connection:
        try:
            with driver_errors("upgrading the warehouse"):
                require_sessions(url, connection)
                revision, release = _noted(connection)
                _refuse_newer(revision, release)
                changes = [] if revision == HEAD else _migrate(url)
                changes += ensure_tables(connection, claim=_claim)
                return changes + ensure_indexes(connection, insist=True) if indexes else changes
        except MissingRights:
            raise MissingRights(
                f"the database role {connection.info.user} may not create or alter the warehouse's tables: "
                f"GRANT CREATE ON DATABASE {connection.info.dbname} (for schema nexhealth_current) and CREATE, USAGE ON "
                "SCHEMA public TO it, or run `nexhealth db upgrade` with the role that owns them"
            ) from None


def prepare(url: str, kind: str, *, dry_run: bool = False) -> None:
    """Make a warehouse ready for whoever brings `kind` ("sandbox" or "real") data: up to date, and declared as such.

    A `dry_run` makes the tables of an empty one, without which nothing can be tried out; any other it leaves as it is,
    since the release that works with it would refuse it afterwards: then WarehouseOutdated says what it lacks.
    Raises WarehouseNewer, WarehouseRefused, MissingRights, WarehouseError as :func:`upgrade` and :func:`declare_kind` do.
    """
    if dry_run and _is_set_up(url):
        check(url)
    else:
        upgrade(url)
    declare_kind(url, kind, dry_run=dry_run)


def _is_set_up(url: str) -> bool:
    with connect(url) as connection, driver_errors("reading the warehouse's release"):
        return current_revision(connection) is not None


def require_release(connection: psycopg.Connection) -> None:
    """Raise WarehouseOutdated unless the warehouse is at this release's migration, WarehouseNewer after a newer release."""
    revision, release = _noted(connection)
    _refuse_newer(revision, release)
    if revision is None:
        raise WarehouseOutdated("the warehouse is not set up yet: run `nexhealth db upgrade`")
    if revision != HEAD:
        raise WarehouseOutdated(
            f"the warehouse is of an earlier release (at migration {revision}, this one needs {HEAD}): "
            "run `nexhealth db upgrade`, else the next run that reads the practice does it"
        )


def check(url: str) -> None:
    """Raise WarehouseOutdated or WarehouseNewer unless the warehouse fits this release, MissingRights unread."""
    with connect(url) as connection, driver_errors("reading the warehouse's release"):
        require_release(connection)
        missing = missing_tables(connection)
        if missing:
            raise WarehouseOutdated(f"the warehouse lacks {missing[0]}: run `nexhealth db upgrade`")


def declare_kind(url: str, kind: str, *, dry_run: bool = False) -> None:
    """Remember that the warehouse holds `kind` ("sandbox" or "real") data; a `dry_run` brings none, and looks only.

    Raises WarehouseRefused when it holds the other kind.
    """
    with connect(url) as connection, driver_errors("declaring the warehouse's kind"):
        if not dry_run:
            connection.execute("INSERT INTO nexhealth_warehouse (kind) VALUES (%s) ON CONFLICT DO NOTHING", (kind,))
        row = connection.execute("SELECT kind FROM nexhealth_warehouse").fetchone()
    if row is not None and row[0] != kind:
        raise WarehouseRefused(
            f"this warehouse holds {row[0]} data and {kind} data must not be mixed into it: "
            "set DATABASE_URL to another database"
        )


def _refuse_newer(revision: str | None, release: str | None) -> None:
    if revision is not None and revision > HEAD:
        raise WarehouseNewer(
            f"the warehouse is at migration {revision}, this release knows {HEAD}: install a newer nexhealth-pipeline"
        )
    # Without a migration its tables may be wider, and its views others: this release would make them anew as it knows them.
    if release is not None and Version(release) > Version(__version__):
        raise WarehouseNewer(
            f"release {release} has prepared the warehouse, this one is {__version__}: install a newer nexhealth-pipeline"
        )


def _claim(connection: psycopg.Connection) -> list[str]:
    """Note that this release prepares the warehouse: in one transaction with what it makes, and with nobody beside it.

    Raises WarehouseNewer where a newer one has done so while this one waited, whose views it would make anew.
    """
    revision, release = _noted(connection)
    _refuse_newer(revision, release)
    if release is not None and Version(release) == Version(__version__):
        return []
    connection.execute("UPDATE public.nexhealth_alembic_version SET release = %s", (__version__,))
    return [f"prepared by release {__version__}"]


def _migrate(url: str, target: str = HEAD) -> list[str]:
    """Run alembic to `target` under a lock, so that several processes may start at once."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_VERSIONS.parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    engine = create_engine("postgresql+psycopg://", creator=lambda: connect(url), poolclass=NullPool)
    try:
        with engine.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
            connection.commit()
            with connect(url) as looking:
                _refuse_newer(*_noted(looking))
            config.attributes["connection"] = connection
            for left in reversed(range(_TRIES)):
                try:
                    command.upgrade(config, target)
                    connection.commit()
                    break
                except DBAPIError as error:
                    # All of it again: what an earlier migration of this transaction has locked may be what the other waits for.
                    connection.rollback()
                    if not left or not isinstance(error.orig, DeadlockDetected):
                        raise
    except DBAPIError as error:
        if isinstance(error.orig, DependentObjectsStillExist):
            raise WarehouseError(_in_the_way(url, error.orig)) from None
        # SQLAlchemy wraps the driver's error, with the statement and the server's words.
        raise (error.orig or error) from None
    return [f"migrated to {target}"]


def _in_the_way(url: str, error: DependentObjectsStillExist) -> str:
    """What to do where a table or view that others built on could not be replaced.

    The server's words name it, perhaps in another language; they are searched and not handed on.
    """
    with connect(url) as connection:
        views = [name for (name,) in connection.execute(_BUILT_ON, (error.diag.message_primary or "",))]
    named = f"view {' and '.join(views)}" if views else "something of yours"
    return (
        f"upgrading the warehouse: a table or view must be replaced on which {named} is built: drop that, run"
        " `nexhealth db upgrade`, and make it again (2BP01); nothing was changed"
    )
