"""`nexhealth doctor` where institutions have keys of their own: one without, and several that reach the same."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from tests.cli.conftest import REAL_KEY, Run, findings, read_every_office

pytestmark = pytest.mark.usefixtures("hurried")
OTHER_KEY = "another-real-key-that-must-never-be-shown"


@pytest.fixture
def sandbox() -> Iterator[SandboxServer]:
    """One whose first key reaches everything, and the other Willow alone."""
    keys = {REAL_KEY: None, OTHER_KEY: ("willow-dental",)}
    with SandboxServer(patients=5, appointments_per_patient=1, limits=False, api_keys=keys) as server:
        read_every_office(server)
        yield server


@pytest.fixture
def settings(sandbox: SandboxServer, database_url: str, tmp_path: Path) -> dict[str, str]:
    """Willow has a key of its own; which, each test says in the file."""
    keys = tmp_path / "keys.toml"
    return {"NEXHEALTH_API_URL": sandbox.url, "DATABASE_URL": database_url, "NEXHEALTH_API_KEYS_FILE": str(keys)}


def test_an_institution_that_anothers_key_reaches_is_told_to_have_none(
    nexhealth: Run, settings: dict[str, str]
) -> None:
    """It was said to be reached, all was well, and every slice of it failed."""
    Path(settings["NEXHEALTH_API_KEYS_FILE"]).write_text(f'willow-dental = "{REAL_KEY}"\n')
    for words in ([], ["--location", "harbor-smiles.348621"]):
        ended = nexhealth("doctor", "--json", *words, **settings)
        assert (ended.status, ended.err) == (2, "")
        found = findings(ended)
        assert found["key"]["message"].startswith("no API key for institution harbor-smiles: set NEXHEALTH_API_KEY")
        assert set(found) == ({"key", "location"} if words else {"key"})
        assert "database" in {one["check"] for one in json.loads(ended.out)["findings"]}, "the rest is looked at, too"
    assert "no API key for institution harbor-smiles" in found["location"]["message"]
    only = nexhealth("doctor", **settings, NEXHEALTH_SUBDOMAINS="willow-dental")
    assert (only.status, "harbor-smiles.3" in only.out) == (0, False)


def test_what_two_keys_reach_is_told_once(nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer) -> None:
    """A location had its own key as the other choice, and could not be asked about."""
    Path(settings["NEXHEALTH_API_KEYS_FILE"]).write_text(f'willow-dental = "{OTHER_KEY}"\n')
    sandbox.state.update("sync_status", sandbox.state.ids("sync_status")[0], {"read_status": "red"})
    ended = nexhealth("doctor", "--json", "--location", "Willow North", **settings, NEXHEALTH_API_KEY=REAL_KEY)
    assert ended.status == 1
    told = [(one["check"], one["message"]) for one in json.loads(ended.out)["findings"]]
    assert ("location", "location willow-dental.348511 can be read") in told
    assert [message.count("willow-dental.348511") for check, message in told if check in ("locations", "office")] == [
        1,
        1,
    ]
