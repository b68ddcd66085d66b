"""Reading slices inside a Dagster step: what is planned, what is reported as each slice ends.

A materialization says "read completely, current as of"; whatever else was read is an observation, so
that the counts in Dagster add up to those of `nexhealth_sync_logs`. Events are written in batches
(0.4 ms instead of 3.6 ms each, measured). The body must not yield while it works: a step's generator
runs under handlers that raise at any point when the run is stopped, even inside a database call.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.events import (
    AssetMaterializationPlannedData,
    AssetObservationData,
    DagsterEvent,
    DagsterEventBatchMetadata,
    DagsterEventType,
    generate_event_batch_id,
)
from dagster._core.execution.context.system import StepExecutionContext
from dagster._utils.interrupts import capture_interrupts, check_captured_interrupt

from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.orchestration.metadata import result_metadata
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status

__all__ = ["Listener", "chosen_partitions", "listen", "one_line_failures", "read_slices"]

Context = dg.AssetExecutionContext | dg.OpExecutionContext
Event = dg.AssetMaterialization | dg.AssetObservation
Listener = Callable[[SliceResult], None]

_listeners: list[Listener] = []
_PROGRESS_SECONDS = 15.0


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Hand every result of runs in this process to `listener`: how a command learns what its run did."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def one_line_failures() -> Iterator[None]:
    """End the step by one line that says what to do, instead of a traceback."""
    try:
        yield
    except PipelineError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from None


def chosen_partitions(context: dg.AssetExecutionContext, keys: Sequence[str]) -> list[str]:
    """The run's partitions: those of its tags, else `keys` of its config, which are planned here."""
    if context.get_step_execution_context().has_partitions:
        return list(context.partition_keys)
    _plan(context, keys)
    return list(keys)


def read_slices(
    context: Context,
    session: SyncSession,
    slices: Sequence[Slice],
    options: SyncOptions,
    stop: threading.Event,
    events_of: Callable[[SliceResult], Iterable[Event]],
) -> list[SliceResult]:
    """Read `slices` and report each as it ends. Ends the run as canceled when it is stopped.

    Raises Failure naming the slices that failed, after all others were read; WarehouseError.
    """
    done: queue.Queue[SliceResult | BaseException | None] = queue.Queue()
    results: list[SliceResult] = []
    progress = _Progress(context, len(slices))
    with capture_interrupts():
        worker = threading.Thread(target=_work, args=(session, slices, options, done), name="nexhealth-slices")
        worker.start()
        try:
            for batch in _batches(done, stop, options.dry_run or _canceled(context)):
                results += batch
                _report(context, [event for result in batch for event in events_of(result)])
                progress.tell(results)
                for listener in _listeners:
                    for result in batch:
                        listener(result)
        finally:
            stop_on_error = worker.is_alive()
            if stop_on_error:
                stop.set()
            worker.join()
    if stop.is_set():
        _end_canceled(context)
    _raise_failures(results)
    return results
