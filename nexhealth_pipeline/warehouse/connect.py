"""Which databases to use, and connections to them whose errors can be shown to anybody.

A driver's error text may quote the server's DETAIL, and with it a row. So whatever leaves this module
names address, database, role, setting and fix, never the driver's words.

`DATABASE_URL` names the warehouse; without it the embedded server is started and leased for the life of
this process. Dagster's own storage is a second database on the same server.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import platformdirs
import psycopg
from psycopg import conninfo, errors, sql
from psycopg.pq import ExecStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from nexhealth_pipeline.errors import InvalidSetting, MissingRights, ValueRefused, WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.warehouse.embedded import ensure

__all__ = [
    "DAGSTER_DATABASE",
    "OLDEST_SERVER",
    "SCHEMA_IN_USE",
    "WAREHOUSE_DATABASE",
    "WATCH",
    "Pool",
    "connect",
    "connect_to_dagster",
    "connecting",
    "connection_options",
    "dagster_url",
    "database_and_server",
    "driver_errors",
    "home_folder",
    "normalised_url",
    "our_settings",
    "pool",
    "warehouse_url",
    "watch",
]

WAREHOUSE_DATABASE = "nexhealth"
"""The warehouse on the embedded server."""
DAGSTER_DATABASE = "dagster"
"""Dagster's storage, on the warehouse's server."""
OLDEST_SERVER = 15
"""Oldest PostgreSQL release that is supported; the tests run on it where one is found."""
SCHEMA_IN_USE = """coalesce(current_schema(), trim(split_part(current_setting('search_path'), ',', -1), ' "'))"""
"""SQL of the schema that names without one are made in; of the last one asked for, where the role may look into none."""

_NAME = "nexhealth"
"""What PostgreSQL calls a connection for which nothing else is said."""
_CONNECT_SECONDS = 10
"""Longest wait for one address of a server, unless the URL sets `connect_timeout`."""
_POOL_WAIT_SECONDS = 30.0
_ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
"""A server that vanished is noticed within a minute; the systems' own default is two hours."""
WATCH = """
SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3;
SET tcp_user_timeout = 60000
"""
"""By this the server notices within a minute that a client vanished, and gives back its locks. For TCP alone."""
_MEANING = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "client_encoding": "UTF8",
    "search_path": "public",
    "array_nulls": "on",
}
"""What statements and their answers mean, whatever server, role or address have for people: psycopg gives times in the
connection's zone, and NexHealth is asked in UTC; names without a schema are of the one in which the tables are; a NULL among
many values is no text of that name."""
_OURS = {"default_transaction_isolation": "read committed"} | dict.fromkeys(
    ("lock_timeout", "statement_timeout", "idle_session_timeout", "idle_in_transaction_session_timeout"), "0"
)
"""What a role may have otherwise, for other work than this: whoever reads a newer row than it began with would end, and so
would whoever waits while another run makes an index, while nothing is to be done, or, with events claimed or an endpoint to
exchange, while NexHealth is asked."""
_UNTOLD = {"log_parameter_max_length_on_error": "0"}
"""What a server may write into its own log of a statement that fails: what it was given may be a patient's record."""
_OURS_SINCE_17 = {"transaction_timeout": "0"}
_SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2", "postgresql+psycopg")
_URL = re.compile(
    r"(?P<scheme>[a-z0-9+]+)://(?P<server>(?:[^/@]*@)?[^/?]*)(?:/(?P<database>[^?]*))?(?P<query>\?.*)?", re.DOTALL
)
"""As libpq takes an address apart: what stands before an @ is user and password, a ? as well, where no / comes sooner."""

_NO_PRIMARY = "takes no rows now: wait until one of its servers has taken over, or name the primary server too"
_REASONS = (
    ("password authentication failed", "refuses role {user} or its password: correct the user and password in it"),
    ("no password supplied", "asks for a password for role {user}: add it"),
    ("no pg_hba.conf entry", "does not let role {user} in from here: add this machine to its pg_hba.conf"),
    ("pg_hba.conf rejects", "does not let role {user} in from here: let this machine in by its pg_hba.conf"),
    (
        "authentication failed",
        "does not take role {user} for who it is: correct the user, or the method in its pg_hba.conf",
    ),
    ("permission denied for database", "does not let role {user} into {dbname}: GRANT CONNECT ON DATABASE to it"),
    ("not permitted to log in", "does not let role {user} log in: ALTER ROLE ... LOGIN, or correct the user"),
    (
        "many connections for role",
        "has no connection left for role {user}: raise its CONNECTION LIMIT, or end its clients",
    ),
    (
        "many connections for database",
        "has no connection left for {dbname}: raise its CONNECTION LIMIT, or end its clients",
    ),
    ("too many", "has no connection left: raise its max_connections, or end other clients"),
    ("connection slots", "has no connection left: raise its max_connections, or end other clients"),
    ("not currently accepting", "lets nobody into {dbname}: ALTER DATABASE ... ALLOW_CONNECTIONS true"),
    ('role "', "has no role {user}: create it, or correct the user"),
    ('database "', "has no database {dbname}: create it, or correct the name"),
    ("starting up", "is still starting: try again in a moment"),
    ("recovery mode", "is still starting, after a crash: try again in a moment"),
    ("not yet accepting", "is still starting: try again in a moment"),
    ("shutting down", "is stopping: start it again"),
    # Said of addresses with target_session_attrs, which may well name the primary: one that is gone just now.
    ("read-only", _NO_PRIMARY),
    ("standby", _NO_PRIMARY),
    ("root certificate file", "has a certificate to be verified, and no file to do it with: correct sslrootcert"),
    ("verify failed", "has a certificate that sslrootcert does not vouch for: name the file of who signed it there"),
    ("server certificate for", "has a certificate of another name: correct the host"),
    ("SSL", "and this client cannot agree on encryption: correct sslmode"),
    ("invalid", "cannot be asked: correct the port or the option in its address that has no valid value"),
    ("bad value", "cannot be asked: correct the option in its address that has no valid value"),
)
"""Words in libpq's English message -> what to say instead: of the first that are in it. Without a match the generic texts are
used, of a server that says something else (or in another language), or says nothing."""
_SAID_NOTHING = re.compile(
    r"refused|No such file|timeout|translate host name|closed the connection|No route|unreachable|Is the server"
)


def home_folder(settings: Settings) -> Path:
    """The folder of the embedded default: NEXHEALTH_HOME, `.nexhealth` of a checkout, or the user's data folder."""
    if settings.home is not None:
        return settings.home.absolute()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK):
        return checkout / ".nexhealth"
    return platformdirs.user_data_path("nexhealth-pipeline", appauthor=False)


def warehouse_url(
    settings: Settings, *, database_name: str = WAREHOUSE_DATABASE, linger_seconds: float = 0, tcp: bool = False
) -> str:
    """The libpq URL of the warehouse.

    `database_name`, `linger_seconds` and `tcp` (see :func:`.embedded.ensure`) are for the embedded server,
    which is started where DATABASE_URL is unset; the database is created if it is not there.

    Raises InvalidSetting for a DATABASE_URL that is none or a NEXHEALTH_HOME that cannot be used, WarehouseError where
    the server cannot start.
    """
    if settings.database_url is not None:
        return normalised_url(settings.database_url.get_secret_value(), "DATABASE_URL")
    server = ensure(home_folder(settings), linger_seconds=linger_seconds, tcp=tcp)
    server.create_database(database_name)
    return server.tcp_url(database_name) if tcp else server.url(database_name)


def dagster_url(settings: Settings, *, database_name: str = DAGSTER_DATABASE) -> str:
    """The libpq URL of Dagster's storage: DAGSTER_DATABASE_URL, else `database_name` beside the warehouse.

    The database is created if it is not there. Raises MissingRights, with the statement to run, where the
    role may not create it, and WarehouseError where the server does not for another reason; InvalidSetting and
    WarehouseError as :func:`warehouse_url`.
    """
    if settings.dagster_database_url is not None:
        return normalised_url(settings.dagster_database_url.get_secret_value(), "DAGSTER_DATABASE_URL")
    if settings.database_url is None:
        return warehouse_url(settings, database_name=database_name)
    beside = warehouse_url(settings)
    _create_beside(beside, database_name)
    return _with_database(beside, database_name)


def normalised_url(url: str, setting: str) -> str:
    """`url` as `postgresql://...`. Raises InvalidSetting naming `setting`, never the value: it holds a password."""
    match = _URL.fullmatch(url.strip())
    if match is None or match["scheme"] not in _SCHEMES:
        raise InvalidSetting(
            f"{setting}: not a PostgreSQL address: write postgresql://user:password@host:5432/database"
        )
    url = "postgresql" + url.strip()[len(match["scheme"]) :]
    try:
        port = conninfo.conninfo_to_dict(url).get("port") or ""
    except psycopg.ProgrammingError:
        port = None
    # Where the @ before the host was forgotten, the password is the port, and that is shown as well.
    if port is None or not re.fullmatch(r"[0-9,]*", str(port)) or _is_misread(match):
        raise InvalidSetting(
            f"{setting}: cannot be read as an address: percent-encode special characters of user, password and database "
            "(@ is %40, / is %2F, ? is %3F, % is %25), and check the port, and the options after the question mark"
        )
    return url


def _is_misread(match: re.Match[str]) -> bool:
    """Whether there is an @ or / in the password, or an @ in the name of the user or the database or in the first option.

    libpq takes such an address: it ends the password at the first @, and the server at the first /. The rest of the
    password is then the name of a host or a database, and those are shown to anybody.
    """
    login, _, host = match["server"].partition("@")
    if "@" in host or "@" in (match["database"] or ""):
        return True
    # Options whose @ libpq takes for the one before the host, or a ? in place of the colon: the password is the user's name
    # then. A ? alone is of the password, and stays in it.
    return "=" in login.partition("?")[2] or "?" in login.partition(":")[0]


def _with_database(url: str, name: str) -> str:
    match = _URL.fullmatch(url)
    assert match is not None
    query = re.sub(r"(?<=[?&])dbname=[^&]*&?", "", match["query"] or "").rstrip("?&")
    return f"postgresql://{match['server']}/{quote(name, safe='')}{query}"


def _create_beside(url: str, name: str) -> None:
    """Create database `name` on the server of `url` unless it exists. Raises WarehouseError, MissingRights."""
    with driver_errors("creating the database for Dagster's history"), connect(url, autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        try:
            # Not from template1, which somebody may be connected to: it cannot be copied then. And not in the encoding
            # that the server was made with, which may hold less than UTF8: C is the locale that goes with any on all servers.
            connection.execute(statement + sql.SQL(" ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"))
        except (errors.DuplicateDatabase, errors.UniqueViolation):
            return  # another process was faster
        except errors.InsufficientPrivilege:
            owner = sql.SQL("{} OWNER {};").format(statement, sql.Identifier(connection.info.user))
            raise MissingRights(
                f"role {connection.info.user} may not create the database for Dagster's history. Run as an "
                f"administrator:\n    {owner.as_string(connection)}\nor set DAGSTER_DATABASE_URL"
            ) from None


def connect(url: str, *, autocommit: bool = False, application_name: str = _NAME) -> psycopg.Connection:
    """A connection to `url`, for use as a context manager.

    Raises WarehouseUnreachable where there is none to be had, WarehouseError where the server is too old or the database's
    encoding cannot hold every text.
    """
    connection = _open(url, autocommit, application_name)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in (None, "UTF8"):
        connection.close()
        database, address = database_and_server(url)
        raise WarehouseError(
            f"database {database} at {address} has encoding {encoding}, which cannot hold every name: "
            "create it anew with ENCODING 'UTF8' LOCALE 'C.UTF-8' TEMPLATE template0 (or LOCALE 'C')"
        )
    return connection


def connect_to_dagster(url: str, *, application_name: str = _NAME) -> psycopg.Connection:
    """A connection to Dagster's database, which commits by itself; its tables are where Dagster's own connections look.

    Whatever its encoding, since Dagster's words go into any. Raises as :func:`connect` otherwise.
    """
    connection = _open(url, True, application_name)
    with driver_errors("connecting to Dagster's database"):
        connection.execute("RESET search_path")
    return connection


def _open(url: str, autocommit: bool, application_name: str) -> psycopg.Connection:
    with connecting(url):
        connection = psycopg.connect(url, autocommit=autocommit, **connection_options(url, application_name))
    version = connection.info.server_version // 10_000
    if version < OLDEST_SERVER:
        connection.close()
        raise WarehouseError(
            f"PostgreSQL at {_address(url)} is release {version}: {OLDEST_SERVER} or newer is needed, upgrade it"
        )
    watch(connection)
    return connection


@contextmanager
def connecting(url: str) -> Iterator[None]:
    """Map the driver's errors while it connects to `url`, in either of libpq's forms.

    Raises WarehouseUnreachable, which says what the server refused and how to mend it.
    """
    try:
        yield
    except (psycopg.OperationalError, psycopg.ProgrammingError) as error:
        raise WarehouseUnreachable(_unreachable(url, str(error))) from None


def watch(connection: psycopg.Connection) -> None:
    """Let the server notice when this host is gone without a word, and no role's settings be in the way.

    Limits that the address sets itself stand. Begins no transaction.
    """
    # Not as options of the connection themselves: poolers refuse those that they do not know.
    statements = [f"SET {name} = '{value}'".encode() for name, value in our_settings(connection.info).items()]
    if not connection.info.host.startswith("/"):
        statements.append(WATCH.encode())
    done = connection.pgconn.exec_(b";".join(statements))
    if done.status == ExecStatus.FATAL_ERROR:  # a server that is not on Linux knows less of TCP
        for statement in statements:
            connection.pgconn.exec_(statement)


def our_settings(info: psycopg.ConnectionInfo) -> dict[str, str]:
    """What to set on a connection, so that no role's settings are in the way; no limits that its options set themselves."""
    limits = _OURS | (_OURS_SINCE_17 if info.server_version >= 170000 else {})
    return _MEANING | _UNTOLD | {name: value for name, value in limits.items() if not _is_set(name, info.options)}


def _is_set(name: str, options: str) -> bool:
    """Whether `options` set `name`: as `-c name=value`, with or without the space, or `--name=value`; in any case."""
    words = name.replace("_", "[-_]")
    return re.search(rf"(?:^|\s)-(?:-|c\s*){words}=", options, re.IGNORECASE) is not None


class Pool(ConnectionPool[psycopg.Connection]):
    """psycopg's pool, raising this package's errors. Make it after forking: it has threads."""

    def getconn(self, timeout: float | None = None) -> psycopg.Connection:
        """A connection of the pool. Raises WarehouseUnreachable where none comes free, or none more is to be had, in time."""
        try:
            return super().getconn(timeout)
        except PoolTimeout:
            url = str(self.conninfo)
            connect(url).close()  # the pool keeps to itself why it gets none: this tells
            raise WarehouseUnreachable(f"no connection to PostgreSQL at {_address(url)} came free in time") from None


def pool(url: str, size: int) -> Pool:
    """An open pool of up to `size` connections in autocommit mode; dead ones are replaced before they are handed out.

    Close it, or use it as a context manager. Raises WarehouseUnreachable at once where nothing answers.
    """
    connect(url).close()
    return Pool(
        url,
        kwargs={"autocommit": True, **connection_options(url, _NAME)},
        min_size=0,
        max_size=size,
        timeout=_POOL_WAIT_SECONDS,
        configure=watch,
        check=ConnectionPool.check_connection,
        open=True,
    )


@contextmanager
def driver_errors(doing: str) -> Iterator[None]:
    """Map the driver's errors while `doing` something ("writing nexhealth_patients") to this package's.

    Raises WarehouseUnreachable where the connection was lost, MissingRights, ValueRefused, else WarehouseError;
    each with the server's five-character error code, whose meaning is in PostgreSQL's appendix A.
    """
    try:
        yield
    except errors.InsufficientPrivilege:
        raise MissingRights(f"{doing}: the database role lacks a right (42501)") from None
    except errors.DiskFull as error:
        shared = "shared memory" in str(error)  # of a container, 64 MB unless it is told otherwise
        room = "give it more shared memory (Docker: --shm-size)" if shared else "make room on its disk, then run again"
        raise WarehouseError(f"{doing}: PostgreSQL has no room left (53100): {room}") from None
    except errors.ReadOnlySqlTransaction:
        raise WarehouseError(
            f"{doing}: the database is read-only (25006): name the primary server in its address (DATABASE_URL, or "
            "DAGSTER_DATABASE_URL, if this is Dagster's)"
        ) from None
    except psycopg.OperationalError as error:
        if _lost(error):
            raise WarehouseUnreachable(f"{doing}: the connection to PostgreSQL was lost{_code(error)}") from None
        raise WarehouseError(f"{doing}: PostgreSQL gave up{_code(error)}") from None
    except psycopg.DataError as error:
        raise ValueRefused(f"{doing}: PostgreSQL refused a value{_code(error)}") from None
    except psycopg.Error as error:
        raise WarehouseError(f"{doing}: PostgreSQL refused{_code(error)}") from None


def _lost(error: psycopg.OperationalError) -> bool:
    """Whether the server went away: classes 08 and 57P, and what libpq says without a code."""
    return error.sqlstate is None or error.sqlstate.startswith(("08", "57P", "53300"))


def _code(error: psycopg.Error) -> str:
    return f" ({error.sqlstate} {type(error).__name__})" if error.sqlstate else ""


def connection_options(url: str, application_name: str) -> dict[str, Any]:
    """Connection parameters that count unless `url` sets them itself."""
    defaults = {"application_name": application_name, "connect_timeout": _CONNECT_SECONDS, **_ALIVE}
    given = conninfo.conninfo_to_dict(url)
    return {name: value for name, value in defaults.items() if name not in given}


def database_and_server(url: str) -> tuple[str, str]:
    """Name of the database of `url`, and host and port of its server, for people."""
    return str(conninfo.conninfo_to_dict(url).get("dbname") or "(the role's)"), _address(url)


def _address(url: str) -> str:
    """Host and port of `url`, for people."""
    given = conninfo.conninfo_to_dict(url)
    host = str(given.get("host") or given.get("hostaddr") or "the local socket")
    return host if host.startswith("/") or " " in host else f"{host}:{given.get('port') or 5432}"


def _unreachable(url: str, message: str) -> str:
    given = conninfo.conninfo_to_dict(url)
    names = {"user": given.get("user") or "(the operating system's)", "dbname": given.get("dbname") or "(the role's)"}
    for words, reason in _REASONS:
        if words in message:
            return f"PostgreSQL at {_address(url)} {reason.format(**names)}"
    if "failed: " in message and not _SAID_NOTHING.search(message):
        return (
            f"PostgreSQL at {_address(url)} does not let role {names['user']} into {names['dbname']}: its own log says why; "
            "correct user, password and options"
        )
    return (
        f"no PostgreSQL answers at {_address(url)}: start it, or correct DATABASE_URL (or DAGSTER_DATABASE_URL, if this is "
        "Dagster's)"
    )
