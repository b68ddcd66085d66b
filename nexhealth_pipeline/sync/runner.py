"""Reading many slices: side by side under one budget, each one's failure its own."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import groupby

from nexhealth_pipeline.sync.children import ChildReader
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.reader import SliceReader
from nexhealth_pipeline.sync.reconcile import judge
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult

__all__ = ["read_slice", "run_slices"]


def read_slice(session: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
    """Read one slice. Raises WarehouseError; every other failure is in the result."""
    reader = ChildReader if piece.collection.per else SliceReader
    return reader(session, piece, options).read()


def run_slices(session: SyncSession, slices: Iterable[Slice], options: SyncOptions) -> Iterator[SliceResult]:
    """Read slices and hand out each result as it comes.

    Databases' owners go before their siblings, and both before lists under patients, which are read
    one slice after the other because each reads several patients at once. A reconcile then judges the
    absences of what it has read. Raises WarehouseError.
    """
    slices = list(slices)
    for rank, group in groupby(sorted(slices, key=lambda piece: piece.rank), key=lambda piece: piece.rank):
        width = 1 if rank == 2 else options.concurrency
        with ThreadPoolExecutor(width, thread_name_prefix="nexhealth-slice") as pool:
            futures = [pool.submit(read_slice, session, piece, options) for piece in group]
            try:
                for future in as_completed(futures):
                    result = future.result()
                    session.note(result)
                    yield result
            finally:
                for future in futures:
                    future.cancel()
    yield from judge(session, slices, options)
