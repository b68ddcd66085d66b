"""All commands in one group, and the one place where a command's end becomes an exit status.

0 done; 1 done with something new to look at; 2 wrong use or configuration; 3 no slice could be read;
4 the database could not be used; 130 stopped by the user; 141 the reader of its output went away, as
for any program (`nexhealth status | head`). An error is one line on stderr.
"""

import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from nexhealth_pipeline.cli.database import database
from nexhealth_pipeline.cli.demo import demo
from nexhealth_pipeline.cli.dev import dev
from nexhealth_pipeline.cli.doctor import doctor
from nexhealth_pipeline.cli.quarantine import quarantine
from nexhealth_pipeline.cli.sandbox import sandbox
from nexhealth_pipeline.cli.serve import serve
from nexhealth_pipeline.cli.status import status
from nexhealth_pipeline.cli.sync import sync
from nexhealth_pipeline.cli.webhooks import webhooks
from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.log import places, printable

__all__ = ["STOPPED", "cli", "main"]

STOPPED = 130
"""Exit status after Ctrl-C, but for what goes on until then."""
_LEVEL = "NEXHEALTH_LOG_LEVEL"


class _ReaderGone(BaseException):
    """Whoever read our output has enough. Of a BrokenPipeError click would make status 1, which means something here."""


@contextmanager
def _kept_from_click() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise _ReaderGone from None


class _Nexhealth(click.Group):
    """The group of all commands, listed as they were added: what one needs first comes first."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the command line; `--help` prints here."""
        if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":  # https://no-color.org; click asks neither
            kwargs["color"] = False
        with _kept_from_click():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _kept_from_click():
            return super().invoke(ctx)


@click.group(cls=_Nexhealth, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="nexhealth-pipeline", message="%(version)s")
def cli() -> None:
    """Copies a dental practice's data out of NexHealth into PostgreSQL and keeps the copy right.

    Without an account, begin with `nexhealth demo`; with one, set NEXHEALTH_API_KEY and DATABASE_URL
    (or put them into .env), then `nexhealth doctor` and `nexhealth sync`.
    """


for _command in (demo, sync, status, quarantine, doctor, dev, serve, webhooks, database, sandbox):
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (those of the process) and return its exit status."""
    _open_streams()
    try:
        return _run(args)
    except (_ReaderGone, BrokenPipeError):
        return _reader_gone()


def _open_streams() -> None:
    """Let every command find three streams that take what it has to say.

    Where the caller closed one (`>&-`, as some service managers do) Python has None, and the first file or connection
    opened would get its number, which every child takes for its own stream. A name that the terminal's encoding lacks
    is no reason to print nothing.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)  # gets `number`, the lowest that is free
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")


def _run(args: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=None if args is None else list(args), prog_name="nexhealth", standalone_mode=False)
    except PipelineError as error:
        return _say(str(error), error.exit_status)
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _say(error.format_message(), 2)
    except (KeyboardInterrupt, click.Abort):
        return _say("stopped", STOPPED)
    except Exception as error:  # the last line of defence: never a traceback with values
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def _say(text: str, exit_status: int) -> int:
    click.echo(f"nexhealth: {printable(text, lines=True)}", err=True)
    return exit_status


def _unexpected(error: BaseException) -> int:
    """One line for a bug: type and place. Its message may quote a row, so it is never shown."""
    passed = places(error)
    where = f" at {passed[-1]}" if passed else ""
    if logging.getLogger("nexhealth_pipeline").level == logging.DEBUG or os.environ.get(_LEVEL) == "DEBUG":
        for place in passed:
            click.echo(f"  {place}", err=True)
        hint = "this is a bug; report the lines above"
    else:
        hint = f"this is a bug; {_LEVEL}=DEBUG shows the way there"
    return _say(f"unexpected {type(error).__name__}{where}: {hint}", 1)


def _reader_gone() -> int:
    """Let go of what could not be printed, or Python would try again at its end, and say so."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return 128 + signal.SIGPIPE
