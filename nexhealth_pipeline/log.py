"""Structured logging, set up in one place: JSON lines to stderr, or short text lines on a terminal.

A message is a fixed short text; what varies is in `extra={"nexhealth": {...}}`: ids and counts. What a
driver or a library says about an error may quote a row, so nothing of an exception is written but its
type, the places it passed, and the message of this package's own errors, which hold no values. Other
libraries are heard from WARNING on, with exceptions among their arguments reduced to their types.
"""

import json
import logging
import re
import sys
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from nexhealth_pipeline.errors import PipelineError

if TYPE_CHECKING:
    from nexhealth_pipeline.settings import Settings

__all__ = [
    "JsonLines",
    "TerminalLines",
    "WithoutDriverText",
    "described",
    "places",
    "printable",
    "set_up",
    "set_up_for",
]

_ROOM = "nexhealth_pipeline"
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters by which a text moves the cursor, begins a line, rings, or turns round what stands beside it."""


def set_up(level: str = "INFO", *, stream: TextIO | None = None, terminal: bool | None = None) -> None:
    """Log this package from `level` on, everything else from WARNING on, to `stream` (stderr).

    Text lines where `terminal` says so (None: ask the stream), else JSON lines. Calling it again replaces
    what it set up before.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty() if terminal is None else terminal
    handler = _Handler(stream)
    handler.setFormatter(TerminalLines() if terminal else JsonLines())
    handler.addFilter(WithoutDriverText())
    handler.setLevel(level)  # Dagster lowers the logger's own during a run
    root, room = logging.getLogger(), logging.getLogger(_ROOM)
    # First in the room as well, before Dagster's handler, which puts a run's name before each message.
    for logger in (root, room):
        logger.handlers[:] = [handler, *(one for one in logger.handlers if not isinstance(one, _Handler))]
    root.setLevel(logging.WARNING)
    room.setLevel(level)
    logging.captureWarnings(capture=True)


def set_up_for(settings: "Settings", *, quiet: bool = False) -> None:
    """Log a command at the level of `settings`; where none was chosen, only warnings on a terminal or if `quiet`.

    On a terminal a progress bar stands where the lines would go.
    """
    chosen = "log_level" in settings.model_fields_set
    set_up("WARNING" if not chosen and (quiet or sys.stderr.isatty()) else settings.log_level)


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler that :func:`set_up` made. A line that cannot be written is dropped, not traced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, once: it comes by way of its own logger and of the root."""
        if not record.__dict__.setdefault("nexhealth_written", False):
            record.__dict__["nexhealth_written"] = True
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Say nothing: the standard library would print the record's arguments."""


def printable(text: str, *, lines: bool = False) -> str:
    """`text` as a terminal may be given it: a name may hold what clears the screen, or looks like a line of ours.

    Blanks stand for white space and U+FFFD for the rest; `lines` says that its newlines are meant.
    """
    if lines:
        return "\n".join(map(printable, text.split("\n")))
    return _COMMANDS.sub(lambda found: " " if found[0].isspace() else "\ufffd", text)


class WithoutDriverText(logging.Filter):
    """Reduces exceptions in a record to what may be shown."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace exceptions among the arguments, and the traceback by `error` and `places`."""
        if isinstance(record.msg, BaseException):
            record.msg, record.args = described(record.msg), None
        if isinstance(record.args, tuple):
            record.args = tuple(map(_reduced, record.args))
        elif record.args:
            record.args = {name: _shown(one) for name, one in record.args.items()}
        if record.exc_info and record.exc_info[1] is not None:
            record.__dict__["nexhealth_error"] = described(record.exc_info[1])
            record.__dict__["nexhealth_places"] = places(record.exc_info[1])
        record.exc_info = record.exc_text = record.stack_info = None
        return True


def _reduced(value: object) -> object:
    """What may be shown of `value`: of an exception, or of those that stand in a list or a mapping."""
    if isinstance(value, Mapping):
        return {name: _shown(one) for name, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [*map(_shown, value)]
    return _shown(value)


def _shown(value: object) -> object:
    return described(value) if isinstance(value, BaseException) else value


def described(error: BaseException) -> str:
    """The type of `error`, and the message where it is one of this package's own."""
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, PipelineError) else name


def places(error: BaseException) -> list[str]:
    """Where `error` passed, innermost last: `file:line in function`, no source text and no values."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    given = getattr(record, "nexhealth", None)
    fields: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    for name in ("error", "places"):
        value = getattr(record, f"nexhealth_{name}", None)
        if value:
            fields[name] = value
    return fields


class JsonLines(logging.Formatter):
    """One JSON object a line: `at` (UTC), `level`, `logger`, `message`, then the record's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(_fields(record) | line, default=_text, ensure_ascii=False)


class TerminalLines(logging.Formatter):
    """One text line for a person: time, level, message, fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of `record`."""
        at = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        fields = "".join(f" {name}={_text(value)}" for name, value in _fields(record).items())
        return printable(f"{at} {record.levelname:<7} {record.getMessage()}{fields}")


def _text(value: object) -> str:
    if isinstance(value, BaseException):
        return described(value)
    return str(value)
