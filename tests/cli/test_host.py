"""What `--host` takes, of every command that listens."""

import pytest

from tests.cli.conftest import Run


@pytest.mark.parametrize("command", ["serve", "dev", "sandbox"])
@pytest.mark.parametrize(
    ("host", "words"),
    [("", "say 0.0.0.0"), (" ", "say 0.0.0.0"), ("ä" * 80, "nor a name"), ("a..b", "nor a name")],
    ids=["empty", "blank", "too long", "empty label"],
)
def test_what_is_no_address_is_wrong_use(
    nexhealth: Run, database_url: str, closed_port: int, command: str, host: str, words: str
) -> None:
    """An empty one, of a variable that is not set, opened Dagster's pages to everybody; others were told as a bug."""
    account = {"DATABASE_URL": database_url, "NEXHEALTH_WEBHOOK_SECRETS": "a secret"}
    ended = nexhealth(command, "--host", host, "--port", str(closed_port), **account)
    assert (ended.status, ended.out) == (2, "")
    (line,) = (one for one in ended.err.splitlines() if "--host" in one)
    assert words in line
