"""A transaction that PostgreSQL ends because of another one's."""

from typing import Any

import pytest
from psycopg import errors


def ended_once(patch: pytest.MonkeyPatch, where: Any, name: str) -> list[str]:
    """End the transaction in which `where.name` is called first, once that is done; a word for each call of it."""
    work, calls = getattr(where, name), []

    def ending(*given: Any, **how: Any) -> Any:
        done = work(*given, **how)
        calls.append(name)
        if len(calls) == 1:
            raise errors.DeadlockDetected
        return done

    patch.setattr(where, name, ending)
    return calls
