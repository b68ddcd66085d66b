"""`--json`: a monitor that reads stdout gets one object, also where a setting is wrong or the database is away."""

import json
from datetime import UTC, date, datetime

import click
import pytest

from nexhealth_pipeline.cli.json_output import json_line
from nexhealth_pipeline.cli.reference import visible_commands
from tests.cli.conftest import REAL_KEY, Run

AWAY = "postgresql://nobody@127.0.0.1:1/none"
"""A warehouse where nothing answers."""
TOO_LONG = f"/tmp/{'a' * 300}"

FAILING = [
    ("sync", {}, 2),
    ("sync --patient 7 --dry-run", {"NEXHEALTH_API_KEY": REAL_KEY}, 2),
    ("sync --start 2026-02-01 --end 2026-01-01", {"NEXHEALTH_API_KEY": REAL_KEY}, 2),
    ("sync", {"NEXHEALTH_RATE_SHARE": "2"}, 2),
    ("sync --explain", {"NEXHEALTH_API_KEY": REAL_KEY}, 4),
    ("status", {}, 4),
    ("status", {"NEXHEALTH_RATE_SHARE": "2"}, 2),
    ("status --watch --check", {}, 2),
    ("status --watch --acknowledge", {}, 2),
    ("quarantine list", {}, 4),
    ("quarantine list --collection patient", {}, 2),
    ("quarantine retry", {}, 4),
    ("quarantine retry 1 --collection patients", {}, 2),
    ("doctor", {"NEXHEALTH_RATE_SHARE": "2"}, 2),
    ("doctor --openapi none.json", {}, 2),
    ("doctor --openapi none.json --location acme.1", {}, 2),
    ("webhooks setup ftp://x", {"NEXHEALTH_API_KEY": REAL_KEY}, 2),
    ("webhooks list", {}, 4),
    ("webhooks remove", {}, 2),
    ("webhooks apply", {}, 2),
    ("webhooks replay", {}, 2),
    ("demo", {"NEXHEALTH_HOME": TOO_LONG}, 2),
]


@pytest.mark.parametrize(("words", "environment", "status"), FAILING)
def test_an_error_is_one_object_and_a_line(
    nexhealth: Run, words: str, environment: dict[str, str], status: int
) -> None:
    """Nothing on stdout looks like a monitor's own fault."""
    ended = nexhealth(*words.split(), "--json", **({"DATABASE_URL": AWAY} | environment))
    assert ended.status == status, ended.err
    found = json.loads(ended.out)
    assert found == {"error": found["error"], "exit_status": status}
    assert ended.err.splitlines()[-1] == f"nexhealth: {found['error'].splitlines()[-1]}"


def test_every_command_with_json_is_among_them() -> None:
    """A new one would be forgotten."""
    with_json = {
        path.partition(" ")[2]
        for path, command in visible_commands()
        if any(isinstance(one, click.Option) and "--json" in one.opts for one in command.params)
    }
    assert {
        path for path in with_json if not any(f"{words} ".startswith(f"{path} ") for words, _, _ in FAILING)
    } == set()


def test_times_are_iso_8601() -> None:
    """With a T, as the documentation says, so that every parser takes them."""
    found = json.loads(json_line({"at": datetime(2026, 3, 1, 12, tzinfo=UTC), "day": date(2026, 3, 1)}))
    assert found == {"at": "2026-03-01T12:00:00+00:00", "day": "2026-03-01"}
