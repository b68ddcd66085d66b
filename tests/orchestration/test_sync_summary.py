"""What a sync ends with: the exit status by which cron and scripts decide."""

from dataclasses import asdict
from typing import Any

import pytest

from nexhealth_pipeline.errors import TryLater
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.fork import Outcome
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.sync_log import Counts

Row = dict[str, Any]


def row(collection: str, scope: str, *, failed: bool = False) -> Row:
    """What a run tells of one slice."""
    return {
        "collection": collection,
        "scope": scope,
        "label": collection,
        "status": "failed" if failed else "succeeded",
        "reason": "the API keeps failing" if failed else None,
        "exit_status": TryLater.exit_status if failed else 0,
        "counts": asdict(Counts(pages=0 if failed else 1)),
        "seconds": 1.0,
        "new_notes": 0,
        "absence": None,
    }


def exit_status(practice: list[Row], jobs: list[str], outcomes: list[Outcome]) -> int:
    plan = {"run_id": "r0", "jobs": [{"run_id": run_id} for run_id in jobs]}
    results = practice + [one for outcome in outcomes if outcome.result for one in outcome.result["results"]]
    return launch._summarise(load_settings({}, environ={}, env_file=None), plan, results, outcomes, 1.0).exit_status


def ended(*rows: Row) -> Outcome:
    return Outcome({"results": list(rows), "stopped": False, "failure": None}, 0, "")


READ = [row("institutions", "practice"), row("locations", "practice")]
IN_PART = [*READ, row("sync_status", "practice", failed=True)]


@pytest.mark.parametrize(
    ("practice", "jobs", "outcomes", "status"),
    [
        (READ, [], [], 0),
        (IN_PART, [], [], 1),
        ([row("institutions", "practice", failed=True)], [], [], 3),
        (IN_PART, ["r1"], [ended(row("patients", "location"))], 1),
        (IN_PART, ["r1"], [ended(row("patients", "location", failed=True))], 3),
        (READ, ["r1"], [Outcome(None, -9, "")], 3),
    ],
    ids=["all", "practice in part", "nothing", "all but one", "no patients", "killed"],
)
def test_nothing_could_be_read_is_said_of_what_was_to_be_read(
    practice: list[Row], jobs: list[str], outcomes: list[Outcome], status: int
) -> None:
    """`sync --resource locations` that read them is no outage of the API; a sync of patients that read none is one."""
    assert exit_status(practice, jobs, outcomes) == status
