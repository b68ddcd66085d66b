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

__all__ = ["BarlessLines", "look_seconds", "showing_progress"]

_LINE_SECONDS = 5.0
"""Between two lines where there is no terminal: a log of an hour stays readable."""
_BAR_SECONDS = 0.5
"""Between two states of the bar."""


def look_seconds() -> float:
    """How often to look how far a sync is: as often as something is shown."""
    return _BAR_SECONDS if sys.stderr.isatty() else _LINE_SECONDS


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
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    # All of 80 columns are little for this. What gives way is the end of the sums: a column that may wrap would be
    # squeezed to nothing first.
    bar = Bar(
        TextColumn("reading"),
        BarColumn(bar_width=10),
        TextColumn("{task.fields[slices]}"),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
        console=Console(stderr=True),
        auto_refresh=False,
        transient=True,
        expand=True,
    )
    task = bar.add_task("", total=None, slices="")

    def show(progress: "Progress") -> None:
        done = f"{progress.done:>{len(str(progress.planned))}}/{progress.planned} slices" if progress.planned else ""
        bar.update(
            task,
            completed=progress.done,
            total=progress.planned or None,
            description=_totals(progress),
            slices=done,
        )
        bar.refresh()

    with bar:
        yield show


class BarlessLines:
    """A line on stdout whenever `every` seconds have passed."""

    def __init__(self, every: float = _LINE_SECONDS, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._every, self._clock = every, clock
        self._next = clock() + every
        self._last: Progress | None = None

    def __call__(self, progress: "Progress") -> None:
        """Tell of `progress` if it is time."""
        now = self._clock()
        if now < self._next:
            return
        slices = f"{progress.done} of {progress.planned} slices, " if progress.planned else ""
        stands = _why_it_stands(progress) if progress == self._last else ""
        click.echo(f"{slices}{_totals(progress)}{stands}")
        self._last, self._next = progress, now + self._every


def _why_it_stands(progress: "Progress") -> str:
    if progress.by_page:
        return " (waiting for the rate limits, or for an answer)"
    return " (each slice is counted when it ends)"


def _totals(progress: "Progress") -> str:
    latest = f"; {progress.label}" if progress.label else ""
    return f"{progress.records:,} records on {progress.pages:,} pages{latest}"
