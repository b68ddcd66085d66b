"""The processes that a command starts beside itself, and their common end.

Each is the head of a process group of its own, so that Ctrl-C in a terminal reaches only the command,
which then ends them in order; grandchildren end with their group. See :mod:`.reaper` for the end.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from nexhealth_pipeline.cli import reaper
from nexhealth_pipeline.errors import PipelineError

_STDERR = 2
"""What the processes say goes there: standard output is for what the command itself has to say."""

_Handler = Callable[[int, FrameType | None], Any] | int | None
"""What :func:`signal.getsignal` gives."""

__all__ = ["Household", "end_like_interrupt", "nexhealth_command"]


def nexhealth_command(*args: str) -> list[str]:
    """The command line of `nexhealth args` with this interpreter; a module in the working folder cannot hide ours."""
    return [sys.executable, "-P", "-m", "nexhealth_pipeline.cli", *args]


class Household:
    """Starts processes; all of them and their children have ended when the context ends.

    `grace` is how many seconds they get to end by themselves. Has no threads: the command may fork.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._members: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._reaper = subprocess.Popen(
            [sys.executable, "-I", "-S", reaper.__file__, str(self._grace)],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(BrokenPipeError):  # the reaper was killed, and never read the last group
            self._notes().close()
        groups = [member.pid for member in self._members.values()]
        try:
            self._reaper.wait()
        except KeyboardInterrupt:  # the user does not want to wait
            reaper.end_groups(groups, 0)
            self._reaper.wait()
        if self._reaper.returncode:  # it was killed
            reaper.end_groups(groups, self._grace)
        for member in self._members.values():
            member.wait()
            if member.stdout is not None:
                member.stdout.close()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        answers: bool = False,
    ) -> None:
        """Start a process called `name` in `folder`; with `answers` its standard output is for :meth:`answer`.

        Raises PipelineError where the reaper was killed: what was started would outlive a command that is killed too.
        """
        with _end_put_off():  # or one could come when the process runs and nobody knows its number
            member = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if answers else _STDERR,
                env=dict(os.environ if environment is None else environment),
                cwd=folder,
                start_new_session=True,
            )
            self._members[name] = member
            try:
                self._notes().write(f"{member.pid}\n".encode())
                self._notes().flush()
            except BrokenPipeError:
                raise PipelineError(
                    f"the {name} is not started: the process that would end it was killed; start the command again"
                ) from None

    def answer(self, name: str, within: float) -> str:
        """The first line that `name` prints. Raises PipelineError where it ends, or says nothing, within so many s."""
        stream = self._members[name].stdout
        assert stream is not None
        deadline = time.monotonic() + within
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(stream.fileno(), 4096) if ready else b""
            if not part:
                raise PipelineError(f"the {name} does not start: see its messages above")
            line += part
        return line.decode().strip()

    def ended(self) -> str | None:
        """Name of a process that ended by itself, or None."""
        return next((name for name, member in self._members.items() if member.poll() is not None), None)

    def _notes(self) -> IO[bytes]:
        assert self._reaper.stdin is not None
        return self._reaper.stdin


@contextmanager
def _end_put_off() -> Iterator[None]:
    """A signal that would end this process comes after what is within, or before it.

    Not by a mask, which the processes started within would keep.
    """
    came: list[int] = []
    before: dict[int, _Handler] = {}

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if handler not in (signal.SIG_IGN, None):
                before[number] = handler  # first: one of the others may come as soon as this one is put off
                signal.signal(number, note)
        yield
    finally:
        _put_back(before)
        if came:
            signal.raise_signal(came[0])


def _put_back(handlers: Mapping[int, _Handler]) -> None:
    """Set the handlers, each of them: one that is back may end this before the others are, which would stay deaf."""
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except BaseException:
        _put_back(handlers)
        raise


def end_like_interrupt() -> None:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does, through every `finally`; not where they are ignored."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`
            signal.signal(number, signal.default_int_handler)
