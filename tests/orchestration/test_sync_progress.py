"""The looks of a waiting sync into its log: one connection, which nothing forks while it is open."""

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.cli.progress import BarlessLines
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.launch import Progress
from nexhealth_pipeline.orchestration.tally import Tally
from nexhealth_pipeline.sync.slices import Absence, Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.connect import connect
from nexhealth_pipeline.warehouse.sync_log import Counts

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


def result(pages: int, absence: Absence | None = None) -> SliceResult:
    counts = Counts(pages=pages, records_read=1000 * pages)
    return SliceResult(Slice(COLLECTIONS["patients"]), Status.SUCCEEDED, counts, 1.0, absence=absence)


def test_a_dry_run_is_counted_where_no_log_is_kept(
    database_url: str, made: list[psycopg.Connection], capsys: pytest.CaptureFixture[str]
) -> None:
    """For hours it stood at "0 of 7 slices ... (waiting for the rate limits, or for an answer)", and waited for nothing."""
    tally = Tally(2)
    with launch._Watch(database_url, PLAN, BarlessLines(0.0), tally) as watch:
        watch.tick()
        tally.count(0, result(2))
        tally.count(1, result(1))
        watch.tick()
        tally.count(1, result(0, Absence()))
        watch.tick()
    assert made == [], "its log has no rows, so it is not asked"
    assert capsys.readouterr().out.splitlines() == [
        "0 of 7 slices, 0 records on 0 pages",
        "2 of 7 slices, 3,000 records on 3 pages",
        "2 of 7 slices, 3,000 records on 3 pages (each slice is counted when it ends)",
    ]
