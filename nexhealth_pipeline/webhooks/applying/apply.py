"""Applying stored events: everything that is pending, batch after batch, each in one transaction with its marks.

Events that hold their record are loaded; those that only tell of a change have the API asked again
(`hints`). Several processes may do so at once: each passes over what another has taken.

A run whose work broke off (`failures`) leaves its events counted, so that they are taken again few at a time, then
alone (`taking`). Two things keep innocent ones from being given up for that. The same server must answer: one
that was started anew is why its connections ended. And an event comes to its last taking only by a run that has
applied others: where nothing can be applied, the host or the server is to blame, for however many runs. That MemoryError
counts so, although it may be nobody's fault, is decided with that in mind: the kernel's way to say the same always did.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial

import psycopg

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import PipelineError, WarehouseError
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.webhooks.applying.batches import Batch, Batches
from nexhealth_pipeline.webhooks.applying.failures import broke_off, in_words
from nexhealth_pipeline.webhooks.applying.hints import HintReader
from nexhealth_pipeline.webhooks.applying.log_book import LogBook
from nexhealth_pipeline.webhooks.applying.pending import BATCH, Outcome, newest_id
from nexhealth_pipeline.webhooks.applying.single_reads import SingleReads, children_of
from nexhealth_pipeline.webhooks.applying.taking import (
    LEAST_TAKINGS,
    abandoned,
    dead_takers,
    give_back,
    leave,
    take_abandoned,
    take_hints,
    take_new,
)
from nexhealth_pipeline.webhooks.applying.touched import AppliedSlice, Touched
from nexhealth_pipeline.webhooks.applying.vouching import Vouchers

__all__ = ["PATIENCE", "AppliedSlice", "Batch", "apply_pending"]

_log = logging.getLogger(__name__)

PATIENCE = RetryPolicy(attempts=4, patience_seconds=30.0)
"""For the session of such a run: while the API is away its events wait in the table, not in a client, and others flow."""

_HINTS = 2000
"""Events that the API is asked again for at once."""
_MOST_SINGLES = 200
"""Single reads of changed rows in one go: each costs a request, and the nightly sync makes the others."""
_GIVE_BACK_SECONDS, _RECOVERY_SECONDS = 5.0, 30.0
"""How long a server is waited for to take events back; in the latter it recovers from a crash, or is restarted. Else its
events are as those of a process that was killed."""
_PAUSE_SECONDS = 0.1
"""Between two tries to do so."""
_LONGEST = 120.0
"""Seconds after which a run begins no further round: events that keep coming are the next run's."""


def apply_pending(
    session: SyncSession,
    *,
    limit: int | None = None,
    on_batch: Callable[[Batch], None] | None = None,
    leaving: Iterable[str] = (),
) -> Iterator[AppliedSlice]:
    """Apply pending events, at most `limit`; the slices they changed, once all are done.

    Events that come meanwhile are applied as well; those of the subdomains in `leaving` are left as they are, for another
    process. Without that, one whose institution the settings leave out is superseded. `on_batch` is told of each transaction
    after its commit.
    Setting the session's `stop` ends it between two batches. Raises WarehouseError; an event that cannot be
    applied raises nothing, it is tried again later and parked in the end.
    """
    with driver_errors("applying webhook events"), session.pool.connection() as connection:
        applier = _Applier(session, connection, limit, on_batch, leaving)
        try:
            applier.run()
        except BaseException as failure:
            applier.give_back(failure)
            if isinstance(failure, Exception):
                # What was committed before is told all the same, where the database is still there to ask.
                with suppress(psycopg.Error, PipelineError):
                    yield from applier.ended()
            raise
        yield from applier.ended()


class _Applier:
    def __init__(
        self,
        session: SyncSession,
        connection: psycopg.Connection,
        limit: int | None,
        on_batch: Callable[[Batch], None] | None,
        leaving: Iterable[str],
    ) -> None:
        practices = session.practices()
        self._session = session
        self._connection = connection
        self._server = _started(connection)
        self._left = limit
        self._on_batch = on_batch
        self._leaving = list(leaving)
        self._log_book = LogBook(session.run_id)
        self._batches = Batches(
            *(connection, practices, Vouchers(connection, session.client)),
            run_id=session.run_id,
            most_attempts=session.settings.webhook_attempts,
        )
        self._batches.before_commit = lambda batch: self._log_book.write(connection, batch)
        self._batches.after_commit = self._committed
        self.touched = Touched(practices)
        single_reads = SingleReads(session, connection)
        self._single_reads = single_reads
        self._hint_reader = HintReader(session, connection, practices, self.touched, single_reads)
        self._most_takings = max(session.settings.webhook_attempts, LEAST_TAKINGS)
        self._fared_well = False
        """Whether it has applied any event."""
        self._hints: list[int] = []
        """Events that wait until those with records are done."""
        self._changed: dict[tuple[str, Institution], set[int]] = {}
        """Rows that events have changed, whose own lists may be due."""
        self._in_work: Sequence[int] = ()
        """Events that were taken and are being worked on."""
        self._singles = _MOST_SINGLES
        self._upto = 0
        self._began = time.monotonic()

    def run(self) -> None:
        """Rounds until nothing is pending: events that hold records, then those that only tell of a change."""
        while not self._done() and (upto := newest_id(self._connection)) > self._upto:
            self._upto = upto
            for retried in (False, True):
                self._load_all(retried)
            self._ask_again()
            self._read_children()
            # Last, for one of them may end this process as well.
            self._take_up()
            self._read_children()

    def ended(self) -> Iterator[AppliedSlice]:
        """Close the log of what was applied, and tell its slices."""
        self._log_book.close(self._connection)
        self.touched.record(self._connection)
        yield from self.touched.slices(self._connection)

    def give_back(self, failure: BaseException) -> None:
        """Leave no event taken by a process that lives on; where the database is away there is nobody to tell."""
        if not self._in_work:
            return
        counts = broke_off(failure) and not self._session.stop.is_set()
        deadline = time.monotonic() + (_RECOVERY_SECONDS if counts else _GIVE_BACK_SECONDS)
        # Again, for a server that crashes ends the connections that are left one after the other.
        while (seconds := deadline - time.monotonic()) > 0:
            try:
                with self._session.pool.connection(timeout=seconds) as connection:
                    self._give_back(connection, failure, counts=counts)
            except psycopg.OperationalError:
                time.sleep(_PAUSE_SECONDS)
                continue
            except (psycopg.Error, WarehouseError):
                pass  # nor would it fare better the next time
            return

    def _give_back(self, connection: psycopg.Connection, failure: BaseException, *, counts: bool) -> None:
        if counts and _started(connection) == self._server:
            self._leave(connection, in_words(failure))
        else:
            give_back(connection, self._session.run_id, self._in_work)

    def _leave(self, connection: psycopg.Connection, reason: str) -> None:
        at_most = self._most_takings if self._fared_well else self._most_takings - 1
        leave(connection, self._session.run_id, self._in_work, at_most=at_most, reason=reason)
        given = {"events": len(self._in_work), "first": self._in_work[0], "reason": reason}
        _log.warning("the work on events broke off", extra={"nexhealth": given})

    def _done(self) -> bool:
        late = time.monotonic() - self._began > _LONGEST
        return self._session.stop.is_set() or late or (self._left is not None and self._left <= 0)

    def _goes_on(self) -> bool:
        return not self._session.stop.is_set() and (self._left is None or self._left > 0)

    def _most(self) -> int:
        return BATCH if self._left is None else min(BATCH, self._left)

    def _load_all(self, retried: bool) -> None:
        while self._goes_on():
            ids = take_new(
                self._connection,
                self._session.run_id,
                upto=self._upto,
                without=self._hints,
                retried=retried,
                limit=self._most(),
                leaving=self._leaving,
            )
            if not ids:
                return
            self._work(ids, self._batches.apply)

    def _work(self, ids: Sequence[int], work: Callable[[Sequence[int]], object]) -> None:
        """Do something with events just taken; those it comes to no end with, for a wish to stop say, are taken no more."""
        self._in_work = ids
        work(ids)
        give_back(self._connection, self._session.run_id, ids)
        self._in_work = ()

    def _take_up(self) -> None:
        """Apply what processes had taken that are gone: the more often, the fewer at a time; at last give it up."""
        if not self._goes_on():
            return  # looking for them reads all that is pending, which may be much
        dead = dead_takers(self._connection)
        for times in abandoned(self._connection, upto=self._upto, dead=dead):
            while self._goes_on():
                ids = take_abandoned(
                    self._connection,
                    self._session.run_id,
                    upto=self._upto,
                    times=times,
                    dead=dead,
                    limit=self._most(),
                    leaving=self._leaving,
                )
                if not ids:
                    break
                if times >= self._most_takings:
                    reason = f"taken {times} times, its run ended each time"
                    self._work(ids, partial(self._batches.settle, outcome=Outcome.PARKED, reason=reason))
                    continue
                self._work(ids, self._batches.apply)
                self._ask_again()

    def _ask_again(self) -> None:
        """Ask the API because of events that only tell of a change: once for all of them."""
        hints, self._hints = self._hints, []
        for at in range(0, len(hints), _HINTS):
            if not self._session.stop.is_set():
                ids = take_hints(self._connection, self._session.run_id, hints[at : at + _HINTS])
                if not ids:
                    continue
                self._work(ids, partial(self._batches.ask, read=self._hint_reader.read))

    def _read_children(self) -> None:
        """Read what comes with the single read of changed rows, up to a number a run."""
        changed, self._changed = self._changed, {}
        for (name, institution), rows in changed.items():
            for child in children_of(COLLECTIONS[name]):
                if self._singles > 0 and not self._session.stop.is_set():
                    due = self._single_reads.due(child, institution, rows, self._singles)
                    self._singles -= len(due)
                    with self._connection.transaction():
                        done = self._single_reads.read(child, institution, due)
                    self._tell(Batch(lists=[done]))

    def _committed(self, batch: Batch) -> None:
        self._log_book.committed(batch)
        self._fared_well |= batch.applied + batch.superseded > 0
        self._hints += batch.hints
        if self._left is not None:
            self._left -= batch.claimed - len(batch.hints)
        for loaded in batch.loaded:
            self.touched.add(self._connection, loaded)
            if children_of(loaded.collection):
                changed = self._changed.setdefault((loaded.collection.name, loaded.institution), set())
                changed.update(loaded.done.holders)
        self._tell(batch)

    def _tell(self, batch: Batch) -> None:
        if self._on_batch is not None:
            self._on_batch(batch)


def _started(connection: psycopg.Connection) -> datetime | None:
    """When the server was started; a crash of one of its processes does not change that."""
    row = connection.execute("SELECT pg_postmaster_start_time()").fetchone()
    return row[0] if row else None
