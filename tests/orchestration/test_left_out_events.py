"""Whose word counts on events of institutions that NEXHEALTH_SUBDOMAINS leaves out: the daemon's, not a command's."""

import pytest

from nexhealth_pipeline.orchestration.names import WEBHOOK_SENSOR
from nexhealth_pipeline.orchestration.webhook_jobs import heard
from tests.webhooks.kit import SUBDOMAIN, load_page, patient, store, updated

from .webhook_kit import Post


def test_a_command_with_a_narrower_setting_leaves_them_to_the_daemon(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a laptop it counted a failed try against every event of the others, which the host was to apply."""
    load_page(post.db, "institutions", [{"id": 8, "subdomain": "harbor", "name": "Harbor"}], institution=False)
    store(post.db, updated(patient(1, 5)), updated(patient(2, 5), subdomain="harbor"))
    monkeypatch.setenv("NEXHEALTH_SUBDOMAINS", SUBDOMAIN)
    told: list[dict[str, object]] = []
    with heard(told.append):
        assert post.apply(due_only=True).success
    assert told == [{"applied": 1, "rows": 1, "still_due": 0}]
    assert post.statuses() == {"applied": 1, "pending": 1}
    assert post.apply().success
    assert post.statuses() == {"applied": 1, "superseded": 1}
    assert post.tick(WEBHOOK_SENSOR) == "no event is pending"
