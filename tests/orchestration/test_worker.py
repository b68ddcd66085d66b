"""What a step's own thread notices while another one reads: that the run is to stop, and nothing else."""

import dagster as dg
import pytest
from dagster_postgres.utils import DagsterPostgresException
from sqlalchemy.exc import OperationalError

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration import worker

from .kit import PIER, House


class Lost:
    """Dagster's database, which is not there for one look of a watch."""

    def __init__(self, instance: dg.DagsterInstance, error: Exception) -> None:
        self._look, self._error = instance.get_run_by_id, error
        self._armed, self.looks = False, 0

    def arm(self) -> bool:
        """What a watch does just before it looks."""
        self._armed = True
        return False

    def __call__(self, run_id: str) -> dg.DagsterRun | None:
        armed, self._armed = self._armed, False
        self.looks += armed
        if armed and self.looks == 1:
            raise self._error
        return self._look(run_id)


@pytest.mark.parametrize(
    "error",
    [OperationalError("SELECT", {}, Exception("gone")), DagsterPostgresException("too many retries for DB connection")],
)
def test_a_look_that_fails_ends_no_run(known: House, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its database restarts in the middle of a sync of hours, which nothing would repeat."""
    lost = Lost(known.instance, error)
    monkeypatch.setattr(worker, "_STATUS_SECONDS", 0.0)
    monkeypatch.setattr(worker, "check_captured_interrupt", lost.arm)
    monkeypatch.setattr(known.instance, "get_run_by_id", lost)
    known.box.faults.add("hang", path="/operatories", seconds=0.2)  # so that it looks again
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    assert result.success
    assert lost.looks > 1
    lines = [entry.user_message for entry in known.instance.all_logs(result.run_id) if entry.dagster_event is None]
    assert [line for line in lines if "is there again" in line] == ["Dagster's database is there again lost_looks=1"]
