"""Whose fault a failure is: an event's, nobody's, or not to be told from it alone.

An event may be at fault where PostgreSQL or Python objects to what is loaded: halving its batch finds it, and it counts
a failed try. So does one that the API is asked for because of a table that PostgreSQL lets nobody write to (42501): the
reads of other tables are as good as ever. Nobody is at fault where the database or the API is away, has no room or lets
nobody in, and where somebody wished to stop: the events are as before, however often that happens.

Between the two is work that broke off. No memory was left: whether the system then ends a process or Python raises
MemoryError is a matter of its settings, so both mean the same here. Or the connection ended without a word, which is
what a server process leaves that crashed or was killed for its memory; one that was sent away says so (57P01). An
event may cause that, so it counts as if the run's own process had been killed (`taking`), within the bounds that
`apply` sets.
"""

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from nexhealth_pipeline.errors import PipelineError, RecordRefused, WarehouseError

__all__ = ["broke_off", "in_words", "is_the_tables", "may_be_at_fault"]

_AT_FAULT = ("21", "22", "23", "54", "P0")
"""Classes of errors of PostgreSQL that the data can be at fault for; the rest is about the server or the schema."""
_TABLES = "42"
"""The class that one table may meet where others do not: a right is missing."""
_BROKE_OFF = ("53200", "XX")
"""No memory, and what should not happen."""


def may_be_at_fault(failure: BaseException) -> bool:
    """Whether what was loaded may be the cause: not the database's state, nor a wish to stop."""
    if (error := _of_driver(failure)) is not None:
        # The driver objects by itself to what no column can hold.
        return isinstance(error, psycopg.DataError) or (error.sqlstate or "").startswith(_AT_FAULT)
    return isinstance(failure, RecordRefused) or (
        isinstance(failure, Exception) and not isinstance(failure, PipelineError | MemoryError)
    )


def is_the_tables(failure: BaseException) -> bool:
    """Whether the table that is loaded is the cause: another one may fare better, another row of it will not."""
    error = _of_driver(failure)
    return error is not None and (error.sqlstate or "").startswith(_TABLES)


def broke_off(failure: BaseException) -> bool:
    """Whether work broke off in a way that what was worked on can cause."""
    if isinstance(failure, MemoryError):
        return True
    error = _of_driver(failure)
    return error is not None and (_lost(error) or (error.sqlstate or "").startswith(_BROKE_OFF))


def in_words(failure: BaseException) -> str:
    """Words without a value: a driver's or Python's own may quote one."""
    if isinstance(failure, PipelineError):
        return str(failure)
    if isinstance(failure, MemoryError):
        return "no memory was left"
    if not isinstance(failure, psycopg.Error):
        return f"could not be read ({type(failure).__name__})"
    if _lost(failure):
        return "the connection to PostgreSQL was lost"
    return f"PostgreSQL refused ({' '.join(filter(None, (failure.sqlstate, type(failure).__name__)))})"


def _lost(error: psycopg.Error) -> bool:
    """Whether a connection ended without a word; not one that could not be had, of which the driver keeps what there is."""
    never = error.pgconn is not None or isinstance(error, PoolTimeout | PoolClosed)
    return isinstance(error, psycopg.OperationalError) and error.sqlstate is None and not never


def _of_driver(failure: BaseException) -> psycopg.Error | None:
    """The driver's error that it is, or that `warehouse.connect` has put other words for."""
    if isinstance(failure, WarehouseError):
        failure = failure.__context__ or failure
    return failure if isinstance(failure, psycopg.Error) else None
