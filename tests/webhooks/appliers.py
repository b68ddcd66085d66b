"""Runs that apply events as processes of their own (`tests.forks`), to be killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexhealth_pipeline.sync import fault_points
from nexhealth_pipeline.webhooks import applying
from tests.forks import Forks, forks, serve

from .kit import apply_all, settings_for


def work(url: str, output: str, point: str = "", batch: int = 20) -> int:
    """Apply what is pending, `batch` events a transaction, and die at `point` as NEXHEALTH_FAULT_POINT says it."""
    applying.BATCH = batch
    fault_points.armed = fault_points.killing(point) if point else None
    apply_all(settings_for(url))
    return 0


@contextmanager
def appliers(folder: Path) -> Iterator[Forks]:
    """What starts them."""
    with forks("tests.webhooks.appliers", folder) as started:
        yield started


if __name__ == "__main__":
    serve(work)
