"""Events that only tell that something changed: which slices are read again because of them, each once.

What was never read completely is left alone: its first full read will bring the change. That is not true of lists under
single rows once one of them was read: it may be that one. So they are searched, and what they lack is left to the first
read if that still has lists to read. What somebody reads just now waits for the next run, and this one not for it: a full
read may last, and records of other events must not wait. What the database refuses, for a right that one table lacks
say, is a failed try of those events alone that asked for it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Reader, Scope
from nexhealth_pipeline.sync.every_key import was_read_for
from nexhealth_pipeline.sync.months import CHANGES, utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import due_slices, slices_of, was_read
from nexhealth_pipeline.sync.practice import Practices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.child_reads import was_begun
from nexhealth_pipeline.warehouse.state import PassKey, load_watermarks
from nexhealth_pipeline.warehouse.sync_log import Counts
from nexhealth_pipeline.webhooks.applying.batches import Answered
from nexhealth_pipeline.webhooks.applying.failures import in_words, is_the_tables, may_be_at_fault
from nexhealth_pipeline.webhooks.applying.owners import Found, OwnerSearch
from nexhealth_pipeline.webhooks.applying.pending import Mark, Outcome
from nexhealth_pipeline.webhooks.applying.reading import Told
from nexhealth_pipeline.webhooks.applying.single_reads import Failure, ListsRead, SingleReads
from nexhealth_pipeline.webhooks.applying.touched import Touched

__all__ = ["HintReader"]

_NOT_READ_YET = "never read completely: its first full read will bring the change"
_NOT_OFFERED = "the practice does not offer it"
_NO_OWNER = "it does not say which patient's list it belongs to"
_NOT_FOUND = f"{_NO_OWNER}, and the likeliest lacked it; the nightly rotation reads all of them"
_NOWHERE = f"{_NO_OWNER}, and no list has it"
_NOT_YET = "the list of the patient that it names does not hold it yet"
_LIST_LAGS = timedelta(days=1)
"""Longest that a list may lack what an event has told of."""
_Ready = dict[int, dict[int, Slice]]
"""Slices of one collection by institution and location; 0 where it is none in particular."""
_Asked = dict[Slice, dict[int, str]]
"""Slices, and of each the events that ask for it, with the subdomain of their institution."""
_GRAVITY = (Outcome.PARKED, Outcome.FAILED, Outcome.WAITING, Outcome.APPLIED, Outcome.SUPERSEDED)
"""Of an event that several slices were read for, the first of these holds."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of one slice or row that an event asked for."""

    outcome: Outcome
    reason: str | None = None


class HintReader:
    """Reads again what events tell of; `connection` holds their claims in an open transaction."""

    def __init__(
        self,
        session: SyncSession,
        connection: psycopg.Connection,
        practices: Practices,
        touched: Touched,
        single_reads: SingleReads,
    ) -> None:
        self._session = session
        self._connection = connection
        self._practices = practices
        self._owners = {one.id: one.owner_id for one in practices.locations}
        self._touched = touched
        self._single_reads = single_reads
        self._rows = 0
        self._lists: list[ListsRead] = []

    def read(self, told: Sequence[Told]) -> Answered:
        """Read what the events tell of; what to note about each, but those whose read was stopped, and what was read."""
        self._rows, self._lists = 0, []
        answers: dict[int, list[_Answer]] = {one.event.id: [] for one in told}
        # Slices are read on other connections: before this one holds anything but its claims.
        for event_id, answer in (*self._slices(told), *self._own_lists(told)):
            answers[event_id].append(answer)
        verdicts = [
            Mark(one.event.id, worst.outcome, worst.reason, one.institution.id)
            for one in told
            if (worst := min(answers[one.event.id], key=_gravity, default=None)) is not None
        ]
        return verdicts, self._rows + sum(one.changed for one in self._lists), self._lists

    def _own_lists(self, told: Sequence[Told]) -> Iterator[tuple[int, _Answer]]:
        """Lists under one row: a document's patient."""
        groups: dict[tuple[str, int], list[Told]] = {}
        for one in told:
            if one.feed.collection.per is None:
                continue
            if one.owners or one.records:
                groups.setdefault((one.feed.collection.name, one.institution.id), []).append(one)
            else:
                yield one.event.id, _Answer(Outcome.PARKED, f"{one.feed.collection.name}: {_NO_OWNER}")
        for group in groups.values():
            search = OwnerSearch(self._connection, self._single_reads, group[0].feed.collection, group[0].institution)
            known = search.known({record for one in group for record in one.records})
            for one in group:
                one.owners |= {known[record] for record in one.records & known.keys()}
                one.records -= known.keys()
            yield from self._own_lists_of(search, [one for one in group if one.owners])
            yield from self._searched(search, [one for one in group if one.records])

    def _searched(self, search: OwnerSearch, told: Sequence[Told]) -> Iterator[tuple[int, _Answer]]:
        """Records of which nobody knows whose they are."""
        if not told:
            return
        collection = told[0].feed.collection
        left_alone = _Answer(Outcome.SUPERSEDED, f"{collection.name}: {_NOT_READ_YET}")
        # The first read, which may never come to its end, does not come back to a list that it has read.
        if not was_begun(self._connection, collection=collection, institution_id=told[0].institution.id):
            yield from ((one.event.id, left_alone) for one in told)
            return
        found = search.search(
            {id_ for one in told for id_ in one.records},
            max(one.event.received_at for one in told),
            replayed=any(one.event.replays for one in told),
            anew=any(one.event.replays and not one.event.attempts for one in told),
        )
        self._lists += found.lists
        will_come = cache(search.has_lists_to_come)
        for one in told:
            if one.records <= found.records:
                yield one.event.id, _Answer(Outcome.APPLIED)
            elif (lacking := self._lacking(one, found)) is not None:
                # Given up it would be a fault for somebody to look at.
                left = found.failure is None and self._gives_up(one, lacking) and will_come()
                yield one.event.id, left_alone if left else lacking

    def _gives_up(self, told: Told, answer: _Answer) -> bool:
        """Whether an event is parked with this answer."""
        last = told.event.attempts + 1 >= self._session.settings.webhook_attempts
        return answer.outcome is Outcome.PARKED or (answer.outcome is Outcome.FAILED and last)

    def _lacking(self, told: Told, found: Found) -> _Answer | None:
        """What to note about an event whose record was not found; None = the search was stopped."""
        if self._session.stop.is_set():
            return None
        if found.failure is not None:
            return _unread(found.failure)
        name = told.feed.collection.name
        if not found.exhausted:
            return _Answer(Outcome.FAILED, f"{name}: {_NOT_FOUND}")
        to_come = told.creates and not _is_late(told)
        return _Answer(Outcome.FAILED if to_come else Outcome.PARKED, f"{name}: {_NOWHERE}")

    def _own_lists_of(self, search: OwnerSearch, told: Sequence[Told]) -> Iterator[tuple[int, _Answer]]:
        if not told:
            return
        collection, institution = told[0].feed.collection, told[0].institution
        rows = {row for one in told for row in one.owners}
        done = self._single_reads.read(collection, institution, sorted(rows))
        self._lists.append(done)
        there = done.met | search.known({id_ for one in told for id_ in one.created} - done.met).keys()
        for one in told:
            for row in one.owners:
                if (failure := done.failures.get(row)) is not None:
                    yield one.event.id, _unread(failure)
                elif row in done.gone or (row in done.read and (one.created - one.records <= there or _is_late(one))):
                    yield one.event.id, _Answer(Outcome.APPLIED)
                elif row in done.read:
                    yield one.event.id, _Answer(Outcome.FAILED, f"{collection.name}: {_NOT_YET}")

    def _slices(self, told: Sequence[Told]) -> Iterator[tuple[int, _Answer]]:
        groups: dict[str, list[Told]] = {}
        for one in told:
            if one.feed.collection.per is None:
                groups.setdefault(one.feed.collection.name, []).append(one)
        institutions = {0} | {one.institution.id for group in groups.values() for one in group}
        watermarks = load_watermarks(self._connection, sorted(groups), institutions)
        asked: _Asked = {}
        for name, group in groups.items():
            # Once for all of them: it looks at every month of every location.
            ready = self._ready(group, watermarks)
            for one in group:
                if self._session.stop.is_set():
                    return
                pieces = self._asked_by(one, ready)
                if not pieces:
                    yield one.event.id, _Answer(Outcome.SUPERSEDED, f"{name}: {_NOT_READ_YET}")
                for piece in pieces:
                    asked.setdefault(piece, {})[one.event.id] = one.institution.subdomain
        yield from self._read_slices(asked)

    def _ready(self, told: Sequence[Told], watermarks: Mapping[PassKey, datetime]) -> _Ready:
        """The slices that events of one collection may be about and that were read completely before."""
        collection, today = told[0].feed.collection, utc_today()
        ready: _Ready = {}
        for piece in _pieces(collection, self._concerned(told), watermarks, today):
            if _is_complete(piece, watermarks, today):
                ready.setdefault(piece.institution_id, {})[piece.location_id] = piece
        return ready

    def _concerned(self, told: Sequence[Told]) -> Practices:
        """So much of the practices as events of one collection are about."""
        # Whoever lists a whole institution may have to ask each of its locations.
        by_place = told[0].feed.collection.scope in (Scope.LOCATION, Scope.LOCATION_MONTH)
        whole = {one.institution.id for one in told if not by_place or self._named(one) is None}
        named = {number for one in told for number in self._named(one) or ()}
        return self._practices.part(whole, named)

    def _asked_by(self, told: Told, ready: _Ready) -> list[Slice]:
        """The slices that one event is about; key-wide ones are everybody's."""
        found = ready.get(0) or ready.get(told.institution.id, {})
        named = self._named(told)
        numbers = found if named is None else sorted({0} | named)
        return [found[number] for number in numbers if number in found]

    def _named(self, told: Told) -> set[int] | None:
        """Locations to read: those the records name, and whoever reads for them; None = all, for some record names none."""
        if told.unplaced or not told.locations:
            return None
        passes = told.feed.collection.passes
        owned = any(pass_.reader is Reader.OWNER for pass_ in passes)
        owners = {self._owners[id_] for id_ in told.locations if id_ in self._owners} if owned else set()
        return told.locations | owners

    def _read_slices(self, asked: _Asked) -> Iterator[tuple[int, _Answer]]:
        for result in self._results(asked):
            answer = _answer(result)
            if answer is None:
                continue
            self._note(result, asked[result.slice])
            for event_id, subdomain in asked[result.slice].items():
                # A list that several keys were asked for: another institution's is refused, and this one's was read.
                read = was_read_for(self._session.client, result, subdomain)
                yield event_id, _Answer(Outcome.APPLIED) if read else answer

    def _results(self, pieces: Iterable[Slice]) -> Iterator[SliceResult]:
        """Read slices. One that fails as a whole ends the read of all, and nobody says which it was: then each alone."""
        left = dict.fromkeys(pieces)
        try:
            for result in self._run(left):
                del left[result.slice]
                yield result
        except Exception as failure:
            if not _is_its_own(failure):
                raise
        for piece in left:
            try:
                yield from self._run([piece])
            except Exception as failure:
                if not _is_its_own(failure):
                    raise
                result = SliceResult(piece, Status.FAILED, Counts(), 0.0, reason=in_words(failure))
                self._session.note(result)
                yield result

    def _run(self, pieces: Iterable[Slice]) -> Iterator[SliceResult]:
        # The events stay locked meanwhile: no indexes, and no wait for what another run begins to read before its turn comes.
        options = replace(SyncOptions.of(self._session.settings), waits=False)
        return run_slices(self._session, pieces, options, indexes=False)

    def _note(self, result: SliceResult, events: Iterable[int]) -> None:
        rows = result.counts.inserted + result.counts.updated
        self._rows += rows
        if rows:
            self._touched.add_read(result, events)


def _is_late(told: Told) -> bool:
    """Whether an event is replayed, or so old that its record may have been deleted since: then its absence is no fault."""
    return told.event.replays > 0 or datetime.now(UTC) - told.event.received_at > _LIST_LAGS


def _pieces(
    collection: Collection, practices: Practices, watermarks: Mapping[PassKey, datetime], today: date
) -> list[Slice]:
    """Slices that bring what has changed: of windowed collections the changes of locations of which a month is read."""
    if collection.scope is not Scope.LOCATION_MONTH:
        return list(slices_of(collection, practices, today))
    due = due_slices([collection], practices, watermarks, SyncOptions(), today)
    return [piece for piece in due if piece.window_key == CHANGES]


def _is_complete(piece: Slice, watermarks: Mapping[PassKey, datetime], today: date) -> bool:
    """Whether it was read completely before; the changes of a location once a month was."""
    if piece.window_key == CHANGES or piece.collection.scope is Scope.PRACTICE:
        return True
    return was_read(piece, watermarks, today)


def _answer(result: SliceResult) -> _Answer | None:
    """What a read slice means for its events; None = it was stopped."""
    match result.status:
        case Status.SUCCEEDED:
            return _Answer(Outcome.APPLIED)
        case Status.SKIPPED if result.complete:
            return _Answer(Outcome.APPLIED)
        case Status.SKIPPED if result.held:
            return _Answer(Outcome.WAITING, f"{result.slice.label}: {result.reason}")
        case Status.SKIPPED:
            return _Answer(Outcome.SUPERSEDED, f"{result.slice.label}: {_NOT_OFFERED}")
        case Status.FAILED:
            return _Answer(Outcome.WAITING if result.passing else Outcome.FAILED, result.reason)
        case _:
            return None


def _is_its_own(failure: Exception) -> bool:
    """Whether another slice would fare better."""
    return may_be_at_fault(failure) or is_the_tables(failure)


def _unread(failure: Failure) -> _Answer:
    return _Answer(Outcome.WAITING if failure.passing else Outcome.FAILED, failure.reason)


def _gravity(answer: _Answer) -> int:
    return _GRAVITY.index(answer.outcome)
