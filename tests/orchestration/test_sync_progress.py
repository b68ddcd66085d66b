"""The looks of a waiting sync into its log: one connection, which nothing forks while it is open."""

import psycopg
import pytest

from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.launch import Progress
from nexhealth_pipeline.warehouse.connect import connect

PLAN = {"jobs": [], "planned": 7}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[psycopg.Connection]:
    """The connections that were made."""
    made: list[psycopg.Connection] = []

    def counted(url: str, *, autocommit: bool, application_name: str) -> psycopg.Connection:
        made.append(connect(url, autocommit=autocommit, application_name=application_name))
        return made[-1]

    monkeypatch.setattr(launch, "connect", counted)
    return made


def test_looks_share_a_connection_that_ends_with_the_wait(database_url: str, made: list[psycopg.Connection]) -> None:
    """Twice a second for hours, each with a server process of its own; open, it would be forked with the next runs."""
    shown: list[Progress] = []
    with launch._Watch(database_url, PLAN, shown.append) as watch:
        assert made == [], "none before everything is forked"
        watch.tick()
        watch.tick()
        assert (len(shown), len(made)) == (2, 1)
        assert not made[0].closed
    assert made[0].closed


def test_a_lost_connection_is_made_anew(database_url: str, made: list[psycopg.Connection]) -> None:
    """The database was restarted: the runs end with an error, or go on; progress is no reason to stop."""
    shown: list[Progress] = []
    with launch._Watch(database_url, PLAN, shown.append) as watch:
        watch.tick()
        made[0].close()
        watch.tick()
        watch.tick()
    assert (len(shown), len(made)) == (2, 2)
