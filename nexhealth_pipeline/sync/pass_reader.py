"""Reading one pass: where it begins, its pages, and a transaction per batch of them.

A transaction holds the rows, what is known beside them, the cursor behind its last page and the
log's counts; so a killed run goes on at the next page and nothing is counted twice.
"""

import logging
from collections.abc import Callable, Iterator
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
from nexhealth_pipeline.sync.loader import Loader, cost_of
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import PassPlan, api_time, filter_hash
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.sync.wide_window import pages_in_parts
from nexhealth_pipeline.warehouse.encode import RecordEncoder
from nexhealth_pipeline.warehouse.knowledge import (
    UNREADABLE,
    close_membership,
    forget_seen,
    record_membership,
    record_seen,
)
from nexhealth_pipeline.warehouse.state import PassState, database_time, load_state, save_state
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["PassReader"]

_log = logging.getLogger(__name__)


class PassReader:
    """Reads one pass of a slice; `committed` is called inside each transaction with what it counted."""

    def __init__(
        self,
        session: SyncSession,
        connection: psycopg.Connection,
        piece: Slice,
        plan: PassPlan,
        options: SyncOptions,
        loader: Loader,
        committed: Callable[[Counts], None],
    ) -> None:
        self._session = session
        self._connection = connection
        self._slice = piece
        self._plan = plan
        self._options = options
        self._loader = loader
        self._committed = committed
        self.stored = PassState(plan.key) if options.dry_run else load_state(connection, plan.key)
        """The state before the pass."""
        self.state = self.stored
        self.records: list[bytes] = []
        """What a dry run of a practice collection read."""
        self.resumed_at: int | None = None
        """Pages that an earlier run had committed."""

    @property
    def fresh(self) -> bool:
        """Whether a pass begun late enough is already complete."""
        after = self._options.fresh_after
        if self._slice.collection.increment is None or self._plan.pass_.membership:
            after = self._options.whole_after or after
        state = self.stored
        complete = state.full_at if self._options.mode is Mode.FULL else state.fresh_at
        return bool(after and not self._options.partial and not state.unfinished and complete and complete >= after)

    def read(self) -> None:
        """Read to the last page; a cursor the API has forgotten begins the pass anew, once."""
        self.state = self._resumable() or self._anew()
        try:
            self._read()
        except CursorExpired:
            _log.warning("cursor expired, the pass begins anew", extra={"nexhealth": {"slice": self._slice.label}})
            self.state = self._anew()
            self.resumed_at = None
            self._read()
        except ProtocolBroken:
            # What was committed of this pass cannot be trusted to be all of it: the next sync begins it anew.
            if not self._options.partial:
                save_state(self._connection, replace(self.state, cursor=""))
            raise

    def _resumable(self) -> PassState | None:
        """The stored state, where it is of an unfinished pass that this one may go on with."""
        state = self.stored
        if self._options.partial or not state.unfinished or not state.cursor or state.pass_started_at is None:
            return None
        too_old = datetime.now(UTC) - state.pass_started_at > self._options.resume_within
        other_kind = self._options.mode is Mode.FULL and state.since is not None
        if too_old or other_kind or state.filter_hash != filter_hash(self._request(state.since)):
            return None
        self.resumed_at = state.page
        return state

    def _anew(self) -> PassState:
        if self._plan.pass_.membership and not self._options.partial:
            forget_seen(self._connection, *self._seen_key())
        since = self._since()
        return replace(
            self.stored,
            pass_started_at=None,
            begun_at=database_time(self._connection),
            mode=self._options.mode.value,
            since=since,
            filter_hash=filter_hash(self._request(since)),
            cursor="",
            page=0,
            page_hashes=[],
            records=0,
            run_id=self._session.run_id,
        )

    def _since(self) -> datetime | None:
        """From when on changes are asked for; None = everything."""
        collection = self._slice.collection
        whole = self._options.mode is Mode.FULL or self._options.partial or self._plan.pass_.membership
        if collection.increment is None or (whole and self._slice.window_key != CHANGES):
            return None
        watermark = self.stored.watermark
        if watermark is None and self._slice.window_key == CHANGES:
            watermark = self._earliest_month()
        return None if watermark is None else (watermark - self._options.overlap).replace(microsecond=0)

    def _earliest_month(self) -> datetime | None:
        """Where the first change read begins: the earliest start of all the months' complete passes."""
        key = self._plan.key
        row = self._connection.execute(
            "SELECT min(watermark) FROM nexhealth_sync_state"
            " WHERE collection = %s AND institution_id = %s AND location_id = %s AND window_key <> %s",
            (key.collection, key.institution_id, key.location_id, CHANGES),
        ).fetchone()
        return row[0] if row else None

    def _request(self, since: datetime | None) -> ApiRequest:
        request = self._plan.request
        increment = self._slice.collection.increment
        if since is None or increment is None:
            return request
        return replace(request, params=(*request.params, (increment, api_time(since))))

    def _pages(self) -> Iterator[Page]:
        request = self._request(self.state.since)
        if self._slice.collection.scope is Scope.PRACTICE:
            for name in self._session.client.key_names():
                yield from self._session.client.pages(replace(request, key_name=name))
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
        whole = self._slice.collection.scope is Scope.PRACTICE
        size = None if whole else self._options.batch_pages
        pages = prefetched(self._pages(), depth=self._options.batch_pages, stop=self._session.stop)
        with closing(pages):
            for batch in _batches(pages, size):
                self._commit(batch)

    def _commit(self, batch: list[Page]) -> None:
        last = batch[-1]
        state = replace(
            self.state,
            pass_started_at=self.state.pass_started_at or batch[0].requested_at,
            cursor=last.end_cursor,
            page_hashes=[*self.state.page_hashes, *(page.fingerprint for page in batch)],
            page=self.state.page + len(batch),
            records=self.state.records + sum(len(page.records) for page in batch),
            run_id=self._session.run_id,
        )
        if not last.has_next:
            self._compare_total(last, state.records)
            state = state.completed(datetime.now(UTC))
        with self._connection.transaction():
            counts = self._load(batch, ends=not last.has_next)
            if not self._options.partial:
                save_state(self._connection, state)
            self._committed(counts)
        self.state = state

    def _compare_total(self, last: Page, records: int) -> None:
        """The pages must hold what the API itself counts, where it does; more is no fault, since rows move."""
        if self._plan.request.paging is Paging.CURSOR and last.total is not None and records < last.total:
            raise ProtocolBroken(
                f"{self._slice.label}: the API counts {last.total} records, its pages held {records}: rows are missing"
            )

    def _load(self, batch: list[Page], *, ends: bool) -> Counts:
        """Rows of a batch, and which patients its location lists."""
        if self._plan.pass_.membership:
            return self._load_membership(batch, ends=ends)
        known = {"location_id": self._plan.key.location_id}
        loaded = self._loader.load(((page, known) for page in batch), self.stored.watermark)
        if self._lists_patients():
            self._remember_members(loaded.ids, batch[0].requested_at)
        if self._options.dry_run and self._slice.collection.scope is Scope.PRACTICE:
            self.records += [record for page in batch for record in page.records]
        return loaded.counts

    def _lists_patients(self) -> bool:
        """Whether this pass alone says which patients the location has: nobody shares its database."""
        location = self._slice.location
        has_membership = any(pass_.membership for pass_ in self._slice.collection.passes)
        return has_membership and location is not None and not location.shared

    def _load_membership(self, batch: list[Page], *, ends: bool) -> Counts:
        counts = Counts()
        encoder = RecordEncoder(self._slice.collection, self._slice.institution_id)
        for page in batch:
            counts.add(cost_of(page))
            encoded = encoder.encode(page.records, page.requested_at, {})
            unreadable = sum(not note.loaded for note in encoded.notes)
            counts.quarantined += unreadable
            self._remember_members(encoded.ids, page.requested_at)
            if not self._options.dry_run:
                record_seen(self._connection, *self._seen_key(), ids=[*encoded.ids, *[UNREADABLE] * bool(unreadable)])
        counts.unchanged = counts.records_read - counts.quarantined
        if ends and not self._options.dry_run:
            began = self.state.pass_started_at or batch[0].requested_at
            close_membership(self._connection, *self._seen_key(), began=began)
        return counts

    def _remember_members(self, ids: list[int], seen_at: datetime) -> None:
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
        )

    def _seen_key(self) -> tuple[str, int, int, str]:
        key = self._plan.key
        return key.collection, key.institution_id, key.location_id, key.pass_name


def _batches(pages: Iterator[Page], size: int | None) -> Iterator[list[Page]]:
    """Pages in lists of `size` (None = one list); what came before a failure is handed out first."""
    batch: list[Page] = []
    failure: PipelineError | None = None
    try:
        for page in pages:
            batch.append(page)
            if size is not None and len(batch) >= size:
                yield batch
                batch = []
    except PipelineError as error:
        failure = error
    if batch and (failure is None or size is not None):
        yield batch
    if failure is not None:
        raise failure
