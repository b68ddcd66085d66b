"""Events of institutions that NEXHEALTH_SUBDOMAINS leaves out: nobody's failures, and nobody's loss."""

from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.webhooks.applying.apply import apply_pending
from nexhealth_pipeline.webhooks.applying.pending import Backlog
from nexhealth_pipeline.webhooks.applying.replaying import Selection, replay
from tests.sync.kit import open_session

from .kit import SUBDOMAIN, apply_all, due_again, load_page, patient, settings_for, store, updated

OTHER = "harbor"


@pytest.fixture
def two_practices(practice: psycopg.Connection) -> psycopg.Connection:
    """Another institution is known as well, and an event of each is pending."""
    load_page(practice, "institutions", [{"id": 8, "subdomain": OTHER, "name": "Harbor"}], institution=False)
    store(practice, updated(patient(1, 5)), updated(patient(2, 5), subdomain=OTHER))
    return practice


def ends(db: psycopg.Connection) -> list[tuple[Any, ...]]:
    rows = db.execute("SELECT subdomain, status, attempts, error FROM nexhealth_webhook_events ORDER BY id")
    return rows.fetchall()


def test_they_are_neither_tried_nor_parked_and_can_be_replayed(
    two_practices: psycopg.Connection, practice_url: str
) -> None:
    """Five tries, and the reason that no such institution had been read: `nothing_parked` failed for good."""
    _, total = apply_all(settings_for(practice_url, NEXHEALTH_SUBDOMAINS=SUBDOMAIN))
    assert (total.applied, total.superseded, total.failed, total.parked) == (1, 1, 0, 0)
    assert ends(two_practices) == [
        (SUBDOMAIN, "applied", 0, None),
        (OTHER, "superseded", 0, "its institution is left out by NEXHEALTH_SUBDOMAINS"),
    ]
    assert replay(two_practices, Selection(statuses=("superseded",))) == 1
    apply_all(settings_for(practice_url))
    assert ends(two_practices)[1] == (OTHER, "applied", 0, None)


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_is_to_leave_them_does_not_touch_them(
    two_practices: psycopg.Connection, practice_url: str, taken: int
) -> None:
    """Another process may want them: not even their next try is put off."""
    two_practices.execute("UPDATE nexhealth_webhook_events SET taken = %s WHERE subdomain = %s", (taken, OTHER))
    theirs = "SELECT *, xmin FROM nexhealth_webhook_events WHERE subdomain = %s"
    before = two_practices.execute(theirs, (OTHER,)).fetchall()
    backlog = Backlog.now(two_practices, leaving=[OTHER])
    assert backlog.left(two_practices) == 1
    with open_session(settings_for(practice_url, NEXHEALTH_SUBDOMAINS=SUBDOMAIN)) as session:
        assert session.practices().left_out == {OTHER}
        list(apply_pending(session, leaving=[OTHER]))
    assert ends(two_practices)[0] == (SUBDOMAIN, "applied", 0, None)
    assert two_practices.execute(theirs, (OTHER,)).fetchall() == before
    assert (backlog.left(two_practices), Backlog.now(two_practices).left(two_practices)) == (0, 1)


def test_events_of_an_institution_that_nobody_knows_wait_for_the_next_discovery(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Risk: a practice is renamed in the morning, and the day's events are given up hours before the night reads its name."""
    store(practice, updated(patient(1, 5), subdomain=OTHER))
    for age, least in ((0, 1), (5, 5), (30, 30), (60, 50), (120, 50)):
        practice.execute(
            "UPDATE nexhealth_webhook_events SET next_attempt_at = NULL, received_at = now() - %s * interval '1 minute'",
            (age,),
        )
        _, total = apply_all(settings_for(practice_url))
        assert (total.waiting, total.failed, total.parked) == (1, 0, 0)
        (row,) = practice.execute(
            "SELECT extract(epoch FROM next_attempt_at) % 600, extract(epoch FROM next_attempt_at - now()) / 60"
            " FROM nexhealth_webhook_events"
        )
        # Later all of them at the same full ten minutes, and what it takes from the verdict to its note.
        assert row[0] < 60 or age < 10, "thousands, each at its own time, are a run a minute all day"
        assert least - 1 <= row[1] <= (min(least + 11, 60) if age > 10 else least + 1)
    assert ends(practice) == [(OTHER, "pending", 0, "subdomain: no institution that has been read")]
    load_page(practice, "institutions", [{"id": 8, "subdomain": OTHER, "name": "Harbor"}], institution=False)
    due_again(practice)
    apply_all(settings_for(practice_url))
    assert ends(practice) == [(OTHER, "applied", 0, None)]


def test_events_of_an_institution_that_no_discovery_has_brought_are_failures(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Nobody will ever read it, and somebody should be told."""
    store(practice, updated(patient(2, 5), subdomain="stranger"))
    practice.execute("UPDATE nexhealth_webhook_events SET received_at = received_at - interval '27 hours'")
    apply_all(settings_for(practice_url, NEXHEALTH_SUBDOMAINS=SUBDOMAIN))
    assert ends(practice) == [("stranger", "pending", 1, "subdomain: no institution that has been read")]
