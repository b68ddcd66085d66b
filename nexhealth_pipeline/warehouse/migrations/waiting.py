"""How a migration waits for a lock on a table that the receiver writes to."""

from alembic import op
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy.exc import OperationalError

__all__ = ["in_short_waits"]

_TRIES = 60


def in_short_waits(ddl: str) -> None:
    """Carry out `ddl` on a table that is in use.

    A run may hold the table for as long as it asks the API, and whoever waits for all of it makes the receiver wait: so
    this waits two seconds at a time. After one of them PostgreSQL has an autovacuum in the way give up, and ends one of
    two that wait for each other: where that is this one, it tries again as well.
    """
    connection = op.get_bind()
    # Not DEFAULT: that is the role's, by which the rest of the upgrade would end where another run has a lock.
    before = connection.exec_driver_sql("SELECT current_setting('lock_timeout')").scalar_one()
    for left in reversed(range(_TRIES)):
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("SET LOCAL lock_timeout = '2s'")
                connection.exec_driver_sql(ddl.replace("%", "%%"))
                connection.exec_driver_sql("SELECT set_config('lock_timeout', %s, true)", (before,))
        except OperationalError as error:
            if not left or not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                raise
        else:
            return
