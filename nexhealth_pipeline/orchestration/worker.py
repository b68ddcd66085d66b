"""Work on a thread of its own while the step's own thread reports, and notices that the run is to stop.

Dagster's handlers raise at any point of a step's thread when the run is stopped, even inside a database
call; on this thread they cannot.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

import dagster as dg
from dagster._utils.interrupts import check_captured_interrupt

from nexhealth_pipeline.orchestration.event_log import AWAY

__all__ = ["ENDING", "Context", "Watch", "Worker", "done_aside"]

Context = dg.AssetExecutionContext | dg.OpExecutionContext | dg.AssetCheckExecutionContext
ENDING = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
"""What Dagster says of a run that is to stop."""

_LOG = logging.getLogger(__name__)

_T = TypeVar("_T")
_POLL_SECONDS = 0.2
_STATUS_SECONDS = 5.0


class _End:
    """The work has ended: by an error, or by itself."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class Worker(Generic[_T]):
    """Does `work` on its thread and hands out what that yields. Leaving the context early sets `stop`."""

    def __init__(self, work: Callable[[], Iterable[_T]], stop: threading.Event) -> None:
        self._work, self._stop = work, stop
        self._done: queue.Queue[_T | _End] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="nexhealth-work")

    def __enter__(self) -> "Worker[_T]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stop.set()
        self._thread.join()

    def batches(self, told_to_stop: Callable[[], bool], *, idle: bool = False) -> Iterator[list[_T]]:
        """Results as they come, several at once where they come fast. Raises what ended the work.

        `idle`: where none came for a moment, hand out an empty list as well.
        """
        while True:
            if not self._stop.is_set() and told_to_stop():
                self._stop.set()
            batch, end = self._drain()
            if batch or (idle and end is None):
                yield batch
            if end is not None and end.error is not None:
                raise end.error
            if end is not None:
                return

    def _drain(self) -> tuple[list[_T], _End | None]:
        batch: list[_T] = []
        with suppress(queue.Empty):
            item = self._done.get(timeout=_POLL_SECONDS)
            while not isinstance(item, _End):
                batch.append(item)
                item = self._done.get_nowait()
            return batch, item
        return batch, None

    def _run(self) -> None:
        try:
            for result in self._work():
                self._done.put(result)
            self._done.put(_End())
        except BaseException as error:
            self._done.put(_End(error))


class Watch:
    """Whether the run is to stop: by a signal, or because Dagit says so (a command's run has no launcher to tell it)."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._looked = time.monotonic()
        self._lost = 0

    def __call__(self) -> bool:
        """Look, at most every few seconds, and say.

        A look that fails says no: Dagster's database may be away for a moment of a sync of hours.
        """
        if check_captured_interrupt():
            return True
        if time.monotonic() - self._looked < _STATUS_SECONDS:
            return False
        try:
            run = self._context.instance.get_run_by_id(self._context.run.run_id)
        except AWAY:
            self._lost += 1
            return False
        finally:
            self._looked = time.monotonic()
        if self._lost:
            # Not said when it was lost: a line of the log goes to the same database.
            fields = {"lost_looks": self._lost}
            _LOG.warning("Dagster's database is there again", extra={"nexhealth": fields})
            self._lost = 0
        return run is not None and run.status in ENDING


def done_aside(context: Context, work: Callable[[], _T], stop: threading.Event) -> _T:
    """What `work` returns, done on a thread of its own; sets `stop` when the run is stopped. Raises what it raises."""
    results: list[_T] = []
    with Worker(lambda: iter((work(),)), stop) as worker:
        for batch in worker.batches(Watch(context)):
            results += batch
    return results[0]
