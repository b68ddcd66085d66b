"""Log lines of ours as a run in Dagit shows them: Dagster keeps a record's message and drops its fields."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from dagster._core.log_manager import DagsterLogHandler

__all__ = ["fields_in_messages"]

_ROOM = "nexhealth_pipeline"


class _Fields(logging.Handler):
    """Appends the fields to the message, for the handlers behind this one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Change the record; nothing is written here."""
        fields = record.__dict__.get("nexhealth")
        if isinstance(fields, dict):
            text = " ".join(f"{name}={value}" for name, value in fields.items())
            record.msg, record.args = f"{record.getMessage()} {text}", ()


@contextmanager
def fields_in_messages() -> Iterator[None]:
    """Put the fields of this package's records into their messages, in front of Dagster's own handler.

    What a command writes to its terminal comes before that handler and stays as it is.
    """
    logger, added = logging.getLogger(_ROOM), _Fields()
    dagsters = [index for index, handler in enumerate(logger.handlers) if isinstance(handler, DagsterLogHandler)]
    logger.handlers.insert(min(dagsters, default=len(logger.handlers)), added)
    try:
        yield
    finally:
        logger.removeHandler(added)
