"""Dagster runs that a command executes in a process of its own: how the daemon is told to leave them alone."""

from collections.abc import Mapping

__all__ = ["COMMAND_TAGS", "is_of_a_command"]

COMMAND_TAGS: Mapping[str, str] = {
    # Without it the run shows under Runs, but not under its job.
    ".dagster/repository": "__repository__@nexhealth_pipeline",
    # It takes as long as its records or events do: a daemon must not end it when the time of its own runs is up.
    "dagster/max_runtime": "0",
    "nexhealth/by": "command",
}
"""Tags of each such run."""


def is_of_a_command(tags: Mapping[str, str]) -> bool:
    """Whether a run with these tags is a command's, which no launcher has started."""
    return tags.get("nexhealth/by") == COMMAND_TAGS["nexhealth/by"]
