"""How the databases grow: what a swing of a month must not be taken for."""

from datetime import UTC, date, datetime, timedelta

import growth
import psycopg
import pytest
from growth import PHASE, a_night, months_since

STOOD = """
INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at) VALUES ('r', 'h', 1, 'succeeded', now());
INSERT INTO nexhealth_sync_logs (run_id, asset, collection, institution_id, location_id, mode, status, started_at, finished_at)
VALUES ('r', 'nexhealth_patients', 'patients', 1, 2, 'full', 'succeeded', now(), now());
CREATE TABLE growth_runs AS SELECT * FROM nexhealth_runs;
CREATE TABLE growth_logs AS SELECT * FROM nexhealth_sync_logs
"""


def test_a_swing_is_no_growth() -> None:
    """A month of the log goes at once: from its lowest to its highest night it looked like 225 kB a night."""
    swinging = [1000 + 10 * (night % PHASE) for night in range(3 * PHASE + 17)]
    assert a_night(swinging) == pytest.approx(0)
    assert a_night([size + 7 * night for night, size in enumerate(swinging)]) == pytest.approx(7)


def test_a_few_nights_have_a_figure_too() -> None:
    assert a_night([100, 110, 120, 130]) == pytest.approx(10)
    assert a_night([100]) == 0


@pytest.mark.parametrize(
    ("ago", "months"), [(0, 0), (28, 0), (29, 1), (59, 1), (60, 2), (119, 3), (363, 11), (364, 12)]
)
def test_months_are_those_of_the_calendar_by_which_the_log_goes(ago: int, months: int) -> None:
    """By 30.4 days a month went a night or two early."""
    assert months_since(ago, date(2026, 11, 29)) == months


def test_each_month_of_nights_has_a_partition_as_it_would_have_had(database_url: str) -> None:
    """In the one of all other months their rows left room that later months, which have one, did not use: the log looked
    as if it grew by what had gone."""
    today, nights = datetime.now(UTC).date(), (75, 40, 5)
    with psycopg.connect(database_url, autocommit=True) as db:
        for statement in STOOD.split(";"):
            db.execute(statement.encode())
        for ago in nights:
            growth.run_at(database_url, growth._WAREHOUSE_NIGHT, ago, name=f"night {ago}", copies=3)
        found = db.execute("SELECT tableoid::regclass::text, count(*) FROM nexhealth_sync_logs GROUP BY 1").fetchall()
    months = {f"nexhealth_sync_logs_{today - timedelta(days=ago):%Y_%m}" for ago in nights}
    assert months <= dict(found).keys()
    assert "nexhealth_sync_logs_default" not in dict(found)
    assert sum(count for _, count in found) == 1 + 3 * len(nights)
