"""Lists under one row (a patient's documents): one request a row, so only for those that are due.

Due are rows never read or changed since, and a small rotation, because such a list has no increment and
tells nobody that it changed. A list answered tells all of its row, so what it lacks is gone (`sync.reconcile`):
no read of the others is needed for that. `nexhealth_child_reads`, written with the records, is where a
killed run goes on.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import islice

import psycopg

from nexhealth_pipeline.catalog.collection import Reader
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import ApiError, KeyRefused, NoAccess, NotFound
from nexhealth_pipeline.sync.enabled import full_read_due
from nexhealth_pipeline.sync.fault_points import reach
from nexhealth_pipeline.sync.heed import Heed
from nexhealth_pipeline.sync.keeper import Keeper
from nexhealth_pipeline.sync.loader import EncodedPage
from nexhealth_pipeline.sync.months import utc_today
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.plan import PassPlan, passes_of
from nexhealth_pipeline.sync.reader import SliceReader
from nexhealth_pipeline.sync.wrapped import Wrapped
from nexhealth_pipeline.warehouse.child_reads import (
    ChildRead,
    DueRow,
    due_rows,
    had_records,
    record_child_reads,
    record_unknown,
    witnesses,
)
from nexhealth_pipeline.warehouse.drift import record_missing
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.seen import answered_key
from nexhealth_pipeline.warehouse.state import PassState, database_time, load_state, save_state
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["ROWS", "ChildReader"]

ROWS = "rows"
"""Name of the one pass through all due rows."""

_BATCH_SECONDS = 2.0
"""Longest time between commits; a killed run asks again for what came since the last one."""
_BATCH_ROWS = 200
_GIVE_UP_AFTER = 5
"""Failures in a row after which the rest of a location is left to the next sync: each costs all its retries."""
_WITNESSES = 3
"""Lists read besides where all that were due came back empty, to tell one that lost its last record from all of them; and
where one was refused, to tell one that is closed from a practice that has none."""


@dataclass(frozen=True, slots=True)
class _Read:
    row: DueRow
    pages: list[Page]
    """None where the API no longer knows the row."""
    asked: float
    """When, by `time.monotonic`."""


_Answer = _Read | ApiError


class _Failures:
    """Rows whose lists could not be read: the others are read all the same, unless all seem to fail."""

    def __init__(self) -> None:
        self._all: list[ApiError] = []
        self.in_a_row = 0
        self.asked = 0
        """Rows whose lists were asked for, or are about to be."""
        self.had = False
        """Whether one of these lists had records when it was read last."""
        self.offered = False
        """Whether a list was answered: then no refusal says that the practice has none."""
        self.refused = 0
        """Lists that were refused, those asked for besides included."""

    def __bool__(self) -> bool:
        return bool(self._all)

    def counting(self, due: Iterable[DueRow]) -> Iterator[DueRow]:
        """The rows as they are taken."""
        for row in due:
            self.asked += 1
            self.had |= row.had > 0
            yield row

    def add(self, failure: ApiError) -> None:
        """Note one. Raises it when too many came in a row; a refusal, which costs no retries, only where none was answered."""
        self._all.append(failure)
        if isinstance(failure, NoAccess):
            self.refused += 1
            if not self.offered and self.refused > _WITNESSES:
                raise self._as_one("in a row")
            return
        self.in_a_row += 1
        if self.in_a_row >= _GIVE_UP_AFTER:
            raise self._as_one("in a row")

    def raise_any(self) -> None:
        """Raise what was noted, if anything."""
        if self._all:
            raise self._as_one(f"of {self.asked}")

    def _as_one(self, which: str) -> ApiError:
        """One error that carries what all of them cost."""
        first = self._all[0]
        text = f"{len(self._all)} single reads {which} could not be read, the first: {first}"
        alike = all(type(one) is type(first) for one in self._all)
        error = type(first)(text, status=first.status if alike and not self.offered else None)
        for one in self._all:
            error.charge(one)
        return error


class ChildReader(SliceReader):
    """Reads the lists of one slice's due rows, several at a time."""

    _parents_as_of: datetime | None = None
    _last_begun: datetime | None = None

    def passes(self, connection: psycopg.Connection) -> None:
        """One way through all due rows; the passes of the declaration are requests of each of them."""
        plans = passes_of(self.slice, utc_today())
        key = replace(plans[0].key, pass_name=ROWS)
        self._keeper = Keeper(connection, self.slice.collection, key)
        self._heed = Heed(self.slice.label, self.options.filters)
        self._wrapped = Wrapped(self.slice.collection, self.slice.label)
        stored = PassState(key) if self.options.dry_run else load_state(connection, key)
        self._watermark_from, self._last_begun = stored.watermark, stored.begun_at
        self._parents_as_of = self._upstream(connection)
        state = self._begin(connection, stored)
        if state is None:
            self.states.append(stored)
            return
        self.read_anything = True
        if not self.options.partial:
            save_state(connection, state)
        self.loader.before_merge = self._keeper.when_staged
        failures = self._read_all(connection, plans, state)
        state = replace(state, absent_fields=self._wrapped.absent_fields(stored, state, whole=not failures))
        done = state.completed(self.session.client.clock.now())
        if not self.options.partial:
            # Lists that came in turn are judged by although others failed: each tells of its own row.
            judged_by = not failures or state.since is not None
            repeated(partial(self._end_pass, connection, _walked(state) if failures else done, judged_by=judged_by))
        failures.raise_any()
        self.states.append(done)
        if not (self.counts.records_read or self.options.partial):
            self._had_rows = had_records(
                connection,
                collection=self.slice.collection,
                institution_id=self.slice.institution_id,
                location_id=self.slice.location_id,
            )

    def _end_pass(self, connection: psycopg.Connection, state: PassState, *, judged_by: bool) -> None:
        """Note that all that were due were asked for, in one transaction."""
        missing: list[str] = []
        with connection.transaction():
            save_state(connection, state)
            if self._wrapped.path and state.absent_fields is not None:
                missing = record_missing(
                    connection, self.slice.collection, self.slice.institution_id, state.absent_fields
                )
            if judged_by:
                self._keeper.end(state.pass_started_at)
        self._wrapped.warn(missing)

    def _read_all(self, connection: psycopg.Connection, plans: list[PassPlan], state: PassState) -> _Failures:
        """Read what is due, and where that brought no record although there were some, lists that had records too."""
        failures = _Failures()
        with closing(self._due(connection, state)) as due:
            self._read_due(connection, plans, due, failures)
        if not failures.offered and failures.refused:
            failures.raise_any()
        if self._keeper.id is None or self.counts.records_read or not failures.had:
            return failures
        assert state.begun_at is not None
        others = witnesses(
            connection,
            collection=self.slice.collection,
            institution_id=self.slice.institution_id,
            location_id=self.slice.location_id,
            read_before=state.begun_at,
            most=_WITNESSES,
        )
        self._read_due(connection, plans, others, failures)
        return failures

    def _ask_others(self, connection: psycopg.Connection, plans: list[PassPlan], failures: _Failures) -> None:
        """Ask for lists of the institution that were answered before, when one was refused."""
        rows = connection.execute(
            "SELECT patient_id FROM nexhealth_child_reads WHERE collection = %s AND institution_id = %s"
            " ORDER BY read_at DESC, patient_id LIMIT %s",
            (self.slice.collection.name, self.slice.institution_id, _WITNESSES),
        ).fetchall()
        for (number,) in rows:
            answer = self._read_row(plans, DueRow(number, None))
            if isinstance(answer, _Read) and answer.pages:
                self.counts.requests += sum(page.requests for page in answer.pages)
                failures.offered = True
                return
            failures.refused += isinstance(answer, NoAccess)

    def as_of(self) -> datetime | None:
        """No later than the rows themselves: a list cannot be due for a change that was not seen."""
        own = super().as_of()
        return None if own is None or self._parents_as_of is None else min(own, self._parents_as_of)

    def _upstream(self, connection: psycopg.Connection) -> datetime | None:
        """Up to when the rows themselves are complete; None = never were."""
        location, after = self.slice.location, [COLLECTIONS[name] for name in self.slice.collection.after]
        others = [name for one in after for name in one.second_looks]
        if location is None or not location.shared:
            # Nobody makes them any more where one alone is left of those that shared: what they left stands still.
            others += [pass_.name for one in after for pass_ in one.passes if pass_.reader is Reader.SHARED]
        row = connection.execute(
            "SELECT CASE WHEN bool_and(watermark IS NOT NULL) THEN min(watermark) END FROM nexhealth_sync_state"
            " WHERE collection = ANY(%s) AND institution_id = %s AND location_id = %s AND pass <> ALL(%s)",
            ([one.name for one in after], self.slice.institution_id, location.owner_id if location else 0, others),
        ).fetchone()
        return row[0] if row else None

    def _begin(self, connection: psycopg.Connection, stored: PassState) -> PassState | None:
        """The state to read under: an unfinished full read gone on with, or a new one; None = fresh."""
        mode = self.options.mode_of_lists
        after, full = self.options.fresh_after, mode.whole
        last = stored.full_at if full else stored.fresh_at
        if mode is Mode.RECONCILE and not self.options.partial:
            # By both: an earlier release kept in the same place what it had met of the lists that were due.
            if after and stored.full_at and stored.full_at >= after and self._keeper.complete_since(after):
                return None
        elif after and not self.options.partial and not stored.unfinished and last and last >= after:
            return None
        started = stored.pass_started_at
        now = self.session.client.clock.now()
        walked = stored.watermark or stored.since
        full = full or walked is None or full_read_due(connection, self.slice.collection, stored, now)
        young = started is not None and now - started < self.options.resume_within and stored.begun_at is not None
        if mode is Mode.RECONCILE and after and stored.begun_at and stored.begun_at < after:
            young = False  # absences are judged by what was begun since
        whole = stored.since in (None, started)
        if stored.unfinished and young and whole and self._keeper.take_up(stored, mode):
            return replace(stored, since=None, run_id=self.session.run_id)
        begun_at = database_time(connection)
        if not self.options.partial:
            self._keeper.begin(begun_at, mode, in_turn=not full)
        return replace(
            stored,
            pass_started_at=now,
            begun_at=begun_at,
            mode=mode.value,
            # Any time does: it only tells a read of what is due from a read of everything.
            since=None if full else walked,
            cursor="",
            run_id=self.session.run_id,
        )

    def _due(self, connection: psycopg.Connection, state: PassState) -> Generator[DueRow, None, None]:
        met = self._met(connection) if self.options.dry_run and self.slice.collection.per_patient else set()
        with closing(self._known_due(connection, state)) as due:
            for row in due:
                met.discard(row.id)
                yield row
        for patient_id in sorted(met):
            yield DueRow(patient_id, None)

    def _met(self, connection: psycopg.Connection) -> set[int]:
        """Patients of this location that a dry run met and the warehouse does not know."""
        mine = (self.slice.institution_id, self.slice.location_id)
        seen = self.session.dry_patients
        met = set(seen.get(mine, ()))
        for (institution, location), ids in list(seen.items()):
            if met and institution == mine[0] and location < mine[1]:
                met -= ids
        if not met:
            return met
        # Only those: of the institution there may be a million, and each of its locations asks.
        known = connection.execute(
            "SELECT id FROM nexhealth_patients WHERE institution_id = %s AND id = ANY(%s)", (mine[0], list(met))
        )
        return met.difference(one for (one,) in known)

    def _known_due(self, connection: psycopg.Connection, state: PassState) -> Generator[DueRow, None, None]:
        return due_rows(
            connection,
            collection=self.slice.collection,
            institution_id=self.slice.institution_id,
            location_id=self.slice.location_id,
            read_before=state.begun_at if state.since is None else None,
            rotation_days=self.options.rotation_days,
            last_begun=self._last_begun,
        )

    def _read_due(
        self, connection: psycopg.Connection, plans: list[PassPlan], due: Iterable[DueRow], failures: _Failures
    ) -> None:
        batch: list[_Read] = []
        last_commit = time.monotonic()

        def commit() -> None:
            # Taken out first: what could not be committed must not be tried once more on the way out, without the stage that
            # went with its transaction, and hide by its own failure why it could not.
            taken = batch.copy()
            batch.clear()
            reach("after_fetch", self.slice.collection.name)
            pages = [(one.row, self.loader.encode(page, self._known(one.row))) for one in taken for page in one.pages]
            self.commit(connection, partial(self._load, connection, taken, pages))

        try:
            for answer in self._fetch(plans, failures.counting(due)):
                if isinstance(answer, NoAccess) and not failures.offered and not failures.refused:
                    self._ask_others(connection, plans, failures)
                if isinstance(answer, ApiError):
                    failures.add(answer)
                    continue
                failures.in_a_row = 0
                failures.offered |= bool(answer.pages)  # a row that is gone says nothing of its list
                batch.append(answer)
                if len(batch) >= _BATCH_ROWS or time.monotonic() - last_commit > _BATCH_SECONDS:
                    commit()
                    last_commit = time.monotonic()
        finally:
            # What came before a failure is as good as what came before a success.
            if batch:
                commit()

    def _load(
        self, connection: psycopg.Connection, batch: list[_Read], pages: list[tuple[DueRow, EncodedPage]]
    ) -> Counts:
        loaded = self.loader.load((page for _, page in pages), None)
        # A row whose record could not be read, perhaps spoilt on its way, is due: the next sync asks once more.
        again = {pages[position][0].id for position in loaded.unread}
        # What does not say which record it is may be any of the row's: nothing is judged by its list.
        unclear = again | {pages[position][0].id for position in loaded.nameless}
        self._keeper.met(answered_key(one.row.id) for one in batch if one.pages and one.row.id not in unclear)
        self._keeper.met(loaded.named)
        reads = [
            ChildRead(one.row, sum(len(page.records) for page in one.pages), one.asked)
            for one in batch
            if one.pages and one.row.id not in again
        ]
        if not self.options.dry_run:
            record_child_reads(
                connection,
                collection=self.slice.collection,
                institution_id=self.slice.institution_id,
                reads=[] if self.options.partial else reads,
                again=again,
                left=loaded.left,
            )
        if not self.options.partial and self._keeper.id is not None:
            record_unknown(
                connection,
                collection=self.slice.collection.name,
                institution_id=self.slice.institution_id,
                ids=[one.row.id for one in batch if not one.pages],
            )
        return loaded.counts

    def _known(self, row: DueRow) -> dict[str, int]:
        """What the request knows: the row it asks about, under the name that the declaration gives it."""
        known = dict.fromkeys(self.slice.collection.parent_columns, row.id)
        return {**known, "location_id": self.slice.location_id}

    def _fetch(self, plans: list[PassPlan], due: Iterator[DueRow]) -> Iterator[_Answer]:
        """Answers, or why there is none, in the order of `due`; a bounded number of requests is under way."""
        width = self.options.concurrency
        waiting: deque[Future[_Answer]] = deque()
        with ThreadPoolExecutor(width, thread_name_prefix="nexhealth-rows") as pool:
            try:
                # One request mostly tells whether the practice has it at all.
                probes = 1 + _WITNESSES if self.slice.collection.may_be_disabled else 0
                for row in islice(due, probes):
                    answer = self._read_row(plans, row)
                    yield answer
                    if isinstance(answer, _Read) and answer.pages:
                        break
                for row in due:
                    waiting.append(pool.submit(self._read_row, plans, row))
                    if len(waiting) >= 4 * width:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _read_row(self, plans: list[PassPlan], row: DueRow) -> _Answer:
        """All pages of one row's lists, none where the API no longer knows the row; or this row's failure.

        Raises what no other row would fare better with. One record may be closed to a key that others are open to.
        """
        read = _Read(row, [], time.monotonic())
        for plan in plans:
            try:
                pages = list(self.session.client.pages(self._request(plan, row)))
                self._heed.require(plan, pages)
                self._wrapped.note(pages)
                read.pages.extend(replace(page, whole=b"") for page in pages)  # hundreds wait for their commit
            except NotFound:
                # Gone since its collection was read; the next read of that says what became of it.
                return replace(read, pages=[])
            except KeyRefused:
                raise
            except ApiError as failure:
                return failure
        return read

    def _request(self, plan: PassPlan, row: DueRow) -> ApiRequest:
        return replace(plan.request, path=plan.request.path.format(id=row.id))


def _walked(state: PassState) -> PassState:
    """The state after a read in which rows failed: they stay due, and no read of all the others is needed for them.

    One that tells itself as its own increment is a whole read that has asked for everything.
    """
    if state.since is not None:
        return state
    return replace(state, since=state.pass_started_at, last_full_at=state.pass_started_at)
