"""The command as a whole: cheap to start, every word documented, every end a status and a line."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from nexhealth_pipeline import errors
from nexhealth_pipeline.cli import app, reference
from nexhealth_pipeline.cli.reference import command_table, visible_commands
from tests.cli.conftest import Run

HEAVY = ("dagster", "alembic", "rich", "psycopg", "pydantic", "uvicorn", "sqlalchemy", "requests")


def test_help_starts_without_the_heavy_libraries() -> None:
    """Shell completion and a forgotten option should not cost seconds."""
    program = (
        "import sys; from nexhealth_pipeline.cli import main; main(['--help'])\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "doctor" in done.stdout


def test_the_installed_script_loads_little_for_its_help() -> None:
    """What is loaded is what a start costs."""
    script = [sys.executable, "-X", "importtime", "-m", "nexhealth_pipeline.cli", "--help"]
    done = subprocess.run(script, check=True, capture_output=True, text=True, timeout=60)
    loaded = [line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert {name.partition(".")[0] for name in loaded} & {*HEAVY} == set()
    assert 50 < len(loaded) < 300  # 197 with Python 3.11


@pytest.mark.parametrize("path", [path for path, _ in visible_commands()])
def test_every_command_and_option_has_help(nexhealth: Run, path: str) -> None:
    """What has no help is found by nobody."""
    ended = nexhealth(*path.split()[1:], "--help")
    command = dict(visible_commands())[path]
    assert (ended.status, ended.err) == (0, "")
    assert command.help
    assert not command.get_short_help_str(60).endswith("...")
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.name
            assert option.opts[0] in ended.out


def test_the_commands_are_those_of_the_design() -> None:
    """A renamed command breaks scripts: it must show in a diff."""
    assert [path for path, _ in visible_commands()] == [
        "nexhealth demo",
        "nexhealth sync",
        "nexhealth status",
        "nexhealth quarantine list",
        "nexhealth quarantine retry",
        "nexhealth doctor",
        "nexhealth dev",
        "nexhealth serve",
        "nexhealth webhooks setup",
        "nexhealth webhooks list",
        "nexhealth webhooks remove",
        "nexhealth webhooks apply",
        "nexhealth webhooks replay",
        "nexhealth db url",
        "nexhealth db upgrade",
        "nexhealth db prune",
        "nexhealth db psql",
        "nexhealth sandbox",
    ]


def test_the_reference_names_every_command_and_option() -> None:
    """docs/commands.md is made by it, so that it cannot lag behind."""
    text = reference()
    for path, command in visible_commands():
        assert f"## {path}\n" in text
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.hidden == (
                    f"`{option.opts[0]}" not in text.partition(f"## {path}\n")[2].partition("## ")[0]
                )
    assert all(line == line.rstrip() for line in text.splitlines())


def test_the_table_of_commands_has_a_row_for_each_and_nothing_else() -> None:
    """README's section is made by it: what a command is good for, on one line, and where the rest is."""
    _, _, *rows = command_table("docs/commands.md").splitlines()
    assert [row.split(" | ")[0] for row in rows] == [
        f"| [`{path}`](docs/commands.md#{path.replace(' ', '-')})" for path, _ in visible_commands()
    ]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(app.cli.commands, "fail", click.Command("fail", callback=fail))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.MissingSetting("no key"), 2),
        (errors.Unreachable("no answer"), 3),
        (errors.WarehouseOutdated("old"), 4),
        (errors.Cancelled("asked to stop"), 130),
        (errors.PipelineError("something"), 1),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_status(
    nexhealth: Run, monkeypatch: pytest.MonkeyPatch, error: errors.PipelineError, status: int
) -> None:
    """Scripts read the status, people the line; neither wants a traceback."""
    raising(monkeypatch, error)
    assert nexhealth("fail") == type(nexhealth("fail"))(status, "", f"nexhealth: {error}\n")


def test_ctrl_c_is_130(nexhealth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every shell tool has it."""
    raising(monkeypatch, KeyboardInterrupt())
    assert nexhealth("fail").status == 130


SECRET = "Jane Doe, born 1980"


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_a_bug_is_one_line_with_its_place_and_never_shows_values(
    nexhealth: Run, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    """The text of a driver's error quotes rows."""
    error = ValueError(SECRET)
    error.__cause__ = RuntimeError(SECRET)
    raising(monkeypatch, error)
    ended = nexhealth("fail", NEXHEALTH_LOG_LEVEL=level)
    assert ended.status == 1
    assert SECRET not in ended.out + ended.err
    assert "unexpected ValueError at " in ended.err
    assert "test_app.py" in ended.err
    assert (len(ended.err.splitlines()) > 1) == (level == "DEBUG")


LONG = """
import sys, click
from nexhealth_pipeline.cli import app
def print_more_than_a_pipe_holds():
    for _ in range(100):
        click.echo("a line\\n" * 1_000)
app.cli.add_command(click.Command("long", callback=print_more_than_a_pipe_holds))
sys.exit(app.main(["long"]))
"""


@pytest.mark.parametrize("both", ["", "2>&1"])
def test_a_reader_that_has_enough_is_no_error(both: str) -> None:
    """Under `pipefail`, status 1 would say that a check has found something."""
    command = f"'{sys.executable}' -c '{LONG}' {both} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (141, "a line\n", "")


@pytest.mark.parametrize(
    ("args", "closed"),
    [("--help", "stdout"), ("--version", "stdout"), ("status --help", "stdout"), ("snyc", "stderr")],
)
def test_so_is_none_that_was_never_there(args: str, closed: str) -> None:
    """Help and errors are printed elsewhere than what a command says."""
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    command = [sys.executable, "-m", "nexhealth_pipeline.cli", *args.split()]
    done = subprocess.run(command, check=False, text=True, timeout=60, **streams)
    os.close(writer)
    assert (done.returncode, done.stdout or "", done.stderr or "") == (141, "", "")


FORKING = """
import sys, click
from nexhealth_pipeline.cli import app
from nexhealth_pipeline.orchestration.fork import run_side_by_side
def fork():
    print("to stdout", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    return run_side_by_side([lambda: open("file", "x").fileno()])[0].result
app.cli.add_command(click.Command("fork", callback=fork))
sys.exit(app.main(["fork"]))
"""


@pytest.mark.parametrize(
    ("closed", "out", "err"),
    [(">&-", "", "to stderr\n"), ("2>&-", "to stdout\n", ""), ("<&- >&- 2>&-", "", "")],
)
def test_a_stream_that_the_caller_closed_ends_nothing(closed: str, out: str, err: str, tmp_path: Path) -> None:
    """Some service managers and cron lines do; Python has no stream then, and the next file opened gets its number."""
    command = ["bash", "-c", f"exec '{sys.executable}' -c '{FORKING}' {closed}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (done.returncode in range(3, 100), done.stdout, done.stderr) == (True, out, err)


def test_a_closed_stderr_is_not_the_error_that_is_told(tmp_path: Path) -> None:
    """Without a key it is wrong use, whoever hears of it."""
    command = f"exec '{sys.executable}' -m nexhealth_pipeline.cli sync 2>&-"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, cwd=tmp_path, timeout=60)
    assert (done.returncode, done.stdout) == (2, b"")


NAMES = (
    "import sys, click; from nexhealth_pipeline.cli import app\n"
    'app.cli.add_command(click.Command("names", callback=lambda: click.echo("Z\\u00e4hne \\u2013 Nord")))\n'
    'sys.exit(app.main(["names"]))'
)


def test_a_name_that_the_terminal_cannot_show_is_shown_in_part() -> None:
    """One location with an en dash, and `status` would show none of them."""
    done = subprocess.run(
        [sys.executable, "-c", NAMES],
        check=False,
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Zähne ? Nord\n".encode("latin-1"), b"")


@pytest.mark.parametrize("words", ["db upgrade", "status", "quarantine list", "quarantine retry", "webhooks list"])
def test_a_command_on_the_warehouse_sets_up_the_log(nexhealth: Run, words: str, database_url: str) -> None:
    """Else its warnings come bare, and a driver's error among their arguments with the row that it quotes."""
    assert nexhealth(*words.split(), DATABASE_URL=database_url).status == 0
    assert [one for one in logging.getLogger().handlers if type(one).__module__ == "nexhealth_pipeline.log"]


def test_an_unknown_command_is_wrong_use(nexhealth: Run) -> None:
    """Exit status 2, naming what was typed."""
    ended = nexhealth("snyc")
    assert ended.status == 2
    assert "snyc" in ended.err


def test_the_log_is_not_set_up_by_starting() -> None:
    """Importing the command must not touch the logging of whoever imports it."""
    assert not [one for one in logging.getLogger().handlers if type(one).__module__ == "nexhealth_pipeline.log"]
