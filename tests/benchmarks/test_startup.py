"""Where the start of a run goes."""

import io
import json
import subprocess
import sys
import time
import urllib.request
from contextlib import nullcontext

import pytest
import startup


def test_a_process_began_when_the_kernel_started_it_and_not_when_it_said_so() -> None:
    """What it says first comes after its imports, which were called the code server's."""
    before = time.time()
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(0.5); print('here', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        said, began = time.time(), startup.started_at(process.pid)
        process.communicate("\n")
    assert before - 0.05 <= began <= said - 0.45
    with pytest.raises(FileNotFoundError):
        startup.started_at(process.pid)


def test_what_dagster_adds_is_seen_beside_the_same_work_without_it() -> None:
    table = startup.same_work({"alone": [(0.5, 0.4, 0.1), (0.7, 0.6, 0.1)], "a run": [(2.0, 2.4, 0.3)]})
    assert table.rows == [
        ["alone", "0.60 (0.50-0.70)", "0.50 (0.40-0.60)", "0.10 (0.10-0.10)"],
        ["a run", "2.00", "2.40", "0.30"],
    ]


def test_memory_of_what_stands_is_told_of_a_webserver_that_has_shown_something(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that could not load the code takes less, and nobody has that one."""
    peaks = {"api grpc": 170.4, "dagster._daemon": 150.0, "dagster_webserver": 172.6}
    answers = [{"assetNodes": [{"assetKey": {"path": ["nexhealth_patients"]}}]}, {"assetNodes": []}]
    monkeypatch.setattr(startup, "peak_rss_of", peaks.__getitem__)
    monkeypatch.setattr(startup, "served", lambda _: nullcontext("http://127.0.0.1:1"))
    monkeypatch.setattr(urllib.request, "urlopen", lambda _: io.BytesIO(json.dumps({"data": answers.pop(0)}).encode()))
    assert startup.standing().rows == [["code server", "170"], ["daemon", "150"], ["webserver", "173"]]
    with pytest.raises(SystemExit, match="no asset"):
        startup.standing()
