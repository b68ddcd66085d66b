"""One batch of events that were taken: claimed, loaded or asked for, and marked in one transaction.

A batch that fails is halved until the event is alone that is at fault: it counts a failed try, the others are
applied. A deadlock is nobody's fault: the batch is repeated.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import psycopg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.sync.fault_points import reach
from nexhealth_pipeline.sync.practice import Institution, Practices
from nexhealth_pipeline.warehouse.history import Cause
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.webhooks.applying.failures import in_words, may_be_at_fault
from nexhealth_pipeline.webhooks.applying.pending import Mark, Outcome, StoredEvent, claim, mark
from nexhealth_pipeline.webhooks.applying.reading import Told, read_event
from nexhealth_pipeline.webhooks.applying.single_reads import ListsRead
from nexhealth_pipeline.webhooks.applying.snapshots import Group, GroupLoaded, SnapshotLoader
from nexhealth_pipeline.webhooks.applying.taking import give_back
from nexhealth_pipeline.webhooks.applying.vouching import Vouchers

__all__ = ["Answered", "Batch", "Batches", "Loaded"]

_log = logging.getLogger(__name__)
_ORDER = {one.name: at for at, one in enumerate(DECLARED)}
Answered = tuple[list[Mark], int, list[ListsRead]]
"""What to note about events that the API was asked because of, how many rows changed, and which lists were read."""


@dataclass(slots=True)
class Loaded:
    """What a batch changed in one collection of one institution."""

    collection: Collection
    institution: Institution
    cause: Cause
    done: GroupLoaded


@dataclass(slots=True)
class Batch:
    """What came of one transaction's events."""

    claimed: int = 0
    applied: int = 0
    superseded: int = 0
    failed: int = 0
    """Tried in vain: tried again later, unless parked."""
    parked: int = 0
    waiting: int = 0
    """Not tried: the API cannot be read now, or their institution is not known yet."""
    rows: int = 0
    """Rows changed."""
    hints: list[int] = field(default_factory=list)
    """Events left pending because the API is to be asked."""
    lists: list[ListsRead] = field(default_factory=list)
    """Lists under single rows that were read."""
    loaded: list[Loaded] = field(default_factory=list)
    troubles: list[tuple[int, str]] = field(default_factory=list)
    """Events that failed or were parked, and why."""

    def add(self, other: "Batch") -> None:
        """Add what another one did, so that this is the sum of several."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def count(self, verdicts: Iterable[Mark], parked: int) -> None:
        """Add what was marked, `parked` events of it for good."""
        for one in verdicts:
            name = "failed" if one.outcome is Outcome.PARKED else one.outcome.value
            setattr(self, name, getattr(self, name) + 1)
            if name == "failed" and one.reason:
                self.troubles.append((one.event_id, one.reason))
        self.failed -= parked
        self.parked += parked


class Batches:
    """Applies batches on one connection (autocommit, or within a transaction that is rolled back)."""

    def __init__(
        self,
        connection: psycopg.Connection,
        practices: Practices,
        vouchers: Vouchers,
        *,
        run_id: str,
        most_attempts: int,
    ) -> None:
        self._connection = connection
        self._practices, self._vouchers = practices, vouchers
        self._run_id = run_id
        self._most_attempts = most_attempts
        self._loaders: dict[tuple[str, int, Cause], SnapshotLoader] = {}
        self.before_commit: Callable[[Batch], None] | None = None
        """Called inside each transaction with what it did."""
        self.after_commit: Callable[[Batch], None] | None = None
        """Called after each transaction that claimed something."""

    def apply(self, ids: Sequence[int]) -> list[Batch]:
        """Apply events; one result a transaction. Raises the driver's error where no event is at fault."""
        return self._halved(ids, self._transaction)

    def ask(self, ids: Sequence[int], read: Callable[[Sequence[Told]], Answered]) -> list[Batch]:
        """Settle events by asking the API, which `read` does; results and errors as those of :meth:`apply`."""
        return self._halved(ids, partial(self._ask, read=read))

    def _halved(self, ids: Sequence[int], work: Callable[[Sequence[int]], Batch]) -> list[Batch]:
        try:
            batch = repeated(partial(work, ids), undo=self._loaders.clear)
        except Exception as failure:
            if not may_be_at_fault(failure):
                raise
            # Their temporary tables and what they had seen went with the transaction.
            self._loaders.clear()
            reason = in_words(failure)
        else:
            self._tell(batch)
            return [batch]
        if len(ids) == 1:
            _log.warning("an event cannot be applied", extra={"nexhealth": {"event_id": ids[0], "reason": reason}})
            return [self.settle(ids, Outcome.FAILED, reason)]
        middle = len(ids) // 2
        return [batch for half in (ids[:middle], ids[middle:]) for batch in self._halved(half, work)]

    def _ask(self, ids: Sequence[int], read: Callable[[Sequence[Told]], Answered]) -> Batch:
        batch = Batch()
        with self._connection.transaction():
            events = claim(self._connection, ids, self._run_id)
            told = [one for one in map(self._read, events) if isinstance(one, Told)]
            reach("after_fetch", _POINT)
            verdicts, batch.rows, batch.lists = read(told) if told else ([], 0, [])
            batch.claimed = len(verdicts)
            self._mark(batch, verdicts)
            reach("before_commit", _POINT)
        reach("after_commit", _POINT)
        return batch

    def settle(self, ids: Sequence[int], outcome: Outcome, reason: str) -> Batch:
        """Note what became of events that were not, or cannot be, applied."""
        batch = Batch()
        with self._connection.transaction():
            events = claim(self._connection, ids, self._run_id)
            batch.claimed = len(events)
            self._mark(batch, [Mark(one.id, outcome, reason) for one in events])
        self._tell(batch)
        return batch

    def _transaction(self, ids: Sequence[int]) -> Batch:
        batch = Batch()
        with self._connection.transaction():
            events = claim(self._connection, ids, self._run_id)
            batch.claimed = len(events)
            if events:
                reach("after_fetch", _POINT)
                self._mark(batch, self._load(batch, events))
                give_back(self._connection, self._run_id, batch.hints)
                if self.before_commit is not None:
                    self.before_commit(batch)
                reach("before_commit", _POINT)
        if batch.claimed:
            reach("after_commit", _POINT)
        return batch

    def _tell(self, batch: Batch) -> None:
        if self.after_commit is not None and batch.claimed:
            self.after_commit(batch)

    def _mark(self, batch: Batch, verdicts: Sequence[Mark]) -> None:
        parked = mark(self._connection, verdicts, run_id=self._run_id, most_attempts=self._most_attempts)
        batch.count(verdicts, parked)

    def _load(self, batch: Batch, events: Sequence[StoredEvent]) -> list[Mark]:
        read = [self._read(one) for one in events]
        verdicts = [one for one in read if isinstance(one, Mark)]
        told = [one for one in read if isinstance(one, Told)]
        batch.hints = [one.event.id for one in told if one.hint]
        told = [one for one in told if not one.hint]
        applied: set[int] = set()
        for group in _groups(told):
            done = self._loader(group).load(group)
            applied.update(done.holders.values())
            batch.rows += len(done.holders)
            batch.loaded.append(Loaded(group.collection, group.institution, group.cause, done))
        for one in told:
            outcome = Outcome.APPLIED if one.event.id in applied else Outcome.SUPERSEDED
            outcome = Outcome.PARKED if one.fault else outcome
            verdicts.append(Mark(one.event.id, outcome, one.fault, one.institution.id))
        return verdicts

    def _read(self, event: StoredEvent) -> Told | Mark:
        """What it tells; only a hint where another API key's endpoint signed it."""
        told = read_event(event, self._practices)
        if isinstance(told, Told) and not self._vouchers.vouches(event.endpoint_id, told.institution):
            told.hint = True
        return told

    def _loader(self, group: Group) -> SnapshotLoader:
        key = group.collection.name, group.institution.id, group.cause
        if key not in self._loaders:
            self._loaders[key] = SnapshotLoader(
                self._connection, group.collection, group.institution, group.cause, self._run_id
            )
        return self._loaders[key]


_POINT = "webhook_events"
"""Stands for the collection at fault points."""


def _groups(told: Iterable[Told]) -> list[Group]:
    """By collection, institution and cause, in one order for all processes, so that none wait in a circle."""
    groups: dict[tuple[int, int, str], Group] = {}
    for one in told:
        collection = one.feed.collection
        key = _ORDER[collection.name], one.institution.id, one.cause.value
        group = groups.setdefault(key, Group(collection, one.institution, one.cause))
        group.snapshots += one.snapshots
        group.deletions += one.deletions
    return [groups[key] for key in sorted(groups)]
