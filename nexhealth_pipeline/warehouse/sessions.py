"""Whether an address gives each connection a session of its own, without which no lock of ours holds.

A pooler in transaction mode gives a session to whoever begins a transaction, and to another at its end. There a lock is
taken in one session and asked for in the same by somebody else, who gets it too: a living run is closed as dead, two runs
read one slice. Or it is given back in a session that does not have it, and waited for without an end.
"""

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import psycopg
from psycopg.pq import ExecStatus

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.warehouse.connect import (
    connecting,
    connection_options,
    database_and_server,
    driver_errors,
    watch,
)

__all__ = ["keeps_sessions", "require_sessions"]

_LOOKS = 5
"""One is enough where nobody else uses the pooler; else somebody may come in between, and get what is looked for."""
_CLIENTS = 4
"""Of as many poolers behind one address, less one, two are at the same."""
_kept: set[str] = set()
"""Addresses of poolers that keep sessions: looked at once in a process."""


def require_sessions(url: str, connection: psycopg.Connection | None = None) -> None:
    """Raise WarehouseError where `url` leads through a pooler in transaction mode, WarehouseUnreachable where nowhere."""
    if not keeps_sessions(url, connection):
        name, server = database_and_server(url)
        raise WarehouseError(
            f"database {name} at {server} is reached through a pooler in transaction mode, where locks do not hold: name its "
            "port of session mode, or the server itself, in DATABASE_URL (or DAGSTER_DATABASE_URL, if this is Dagster's)"
        )


def keeps_sessions(url: str, connection: psycopg.Connection | None = None) -> bool:
    """Whether connections to `url` have sessions of their own.

    One question on `connection` (or a new one) tells that the server itself is at the other end, and begins no
    transaction; four connections more are made where it is not. Raises WarehouseUnreachable, WarehouseError.
    """
    if url in _kept:
        return True
    with driver_errors("asking PostgreSQL for its sessions"):
        with _opened(url) if connection is None else nullcontext(connection) as asked:
            # Poolers give their clients numbers of their own, by which these cancel what they do.
            if _process(asked) == asked.info.backend_pid:
                return True
        with ExitStack() as stack:
            if _are_shared([stack.enter_context(_opened(url)) for _ in range(_CLIENTS)]):
                return False
    _kept.add(url)
    return True


def _are_shared(clients: Sequence[psycopg.Connection]) -> bool:
    """Whether two of these, all open and in autocommit mode, get the same session, or one of them gets two.

    Mostly a session goes to who asks next: to the second client that which the first has just had, and while that one is
    in a transaction, another.
    """
    of_each: list[set[int]] = [set() for _ in clients]

    def shared() -> bool:
        for one, sessions in zip(clients, of_each, strict=True):
            sessions.add(_process(one))
        return len(set().union(*of_each)) != len(clients) or any(len(sessions) > 1 for sessions in of_each)

    for look in range(_LOOKS):
        if shared():  # before the transaction: the session may be the only one there is
            return True
        with clients[look % len(clients)].transaction():
            if shared():
                return True
    return False


def _opened(url: str) -> psycopg.Connection:
    """As our others are: some poolers keep the session of whoever has set something in it."""
    with connecting(url):
        connection = psycopg.connect(url, autocommit=True, **connection_options(url, "nexhealth sessions"))
    watch(connection)
    return connection


def _process(connection: psycopg.Connection) -> int:
    """Number of the server's process that answers; not by `execute`, which may begin a transaction."""
    done = connection.pgconn.exec_(b"SELECT pg_backend_pid()")
    if done.status != ExecStatus.TUPLES_OK:
        raise WarehouseUnreachable(
            "asking PostgreSQL for its sessions: the connection was lost, or its pooler has none left to give"
        )
    return int(done.get_value(0, 0) or 0)
