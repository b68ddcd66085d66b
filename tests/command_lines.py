"""Command lines that documentation and deployment files hold: whether the programs would take them."""

import click
from dagster._cli import create_dagster_cli
from dagster._daemon.cli import create_dagster_daemon_cli
from dagster_webserver.cli import create_dagster_webserver_cli

from nexhealth_pipeline.cli.app import cli

__all__ = ["OURS", "parse"]

OURS = ("nexhealth", "dagster", "dagster-daemon", "dagster-webserver")
"""Programs that an installation brings."""


def parse(line: list[str]) -> None:
    """Let click take a command line of one of :data:`OURS` apart, without running it. Raises UsageError."""
    programs: dict[str, click.Command] = {
        "nexhealth": cli,
        "dagster": create_dagster_cli(),
        "dagster-daemon": create_dagster_daemon_cli(),
        "dagster-webserver": create_dagster_webserver_cli(),
    }
    command, rest = programs[line[0]], line[1:]
    while isinstance(command, click.Group) and rest != ["--help"]:
        found = command.get_command(click.Context(command), rest[0])
        if found is None:
            raise click.UsageError(f"{' '.join(line)}: no command {rest[0]}")
        command, rest = found, rest[1:]
    command.make_context(line[0], rest, resilient_parsing=rest == ["--help"])
