"""`nexhealth doctor` where webhooks are registered: an endpoint that is off, gone, or cannot be verified."""

import json
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from tests.cli.conftest import Run

pytestmark = pytest.mark.usefixtures("hurried")
URL = "http://127.0.0.1:9/api/nexhealth-webhook"
SEAL = "a key of a test with thirty-two characters or more"


@pytest.fixture
def settings(sandbox: SandboxServer, database_url: str, nexhealth: Run) -> dict[str, str]:
    """A sandbox that is set up."""
    made = {
        "NEXHEALTH_API_URL": sandbox.url,
        "NEXHEALTH_API_KEY": sandbox.api_key,
        "DATABASE_URL": database_url,
        "NEXHEALTH_WEBHOOK_KEY": SEAL,
        "NEXHEALTH_DATA_KIND": "sandbox",
        "NEXHEALTH_RATE_SHARE": "1",
        "NEXHEALTH_SUBDOMAINS": "harbor-smiles",
    }
    assert nexhealth("webhooks", "setup", URL, **made).status == 0
    return made


def found(nexhealth: Run, settings: dict[str, str]) -> list[dict[str, Any]]:
    """What doctor says of webhooks."""
    ended = nexhealth("doctor", "--json", **settings)
    return [one for one in json.loads(ended.out)["findings"] if one["check"].startswith("webhook")]


def test_an_endpoint_that_is_off_or_gone_is_found(
    nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer
) -> None:
    """NexHealth tells nobody: without a look no event comes, and nobody knows."""
    (fine,) = found(nexhealth, settings)
    assert (fine["level"], URL in fine["message"]) == ("ok", True)
    (endpoint,) = sandbox.webhooks.endpoints
    sandbox.webhooks.registry.change_endpoint(endpoint.id, active=False)
    (off,) = found(nexhealth, settings)
    assert (off["level"], "switched it off" in off["message"]) == ("warning", True)
    sandbox.webhooks.registry.remove_endpoint(endpoint.id)
    (gone,) = found(nexhealth, settings)
    assert (gone["level"], f"nexhealth webhooks setup {URL}" in gone["fix"]) == ("warning", True)
    secrets, *_ = found(nexhealth, settings | {"NEXHEALTH_WEBHOOK_KEY": SEAL[::-1]})
    assert (secrets["level"], SEAL[::-1] in secrets["message"]) == ("failed", False)


def test_certificates_that_are_not_there_keep_nothing_from_being_told(
    nexhealth: Run, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last question would have ended it, and of all that was found only this one error been printed."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/company.pem")
    ended = nexhealth("doctor", "--json", **settings | {"NEXHEALTH_API_URL": "https://nexhealth.invalid"})
    assert ended.status == 2
    told = {one["check"]: (one["level"], one["message"]) for one in json.loads(ended.out)["findings"]}
    assert {"reach", "database", "webhook"} <= set(told)
    level, message = told["webhook"]
    assert (level, "cannot be asked about it: REQUESTS_CA_BUNDLE: /nowhere" in message) == ("warning", True)


def test_an_endpoint_that_was_replaced_is_asked_about_while_it_has_an_institution(
    nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer
) -> None:
    """It is the only one that the institution's events are posted to."""
    (old,) = sandbox.webhooks.endpoints
    assert nexhealth("webhooks", "setup", URL, "--rotate", **settings).status == 0
    assert [one["level"] for one in found(nexhealth, settings)] == ["ok"]
    with psycopg.connect(settings["DATABASE_URL"]) as db:
        db.execute(
            "UPDATE nexhealth_webhooks SET subscriptions = (SELECT subscriptions FROM nexhealth_webhooks"
            " WHERE retire_at IS NULL) WHERE retire_at IS NOT NULL"
        )
    sandbox.webhooks.registry.remove_endpoint(old.id)
    gone, current = found(nexhealth, settings)
    assert (gone["level"], f"endpoint {old.id}" in gone["message"], current["level"]) == ("warning", True, "ok")
