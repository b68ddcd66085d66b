"""How far a sync has come: a bar on a terminal, a line now and then elsewhere, nothing where JSON is asked for.

Neither starts a thread: a sync forks, and is drawn only when it tells that something was committed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.launch import Progress

    Show = Callable[["Progress"], None]

__all__ = ["BarlessLines", "showing_progress"]

_LINE_SECONDS = 5.0
"""Between two lines where there is no terminal: a log of an hour stays readable."""


@contextmanager
def showing_progress(*, json: bool) -> Iterator["Show | None"]:
    """What to call with each Progress; None where nothing is to be shown."""
    if json:
        yield None
    elif sys.stderr.isatty():
        with _bar() as show:
            yield show
    else:
        yield BarlessLines()


@contextmanager
def _bar() -> Iterator["Show"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("reading"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slices"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
    )
    task = bar.add_task("", total=None)

    def show(progress: "Progress") -> None:
        bar.update(task, completed=progress.done, total=progress.planned or None, description=_latest(progress))
        bar.refresh()

    with bar:
        yield show


class BarlessLines:
    """A line on stdout when `every` seconds have passed since the last, and one at the end of all slices."""

    def __init__(self, every: float = _LINE_SECONDS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._next = clock() + every
        self._last = ""

    def __call__(self, progress: "Progress") -> None:
        """Tell of `progress` if it is time."""
        now = self._clock()
        if now < self._next:
            return
        line = f"{progress.done} of {progress.planned} slices read; {_latest(progress)}"
        if line != self._last:
            click.echo(line)
        self._last, self._next = line, now + self._every


def _latest(progress: "Progress") -> str:
    return f"{progress.label}: {progress.records:,} records on {progress.pages:,} pages" if progress.label else ""
