"""`nexhealth webhooks`: words, exit status, and that no secret is ever shown."""

import json

import psycopg
import pytest

from nexhealth_pipeline.cli.tables import moment
from nexhealth_pipeline.cli.webhooks import _key_lines, endpoint_lines
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.warehouse.migrate import HEAD
from nexhealth_pipeline.webhooks.registering.one_key import KeySetUp
from tests.cli.conftest import REAL_KEY, Run

URL = "https://hooks.example.com/api/nexhealth-webhook"
SEALING_KEY = "sealing-key-of-the-tests-0123456789"


@pytest.fixture
def settings(sandbox: SandboxServer, database_url: str) -> dict[str, str]:
    return {
        "NEXHEALTH_API_URL": sandbox.url,
        "NEXHEALTH_API_KEY": REAL_KEY,
        "NEXHEALTH_WEBHOOK_KEY": SEALING_KEY,
        "DATABASE_URL": database_url,
    }


def test_set_up_list_and_remove(nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer) -> None:
    """What a user types, in order; each says what came of it."""
    nothing = nexhealth("webhooks", "list", **settings)
    assert (nothing.status, nothing.out) == (0, "nothing is registered: `nexhealth webhooks setup URL`\n")
    would = nexhealth("webhooks", "setup", "https://hooks.example.com", "--dry-run", **settings)
    assert (would.status, would.err) == (0, "")
    assert would.out.startswith("Nothing was changed: a dry run.")
    assert sandbox.webhooks.registry.endpoints == []
    with psycopg.connect(settings["DATABASE_URL"]) as connection:
        assert connection.execute("SELECT kind FROM nexhealth_warehouse").fetchall() == []
    made = nexhealth("webhooks", "setup", "https://hooks.example.com", **settings)
    assert (made.status, made.err) == (0, "")
    assert f"endpoint 16001: created: {URL}\n" in made.out
    assert "subscriptions of 2 institutions: 7" in made.out
    again = nexhealth("webhooks", "setup", URL, "--json", **settings)
    assert json.loads(again.out)["keys"][0]["subscriptions_created"] == 0
    with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_webhooks SET registered_at = now() - interval '1 year'")
        came = connection.execute(
            "INSERT INTO nexhealth_webhook_events (endpoint_id, verdict, status, received_at) VALUES"
            " (16001, 'valid', 'applied', now() - interval '1 day'), (16001, 'late', 'rejected', now()),"
            " (16002, 'valid', 'applied', now() - interval '1 day') RETURNING received_at"
        ).fetchone()
    assert came is not None
    rotated = nexhealth("webhooks", "setup", URL, "--rotate", **settings)
    assert "endpoint 16001 is deleted after 49 hours" in rotated.out
    listed = nexhealth("webhooks", "list", **settings)
    lines = listed.out.splitlines()
    assert lines[2].split()[:2] == ["16001", "until"]
    assert moment(came[0]) in lines[2]
    assert lines[3].split()[:2] == ["16002", "active"]
    assert "none in 7 days" in lines[3], "what came before it was registered is another's"
    assert [line.split()[:2] for line in lines[-2:]] == [["16002", "harbor-smiles"], ["16002", "willow-dental"]]
    as_json = nexhealth("webhooks", "list", "--json", **settings)
    assert json.loads(as_json.out)["endpoints"][1]["hole_since"] is None
    removed = nexhealth("webhooks", "remove", URL, **settings)
    assert removed.out.splitlines() == [f"endpoint 16001 deleted: {URL}", f"endpoint 16002 deleted: {URL}"]
    assert nexhealth("webhooks", "remove", "--all", **settings).out == "nothing is registered\n"
    assert nexhealth("webhooks", "remove", "--all", "--forget", **settings).out == "nothing to forget\n"
    gone = nexhealth("webhooks", "remove", URL, **settings)
    assert (gone.status, "none is registered" in gone.err) == (2, True)
    assert sandbox.webhooks.registry.endpoints == []


def test_a_dry_set_up_leaves_a_warehouse_of_an_earlier_release_as_it_is(
    nexhealth: Run, settings: dict[str, str]
) -> None:
    """It says that nothing was changed, and the receiver at work would be locked out."""
    before = (f"{int(HEAD) - 1:04}",)
    with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = %s", before)
        ended = nexhealth("webhooks", "setup", URL, "--dry-run", **settings)
        assert (ended.status, "run `nexhealth db upgrade`" in ended.err) == (4, True)
        assert db.execute("SELECT version_num FROM nexhealth_alembic_version").fetchall() == [before]


def test_an_endpoint_of_a_key_that_is_gone_is_forgotten_where_that_is_asked_for(
    nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer
) -> None:
    """The message of a removal that cannot be names the option; NexHealth is not asked for it."""
    assert nexhealth("webhooks", "setup", URL, **settings).status == 0
    with psycopg.connect(settings["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_webhooks SET key_hash = 'of a key that is not set'")
    refused = nexhealth("webhooks", "remove", URL, **settings)
    assert (refused.status, "--forget" in refused.out) == (1, True)
    forgotten = nexhealth("webhooks", "remove", URL, "--forget", "--json", **settings)
    assert forgotten.status == 0
    assert json.loads(forgotten.out)["forgotten"] == [{"endpoint_id": 16001, "url": URL}]
    assert nexhealth("webhooks", "list", **settings).out.startswith("nothing is registered")
    assert [one.id for one in sandbox.webhooks.registry.endpoints] == [16001]


def test_a_path_that_the_receiver_answers_with_404_is_warned_of(nexhealth: Run, settings: dict[str, str]) -> None:
    """Set up, and not one event would come."""
    elsewhere = nexhealth("webhooks", "setup", "https://hooks.example.com/elsewhere", "--dry-run", **settings)
    assert (elsewhere.status, "\nwarning: the receiver answers 404 to any path but" in elsewhere.out) == (0, True)
    right = nexhealth("webhooks", "setup", f"{URL}/?2", "--dry-run", "--json", **settings)
    found = json.loads(right.out)
    assert (found["url"], found["warnings"]) == (f"{URL}?2", [])


@pytest.mark.parametrize(("registered", "came"), [("1 year", "8 days"), ("1 day", "2 days")])
def test_the_last_event_is_one_of_the_last_days(database_url: str, registered: str, came: str) -> None:
    """No index is by endpoint: the whole table was walked for each that none had come to, and events are kept for years."""
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, registered_at)"
            " VALUES ('k', 5, 'https://hooks.example.com', true, '', now() - %s::interval)",
            (registered,),
        )
        connection.execute(
            "INSERT INTO nexhealth_webhook_events (endpoint_id, verdict, status, received_at)"
            " VALUES (5, 'valid', 'applied', now() - %s::interval)",
            (came,),
        )
        assert [one.last_event_at for one in endpoint_lines(connection)] == [None]


def test_no_secret_is_shown(nexhealth: Run, settings: dict[str, str], sandbox: SandboxServer) -> None:
    """Also not in the log, at its most talkative."""
    shown = ""
    secrets: set[str] = set()
    for words in ("setup URL", "setup URL --rotate --json", "list", "list --json", "remove --all --json"):
        ended = nexhealth("webhooks", *words.replace("URL", URL).split(), NEXHEALTH_LOG_LEVEL="DEBUG", **settings)
        assert ended.status == 0
        shown += ended.out + ended.err
        secrets |= {one.secret_key for one in sandbox.webhooks.registry.endpoints}
    assert len(secrets) == 2
    assert not [secret for secret in (*secrets, REAL_KEY, SEALING_KEY) if secret in shown]


def test_a_refused_institution_is_named_and_the_status_is_1(
    nexhealth: Run, settings: dict[str, str], database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO nexhealth_institutions (institution_id, id, name, subdomain, synced_at, source_read_at,"
            " row_hash) VALUES (11201, 11201, 'A', 'willow-dental', now(), now(), ''),"
            " (7, 7, 'B', 'not-ours', now(), now(), '')"
        )
    ended = nexhealth("webhooks", "setup", URL, **settings)
    assert ended.status == 1
    assert "\nfailed: not-ours: GET /webhook_endpoints/16001/webhook_subscriptions (subdomain not-ours)" in ended.out
    assert "subscriptions of 2 institutions: 35 created" in ended.out
    as_json = nexhealth("webhooks", "setup", URL, "--json", **settings)
    assert (as_json.status, json.loads(as_json.out)["failures"][0]["what"]) == (1, "not-ours")


def test_of_a_key_of_which_nothing_is_wanted_it_is_told_what_was_deleted() -> None:
    """Its endpoint has no number any more, and would be shown as one that is there."""
    ended = KeySetUp("harbor-smiles", 0, endpoints_removed=[16002])
    first, second = _key_lines(URL, ended)
    assert first.startswith("the key of harbor-smiles: ")
    assert second.split() == ["deleted:", "endpoint", "16002"]


UNUSED = {
    "NEXHEALTH_API_KEY": REAL_KEY,
    "NEXHEALTH_WEBHOOK_KEY": SEALING_KEY,
    "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing",
}


@pytest.mark.parametrize(
    ("words", "missing", "named"),
    [
        ("setup http://hooks.example.com", "", "https://"),
        ("setup", "", "URL"),
        (f"setup {URL}", "NEXHEALTH_WEBHOOK_KEY", "NEXHEALTH_WEBHOOK_KEY is not set"),
        (f"setup {URL}", "NEXHEALTH_API_KEY", "NEXHEALTH_API_KEY is not set"),
        ("remove", "", "--all"),
        (f"remove {URL} --all", "", "not both"),
    ],
)
def test_wrong_use_is_2_and_says_what_to_do(nexhealth: Run, words: str, missing: str, named: str) -> None:
    given = {name: value for name, value in UNUSED.items() if name != missing}
    ended = nexhealth("webhooks", *words.split(), **given)
    assert (ended.status, ended.out) == (2, "")
    assert named in ended.err


def test_an_error_is_json_as_well_where_that_was_asked_for(nexhealth: Run) -> None:
    ended = nexhealth("webhooks", "setup", "ftp://x", "--json", **UNUSED)
    assert ended.status == 2
    assert json.loads(ended.out)["exit_status"] == 2
    assert "ftp://x" in ended.err
    assert nexhealth("webhooks", "list", **UNUSED).status == 4
