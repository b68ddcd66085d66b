"""What something costs, counted instead of timed: statements, rows and calls are the same on a busy machine."""

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, LiteralString, TypeVar

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine, event

Done = TypeVar("Done")


@dataclass
class Effort:
    """What was done while it was counted."""

    statements: int = 0
    """Sent to PostgreSQL: by this package over psycopg, by Dagster over SQLAlchemy."""
    rows: int = 0
    """Given back by those."""
    calls: int = 0
    """Of functions, those of Python and of its libraries, in the thread that counts."""


@contextmanager
def counted() -> Iterator[Effort]:
    """Count what is done inside. What is loaded or made at first use is best had before."""
    effort = Effort()
    execute = psycopg.Cursor.execute

    def sent(cursor: Any) -> None:
        effort.statements += 1
        effort.rows += cursor.rowcount if cursor.description else 0

    def by_psycopg(cursor: "psycopg.Cursor[Any]", *given: Any, **more: Any) -> "psycopg.Cursor[Any]":
        execute(cursor, *given, **more)
        sent(cursor)
        return cursor

    def by_sqlalchemy(_connection: Any, cursor: Any, *_: Any) -> None:
        sent(cursor)

    def called(_frame: FrameType, kind: str, _argument: object) -> None:
        effort.calls += kind in ("call", "c_call")

    event.listen(Engine, "after_cursor_execute", by_sqlalchemy)
    before = sys.getprofile()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(psycopg.Cursor, "execute", by_psycopg)
            sys.setprofile(called)
            try:
                yield effort
            finally:
                sys.setprofile(before)
    finally:
        event.remove(Engine, "after_cursor_execute", by_sqlalchemy)


def pages_looked_at(
    connection: psycopg.Connection, statement: LiteralString | sql.Composable, values: Any = None
) -> int:
    """How many pages a statement looks at; what it writes is undone.

    The smaller number of two: others' work lets the server forget its catalog, and what it looks up anew there counts.
    """
    counts = []
    for _ in range(2):
        with connection.transaction(force_rollback=True):
            explain = sql.SQL("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ")
            asked = explain + (sql.SQL(statement) if isinstance(statement, str) else statement)
            row = connection.execute(asked, values, prepare=False).fetchone()
        assert row is not None
        plan = row[0][0]["Plan"]
        counts.append(int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]))
    return min(counts)


def peak(work: Callable[[], Done]) -> tuple[int, Done]:
    """Most bytes that were held at once for doing something, by all of this process, and what came of it."""
    gc.collect()
    tracemalloc.start()
    try:
        done = work()
        return tracemalloc.get_traced_memory()[1], done
    finally:
        tracemalloc.stop()
