"""`nexhealth webhooks apply` and `replay`: what is refused before anything is started, and what is said at the end."""

import json
import os
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.cli import sandbox
from nexhealth_pipeline.orchestration import webhook_launch
from nexhealth_pipeline.orchestration.webhook_launch import WebhookRun
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.warehouse.migrate import HEAD
from tests.cli.conftest import REAL_KEY, Run, small_world


@dataclass
class Launched:
    """The jobs that were started, and what they answer."""

    result: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    seen: list[Settings] = field(default_factory=list)
    """What a run sees, which reads the settings for itself."""
    exit_status: int = 0


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Launched:
    """Instead of Dagster, which other tests start."""
    launched = Launched()

    def run(_: object, job: str, config: dict[str, Any], **__: object) -> WebhookRun:
        launched.asked.append((job, config))
        launched.seen.append(load_settings())
        if launched.seen[-1].data_kind == "sandbox":
            urllib.request.urlopen(f"{launched.seen[-1].api_url}/sandbox/stats", timeout=10).close()
        return WebhookRun("run-1", launched.result, 1.5, launched.exit_status)

    monkeypatch.setattr(webhook_launch, "run_webhook_job", run)
    return launched


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("", "say which events: --since, --until, --resource, --status or --id"),
        ("--dry-run", "say which events"),
        ("--resource locations", "resource 'locations' is fed by no event; use one of: adjustment_types,"),
        ("--since yesterday", "--since 'yesterday': write a day"),
        ("--since 2026-03-02 --until 2026-03-01", "is not before until"),
        ("--status pending", "'pending' is not one of"),
        ("--id 0", "0 is not in the range"),
    ],
)
def test_a_replay_of_nothing_or_of_everything_is_refused(
    words: str, reason: str, nexhealth: Run, launched: Launched, database_url: str
) -> None:
    """By mistake it would be a long run."""
    ended = nexhealth("webhooks", "replay", *words.split(), DATABASE_URL=database_url, NEXHEALTH_API_KEY="k")
    assert ended.status == 2
    assert reason in ended.err
    assert not launched.asked


def test_a_replay_hands_down_what_was_chosen(nexhealth: Run, launched: Launched, database_url: str) -> None:
    """Days are UTC, collections may be named as their tables."""
    launched.result = {"dry_run": False, "events": 3, "applied": 1, "superseded": 2, "rows": 1}
    words = "--since 2026-03-01 --resource nexhealth_patients --resource charges --status parked --id 5 --id 6"
    ended = nexhealth("webhooks", "replay", *words.split(), DATABASE_URL=database_url, NEXHEALTH_API_KEY="k")
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == ["3 events chosen", "3 events: 1 applied, 2 superseded; 1 rows changed"]
    assert launched.asked == [
        (
            "nexhealth_webhook_replay",
            {
                "since": "2026-03-01T00:00:00+00:00",
                "resources": ["patients", "charges"],
                "statuses": ["parked"],
                "ids": [5, 6],
                "dry_run": False,
            },
        )
    ]


def test_a_rehearsal_says_that_nothing_was_changed(nexhealth: Run, launched: Launched, database_url: str) -> None:
    """What the API would be asked is not known in advance."""
    launched.result = {"dry_run": True, "events": 9, "hints": 2, "applied": 3, "failed": 0, "rows": 4}
    ended = nexhealth("webhooks", "replay", "--id", "5", "--dry-run", DATABASE_URL=database_url, NEXHEALTH_API_KEY="k")
    assert ended.status == 0
    assert ended.out.splitlines() == [
        "Nothing was changed: a dry run.",
        "9 events chosen: 3 would change 4 rows, 0 would fail",
        "for 2 of them the API would be asked, which a dry run does not do",
    ]
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT kind FROM nexhealth_warehouse").fetchall() == []


def test_a_rehearsal_leaves_a_warehouse_of_an_earlier_release_as_it_is(
    nexhealth: Run, launched: Launched, database_url: str
) -> None:
    """The receiver and the daemon at work would be locked out of it."""
    before = (f"{int(HEAD) - 1:04}",)
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute("UPDATE nexhealth_alembic_version SET version_num = %s", before)
        ended = nexhealth(
            "webhooks", "replay", "--id", "5", "--dry-run", DATABASE_URL=database_url, NEXHEALTH_API_KEY="k"
        )
        assert (ended.status, "run `nexhealth db upgrade`" in ended.err) == (4, True)
        assert db.execute("SELECT version_num FROM nexhealth_alembic_version").fetchall() == [before]
    assert not launched.asked


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"applied": 4, "still_due": 0}, 0),
        ({}, 0),
        *(({name: 1}, 1) for name in ("failed", "parked", "waiting", "still_due")),
    ],
)
def test_applying_ends_with_one_where_something_is_to_be_looked_at(
    counts: dict[str, int], status: int, nexhealth: Run, launched: Launched, database_url: str
) -> None:
    """For cron: silence is good news."""
    launched.result = {**counts, "rows": 2}
    ended = nexhealth("webhooks", "apply", "--json", DATABASE_URL=database_url, NEXHEALTH_API_KEY="k")
    assert ended.status == status
    assert json.loads(ended.out) == {"run_id": "run-1", "seconds": 1.5, **counts, "rows": 2, "exit_status": status}
    assert launched.asked == [("nexhealth_webhook_apply", {"due_only": True})], "all of it, however long it takes"


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"applied": 2400, "failed": 1, "still_due": 1600}, "2,401 events: 2,400 applied, 1 failed; 2 rows changed; "),
        ({"still_due": 1600}, "0 events: none done; 2 rows changed; "),
    ],
)
def test_events_that_still_wait_are_told(
    counts: dict[str, int], line: str, nexhealth: Run, launched: Launched, database_url: str
) -> None:
    """A line that looks complete, and a copy that is not."""
    launched.result = {**counts, "rows": 2}
    ended = nexhealth("webhooks", "apply", DATABASE_URL=database_url, NEXHEALTH_API_KEY="k")
    assert (ended.status, ended.out) == (1, f"{line}1,600 still wait\n")


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("apply", "what was committed stays"),
        ("replay --status applied", "what was committed stays"),
        ("replay --status applied --dry-run", "a dry run keeps nothing"),
    ],
)
def test_one_that_was_stopped_does_not_say_that_nothing_waited(
    words: str, kept: str, nexhealth: Run, launched: Launched, database_url: str
) -> None:
    """Ctrl-C comes before the run has told anything; thousands of events may have been applied, or still wait."""
    launched.exit_status = 130
    account = {"DATABASE_URL": database_url, "NEXHEALTH_API_KEY": "k"}
    ended = nexhealth("webhooks", *words.split(), **account)
    assert (ended.status, ended.out) == (130, f"stopped: {kept}\n")
    as_json = nexhealth("webhooks", *words.split(), "--json", **account)
    assert json.loads(as_json.out) == {"run_id": "run-1", "seconds": 1.5, "exit_status": 130}


@pytest.mark.parametrize("words", ["apply", "replay --status applied"])
def test_the_demo_s_events_ask_the_local_nexhealth(
    words: str, nexhealth: Run, launched: Launched, monkeypatch: pytest.MonkeyPatch, server_url: str, tmp_path: Path
) -> None:
    """Its made-up ids, asked for at NexHealth with the practice's key, would be somebody's."""
    home = os.environ["NEXHEALTH_TEST_HOME"]
    # Of its own: other files' demos run in that home meanwhile.
    monkeypatch.setattr(sandbox, "state_folder", lambda _: tmp_path / "sandbox")
    small_world(tmp_path)
    Path(".env").write_text("NEXHEALTH_API_URL=https://nexhealth.example\nNEXHEALTH_SUBDOMAINS=acme\n")
    account = {"NEXHEALTH_API_KEY": REAL_KEY, "DATABASE_URL": "postgresql://real/warehouse"}
    ended = nexhealth("webhooks", *words.split(), "--demo", **account, NEXHEALTH_HOME=home)
    assert ended.status == 0, ended.err
    (seen,) = launched.seen
    assert (seen.data_kind, seen.subdomains) == ("sandbox", ())
    assert REAL_KEY not in seen.api_keys().values()
