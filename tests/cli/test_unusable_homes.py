"""A NEXHEALTH_HOME or DAGSTER_HOME that is no place to keep anything is a wrong setting, never called a bug."""

import os
from pathlib import Path

import pytest

from tests.cli.conftest import REAL_KEY, Run

TOO_LONG = f"/tmp/{'a' * 300}"
NOBODYS = "~nosuchuser/nexhealth"


@pytest.mark.parametrize("home", [TOO_LONG, NOBODYS], ids=["too long", "nobody's"])
@pytest.mark.parametrize(
    "words", ["demo", "dev --demo", "sync", "status", "db url", "webhooks apply --demo", "status --demo", "dev"]
)
def test_it_is_named_by_every_command(nexhealth: Run, words: str, home: str) -> None:
    """Looking into it raises as well, before anything has tried to make it."""
    ended = nexhealth(*words.split(), NEXHEALTH_HOME=home, NEXHEALTH_API_KEY=REAL_KEY)
    assert ended.status == 2, ended.err
    last = ended.err.splitlines()[-1]
    assert last.startswith(f"nexhealth: NEXHEALTH_HOME{':' if home is TOO_LONG else ' (value: '}")
    assert home in last
    assert "bug" not in ended.err


@pytest.mark.parametrize("home", [TOO_LONG, NOBODYS], ids=["too long", "nobody's"])
def test_so_is_one_of_dagsters(nexhealth: Run, home: str, database_url: str, empty_database_url: str) -> None:
    """A setting of another program, and the same message for the same mistakes."""
    places = {"DATABASE_URL": database_url, "DAGSTER_DATABASE_URL": empty_database_url}
    ended = nexhealth("dev", NEXHEALTH_API_KEY=REAL_KEY, DAGSTER_HOME=home, **places)
    assert ended.status == 2
    assert f"DAGSTER_HOME (value: {home!r}): this folder holds no dagster.yaml" in ended.err


def test_a_tilde_that_no_shell_wrote_out_is_the_user_s_home(
    nexhealth: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `.env` nobody does. The keys file was found by `dev` alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "keys.toml").write_text(f'acme = "{REAL_KEY}"\n')
    Path(".env").write_text("NEXHEALTH_API_KEYS_FILE=~/keys.toml\nDATABASE_URL=postgresql://nobody@127.0.0.1:1/none\n")
    ended = nexhealth("sync", "--explain")
    assert ended.status == 4, f"it gets past the keys: {ended.err}"
    assert not os.path.lexists("~")
