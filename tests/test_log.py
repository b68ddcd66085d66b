"""Structured logging: fixed messages, fields, and never what a driver said."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest

from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.log import set_up, set_up_for
from nexhealth_pipeline.settings import load_settings

SECRET = "DETAIL: Failing row contains (Jane, Doe)"
OURS = logging.getLogger("nexhealth_pipeline.sync.reader")
THEIRS = logging.getLogger("psycopg.pool")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root, room = logging.getLogger(), logging.getLogger("nexhealth_pipeline")
    handlers, levels = (list(root.handlers), list(room.handlers)), (root.level, room.level)
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:], room.handlers[:] = handlers
    root.setLevel(levels[0])
    room.setLevel(levels[1])


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    set_up(stream=stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_its_fields(stream: io.StringIO) -> None:
    """A log collector wants to filter by location and count pages without regular expressions."""
    OURS.info("slice read", extra={"nexhealth": {"slice": "patients acme.12", "pages": 3}})
    (line,) = lines(stream)
    assert line.pop("at")
    assert line == {
        "level": "INFO",
        "logger": "nexhealth_pipeline.sync.reader",
        "message": "slice read",
        "slice": "patients acme.12",
        "pages": 3,
    }


def test_a_field_cannot_replace_the_message(stream: io.StringIO) -> None:
    """A field called `level` would make an error look harmless."""
    OURS.error("failed", extra={"nexhealth": {"level": "DEBUG", "message": "fine"}})
    assert [(line["level"], line["message"]) for line in lines(stream)] == [("ERROR", "failed")]


def fail() -> None:
    raise RuntimeError(SECRET) from ValueError(SECRET)


def test_a_traceback_becomes_types_and_places(stream: io.StringIO) -> None:
    """PostgreSQL quotes the failing row; Python prints it with the whole chain of causes."""
    try:
        fail()
    except RuntimeError:
        OURS.exception("cannot load")
        THEIRS.exception("cannot connect")
    assert "Jane" not in stream.getvalue()
    for line in lines(stream):
        assert line["error"] == "RuntimeError"
        assert "in fail" in str(line["places"])


def test_exceptions_among_the_arguments_and_fields_are_reduced(stream: io.StringIO) -> None:
    """psycopg's pool logs "error connecting: %s" with the driver's error; our own errors hold no values."""
    THEIRS.warning("error connecting in %r: %s", "pool-1", ValueError(SECRET))
    OURS.warning("closed", extra={"nexhealth": {"why": ValueError(SECRET), "kind": WarehouseError("no room")}})
    OURS.error(ValueError(SECRET))
    assert "Jane" not in stream.getvalue()
    first, second, third = lines(stream)
    assert first["message"] == "error connecting in 'pool-1': ValueError"
    assert (second["why"], second["kind"]) == ("ValueError", "WarehouseError: no room")
    assert third["message"] == "ValueError"


def test_exceptions_inside_an_argument_are_reduced_as_well(stream: io.StringIO) -> None:
    """`logging` takes a mapping that comes alone for the arguments themselves."""
    THEIRS.warning("lost %(which)s: %(why)s", {"which": "pool-1", "why": ValueError(SECRET)})
    THEIRS.warning("lost %s and %s", [ValueError(SECRET), 1], {"why": ValueError(SECRET)})
    assert "Jane" not in stream.getvalue()
    assert [line["message"] for line in lines(stream)] == [
        "lost pool-1: ValueError",
        "lost ['ValueError', 1] and {'why': 'ValueError'}",
    ]


def test_other_libraries_are_heard_from_warnings_on(stream: io.StringIO) -> None:
    """urllib3 tells every URL at DEBUG."""
    set_up("DEBUG", stream=stream)
    OURS.debug("planned")
    THEIRS.info("connected")
    THEIRS.warning("slow")
    assert [line["message"] for line in lines(stream)] == ["planned", "slow"]


def test_setting_up_again_replaces(stream: io.StringIO) -> None:
    """Each line once, whatever calls it."""
    set_up("WARNING", stream=stream)
    OURS.info("quiet")
    OURS.warning("once")
    assert [line["message"] for line in lines(stream)] == ["once"]


def test_warnings_go_the_same_way(stream: io.StringIO) -> None:
    """A library's deprecation must not break the JSON lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(capture=True)
        warnings.warn("old way", UserWarning, stacklevel=1)
    assert "old way" in str(lines(stream)[0]["message"])


def test_a_terminal_gets_text() -> None:
    """A person reads it."""
    stream = io.StringIO()
    set_up(stream=stream, terminal=True)
    OURS.warning("slice failed", extra={"nexhealth": {"slice": "patients acme.12"}})
    assert stream.getvalue().split(maxsplit=1)[1] == "WARNING slice failed slice=patients acme.12\n"


def test_the_setting_decides_and_quiet_commands_only_warn() -> None:
    """A demo's reader wants its table, unless they asked for more."""
    room = logging.getLogger("nexhealth_pipeline")
    set_up_for(load_settings({}, environ={}, env_file=None), quiet=True)
    assert room.level == logging.WARNING
    set_up_for(load_settings({"NEXHEALTH_LOG_LEVEL": "DEBUG"}, environ={}, env_file=None), quiet=True)
    assert room.level == logging.DEBUG


def test_a_handler_that_rewrites_records_comes_after_ours(stream: io.StringIO) -> None:
    """Dagster puts job, run and step before each message: ours would no longer be fixed texts."""

    class Rewriting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            record.msg = f"a run - {record.msg}"

    room = logging.getLogger("nexhealth_pipeline")
    room.addHandler(Rewriting())
    OURS.info("slice read")
    assert [line["message"] for line in lines(stream)] == ["slice read"]


def test_a_level_that_somebody_lowers_does_not_count(stream: io.StringIO) -> None:
    """Dagster sets the level of managed loggers when a run begins."""
    set_up("WARNING", stream=stream)
    logging.getLogger("nexhealth_pipeline").setLevel("INFO")
    OURS.info("slice read")
    assert lines(stream) == []
