"""`nexhealth sandbox`, and the sandbox process that `demo` and `dev` start."""

import sys
from pathlib import Path

import click

from nexhealth_pipeline.cli.household import Household, nexhealth_command
from nexhealth_pipeline.cli.options import HOST
from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["sandbox", "start_sandbox", "state_folder"]

_START_SECONDS = 60.0
"""Longest time to make the synthetic practices (measured: 2 s)."""


@click.command()
@click.option(
    "--host", type=HOST, default="127.0.0.1", show_default=True, help="Address to listen on; it asks for no real key."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8089, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--seed", type=int, help="Which synthetic practices; the same number makes the same ones.")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that keeps the practices and every change made to them; without it they are made anew each time.",
)
@click.option("--limits/--no-limits", default=True, show_default=True, help="NexHealth's documented rate limits.")
def sandbox(host: str, port: int, seed: int | None, state: Path | None, *, limits: bool) -> None:
    """Serve a local NexHealth until Ctrl-C.

    Synthetic practices behind NexHealth's API.

    Prints its address on stdout, and how to use it on stderr.
    """
    from nexhealth_pipeline.sandbox import NoListeningError, serve

    try:
        serve(host, port, seed, state, limits=limits, on_ready=_announce)
    except ValueError as error:
        raise InvalidSetting(f"--state {str(state)!r}: {error}") from None
    except NoListeningError as error:
        raise InvalidSetting(f"--host {host} --port {port}: cannot be listened on ({error.strerror})") from None


def _announce(url: str) -> None:
    from nexhealth_pipeline.sandbox import SANDBOX_API_KEY

    click.echo(url)
    if not sys.stdout.isatty():  # a program reads the address
        return
    click.echo(
        "The sandbox serves until Ctrl-C. To sync it, in another shell:\n"
        f"  export NEXHEALTH_API_URL={url} NEXHEALTH_API_KEY={SANDBOX_API_KEY} NEXHEALTH_DATA_KIND=sandbox\n"
        f"  nexhealth sync\nWhat else it can do (changes, faults, request log): {url}/sandbox/stats",
        err=True,
    )


def state_folder(home: Path) -> Path:
    """Where the demo's sandbox keeps its practices between runs."""
    return home / "sandbox"


def start_sandbox(household: Household, home: Path) -> str:
    """Start the demo's sandbox as a process of `household`; returns its address once it can be asked.

    Raises InvalidSetting where another one serves its practices, PipelineError where it does not start.
    """
    from nexhealth_pipeline.sandbox import holder_of

    folder = state_folder(home)
    if (holder := holder_of(folder)) is not None:
        raise InvalidSetting(
            f"the demo's local NexHealth is already served by process {holder or '(unknown)'}: end the `nexhealth demo`"
            " or `nexhealth dev --demo` that started it, or set NEXHEALTH_HOME to another folder"
        )
    command = nexhealth_command("sandbox", "--port", "0", "--state", str(folder))
    household.start("sandbox", command, answers=True)
    return household.answer("sandbox", _START_SECONDS)
