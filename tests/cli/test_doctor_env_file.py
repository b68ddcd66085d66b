"""What `nexhealth doctor` says where `.env` and the environment contradict each other."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run


def said(nexhealth: Run, **environment: str) -> list[dict[str, Any]]:
    """Findings about `.env`. Without a key NexHealth is not asked."""
    ended = nexhealth("doctor", "--json", **environment)
    return [one for one in json.loads(ended.out)["findings"] if one["check"] == "env_file"]


def test_settings_that_differ_are_named_without_their_values(nexhealth: Run, database_url: str) -> None:
    """Syncs of the shell went into one database and those of the night into another, and neither said so."""
    Path(".env").write_text(
        "DATABASE_URL=postgresql://me:word-of-the-file@there/other\nDAGSTER_HOME=/elsewhere\nNEXHEALTH_LOG_LEVEL=INFO\n"
        "NEXHEALTH_CONCURRENCY=\nPATH=/none\nNEXHEALTH_RATE_SHARE=0.5\n"
    )
    (found,) = said(
        nexhealth,
        DATABASE_URL=database_url,
        DAGSTER_HOME="/here",
        NEXHEALTH_LOG_LEVEL="INFO",
        NEXHEALTH_CONCURRENCY="3",
    )
    assert (found["level"], found["group"]) == ("warning", "settings")
    assert " DAGSTER_HOME, DATABASE_URL, NEXHEALTH_CONCURRENCY: " in found["message"]
    assert "word-of-the-file" not in json.dumps(found)
    assert database_url not in json.dumps(found)


@pytest.mark.parametrize(
    "content", ["", "NEXHEALTH_LOG_LEVEL=INFO\nNEXHEALTH_CONCURRENCY=3\n", "NEXHEALTH_CONCURRENCY\n"]
)
def test_what_stands_in_one_place_or_is_the_same_in_both_is_no_reason_to_warn(
    nexhealth: Run, database_url: str, content: str
) -> None:
    Path(".env").write_text(content)
    assert said(nexhealth, DATABASE_URL=database_url, NEXHEALTH_CONCURRENCY="3", NEXHEALTH_LOG_LEVEL="") == []
