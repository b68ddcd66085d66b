"""What a terminal is given: no colours where it wants none, and of a practice's names nothing that it obeys."""

import io
import logging

import click
import psycopg
import pytest

from nexhealth_pipeline.cli.app import cli
from nexhealth_pipeline.cli.tables import table
from nexhealth_pipeline.log import printable, set_up
from nexhealth_pipeline.sandbox import SandboxServer
from tests.cli.conftest import REAL_KEY, Run

NAME = "A\x1b[2J\x07\nfailed: x"
"""It clears the screen, rings, and begins a line that looks like one of ours."""
SHOWN = "A\ufffd[2J\ufffd failed: x"


class Terminal(io.StringIO):
    """A stream that says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, True),
        ({"NO_COLOR": ""}, True),
        ({"NO_COLOR": "0"}, False),
        ({"TERM": "dumb"}, False),
    ],
)
def test_colours_are_left_out_where_they_are_not_wanted(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, *, coloured: bool
) -> None:
    """Not everybody can read red on black, and not every terminal knows what the marks of colours are."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    with cli.make_context("nexhealth", ["doctor"]) as root, click.Context(cli.commands["doctor"], parent=root):
        click.echo(click.style("ok", fg="green"), file=stream)
    assert ("\x1b" in stream.getvalue()) == coloured


@pytest.fixture
def account(database_url: str) -> dict[str, str]:
    """A warehouse with a location of such a name."""
    with psycopg.connect(database_url) as db:
        db.execute(
            "INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at, row_hash)"
            " VALUES (7, 7, 'Acme Dental', 'acme', now(), now(), '')"
        )
        db.execute(
            "INSERT INTO nexhealth_locations (institution_id, id, name, synced_at, source_read_at, row_hash)"
            " VALUES (7, 12, %s, now(), now(), '')",
            (NAME,),
        )
        db.execute(
            "INSERT INTO nexhealth_freshness (institution_id, location_id, collection) VALUES (7, 12, 'patients')"
        )
    return {"DATABASE_URL": database_url, "NEXHEALTH_API_KEY": REAL_KEY}


def test_a_name_is_one_cell_of_one_line(nexhealth: Run, account: dict[str, str]) -> None:
    """Whoever may name a location would write the report."""
    ended = nexhealth("status", **account)
    assert ended.status == 0
    assert "\x1b" not in ended.out
    (line,) = (one for one in ended.out.splitlines() if "failed: x" in one)
    assert line.startswith("acme.12")
    assert table(("name", "n"), [[NAME, "1"], ["B", "2"]]) == [
        f"{'name':<{len(SHOWN)}}  n",
        f"{'-' * len(SHOWN)}  -",
        f"{SHOWN}  1",
        f"{'B':<{len(SHOWN)}}  2",
    ]


def test_an_error_that_names_the_choices_is_one_line(nexhealth: Run, account: dict[str, str]) -> None:
    ended = nexhealth("sync", "--explain", "--location", "Nowhere", **account)
    assert (ended.status, len(ended.err.splitlines())) == (2, 1)
    assert ended.err.endswith(f"use one of: acme.12 ({SHOWN})\n")


def test_an_error_keeps_its_own_lines_and_nothing_else(nexhealth: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements to be run by an administrator stand on lines of their own."""

    def fail() -> None:
        raise click.ClickException("say:\n  \x1b[2JGRANT")

    monkeypatch.setitem(cli.commands, "fail", click.Command("fail", callback=fail))
    assert nexhealth("fail").err == "nexhealth: say:\n  \ufffd[2JGRANT\n"


@pytest.mark.usefixtures("hurried")
def test_doctor_names_the_choices_on_one_line(nexhealth: Run, account: dict[str, str], sandbox: SandboxServer) -> None:
    for location in sandbox.state.ids("locations"):
        sandbox.state.update("locations", location, {"name": NAME})
    sandbox.state.update("institutions", 11202, {"subdomain": "harbor\x1b[2J"})
    ended = nexhealth("doctor", "--location", "Nowhere", **account, NEXHEALTH_API_URL=sandbox.url)
    assert "\x1b" not in ended.out
    (choices, office) = (one for one in ended.out.splitlines() if "failed: x" in one)
    assert f"Use one of: willow-dental.348511 ({SHOWN})" in choices
    assert f"harbor\ufffd[2J.348622 ({SHOWN}): offline" in office


def test_a_line_of_the_log_is_one_line() -> None:
    stream = io.StringIO()
    set_up(stream=stream, terminal=True)
    logging.getLogger("nexhealth_pipeline.x").warning("slice %s", NAME, extra={"nexhealth": {"name": NAME}})
    assert stream.getvalue().endswith(f" slice {SHOWN} name={SHOWN}\n")


def test_letters_of_any_language_stay_as_they_are() -> None:
    """Emoji that are joined of several, and what tells Persian letters apart, hold characters that are not seen."""
    text = "Île d'Or \u0645\u06cc\u200c\u062e 👨\u200d👩\u200d👧"
    assert printable(text) == text
    assert printable("a\u202eb\u2028c\x85d\te") == "a\ufffdb c d e"
