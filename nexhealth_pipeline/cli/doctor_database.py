"""Doctor's questions to PostgreSQL: reach, poolers, encryption, log, migrations, kind of data, rights, Dagster's storage."""

from collections.abc import Iterable, Iterator
from importlib.resources import files
from ipaddress import ip_address

import psycopg
from psycopg import sql

from nexhealth_pipeline.cli.findings import Finding, Group, Level
from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.errors import PipelineError, WarehouseError, WarehouseNewer, WarehouseOutdated
from nexhealth_pipeline.warehouse.connect import SCHEMA_IN_USE, connect, connect_to_dagster, driver_errors
from nexhealth_pipeline.warehouse.migrate import HEAD, check, current_revision
from nexhealth_pipeline.warehouse.sessions import keeps_sessions

__all__ = ["database_findings"]


def database_findings(realm: Realm) -> Iterator[Finding]:
    """Findings about the warehouse and Dagster's storage beside it."""
    try:
        url = realm.warehouse_url()
        connection = connect(url, autocommit=True)
    except PipelineError as error:
        group = Group.DATABASE if isinstance(error, WarehouseError) else Group.SETTINGS
        yield _failed(
            "database", str(error), "Nothing can be synced until the warehouse (DATABASE_URL) answers.", group
        )
        return
    try:
        with connection, driver_errors("checking the warehouse"):
            yield from _connected(connection, realm, url)
    except PipelineError as error:
        yield _failed("database", str(error), "Try again; if it stays, see the server's own log.")


def _connected(connection: psycopg.Connection, realm: Realm, url: str) -> Iterator[Finding]:
    release = connection.info.server_version // 10_000
    yield _ok("database", f"PostgreSQL {release} answers, database {connection.info.dbname}")
    yield from _pooled(connection, url, "DATABASE_URL")
    yield from _on_the_way(connection, "DATABASE_URL", "patients' data")
    yield from _read_only(connection, "DATABASE_URL")
    yield from _logged(connection)
    yield from _rights(connection)
    if _may_read(connection, "nexhealth_alembic_version") is not False:
        yield _migrations(connection, url)
    if _may_read(connection, "nexhealth_warehouse"):
        yield from _kind(connection, realm)
    yield from _dagster(connection, realm)


def _pooled(connection: psycopg.Connection, url: str, setting: str) -> Iterator[Finding]:
    """Whether other clients get the sessions in which our locks are."""
    if not keeps_sessions(url, connection):
        yield _failed(
            "pooler",
            f"{setting} leads through a pooler in transaction mode, where locks do not hold",
            f"Name its port of session mode, or the server itself, in {setting}.",
        )


def _on_the_way(connection: psycopg.Connection, setting: str, what: str) -> Iterator[Finding]:
    """Whether `what` can be read on its way to another machine. A socket has no address."""
    address = connection.info.hostaddr
    if address and not ip_address(address).is_loopback and not connection.pgconn.ssl_in_use:
        yield Finding(
            "encryption",
            Level.WARNING,
            Group.DATABASE,
            f"the connection to PostgreSQL at {connection.info.host} is not encrypted: {what} can be read on its way",
            f"Add sslmode=verify-full and sslrootcert, the file of who signed the server's certificate, to {setting}.",
        )


_READ_ONLY = """
SELECT current_setting('transaction_read_only')::boolean, pg_is_in_recovery(), current_user::text, current_database()::text
"""


def _read_only(connection: psycopg.Connection, setting: str) -> Iterator[Finding]:
    """Whether nothing can be written: to a standby, or because somebody has set the role or the database so."""
    row = connection.execute(_READ_ONLY).fetchone()
    assert row is not None
    read_only, standby, user, name = row
    if standby:
        message = f"PostgreSQL at {connection.info.host} is a standby, which takes no rows"
        yield _failed("read_only", message, f"Name the primary server in {setting}.")
    elif read_only:
        role, base = (sql.Identifier(part).as_string(connection) for part in (user, name))
        change = f"ALTER ROLE {role} IN DATABASE {base} SET default_transaction_read_only = off;"
        message = f"database {name} is read-only for role {user}"
        yield _failed("read_only", message, f"As an administrator, once it is known who set it so and why: {change}")


_LOGGED = """
SELECT current_setting('log_parameter_max_length') <> '0' AND (
           current_setting('log_statement') IN ('mod', 'all') OR current_setting('log_min_duration_statement') <> '-1'
           OR current_setting('log_transaction_sample_rate')::float > 0
           OR current_setting('log_min_duration_sample') <> '-1' AND current_setting('log_statement_sample_rate')::float > 0),
       current_user::text, current_database()::text
"""


def _logged(connection: psycopg.Connection) -> Iterator[Finding]:
    """Whether the server writes down what some statements are given: only an administrator may tell it not to."""
    row = connection.execute(_LOGGED).fetchone()
    assert row is not None
    written, *names = row
    if written:
        role, base = (sql.Identifier(name).as_string(connection) for name in names)
        yield Finding(
            "log",
            Level.WARNING,
            Group.DATABASE,
            "PostgreSQL writes statements into its own log with what they are given: bodies of webhooks, records in quarantine",
            f"As an administrator: ALTER ROLE {role} IN DATABASE {base} SET log_parameter_max_length = 0;",
        )


def _migrations(connection: psycopg.Connection, url: str) -> Finding:
    revision = current_revision(connection)
    try:
        check(url)
    except WarehouseNewer as error:
        return _failed("migrations", str(error), "Install that release here as well.")
    except WarehouseOutdated as error:
        if revision is None:
            message = "the warehouse is empty: its tables were never made"
        else:
            message = str(error).partition(": run")[0]
        return _failed("migrations", message, "Run `nexhealth db upgrade` (`nexhealth sync` does it by itself).")
    return _ok("migrations", f"the warehouse is at migration {HEAD}, as this release needs")


def _kind(connection: psycopg.Connection, realm: Realm) -> Iterator[Finding]:
    """Whether the data there is of the kind that the key brings."""
    row = connection.execute("SELECT kind FROM nexhealth_warehouse").fetchone()
    if row is not None and row[0] != realm.kind:
        yield _failed(
            "kind",
            f"the warehouse holds {row[0]} data, and the key brings {realm.kind} data",
            "Set DATABASE_URL to another database: the two are never mixed.",
        )


def _may_read(connection: psycopg.Connection, table: str) -> bool | None:
    """Whether the role may read a table; None where there is no such table."""
    # To look for a name in a schema that one may not use is an error.
    query = (
        "SELECT CASE WHEN has_schema_privilege('public', 'USAGE')"
        " THEN has_table_privilege(to_regclass(%s), 'SELECT') ELSE false END"
    )
    row = connection.execute(query, (f"public.{table}",)).fetchone()
    return row[0] if row else None


_TABLES = """
SELECT c.relname::text FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname LIKE 'nexhealth\\_%'
"""

_NOT_OWNED = """
SELECT count(*) FROM pg_class c
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname LIKE 'nexhealth\\_%'
  AND NOT pg_has_role(c.relowner, 'USAGE')
"""

_WIDE_RIGHTS = """
SELECT has_database_privilege(current_database(), 'TEMPORARY'), has_schema_privilege('public', 'USAGE'),
       has_schema_privilege('public', 'CREATE'), has_database_privilege(current_database(), 'CREATE'),
       current_user::text, current_database()::text
"""


def _rights(connection: psycopg.Connection) -> Iterator[Finding]:
    """What the role lacks to load rows, with the statements that give it."""
    row = connection.execute(_WIDE_RIGHTS).fetchone()
    assert row is not None
    temporary, usage, create, _, user, name = row
    role, base = (sql.Identifier(part).as_string(connection) for part in (user, name))
    lacking = []
    if not temporary:
        lacking.append(("to make temporary tables", f"GRANT TEMPORARY ON DATABASE {base} TO {role};"))
    if not (usage and create):
        lacking.append(("to create in schema public", f"GRANT USAGE, CREATE ON SCHEMA public TO {role};"))
    lacking += _table_rights(connection, "public", (name for (name,) in connection.execute(_TABLES)), role)
    for what, statement in lacking:
        yield _failed("rights", f"database role {user} lacks the right {what}", f"As an administrator: {statement}")
    if not lacking:
        yield _ok("rights", f"database role {user} has the rights to load rows")
        yield from _ownership(connection, user)


def _table_rights(
    connection: psycopg.Connection, schema: str, names: Iterable[str], role: str
) -> list[tuple[str, str]]:
    """What the role lacks on these tables alone, each with the statement that gives it: others' may be beside them."""
    lacking = []
    for rights, tables in connection.execute(_LACKING_ON_TABLES, (schema, list(names))).fetchall():
        what = f"{rights} on {tables[0]}" + (f" and {len(tables) - 1} more" if len(tables) > 1 else "")
        lacking.append((what, f"GRANT {rights} ON {', '.join(tables)} TO {role};"))
    return lacking


def _ownership(connection: psycopg.Connection, user: str) -> Iterator[Finding]:
    """Whether a run could put indexes on the tables, and a newer release widen them: only their owner may."""
    row = connection.execute(_NOT_OWNED).fetchone()
    if row and row[0]:
        yield Finding(
            "ownership",
            Level.WARNING,
            Group.DATABASE,
            f"database role {user} does not own {row[0]} of the warehouse's tables",
            "Run `nexhealth db upgrade` as their owner after the first load, which makes the indexes, and with each "
            "new release.",
        )


_BESIDE = """
SELECT d.oid IS NOT NULL, has_database_privilege(d.oid, 'CONNECT'), r.rolsuper OR r.rolcreatedb, r.rolname::text
FROM pg_roles r LEFT JOIN pg_database d ON d.datname = %s WHERE r.rolname = current_user
"""


def _dagster(connection: psycopg.Connection, realm: Realm) -> Iterator[Finding]:
    """Whether Dagster's own storage is there and can be used, or can be made."""
    if realm.settings.dagster_database_url is not None:
        yield from _dagster_there(realm, "Correct DAGSTER_DATABASE_URL.")
        return
    row = connection.execute(_BESIDE, (realm.dagster_database,)).fetchone()
    assert row is not None
    exists, may_connect, may_create, user = row
    name, role = (sql.Identifier(part).as_string(connection) for part in (realm.dagster_database, user))
    if exists and not may_connect:
        fix = f"As an administrator: GRANT CONNECT ON DATABASE {name} TO {role};"
        yield _failed("dagster", f"database role {user} may not connect to {realm.dagster_database}", fix)
    elif exists:
        yield from _dagster_there(realm, "Try again; if it stays, see the server's own log.")
    elif not may_create:
        fix = f"As an administrator: CREATE DATABASE {name} OWNER {role}; or set DAGSTER_DATABASE_URL."
        yield _failed("dagster", f"Dagster's database is missing and {user} may not create it", fix)
    else:
        yield _ok("dagster", "Dagster's database can be created")


def _dagster_there(realm: Realm, fix: str) -> Iterator[Finding]:
    """Whether it answers, lets the role make and use Dagster's tables, and by what way: the warehouse's may be another."""
    try:
        url = realm.dagster_url()
        connection = connect_to_dagster(url)
    except PipelineError as error:
        yield _failed("dagster", f"Dagster's database: {error}", fix)
        return
    try:
        with connection, driver_errors("checking Dagster's database"):
            yield from _dagster_rights(connection)
            if realm.settings.dagster_database_url is not None:
                yield from _pooled(connection, url, "DAGSTER_DATABASE_URL")
                yield from _on_the_way(connection, "DAGSTER_DATABASE_URL", "what Dagster keeps there")
                yield from _read_only(connection, "DAGSTER_DATABASE_URL")
    except PipelineError as error:
        yield _failed("dagster", str(error), "Try again; if it stays, see the server's own log.")


_DAGSTERS_PLACE = f"""
SELECT made.place IS NOT NULL, coalesce(made.place, {SCHEMA_IN_USE}), current_user::text, current_database()::text
FROM (SELECT min(n.nspname::text) AS place FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE c.oid = to_regclass('runs')) made
"""  # noqa: S608 - a constant
"""Where the tables are that Dagster would find, or those that it would make."""

_LACKING_ON_TABLES = """
SELECT rights, array_agg(name ORDER BY name)
FROM (SELECT format('%%I.%%I', n.nspname, c.relname) AS name,
             (SELECT string_agg(r."right", ', ' ORDER BY r.place)
              FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) WITH ORDINALITY AS r("right", place)
              WHERE NOT has_table_privilege(c.oid, r."right")) AS rights
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      WHERE n.nspname = %s AND c.relname = ANY(%s) AND c.relkind IN ('r', 'p')) AS one
WHERE rights IS NOT NULL GROUP BY rights ORDER BY rights
"""

_LACKING_ON_SEQUENCES = """
SELECT array_agg(format('%%I.%%I', n.nspname, s.relname) ORDER BY s.relname)
FROM pg_sequence q JOIN pg_class s ON s.oid = q.seqrelid
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = q.seqrelid
JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = ANY(%s) AND NOT has_sequence_privilege(q.seqrelid, 'USAGE')
"""


def _dagster_rights(connection: psycopg.Connection) -> Iterator[Finding]:
    """What the role lacks there. Dagster makes its tables by itself, when it is first started."""
    row = connection.execute(_DAGSTERS_PLACE).fetchone()
    assert row is not None
    made, schema, user, name = row
    place, role = (sql.Identifier(part).as_string(connection) for part in (schema, user))
    rights = "SELECT has_schema_privilege(%(schema)s, 'USAGE'), has_schema_privilege(%(schema)s, 'CREATE')"
    row = connection.execute(rights, {"schema": schema}).fetchone()
    assert row is not None
    usage, create = row
    lacking = []
    if not usage or not (create or made):
        lacking.append((f"to create in schema {schema}", f"GRANT USAGE, CREATE ON SCHEMA {place} TO {role};"))
    if made:
        lacking += _dagsters_table_rights(connection, schema, role)
    for what, statement in lacking:
        message = f"database role {user} lacks the right {what} in Dagster's database {name}"
        yield _failed("dagster", message, f"There, as an administrator: {statement}")
    if not lacking:
        yield _ok("dagster", "Dagster's database is there, and its role has the rights")
        if made:
            yield from _dagsters_migration(connection, schema)


def _dagsters_table_rights(connection: psycopg.Connection, schema: str, role: str) -> list[tuple[str, str]]:
    """What the role lacks on Dagster's tables alone: others may be beside them, as where both addresses are one."""
    from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
    from dagster._core.storage.runs.schema import RunStorageSqlMetadata
    from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata

    names = {"alembic_version"}
    for part in (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata):
        names |= set(part.tables)
    lacking = _table_rights(connection, schema, names, role)
    row = connection.execute(_LACKING_ON_SEQUENCES, (schema, list(names))).fetchone()
    if row and row[0]:
        lacking.append(("to use sequences", f"GRANT USAGE ON SEQUENCE {', '.join(row[0])} TO {role};"))
    return lacking


def _dagsters_migration(connection: psycopg.Connection, schema: str) -> Iterator[Finding]:
    """Whether the tables are another Dagster's than the one installed: that may fail at any of its statements."""
    from alembic.script import ScriptDirectory

    table = sql.Identifier(schema, "alembic_version")
    row = connection.execute(sql.SQL("SELECT version_num FROM {}").format(table)).fetchone()
    script = ScriptDirectory(str(files("dagster") / "_core/storage/alembic"))
    needed = script.get_current_head()
    if row is None or row[0] == needed:
        return
    if row[0] in {one.revision for one in script.walk_revisions()}:
        fix = "After an upgrade run `dagster instance migrate`, with the daemon's DAGSTER_HOME."
    else:
        fix = "A newer Dagster made these: install it here too."
    yield Finding(
        "dagster_migrations",
        Level.WARNING,
        Group.DATABASE,
        f"Dagster's database is at migration {row[0]} of Dagster's, and the Dagster installed here has {needed}",
        fix,
    )


def _ok(check_name: str, message: str) -> Finding:
    return Finding(check_name, Level.OK, Group.DATABASE, message)


def _failed(check_name: str, message: str, fix: str, group: Group = Group.DATABASE) -> Finding:
    return Finding(check_name, Level.FAILED, group, message, fix)
