"""Reading many slices: side by side under one budget, each one's failure its own."""

import logging
import queue
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from functools import partial

from nexhealth_pipeline.catalog.collections import nested_in
from nexhealth_pipeline.errors import PipelineError
from nexhealth_pipeline.sync.children import ChildReader
from nexhealth_pipeline.sync.months import month_keys, utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.order import Lane, Order, lane_of
from nexhealth_pipeline.sync.reader import SliceReader
from nexhealth_pipeline.sync.reconcile import judge
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.state import database_time

__all__ = ["read_slice", "run_slices"]

_log = logging.getLogger(__name__)
_MANY = 3
"""Slices at once of which none fetches while it encodes: the others do."""
_AHEAD = 2
"""Slices handed out for each that is read at once, so that nobody waits for whoever takes the results."""
_PAUSE_SECONDS = 0.5
"""For so long a lane has nothing else to do than to look again at a slice that another run reads."""
_JUDGED_BY = timedelta(days=2)
"""A reconcile that is gone on with does not judge by what was read longer ago, and reads it again: incremental reads may have
met since what a list lacked then, and where it has not changed they leave no trace."""


def read_slice(session: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
    """Read one slice. Raises WarehouseError where no other slice would fare better; every other failure is in the result."""
    reader = ChildReader if piece.collection.per else SliceReader
    return reader(session, piece, options).read()


def run_slices(
    session: SyncSession, slices: Iterable[Slice], options: SyncOptions, *, indexes: bool = True
) -> Iterator[SliceResult]:
    """Read slices and hand out each result as it comes, in the order and lanes of `sync.order`.

    A reconcile then judges the absences of what it has read. Tables filled for the first time get their indexes,
    unless the caller holds something that others wait for. Raises WarehouseError, after the results of what was under way.
    """
    slices = list(slices)
    session.refusals.clear()  # a right may have been granted since
    options = replace(_since_lately(session, _sharing(slices, options)), today=options.today or _day_of(slices))
    for result in _read_all(session, slices, options):
        session.note(result)
        yield result
    yield from judge(session, slices, options)
    if indexes and not options.dry_run:
        read = {piece.collection for piece in slices}
        session.index({one for outer in read for one in (outer, *nested_in(outer))})


def _day_of(slices: list[Slice]) -> date:
    """Today, or the last day of the month before: whose months these are, if a run was planned then and begins on a first."""
    today = utc_today()
    before = today - timedelta(days=1)
    newest = {piece.window_key for piece in slices} & {month_keys(before)[-1], month_keys(today)[-1]}
    return before if newest == {month_keys(before)[-1]} and before.month != today.month else today


def _since_lately(session: SyncSession, options: SyncOptions) -> SyncOptions:
    """The options of a reconcile that goes on with an old one. By when it begins, so that one that takes days has an end."""
    if not options.reconciles or options.fresh_after is None:
        return options
    with driver_errors("asking for the time"), session.pool.connection() as connection:
        oldest = database_time(connection) - _JUDGED_BY
    whole = options.whole_after and max(options.whole_after, oldest)
    return replace(options, fresh_after=max(options.fresh_after, oldest), whole_after=whole)


def _sharing(slices: list[Slice], options: SyncOptions) -> SyncOptions:
    """The options where so many slices are read at once: they share the pages that one alone may hold.

    So a load of sixteen locations, six at once, peaks at 185 MiB instead of 217, and takes 4 % longer. Where one of them is
    much longer than the others, its pages come one after the other in the end: encoding takes 15 ms each, an answer far more.
    """
    lanes = Counter(lane_of(piece) for piece in slices)
    # Lists under rows commit row by row.
    at_once = sum(min(lanes[lane], _width(lane, options)) for lane in Lane if lane is not Lane.UNDER_ROWS)
    shared = max(1, options.batch_pages // max(1, at_once))
    return replace(options, batch_pages=shared, fetch_ahead=options.fetch_ahead and at_once < _MANY)


def _read_all(session: SyncSession, slices: list[Slice], options: SyncOptions) -> Iterator[SliceResult]:
    """Once one has ended by an error no other is begun. It is raised when those under way have ended and been handed out:
    what they read is committed, and nobody else would tell of it.
    """
    order = Order(slices)
    failure: BaseException | None = None
    with _Lanes(session, options) as lanes:
        lanes.begin(order.ready())
        while lanes.busy:
            piece, future = lanes.ended()
            if future.cancelled():
                continue
            if (error := future.exception()) is not None:
                reason = str(error) if isinstance(error, PipelineError) else type(error).__name__
                told = {"slice": piece.label, "reason": reason}
                _log.warning("an error ends the run once the slices under way are read", extra={"nexhealth": told})
                failure = failure or error
                lanes.close()
            elif (result := future.result()).held and options.waits:
                lanes.put_off(piece)
            else:
                order.done(piece)
                yield result
            lanes.begin(order.ready())
    if failure is not None:
        raise failure


class _Lanes:
    """Slices on their way through the lanes, as a context; leaving it waits for those that are being read.

    One that another run reads gives way to all others of its lane: that run may have hours to go.
    """

    def __init__(self, session: SyncSession, options: SyncOptions) -> None:
        self._session, self._options = session, replace(options, waits=False)
        self._pools = {
            lane: ThreadPoolExecutor(_width(lane, options), thread_name_prefix="nexhealth-slice") for lane in Lane
        }
        self._waiting: dict[Lane, deque[Slice]] = {lane: deque() for lane in Lane}
        self._begun: Counter[Lane] = Counter()
        self._closed = False
        self._put_off: set[Slice] = set()
        self._ended: queue.SimpleQueue[tuple[Slice, Future[SliceResult]]] = queue.SimpleQueue()

    def __enter__(self) -> "_Lanes":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        for pool in self._pools.values():
            pool.shutdown()

    @property
    def busy(self) -> bool:
        """Whether any slice is to come to its end."""
        return self._begun.total() > 0

    def begin(self, ready: Iterable[Slice]) -> None:
        """Put slices at the end of their lanes, and begin as many as the lanes take; none once they are closed."""
        if self._closed:
            return
        for piece in ready:
            self._waiting[lane_of(piece)].append(piece)
        for lane, pool in self._pools.items():
            waiting = self._waiting[lane]
            # Not all at once: 22,000 futures took 60 MiB.
            while waiting and self._begun[lane] < _AHEAD * _width(lane, self._options):
                piece = waiting.popleft()
                read = _read_again if self._put_off and piece in self._put_off else read_slice  # a hash is slow
                future = pool.submit(read, self._session, piece, self._options)
                future.add_done_callback(partial(_end, self._ended, piece))
                self._begun[lane] += 1

    def ended(self) -> tuple[Slice, Future[SliceResult]]:
        """Wait for the next slice that comes to its end."""
        piece, future = self._ended.get()
        self._begun[lane_of(piece)] -= 1
        return piece, future

    def close(self) -> None:
        """Begin no more slices; those handed out that nobody has begun to read come to their end as cancelled."""
        self._closed = True
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def put_off(self, piece: Slice) -> None:
        """Let all that wait in its lane go before a slice that another run reads."""
        if piece not in self._put_off:
            told = {"slice": piece.label}
            _log.info("waiting for another run that reads this slice: others come first", extra={"nexhealth": told})
            self._put_off.add(piece)
        self._waiting[lane_of(piece)].append(piece)


def _read_again(session: SyncSession, piece: Slice, options: SyncOptions) -> SliceResult:
    """As `read_slice`, of one that another run was found to read; takes a moment where it still does."""
    result = read_slice(session, piece, options)
    if result.held:
        session.stop.wait(_PAUSE_SECONDS)
    return result


def _end(
    ended: "queue.SimpleQueue[tuple[Slice, Future[SliceResult]]]", piece: Slice, future: Future[SliceResult]
) -> None:
    ended.put((piece, future))


def _width(lane: Lane, options: SyncOptions) -> int:
    """Slices of a lane that are read at once."""
    return 1 if lane is Lane.UNDER_ROWS else options.concurrency
