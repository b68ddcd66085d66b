"""What is done once more: a transaction that PostgreSQL ended because of somebody else's, and not of what is in it."""

import logging
from collections.abc import Callable
from typing import TypeVar

from psycopg import errors

__all__ = ["AGAIN", "repeated"]

AGAIN = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable)
"""Nobody's fault, and gone when the same is done again at once."""
_log = logging.getLogger(__name__)
_TRIES = 10
_T = TypeVar("_T")


def repeated(work: Callable[[], _T], *, undo: Callable[[], object] = lambda: None, tries: int = _TRIES) -> _T:
    """Do `work`, a whole transaction, once more where nobody is at fault that it failed; at most so many times in all.

    `undo` is called after each such failure: it forgets what the transaction left in memory. Raises the last of them.
    """
    for left in reversed(range(tries)):
        try:
            return work()
        except AGAIN as error:
            undo()
            if not left:
                raise
            told = {"sqlstate": error.sqlstate, "try": tries - left}
            _log.info("a transaction is made again", extra={"nexhealth": told})
    raise AssertionError("unreachable")
