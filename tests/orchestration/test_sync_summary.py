"""What a sync ends with: the exit status by which cron and scripts decide."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from nexhealth_pipeline.errors import Cancelled, PipelineError, TryLater
from nexhealth_pipeline.orchestration import launch
from nexhealth_pipeline.orchestration.fork import Outcome
from nexhealth_pipeline.orchestration.request import SyncRequest
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.options import Mode
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


def summary(
    resources: tuple[str, ...],
    practice: list[Row],
    *outcomes: Outcome,
    dry_run: bool = False,
    troubles: Sequence[tuple[str, str]] = (),
) -> launch.SyncSummary:
    jobs = [{"run_id": f"r{number}"} for number, _ in enumerate(outcomes, 1)]
    plan = {"run_id": "r0", "jobs": jobs, "troubles": list(troubles)}
    results = practice + [one for outcome in outcomes if outcome.result for one in outcome.result["results"]]
    settings = load_settings({}, environ={}, env_file=None)
    request = SyncRequest(Mode.INCREMENTAL, resources, dry_run=dry_run)
    return launch._summarise(settings, request, plan, results, list(outcomes), 1.0)


def ended(*rows: Row) -> Outcome:
    return Outcome({"results": list(rows), "stopped": False, "failure": None}, 0, "")


READ = [row("institutions", "practice"), row("locations", "practice")]
IN_PART = [*READ, row("sync_status", "practice", failed=True)]
NO_LOCATIONS = [row("institutions", "practice"), row("locations", "practice", failed=True)]
PATIENTS = ended(row("patients", "location"))
NO_PATIENTS = ended(row("patients", "location", failed=True))


@pytest.mark.parametrize(
    ("resources", "practice", "outcomes", "status"),
    [
        (("locations",), READ, [], 0),
        (("locations",), IN_PART, [], 1),
        (("locations",), NO_LOCATIONS, [], 3),
        (("locations",), [row("institutions", "practice", failed=True)], [], 3),
        (("patients",), NO_LOCATIONS, [], 3),
        ((), NO_LOCATIONS, [], 3),
        ((), IN_PART, [PATIENTS], 1),
        ((), IN_PART, [NO_PATIENTS], 3),
        (("locations", "patients"), IN_PART, [NO_PATIENTS], 1),
        ((), READ, [Outcome(None, -9, "")], 1),
        ((), READ, [Outcome(None, -9, ""), NO_PATIENTS], 1),
    ],
    ids=[
        "all",
        "practice in part",
        "not the one list asked for",
        "nothing",
        "patients of no location",
        "all of no location",
        "all but one",
        "no patients",
        "locations alone",
        "killed",
        "killed, and no patients",
    ],
)
def test_nothing_could_be_read_is_said_of_what_was_to_be_read(
    resources: tuple[str, ...], practice: list[Row], outcomes: list[Outcome], status: int
) -> None:
    """`sync --resource locations` that read them is no outage of the API; one that read all lists but them is one.

    So is a sync of patients that got no further than the institutions, and has no location to ask about. One whose run
    was killed says nothing of the API.
    """
    assert summary(resources, practice, *outcomes).exit_status == status


def test_a_list_of_locations_that_holds_none_is_something_to_look_at() -> None:
    """Lists of whole institutions were read, so it is no outage; where only offices were asked for, nothing was read."""
    trouble = ("locations", "NexHealth lists acme, and no location there")
    told = summary((), READ, ended(row("providers", "institution")), troubles=[trouble])
    assert (told.exit_status, told.failures) == (1, [trouble])
    assert summary(("patients",), READ, troubles=[trouble]).exit_status == TryLater.exit_status


def test_a_run_that_was_killed_is_told_so() -> None:
    """By a kernel that has no memory left: who reads "nothing could be read" asks NexHealth in vain."""
    sentence = "the run was ended by signal 9: what it has committed stays, run it again"
    assert summary((), READ, Outcome(None, -9, "")).failures == [("run", sentence)]
    with pytest.raises(PipelineError, match=sentence) as caught:
        launch.raise_unless_answered(Outcome(None, -9, ""))
    assert caught.value.exit_status == 1


def test_of_a_dry_run_that_was_killed_or_stopped_nothing_is_said_to_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """It commits nothing; who reads that it stays looks for the rows."""
    sentence = "the run was ended by signal 9: a dry run keeps nothing, run it again"
    assert summary((), READ, Outcome(None, -9, ""), dry_run=True).failures == [("run", sentence)]
    for name in ("find_warehouse_url", "find_dagster_url", "pass_on"):
        monkeypatch.setattr(launch, name, lambda *_, **__: "")
    for end, words in ((-9, sentence), (Cancelled.exit_status, "stopped; a dry run keeps nothing")):
        monkeypatch.setattr(launch, "run_side_by_side", lambda _, end=end: [Outcome(None, end, "")])
        with pytest.raises(PipelineError, match=words):
            launch.run_sync(
                load_settings({}, environ={}, env_file=None),
                SyncRequest(Mode.INCREMENTAL, dry_run=True),
                kind="sandbox",
            )
