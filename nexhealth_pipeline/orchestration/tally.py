"""How far forked runs are that write nothing: a dry run leaves no row from which its parent could tell."""

import mmap

from nexhealth_pipeline.sync.slices import SliceResult

__all__ = ["Tally"]

_FIGURES = 3
"""Slices, pages and records."""
_BYTES = 8


class Tally:
    """Sums that forked children count and their parent reads, in memory they share: make it before the fork.

    Each run has figures of its own, so that no child needs a lock.
    """

    def __init__(self, runs: int) -> None:
        self._figures = memoryview(mmap.mmap(-1, max(1, runs) * _FIGURES * _BYTES)).cast("q")

    def count(self, run: int, result: SliceResult) -> None:
        """Add what came of a slice of the run at that place; judging absences reads no slice."""
        first = run * _FIGURES
        self._figures[first] += result.absence is None
        self._figures[first + 1] += result.counts.pages
        self._figures[first + 2] += result.counts.records_read

    def sums(self) -> tuple[int, int, int]:
        """Slices, pages and records of all runs so far."""
        slices, pages, records = (sum(self._figures[place::_FIGURES]) for place in range(_FIGURES))
        return slices, pages, records
