"""The receiver's connection to the warehouse: bounded in time, and mended by itself.

A sender waits for each statement, so none may hang: not on a server that is away, and not on one that is
frozen and keeps the connection open. After `seconds` the connection is cut at the socket (a polite cancel
would wait for the frozen server) and a new one is sought in the background; until then every statement
fails at once.
"""

import asyncio
import contextlib
import json
import logging
import os
import random
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import conninfo
from psycopg.rows import TupleRow

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.log import described
from nexhealth_pipeline.warehouse.connect import connecting, driver_errors, our_settings

__all__ = ["SERVERS_PART", "Link", "cut", "receivers_conninfo"]

_LOG = logging.getLogger(__name__)
_CONNECT_SECONDS = 3
_PAUSES = (0.05, 2.0)
"""Shortest and longest pause between attempts to connect."""
SERVERS_PART = 900
"""Milliseconds of each second that the server may take: it gives up before we do, and the connection is kept."""
_LOOK_SECONDS = 5.0
"""An idle connection is tried after so long: a dead one is found before an event is."""
_ALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_PREPARE = """
SELECT CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', false) END,
       (SELECT count(set_config(key, value, false)) FROM jsonb_each_text(%(ours)s))
"""
"""What is acknowledged must survive a crash of the server, whatever its default; and no role's settings for other work may
refuse what waits a moment, or repeats what has just come."""

_HARMLESS = (psycopg.DataError, psycopg.IntegrityError)
"""Errors after which the connection is as good as before."""
_Connection = psycopg.AsyncConnection[TupleRow]


class Link:
    """One connection to `url` in autocommit mode. Each statement is answered within `seconds`, or fails."""

    def __init__(self, url: str, *, seconds: float = 4.0, on_change: Callable[[bool], None]) -> None:
        """`on_change` is told whether the warehouse can be reached, whenever that changes."""
        self._conninfo = receivers_conninfo(url)
        self._seconds = seconds
        self._on_change = on_change
        self._connection: _Connection | None = None
        self._lost = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._used_at = 0.0
        self._reason = ""
        """Why there is no connection, as last told."""

    @property
    def is_up(self) -> bool:
        """Whether there is a connection, as far as is known."""
        return self._connection is not None

    async def open(self) -> None:
        """Connect, if the warehouse is there; from now on a lost connection is replaced in the background."""
        await self._attempt()
        self._keeper = asyncio.create_task(self._keep(), name="warehouse connection")

    async def close(self) -> None:
        """Give the connection up for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def execute(self, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
        """Run one statement in a transaction of its own; when this returns, it is committed.

        Raises WarehouseUnreachable or WarehouseError; whether it was committed is then unknown.
        """
        connection = self._connection
        if connection is None:
            raise WarehouseUnreachable("storing webhook events: there is no connection to PostgreSQL")
        self._used_at = time.monotonic()
        try:
            return await self._bounded(connection, statement, values)
        except WarehouseError:
            if connection.closed:
                self._give_up(connection)
            raise

    async def _bounded(self, connection: _Connection, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
        """Run one statement; a connection that may be of no more use is cut."""
        work = asyncio.create_task(_run(connection, statement, values))
        # Whoever waits may be cancelled, and what becomes of it is nobody's: asyncio would log it with its traceback.
        work.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait({work}, timeout=self._seconds)
        if not done:
            await _end(connection, work)
            raise WarehouseUnreachable(f"storing webhook events: PostgreSQL did not answer within {self._seconds:g} s")
        with driver_errors("storing webhook events"):
            try:
                return work.result()
            except psycopg.errors.QueryCanceled:
                raise WarehouseUnreachable("storing webhook events: PostgreSQL took too long") from None
            except _HARMLESS:
                raise
            except psycopg.Error:
                await _end(connection, work)
                raise

    async def _keep(self) -> None:
        """Replace a lost connection, and look after an idle one."""
        shortest, longest = _PAUSES
        pause = shortest
        while True:
            try:
                # Not `wait_for`: cancelled just when the connection was lost, it would go on, and `close` wait for good.
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._lost.wait()
            except TimeoutError:
                await self._look()
                continue
            if await self._attempt():
                pause = shortest
            else:
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(longest, pause * 2)

    async def _look(self) -> None:
        if time.monotonic() - self._used_at >= _LOOK_SECONDS:
            with contextlib.suppress(WarehouseError):  # noted where it was found
                await self.execute("SELECT 1", {})

    async def _attempt(self) -> bool:
        try:
            with connecting(self._conninfo):
                connection = await psycopg.AsyncConnection.connect(self._conninfo, autocommit=True)
            ours = our_settings(connection.info) | {"statement_timeout": str(int(self._seconds * SERVERS_PART))}
            await self._bounded(connection, _PREPARE, {"ours": json.dumps(ours)})
        except Exception as error:  # whatever it was, the next attempt may do
            self._tell(described(error))
            self._lost.set()
            return False
        self._connection, self._reason = connection, ""
        self._lost.clear()
        self._on_change(True)
        return True

    def _tell(self, reason: str) -> None:
        """Say why there is no connection: aloud once, and when it is for another reason."""
        level = logging.INFO if reason == self._reason else logging.WARNING
        self._reason = reason
        _LOG.log(level, "no connection to the warehouse", extra={"nexhealth": {"error": reason}})

    def _give_up(self, connection: _Connection) -> None:
        """Forget `connection`; the keeper finds another."""
        if connection is self._connection:
            self._connection = None
            self._lost.set()
            self._on_change(False)
            _LOG.warning("the connection to the warehouse was lost")


async def _run(connection: _Connection, statement: str, values: Mapping[str, Any]) -> list[TupleRow]:
    cursor = await connection.execute(statement, values)
    return await cursor.fetchall() if cursor.description else []


async def _end(connection: _Connection, work: asyncio.Task[list[TupleRow]]) -> None:
    """End the connection, and what is done on it."""
    cut(connection)
    await asyncio.wait({work}, timeout=1.0)
    await connection.close()


def cut(connection: psycopg.Connection | _Connection) -> None:
    """End the connection at its socket: whoever waits on it sees it end at once, however frozen the server is."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)


def receivers_conninfo(url: str, name: str = "nexhealth-receiver") -> str:
    """`url` with the options of the receiver's connections that it does not set itself; `name` is shown by the server."""
    given = conninfo.conninfo_to_dict(url)
    wanted: dict[str, Any] = {"application_name": name, "connect_timeout": _CONNECT_SECONDS, **_ALIVE}
    return conninfo.make_conninfo(url, **{key: value for key, value in wanted.items() if key not in given})
