"""Syncs as a command runs them, in forks of one process that has imported everything (`tests.forks`)."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.launch import Progress, SyncRequest, run_sync
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.session import SyncSession
from tests.forks import serve
from tests.sync.kit import Unlimited, first_test_month


def run(mode: str, asked: dict[str, Any], environment: dict[str, str], output: str) -> int:
    """Sync with nothing but `environment` set; `output` is the summary, or the error, as JSON in the end.

    What it says on its way goes to a file of that name and `.said`.
    """
    os.setsid()
    said = os.open(f"{output}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ.clear()
    os.environ.update(environment)
    months.FIRST_MONTH, months.MONTHS_AHEAD = first_test_month(), 1
    SyncSession._shared_budget = lambda *_: Unlimited()  # type: ignore[method-assign]
    seen: list[Progress] = []
    try:
        summary = run_sync(load_settings(), SyncRequest(Mode(mode), **asked), kind="sandbox", on_progress=seen.append)
    except PipelineError as error:
        answer, status = {"error": str(error), "exit_status": error.exit_status}, error.exit_status
    else:
        progress = [[one.done, one.planned] for one in seen]
        answer, status = summary.as_json() | {"progress": progress}, summary.exit_status
    Path(output).write_text(json.dumps(answer))
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    import nexhealth_pipeline.definitions  # noqa: F401 - what it imports when it needs it

    serve(run)
