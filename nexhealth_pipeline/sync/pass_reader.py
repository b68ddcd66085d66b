"""Reading one pass: where it begins, its pages, and a transaction per batch of them.

A transaction holds the rows, what is known beside them, the cursor behind its last page and the
log's counts; so a killed run goes on at the next page and nothing is counted twice.
"""

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import psycopg

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.client.prefetch import prefetched
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import CursorExpired, PipelineError, ProtocolBroken
from nexhealth_pipeline.sync.enabled import full_read_due
from nexhealth_pipeline.sync.every_key import pages_of_every_key
from nexhealth_pipeline.sync.fault_points import reach
from nexhealth_pipeline.sync.heed import Heed
from nexhealth_pipeline.sync.keeper import Keeper
from nexhealth_pipeline.sync.loader import EncodedPage, Loader
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import PassPlan, api_time, filter_hash
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.sync.wide_window import pages_in_parts
from nexhealth_pipeline.warehouse.drift import record_missing
from nexhealth_pipeline.warehouse.knowledge import close_membership, record_membership
from nexhealth_pipeline.warehouse.state import PassState, database_time, load_state, save_state
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["PassReader"]

_log = logging.getLogger(__name__)


_KEPT_HASHES = 100
"""Pages known again after a restart. All of a long pass would be written with each batch, and grow with its square; a
loop longer than this goes round once more, which changes no row, until the client's own memory ends it."""

_LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
"""Before any practice went live: asks lists for everything that refuse to be read whole (API.md A.4)."""


class PassReader:
    """Reads one pass of a slice; `committing` makes a transaction of what it is given, which says what it counted."""

    def __init__(
        self,
        session: SyncSession,
        connection: psycopg.Connection,
        piece: Slice,
        plan: PassPlan,
        options: SyncOptions,
        loader: Loader,
        committing: Callable[[Callable[[], Counts]], None],
    ) -> None:
        self._session = session
        self._connection = connection
        self._slice = piece
        self._plan = plan
        self._options = options
        self._loader = loader
        self._committing = committing
        self.stored = PassState(plan.key) if options.dry_run else load_state(connection, plan.key)
        """The state before the pass."""
        self.state = self.stored
        self._keeper = Keeper(connection, piece.collection, plan.key, membership=plan.pass_.membership)
        self._heed = Heed(piece.label, options.filters)
        self._absent: set[str] | None = None
        """Declared fields that no record of the batch loaded last had."""
        self.records: list[bytes] = []
        """What a dry run of a practice collection read."""
        self.resumed_at: int | None = None
        """Pages that an earlier run had committed."""
        self.again = False
        """Set before reading: whether to ask for what the last pass asked for, whose records could not all be read."""

    @property
    def fresh(self) -> bool:
        """Whether a pass begun late enough is already complete."""
        after = self._options.fresh_after
        if self._slice.collection.increment is None or self._plan.pass_.membership:
            after = self._options.whole_after or after
        state = self.stored
        if self._options.reconciles and self._slice.collection.scope is not Scope.PRACTICE:
            return bool(after and self._keeper.complete_since(after))
        complete = state.full_at if self._options.mode.whole else state.fresh_at
        return bool(after and not self._options.partial and not state.unfinished and complete and complete >= after)

    @property
    def covers(self) -> bool:
        """Whether it asked for all that the last pass may have met; a month is only a part of its location's list."""
        return (self.again or self.covers_all) and not self._options.partial and self._slice.window_key in ("", CHANGES)

    @property
    def covers_all(self) -> bool:
        """Whether it asked for everything, and not only for what the last pass did."""
        return self.state.since in (None, _LONG_AGO)

    @property
    def lists_members(self) -> bool:
        """Whether it only tells whom the location lists, and loads no record."""
        return self._plan.pass_.membership

    def read(self) -> None:
        """Read to the last page; a cursor the API has forgotten begins the pass anew, once."""
        try:
            self._read_on()
        except ProtocolBroken:
            # What was committed of this pass cannot be trusted to be all of it: the next sync begins it anew.
            if not self._options.partial:
                save_state(self._connection, replace(self.state, cursor=""))
            raise

    def _read_on(self) -> None:
        """Go on with the pass that broke off, or begin; from the beginning as well where its cursor is refused."""
        self.state = self._resumable() or self._anew()
        try:
            self._read()
        except CursorExpired:
            _log.warning("cursor expired, the pass begins anew", extra={"nexhealth": {"slice": self._slice.label}})
            self.state = self._anew()
            self.resumed_at = None
            self._read()

    def _resumable(self) -> PassState | None:
        """The stored state, where it is of an unfinished pass that this one may go on with."""
        state = self.stored
        if self._options.partial or not state.unfinished or not state.cursor or state.pass_started_at is None:
            return None
        too_old = self._session.client.clock.now() - state.pass_started_at > self._options.resume_within
        after = self._options.fresh_after
        # Absences are judged by what was begun since: one gone on with would be read for nothing.
        too_old |= self._options.reconciles and bool(after and state.begun_at and state.begun_at < after)
        other_kind = self._options.mode.whole and state.since is not None
        if too_old or other_kind or state.filter_hash != filter_hash(self._request(state.since)):
            return None
        if not self._keeper.take_up(state, self._options.mode):
            return None
        self.resumed_at = state.page
        return state

    def _anew(self) -> PassState:
        self.records = []
        begun_at = database_time(self._connection)
        if not self._options.partial:
            self._keeper.begin(begun_at, self._options.mode)
        since = self._since()
        return replace(
            self.stored,
            pass_started_at=None,
            begun_at=begun_at,
            mode=self._options.mode.value,
            since=since,
            filter_hash=filter_hash(self._request(since)),
            cursor="",
            page=0,
            page_hashes=[],
            records=0,
            absent_fields=self.stored.absent_fields if since else None,
            run_id=self._session.run_id,
        )

    def _since(self) -> datetime | None:
        """From when on changes are asked for; None = everything."""
        if self._options.filters:
            return self._options.filters.updated_since
        collection = self._slice.collection
        whole = self._options.mode.whole or self._options.partial or self._plan.pass_.membership
        if collection.increment is None or (whole and self._slice.window_key != CHANGES):
            return None
        if full_read_due(self._connection, collection, self.stored, self._session.client.clock.now()):
            return None
        if self.again:
            return _LONG_AGO if self._slice.window_key == CHANGES else self.stored.since
        watermark = self._last_begun
        if watermark is None and self._slice.window_key == CHANGES:
            watermark = self._earliest_month()
        return None if watermark is None else (watermark - self._options.overlap).replace(microsecond=0)

    @property
    def _last_begun(self) -> datetime | None:
        """When the last complete pass began; by the database's clock too, as the API's may have been wrong for a while.

        A row without a version that such a pass met unchanged is taken when it changes. One that it wrote says itself that
        it was read later than now, and keeps to that until that time has come: between a page and a webhook nothing else
        tells which is newer.
        """
        return min(filter(None, (self.stored.watermark, self.stored.fresh_at)), default=None)

    def _earliest_month(self) -> datetime | None:
        """Where the first change read begins: the earliest start of all the months' passes.

        Of one that is not complete as well: it may be gone on with, from where it was read by then.
        """
        key = self._plan.key
        regular = [one.name for one in self._slice.collection.regular_passes]
        row = self._connection.execute(
            "SELECT min(least(coalesce(watermark, pass_started_at), coalesce(fresh_at, begun_at))) FROM nexhealth_sync_state"
            " WHERE collection = %s AND institution_id = %s AND location_id = %s AND window_key <> %s"
            " AND pass = ANY(%s)",
            (key.collection, key.institution_id, key.location_id, CHANGES, regular),
        ).fetchone()
        return row[0] if row else None

    def _request(self, since: datetime | None) -> ApiRequest:
        request = self._plan.request
        increment = self._slice.collection.increment
        if since is None and self._slice.collection.needs_filter:
            since = _LONG_AGO
        if since is None or increment is None:
            return request
        return replace(request, params=(*request.params, (increment, api_time(since))))

    def _pages(self) -> Generator[Page, None, None]:
        request = self._request(self.state.since)
        if self._slice.collection.scope is Scope.PRACTICE:
            yield from pages_of_every_key(self._session.client, request)
        elif (window := self._slice.collection.window) is not None:
            client, state = self._session.client, self.state
            yield from pages_in_parts(
                client, request, window, cursor=state.cursor, page=state.page, previous=state.page_hashes
            )
        else:
            state = self.state
            yield from self._session.client.pages(
                request, cursor=state.cursor, page=state.page, previous=state.page_hashes
            )

    def _read(self) -> None:
        """A page is asked for while another is encoded, unless many slices are read at once, and the batch before is loaded."""
        whole = self._slice.collection.scope is Scope.PRACTICE
        size = None if whole else self._options.batch_pages
        # One less than a batch: the last one waits in the hands of whoever encoded it.
        pages = prefetched(self._encoded(), depth=self._options.batch_pages - 1, stop=self._session.stop)
        with closing(pages):
            for batch in _batches(pages, size):
                self._commit(batch)

    def _encoded(self) -> Iterator[EncodedPage]:
        known = {"location_id": self._plan.key.location_id}
        pages = self._pages()
        if self._options.fetch_ahead:
            pages = prefetched(pages, depth=1, stop=self._session.stop)
        with closing(pages):
            for page in pages:
                if self._options.dry_run and self._slice.collection.scope is Scope.PRACTICE:
                    self.records += page.records
                yield self._loader.encode(page, known)

    def _commit(self, encoded: list[EncodedPage]) -> None:
        reach("after_fetch", self._slice.collection.name)
        batch = [one.page for one in encoded]
        last = batch[-1]
        self._heed.require(self._plan, batch)
        state = replace(
            self.state,
            pass_started_at=self.state.pass_started_at or batch[0].requested_at,
            # One that is said to come whole, and came in pages, begins anew: its count is of all of them.
            cursor=last.end_cursor if self._plan.request.paging is Paging.CURSOR else "",
            page_hashes=[*self.state.page_hashes, *(page.fingerprint for page in batch)][-_KEPT_HASHES:],
            page=self.state.page + len(batch),
            records=self.state.records + sum(one.cost.records_read for one in encoded),
            run_id=self._session.run_id,
        )
        if not last.has_next:
            self._compare_total(last, state.records)
            state = replace(state.completed(self._session.client.clock.now()), total=self._total(batch))

        def write() -> Counts:
            nonlocal state
            counts = self._load(encoded, ends=not last.has_next)
            state = replace(state, absent_fields=self._absent_since(state))
            if not self._options.partial:
                save_state(self._connection, state)
                if not last.has_next:
                    self._keeper.end(state.pass_started_at)
                if not last.has_next and state.absent_fields is not None:
                    key = self._plan.key
                    record_missing(self._connection, self._slice.collection, key.institution_id, state.absent_fields)
            return counts

        self._committing(write)
        self.state = state

    def _compare_total(self, last: Page, records: int) -> None:
        """The pages must hold what the API itself counts, where it does; more is no fault, since rows move."""
        if self._plan.request.paging is Paging.CURSOR and last.total is not None and records < last.total:
            raise ProtocolBroken(
                f"{self._slice.label}: the API counts {last.total} records, its pages held {records}: rows are missing"
            )

    def _total(self, batch: list[Page]) -> int | None:
        """What the API counts in the whole list, kept for the checks; a wrapped list's count is of its wrappers."""
        counted = [page for page in batch if not page.has_next]  # one of each key's list
        totals = [page.total for page in counted if page.total is not None]
        if self.state.since is not None or self._plan.request.records_at or len(totals) < len(counted):
            return None
        return sum(totals)

    def _absent_since(self, state: PassState) -> list[str] | None:
        """Declared fields that no record had since the last whole read began, the batch loaded last included."""
        if self._absent is None or (state.absent_fields is None and state.since is not None):
            return state.absent_fields
        return sorted(self._absent if state.absent_fields is None else self._absent & {*state.absent_fields})

    def _load(self, batch: list[EncodedPage], *, ends: bool) -> Counts:
        """Rows of a batch, and which patients its location lists."""
        if self._plan.pass_.membership:
            return self._load_membership(batch, ends=ends)
        self._loader.before_merge = self._keeper.when_staged
        loaded = self._loader.load(batch, self._last_begun)
        self._keeper.met(loaded.named)  # it is there, and still listed
        self._keeper.unreadable(len(loaded.nameless))
        self._absent = loaded.absent_fields
        if self._lists_patients():
            all_new = loaded.counts.inserted == len(loaded.ids)
            self._remember_members(loaded.ids, batch[0].page.requested_at, new=all_new)
        return loaded.counts

    def _lists_patients(self) -> bool:
        """Whether this pass alone says which patients the location has: nobody shares its database."""
        location = self._slice.location
        has_membership = any(pass_.membership for pass_ in self._slice.collection.passes)
        return has_membership and location is not None and not location.shared and not self._options.filters

    def _load_membership(self, batch: list[EncodedPage], *, ends: bool) -> Counts:
        counts = Counts()
        for one in batch:
            counts.add(one.cost)
            refused = [note for note in one.rows.notes if not note.loaded]
            counts.quarantined += len(refused)
            self._remember_members(one.rows.ids, one.page.requested_at)
            named = [str(int(note.record_id)) for note in refused if note.record_id]
            self._keeper.met([*map(str, one.rows.ids), *named])
            self._keeper.unreadable(len(refused) - len(named))
        counts.unchanged = counts.records_read - counts.quarantined
        if ends and self._keeper.id is not None:
            key, began = self._plan.key, self.state.pass_started_at or batch[0].page.requested_at
            close_membership(
                self._connection,
                self._slice.collection,
                key.institution_id,
                key.location_id,
                self._keeper.id,
                began=began,
            )
        return counts

    def _remember_members(self, ids: list[int], seen_at: datetime, *, new: bool = False) -> None:
        key = self._plan.key
        if self._options.dry_run:
            self._session.dry_patients.setdefault((key.institution_id, key.location_id), set()).update(ids)
            return
        record_membership(
            self._connection,
            institution_id=key.institution_id,
            location_id=key.location_id,
            patient_ids=ids,
            seen_at=seen_at,
            new=new,
        )


def _batches(pages: Iterator[EncodedPage], size: int | None) -> Iterator[list[EncodedPage]]:
    """Pages in lists of `size` (None = one list); what came before a failure is handed out first."""
    batch: list[EncodedPage] = []
    failure: PipelineError | None = None
    try:
        for page in pages:
            batch.append(page)
            if size is not None and len(batch) >= size:
                yield batch
                batch = []
    except PipelineError as error:
        failure = error
    if batch:
        yield batch
    if failure is not None:
        raise failure
