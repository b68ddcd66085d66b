"""Tables of the collections, made and widened from the catalog.

Additive only: a missing table or column is created and recorded in `nexhealth_schema_changes`; a type
change or a drop needs a migration. Runs under an advisory lock, so several processes may start at once.

Most tables get their indexes from the run that filled them, at its end (`ensure_indexes`): sorted at once they cost
less than half of what they cost row by row, which was a fifth of a first load. A run does without where it cannot.
"""

import logging
import time
from collections.abc import Callable, Iterable
from functools import cache

import psycopg
from psycopg import errors, sql

from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, SqlType
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse import changes as feed
from nexhealth_pipeline.warehouse import sync_log
from nexhealth_pipeline.warehouse.history import TRIGGER, attach_history, make_partitions
from nexhealth_pipeline.warehouse.views import ensure_views

__all__ = ["create_table", "ensure_indexes", "ensure_tables", "missing_tables", "table_columns"]

_log = logging.getLogger(__name__)

_LOCK = 0x4E48_0001
"""Advisory lock of schema changes ("NH" and a number)."""
_TRIES = 25
_TRY_SECONDS = 2.0
"""Longest wait for those who use a table that is to be changed, and the pause before the next try. Twice as long as
PostgreSQL waits before it has an autovacuum in the way give up, and all tries together shorter than a run may take to begin."""

_INDEX_LOCK = 0x4E48_0005
"""Advisory lock of whoever makes the indexes of a table."""
_INDEX_WAIT = "5s"
"""Longest wait for those who write to a table: others wait behind whoever waits."""

_SYSTEM: tuple[Column, ...] = (
    Column("raw", SqlType.JSONB, Phi.CLINICAL, "The record as received, less the keys too sensitive to keep.", ()),
    Column("synced_at", SqlType.TIMESTAMPTZ, Phi.NONE, "When this row was last written.", ()),
    Column("source_read_at", SqlType.TIMESTAMPTZ, Phi.NONE, "When the request was made that supplied the content.", ()),
    Column("deleted_at", SqlType.TIMESTAMPTZ, Phi.NONE, "When the record was deleted; null = present.", ()),
    Column("deleted_by", SqlType.TEXT, Phi.NONE, "source = the API says so, absence = a complete read lacked it.", ()),
)
_HASH_DOC = "Fingerprint of the declared columns. PHI class: none."


@cache
def table_columns(collection: Collection) -> tuple[Column, ...]:
    """All columns of a collection's table but `row_hash`, in table order."""
    institution = Column("institution_id", SqlType.BIGINT, Phi.ID, "Institution the record belongs to.", ())
    columns = (institution, *collection.from_request, *collection.columns)
    names = {column.name for column in columns}
    return (*columns, *(column for column in _SYSTEM if column.name not in names))


def _visible(collection: Collection) -> tuple[Column, ...]:
    """Columns that a view shows: the record's own, without ours and without its deletion."""
    hidden = {*(column.name for column in _SYSTEM), collection.soft_delete}
    return tuple(column for column in table_columns(collection) if column.name not in hidden)


def create_table(connection: psycopg.Connection, collection: Collection) -> None:
    """Create the collection's table with its key, and its indexes unless they come later; the caller commits."""
    table = sql.Identifier(collection.table)
    columns = [
        sql.SQL("{} {}{}").format(
            sql.Identifier(column.name),
            sql.SQL(column.type.value),
            sql.SQL(" NOT NULL" if column.name in (*collection.key, "synced_at", "source_read_at") else ""),
        )
        for column in table_columns(collection)
    ]
    connection.execute(
        sql.SQL("CREATE TABLE IF NOT EXISTS {} ({}, row_hash bytea NOT NULL, PRIMARY KEY ({}))").format(
            table, sql.SQL(", ").join(columns), sql.SQL(", ").join(map(sql.Identifier, collection.key))
        )
    )
    if not _indexed_later(collection):
        _create_indexes(connection, collection, _indexes(collection))


def _indexes(collection: Collection) -> dict[str, tuple[str, ...]]:
    """Columns of each index by its name, cut to the 63 bytes PostgreSQL keeps."""
    return {f"{collection.table}_{'_'.join(index)}_idx"[:63]: index for index in collection.indexes}


def _indexed_later(collection: Collection) -> bool:
    """Whether no row is looked up by anything but its key while the table is filled for the first time."""
    return not (collection.per or collection.inside or collection.window)


def _create_indexes(connection: psycopg.Connection, collection: Collection, names: Iterable[str]) -> list[str]:
    columns = _indexes(collection)
    for name in names:
        connection.execute(
            sql.SQL("CREATE INDEX IF NOT EXISTS {} ON {} ({})").format(
                sql.Identifier(name),
                sql.Identifier(collection.table),
                sql.SQL(", ").join(map(sql.Identifier, columns[name])),
            )
        )
    return [f"added index {name}" for name in names]


def ensure_tables(
    connection: psycopg.Connection,
    collections: Iterable[Collection] = DECLARED,
    *,
    claim: Callable[[psycopg.Connection], list[str]] = lambda _: [],
) -> list[str]:
    """Create what is missing, add new columns, bring comments up to date; commits.

    Puts the triggers of history and change feed on the tables, and their views into `nexhealth_current`. Returns
    the changes made, one text each; a warehouse that is up to date costs seven queries. `claim` is called first, once
    nobody else changes tables or views, in the transaction that does: what it raises leaves all as it was. Raises
    WarehouseError for a table that is in use for minutes.
    """
    collections = tuple(collections)
    # In transactions of their own: they may wait for somebody who is writing there.
    for make in (make_partitions, feed.make_partitions, sync_log.make_partitions):
        with connection.transaction():
            make(connection)
    for left in reversed(range(_TRIES)):
        try:
            with connection.transaction():
                return _ensure_all(connection, collections, claim)
        except (errors.LockNotAvailable, errors.DeadlockDetected):  # of two tables, a reader may take the second first
            if left:
                time.sleep(_TRY_SECONDS)
    raise WarehouseError(
        "a table that is to be changed is read or written all the time: end what uses it for long (pg_stat_activity "
        "says), then run `nexhealth db upgrade`"
    )


def _ensure_all(
    connection: psycopg.Connection,
    collections: tuple[Collection, ...],
    claim: Callable[[psycopg.Connection], list[str]],
) -> list[str]:
    """What is missing, all of it or nothing. Raises LockNotAvailable or DeadlockDetected where a table is in use."""
    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
    # Whoever comes to a table after one that waits for all of it waits as well: a report must not stop all loads.
    connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{_TRY_SECONDS:.0f}s")))
    claimed = claim(connection)
    present = _present(connection, collections)
    changes: list[str] = []
    for collection in collections:
        changes += _ensure_one(connection, collection, present.get(collection.table, {}))
    ensure_views(connection, {one: _visible(one) for one in collections})
    if changes:
        _record(connection, changes)
    return changes + claimed


def ensure_indexes(
    connection: psycopg.Connection,
    collections: Iterable[Collection] = DECLARED,
    *,
    stop: Callable[[], bool] = lambda: False,
    insist: bool = False,
) -> list[str]:
    """Make the indexes that tables with rows lack, where this role owns them; the changes made, one text each; commits.

    Whoever writes to such a table waits meanwhile. Unless told to `insist`, what cannot be done is left to the next
    run with a warning: a table is complete without. Raises psycopg.Error for a connection that is lost.
    """
    wait = "0" if insist else _INDEX_WAIT
    by_table = {collection.table: collection for collection in collections}
    with connection.transaction():
        # Looking at a table's size waits for whoever has it for himself.
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(wait)))
        present = _present(connection, tuple(by_table.values()))
        lacking = {
            table: [name for name in _indexes(one) if f"{name}()" not in present[table]]
            for table, one in by_table.items()
            if table in present
        }
        filled = _filled(connection, [table for table, names in lacking.items() if names])
    changes = []
    for table in filled:
        if stop():
            break
        try:
            changes += _add_indexes(connection, by_table[table], lacking[table], wait)
        except psycopg.Error as error:
            if insist or connection.broken:
                raise
            _log.warning(
                "indexes are left to the next run", extra={"nexhealth": {"table": table, "sqlstate": error.sqlstate}}
            )
    return changes


def _filled(connection: psycopg.Connection, tables: list[str]) -> list[str]:
    """Those of the tables that have rows, or had some, and belong to this role."""
    found = connection.execute(
        "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%s)"
        " AND pg_has_role(relowner, 'USAGE') AND pg_relation_size(oid) > 0 ORDER BY relname",
        (tables,),
    )
    return [name for (name,) in found]


def _add_indexes(connection: psycopg.Connection, collection: Collection, names: list[str], wait: str) -> list[str]:
    """Make indexes of one table; each table in a transaction of its own, as whoever loads has locks on several."""
    _log.info("making indexes", extra={"nexhealth": {"table": collection.table}})
    with connection.transaction():
        connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(wait)))
        connection.execute("SET LOCAL statement_timeout = 0")
        connection.execute("SELECT pg_advisory_xact_lock(%s, hashtext(%s))", (_INDEX_LOCK, collection.table))
        # Another run may have made them while this one waited.
        missing = connection.execute(
            "SELECT n FROM unnest(%s::text[]) n WHERE to_regclass('public.' || quote_ident(n)) IS NULL", (names,)
        ).fetchall()
        changes = _create_indexes(connection, collection, [name for (name,) in missing])
        _record(connection, changes)
    return changes


def _record(connection: psycopg.Connection, changes: list[str]) -> None:
    connection.execute("INSERT INTO nexhealth_schema_changes (change) SELECT unnest(%s::text[])", (changes,))


def missing_tables(connection: psycopg.Connection, collections: Iterable[Collection] = DECLARED) -> list[str]:
    """Names of collection tables or columns that `ensure_tables` would add."""
    collections = tuple(collections)
    present = _present(connection, collections)
    missing = []
    for collection in collections:
        have = present.get(collection.table, {})
        missing += [
            f"{collection.table}.{column.name}" for column in table_columns(collection) if column.name not in have
        ]
    return missing


def _present(connection: psycopg.Connection, collections: tuple[Collection, ...]) -> dict[str, dict[str, str | None]]:
    """Columns that exist, with their comments, by table; the table's own is under "", index and trigger under "name()"."""
    rows = connection.execute(
        """
        WITH c AS (
            SELECT oid, relname::text AS name FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relname = ANY(%s)
        )
        SELECT c.name, coalesce(a.attname::text, ''), d.description
        FROM c
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = a.attnum AND d.classoid = 'pg_class'::regclass
        UNION ALL
        SELECT c.name, '', obj_description(c.oid, 'pg_class') FROM c
        UNION ALL
        SELECT c.name, i.relname || '()', NULL
        FROM c JOIN pg_index x ON x.indrelid = c.oid JOIN pg_class i ON i.oid = x.indexrelid
        UNION ALL
        SELECT c.name, g.tgname || '()', NULL
        FROM c JOIN pg_trigger g ON g.tgrelid = c.oid
        """,
        ([collection.table for collection in collections],),
    ).fetchall()
    present: dict[str, dict[str, str | None]] = {}
    for table, name, comment in rows:
        present.setdefault(table, {})[name] = comment
    return present


def _ensure_one(connection: psycopg.Connection, collection: Collection, have: dict[str, str | None]) -> list[str]:
    changes = []
    if not have:
        create_table(connection, collection)
        changes.append(f"created table {collection.table}")
    for column in table_columns(collection):
        if have and column.name not in have:
            connection.execute(
                sql.SQL("ALTER TABLE {} ADD COLUMN {} {}").format(
                    sql.Identifier(collection.table), sql.Identifier(column.name), sql.SQL(column.type.value)
                )
            )
            changes.append(f"added column {collection.table}.{column.name}")
    if f"{TRIGGER}()" not in have:
        attach_history(connection, collection)
        changes += [f"added history to {collection.table}"] if have else []
    if any(f"{name}()" not in have for name in feed.TRIGGERS):
        feed.attach_changes(connection, collection)
        changes += [f"added change feed to {collection.table}"] if have else []
    _comment(connection, collection, have)
    return changes


def _comment(connection: psycopg.Connection, collection: Collection, have: dict[str, str | None]) -> None:
    """Write the comments that differ from the catalog's, all at once: a new warehouse has a thousand."""
    table = sql.Identifier(collection.table)
    statements = []
    if have.get("") != collection.doc:
        statements.append(sql.SQL("COMMENT ON TABLE {} IS {}").format(table, sql.Literal(collection.doc)))
    wanted = {column.name: f"{column.doc} PHI class: {column.phi.value}." for column in table_columns(collection)}
    statements += [
        sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(table, sql.Identifier(name), sql.Literal(comment))
        for name, comment in {**wanted, "row_hash": _HASH_DOC}.items()
        if have.get(name) != comment
    ]
    if statements:
        connection.execute(sql.SQL(";").join(statements))
