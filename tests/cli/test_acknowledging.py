"""`nexhealth status --acknowledge --only`: of what fails somebody accepts one thing, and is woken by the others still."""

import json

import psycopg
import pytest

from tests.cli.conftest import Run

FAILED = (("charges", "fresh"), ("patients", "fresh"), ("patients", "no_orphans"))


@pytest.fixture
def failing(database_url: str) -> str:
    """A warehouse where three checks fail."""
    with psycopg.connect(database_url) as connection:
        connection.cursor().executemany(
            "INSERT INTO nexhealth_check_results (collection, check_name, institution_id, severity, faults, failing_since)"
            " VALUES (%s, %s, 7, 'warning', 2, now())",
            FAILED,
        )
    return database_url


def left(nexhealth: Run, url: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit status now, and what is new to look at."""
    ended = nexhealth("status", "--json", DATABASE_URL=url)
    checks = json.loads(ended.out)["checks"]
    return ended.status, sorted((one["collection"], one["check"]) for one in checks if not one["acknowledged"])


@pytest.mark.parametrize(
    ("only", "new"),
    [
        pytest.param(["no_orphans"], [("charges", "fresh"), ("patients", "fresh")], id="one check"),
        pytest.param(["fresh"], [("patients", "no_orphans")], id="of every collection"),
        pytest.param(["charges.fresh"], [("patients", "fresh"), ("patients", "no_orphans")], id="of one collection"),
        pytest.param(["charges.fresh", "no_orphans"], [("patients", "fresh")], id="two"),
        pytest.param(["endpoint_active"], [*FAILED], id="one that does not fail"),
        pytest.param([], [], id="all that is shown"),
    ],
)
def test_what_is_not_named_wakes_somebody_still(
    nexhealth: Run, failing: str, only: list[str], new: list[tuple[str, str]]
) -> None:
    """A list that the practice gave up is accepted; what else failed by then was accepted unread."""
    given = [word for one in only for word in ("--only", one)]
    assert nexhealth("status", "--acknowledge", *given, DATABASE_URL=failing).status == 1
    assert left(nexhealth, failing) == (1 if new else 0, new)


@pytest.mark.parametrize("only", ["orphans", "documents.of_nobody", "webhook_events.fresh", "charges.", "a.b.c"])
def test_a_name_of_no_check_is_refused_with_those_there_are(nexhealth: Run, failing: str, only: str) -> None:
    ended = nexhealth("status", "--acknowledge", "--only", "fresh", "--only", only, DATABASE_URL=failing)
    assert (ended.status, ended.out) == (2, "")
    assert f"--only {only}: " in ended.err
    assert "no_orphans, " in ended.err
    assert left(nexhealth, failing) == (1, [*FAILED]), "nothing was noted before"


def test_to_choose_without_acknowledging_is_refused(nexhealth: Run, failing: str) -> None:
    """It would look as if it had been noted."""
    ended = nexhealth("status", "--only", "fresh", DATABASE_URL=failing)
    assert (ended.status, ended.out) == (2, "")
    assert "--acknowledge" in ended.err
