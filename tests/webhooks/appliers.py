"""Runs that apply events as processes of their own (`tests.forks`), to be killed."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nexhealth_pipeline.sync import fault_points
from nexhealth_pipeline.sync.practice import Practices
from nexhealth_pipeline.webhooks.applying import apply, batches, hints, reading
from nexhealth_pipeline.webhooks.applying.batches import Answered
from nexhealth_pipeline.webhooks.applying.pending import Mark, Outcome, StoredEvent
from nexhealth_pipeline.webhooks.applying.reading import Told
from tests.forks import Forks, forks, serve

from .kit import apply_all, settings_for


def work(
    url: str, output: str, point: str = "", batch: int = 20, deadly: str = "", asked: str = "", attempts: str = "5"
) -> int:
    """Apply what is pending, `batch` events a transaction, and die at `point` as NEXHEALTH_FAULT_POINT says it.

    Or at an event: `deadly` is in its payload, or it is one that the API is `asked` for.
    """
    apply.BATCH = batch  # type: ignore[attr-defined]  # replaced where it is used, in this process, which ends by it
    if deadly:
        batches.read_event = _dying_at(deadly, reading.read_event)  # type: ignore[attr-defined]  # likewise
    if asked:
        hints.HintReader.read = _asking_dies_at(asked)  # type: ignore[method-assign]  # likewise
    fault_points.armed = fault_points.killing(point) if point else None
    apply_all(settings_for(url, NEXHEALTH_WEBHOOK_ATTEMPTS=attempts))
    return 0


def _dying_at(word: str, read: Callable[[StoredEvent, Practices], Told | Mark]) -> Callable[..., Told | Mark]:
    def deadly(event: StoredEvent, practices: Practices) -> Told | Mark:
        if word in (event.payload or ""):
            os.kill(os.getpid(), signal.SIGKILL)
        return read(event, practices)

    return deadly


def _asking_dies_at(word: str) -> Callable[..., Answered]:
    def deadly(reader: hints.HintReader, told: Sequence[Told]) -> Answered:
        if any(word in (one.event.payload or "") for one in told):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Mark(one.event.id, Outcome.APPLIED) for one in told], 0, []

    return deadly


@contextmanager
def appliers(folder: Path) -> Iterator[Forks]:
    """What starts them."""
    with forks("tests.webhooks.appliers", folder) as started:
        yield started


if __name__ == "__main__":
    serve(work)
