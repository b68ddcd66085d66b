"""A run's connections: the dead are replaced, and where none is to be had it is told why."""

import os

import psycopg
import pytest
from psycopg import conninfo

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.warehouse import connect as module
from nexhealth_pipeline.warehouse.connect import connect, driver_errors, pool

WHAT_SERVERS_SAY = {
    'FATAL:  Peer authentication failed for user "x"': "does not take role x for who it is",
    'FATAL:  pg_hba.conf rejects connection for host "h", user "x", database "y"': "does not let role x in from here",
    'FATAL:  database "y" is not currently accepting connections': "lets nobody into y",
    "FATAL:  the database system is in recovery mode": "is still starting, after a crash",
    "session is read-only": "wait until one of its servers has taken over, or name the primary server too",
    "server is in hot standby mode": "wait until one of its servers has taken over, or name the primary server too",
    "FATAL:  Passwort-Authentifizierung für Benutzer »x« fehlgeschlagen": "does not let role x into y: its own log says why",
    "Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?": "no PostgreSQL answers",
    "timeout expired": "no PostgreSQL answers",
}


@pytest.mark.parametrize("said", WHAT_SERVERS_SAY)
def test_a_server_that_refuses_is_not_told_as_one_that_is_silent(said: str) -> None:
    """Whoever is told to start it looks in the wrong place; a server may speak any language."""
    told = module._unreachable(
        "postgresql://x@h/y", f'connection to server at "h" (10.0.0.1), port 5432 failed: {said}'
    )
    assert WHAT_SERVERS_SAY[said] in told
    assert ("start it" in told) == ("no PostgreSQL" in WHAT_SERVERS_SAY[said])


def test_shared_memory_is_not_told_as_the_disk() -> None:
    """A container has 64 MB of it, and its disk is empty."""
    with pytest.raises(WarehouseError, match="--shm-size"), driver_errors("reading"):
        raise psycopg.errors.DiskFull("could not resize shared memory segment: No space left on device")


def test_a_pool_replaces_connections_that_died(server_url: str) -> None:
    """After a restart of the server the next batch must not fail on a dead socket."""
    with pool(server_url, 2) as connections:
        with connections.connection() as connection:
            pid = connection.info.backend_pid
        with connect(server_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        with connections.connection() as connection:
            assert connection.info.backend_pid != pid


def test_a_pool_that_is_used_up_says_so_in_our_words(server_url: str) -> None:
    """psycopg's PoolTimeout is no error of this package."""
    in_time = pytest.raises(WarehouseUnreachable, match="came free in time")
    with pool(server_url, 1) as connections, connections.connection(), in_time:
        connections.getconn(timeout=0.05)


def test_a_pool_to_nowhere_fails_at_once(server_url: str) -> None:
    """psycopg would open it and let the first user wait for half a minute."""
    with pytest.raises(WarehouseUnreachable, match="has no database not_there"):
        pool(conninfo.make_conninfo(server_url, dbname="not_there"), 2)


@pytest.mark.parametrize("limited", ["ROLE", "DATABASE"])
def test_a_pool_that_gets_no_connection_says_why(limited: str, empty_database_url: str) -> None:
    """It was told as one whose own users kept all: psycopg's pool tries on and keeps the server's words to itself."""
    role = f"narrow_{os.getpid()}"
    narrow = empty_database_url.replace("postgres@", f"{role}@")
    with psycopg.connect(empty_database_url, autocommit=True) as administrator:
        base = administrator.info.dbname
        administrator.execute(f"CREATE ROLE {role} LOGIN".encode())
        name, count = (role, 2) if limited == "ROLE" else (base, 3)
        try:
            with pool(narrow, 2) as connections, psycopg.connect(narrow), psycopg.connect(narrow):
                administrator.execute(f"ALTER {limited} {name} CONNECTION LIMIT {count}".encode())
                left = pytest.raises(
                    WarehouseUnreachable, match=f"has no connection left for .*{name}: raise its CONNECTION"
                )
                with left as caught:
                    connections.getconn(timeout=0.5)
            assert caught.value.__suppress_context__
        finally:
            administrator.execute(f"DROP ROLE {role}".encode())
