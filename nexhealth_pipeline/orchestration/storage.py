"""Where Dagster keeps its own records: the classes that `dagster.yaml` names.

`dagster.yaml` cannot choose an address by a variable that may be unset, and Dagster's PostgreSQL
storage opens a fresh connection for every single event. These subclasses resolve their place through
our settings, so that plain `dagster dev` works with nothing set, and write events over pooled
connections in batches. They are made by Dagster from `dagster.yaml`; nothing else should make one
except tests.

Several Dagster processes start at once (webserver, daemon, code server, forked runs), so the tables
are created under an advisory lock.
"""

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagster._config.config_schema import UserConfigSchema
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._core.storage.root import LocalArtifactStorage
from dagster._serdes import ConfigurableClassData
from dagster_postgres import PostgresRunStorage, PostgresScheduleStorage
from dagster_postgres.storage import DagsterPostgresStorage
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import Connection, Engine, create_engine, exc, text
from sqlalchemy import event as engine_event
from sqlalchemy.engine import URL, ExceptionContext, make_url

from nexhealth_pipeline.errors import MissingRights, WarehouseUnreachable
from nexhealth_pipeline.orchestration.event_log import EVENT_BATCH_SIZE, EVENTS_A_MESSAGE, PooledEventLogStorage
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.connect import SCHEMA_IN_USE, WATCH, connection_options, dagster_url, home_folder
from nexhealth_pipeline.warehouse.sessions import require_sessions

__all__ = [
    "HomeArtifactStorage",
    "HomeComputeLogManager",
    "NexHealthDagsterStorage",
    "dagster_folder",
    "database_of",
    "psycopg2_url",
]

_CREATE_LOCK = 0x6E78_6461_6773_7472  # "nxdagstr": one process at a time creates Dagster's tables

_NOT_ALLOWED = ("42501", "3F000")
"""What PostgreSQL refuses for want of a right; by the second code where the role may not even look into the schema."""
_READ_ONLY = "25006"
"""What a server refuses from which another one has taken over."""

_USABLE = "SELECT has_table_privilege('runs', 'SELECT') AND has_table_privilege('event_logs', 'INSERT')"
"""One cheap statement, for every process that starts: who lacks these has been given none. `nexhealth doctor` asks for all."""
_WHO_AND_WHERE = f"SELECT quote_ident(current_user), quote_ident(current_database()), quote_ident({SCHEMA_IN_USE})"

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


def psycopg2_url(url: str) -> str:
    """A libpq URL as SQLAlchemy writes it, with the driver that Dagster's storage needs.

    SQLAlchemy 2.1 takes psycopg 3 for a plain `postgresql://`, with which dagster-postgres 0.29
    breaks at the first event of every run (it binds a parameter in NOTIFY). Sockets and lists of
    hosts, which libpq takes in the place of one host, go to the query. Of those SQLAlchemy wants as
    many hosts as ports, where libpq is content with one port for all, or with `hostaddr` alone.
    """
    given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
    database, user, password = (given.pop(name, None) for name in ("dbname", "user", "password"))
    host, port = given.pop("host", None), given.pop("port", None)
    if not host and "," in given.get("hostaddr", ""):
        host = given["hostaddr"]
    if (host and ("/" in host or "," in host)) or (port and "," in port):
        if host and port and "," not in port:
            port = ",".join([port] * len(host.split(",")))
        given |= {name: value for name, value in (("host", host), ("port", port)) if value}
        host = port = None
    return URL.create(
        "postgresql+psycopg2", user, password, host, int(port) if port else None, database, given
    ).render_as_string(hide_password=False)


class NexHealthDagsterStorage(DagsterPostgresStorage):
    """Runs, events and schedules on PostgreSQL: own address, one small pool a process, batched events."""

    def __init__(self, postgres_url: str, inst_data: ConfigurableClassData | None = None) -> None:
        self.postgres_url = postgres_url
        self.should_autocreate_tables = True
        self._inst_data = inst_data
        engine = _pooled_engine(postgres_url)
        with _alone_on(engine):
            self._run_storage = PostgresRunStorage(postgres_url)
            self._event_log_storage = PooledEventLogStorage(postgres_url)
            self._schedule_storage = PostgresScheduleStorage(postgres_url)
        # Each part was made with an engine that connects anew for every statement.
        for part in (self._run_storage, self._event_log_storage, self._schedule_storage):
            part._engine = engine
        # Dagster reads these from the environment alone.
        os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", str(EVENT_BATCH_SIZE))
        os.environ.setdefault("DAGSTER_UI_EVENT_LOAD_CHUNK_SIZE", str(EVENTS_A_MESSAGE))
        super(DagsterPostgresStorage, self).__init__()  # type: ignore[no-untyped-call]  # Dagster left it untyped

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure: the address comes from the settings."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - Dagster's signature
    ) -> "NexHealthDagsterStorage":
        """The storage at `DAGSTER_DATABASE_URL`, or in database `dagster` on the warehouse's server."""
        return cls(psycopg2_url(_with_timeouts(dagster_url(load_settings()))), inst_data=inst_data)


def _with_timeouts(url: str) -> str:
    """`url` with how long to wait for a server that does not answer: libpq's own default is for ever.

    In the address, because Dagster makes engines of its own by it.
    """
    options = connection_options(url, "")
    options.pop("application_name", None)  # others connect by this address too, each by a name of its own
    return make_conninfo(url, **options)


@contextmanager
def _alone_on(engine: Engine) -> Iterator[None]:
    """Hold the lock under which Dagster's tables are created, and see that they can be used.

    Raises WarehouseUnreachable, MissingRights, WarehouseError where a pooler's transactions share sessions.
    """
    try:
        connection = engine.connect()
    except exc.SQLAlchemyError:
        raise WarehouseUnreachable(
            "Dagster's database cannot be reached: check DAGSTER_DATABASE_URL (unset: database `dagster` on the "
            "server of DATABASE_URL)"
        ) from None
    with connection:
        require_sessions(_libpq_address(engine.url))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _CREATE_LOCK})
        try:
            yield
            usable = connection.execute(text(_USABLE)).scalar_one()
        except exc.ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) not in _NOT_ALLOWED:
                raise
            raise _no_right_to_make(connection) from None
        finally:
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _CREATE_LOCK})
        if not usable:
            raise _no_right_to_use(connection)


def _no_right_to_make(connection: Connection) -> MissingRights:
    """What an administrator who made the database for another role forgets: since PostgreSQL 15 nobody else may create."""
    role, database, schema = connection.execute(text(_WHO_AND_WHERE)).one()
    return MissingRights(
        f"role {role} may not make and use Dagster's tables in database {database}. Run there as an administrator:\n"
        f"    GRANT USAGE, CREATE ON SCHEMA {schema} TO {role};\nor let the role own the schema: "
        f"ALTER SCHEMA {schema} OWNER TO {role}; `nexhealth doctor` names what else is missing"
    )


def _no_right_to_use(connection: Connection) -> MissingRights:
    """Tables that another role made; Dagster would find out in the midst of something, and it would look like a bug."""
    role, database, _ = connection.execute(text(_WHO_AND_WHERE)).one()
    return MissingRights(
        f"role {role} may not use Dagster's tables in database {database}, which another role made: "
        "`nexhealth doctor` names the statements that give it what it lacks"
    )


def database_of(events: object) -> str | None:
    """How libpq reaches the database behind an instance's event log; None where that is not of this module."""
    return _libpq_address(events.postgres_url) if isinstance(events, PooledEventLogStorage) else None


def _libpq_address(url: str | URL) -> str:
    """The other way round than `psycopg2_url`: not as a URL, in which SQLAlchemy encodes a space as libpq does not."""
    given = make_url(url)
    options = {name: values[-1] for name, values in given.normalized_query.items()}
    return make_conninfo(**given.translate_connect_args(username="user", database="dbname"), **options)


def dagster_folder() -> Path:
    """The folder of Dagster's loose files: `<home>/dagster`."""
    return home_folder(load_settings()) / "dagster"


def _pooled_engine(url: str) -> Engine:
    """One engine for all three storages: connections are kept, and checked before use.

    Checking costs one short round trip; without it, a restart of the server would fail a run at its
    next event. Waiting threads may open up to 20 connections more, which are closed after use.
    """
    engine = create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=2,
        max_overflow=20,
        pool_recycle=3600,
        pool_pre_ping=True,
    )
    _engines.add(engine)
    return engine


_AS_DAGSTER_MEANS = """
SET timezone = 'UTC'; SET default_transaction_isolation = 'read committed';
SET lock_timeout = 0; SET idle_session_timeout = 0
"""
"""Whatever the role has for other work: its limits would look like a server that is away. Not `statement_timeout`, which the
webserver sets itself."""


@engine_event.listens_for(Engine, "connect")
def _in_utc(connection: Any, _record: object) -> None:
    """Dagster keeps times without a zone, and takes what it finds for UTC: of a server of another zone all were hours off.

    For all engines, since it makes some of its own. Not in the address: poolers refuse options that they do not know.
    And a host that vanished in the midst of a transaction would keep the assets' rows from all other runs for two hours.
    """
    if type(connection).__module__.startswith("psycopg2"):
        with connection.cursor() as cursor:
            try:
                cursor.execute(_AS_DAGSTER_MEANS + ("" if connection.info.host.startswith("/") else f";{WATCH}"))
            except connection.Error:
                if connection.closed:
                    raise
                connection.rollback()  # a server that is not on Linux knows less of TCP
                cursor.execute(_AS_DAGSTER_MEANS)
        connection.commit()


@engine_event.listens_for(Engine, "handle_error")
def _let_go_of_a_standby(context: ExceptionContext) -> None:
    """A server that takes no rows any more answers all the same: who was connected to it stayed so for an hour."""
    if context.engine in _engines and getattr(context.original_exception, "pgcode", None) == _READ_ONLY:
        context.is_disconnect = True


def _forget_parents_connections() -> None:
    """A forked child must not talk on its parent's sockets; drop them without closing."""
    for engine in list(_engines):
        engine.dispose(close=False)


os.register_at_fork(after_in_child=_forget_parents_connections)


class HomeComputeLogManager(LocalComputeLogManager):
    """What runs print, in one fixed folder below `NEXHEALTH_HOME`, wherever Dagster's home lies."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - Dagster's signature
    ) -> "HomeComputeLogManager":
        """The manager of folder `<home>/dagster/compute_logs`."""
        return cls(base_dir=str(dagster_folder() / "compute_logs"), inst_data=inst_data)


class HomeArtifactStorage(LocalArtifactStorage):
    """Dagster's loose files, below `NEXHEALTH_HOME` instead of beside `dagster.yaml`."""

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(
        cls,
        inst_data: ConfigurableClassData | None,
        config_value: Mapping[str, Any],  # noqa: ARG003 - Dagster's signature
    ) -> "HomeArtifactStorage":
        """The storage of folder `<home>/dagster`."""
        return cls(base_dir=str(dagster_folder()), inst_data=inst_data)
