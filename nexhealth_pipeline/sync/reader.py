"""Reading one slice under its lock: its passes, then what is known of it, then its log row's end."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Reader
from nexhealth_pipeline.errors import (
    ApiError,
    Cancelled,
    KeyRefused,
    MissingRights,
    PipelineError,
    ServerFailed,
    TryLater,
    ValueRefused,
    WarehouseError,
)
from nexhealth_pipeline.sync.fault_points import reach
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.months import CHANGES, month_bounds, month_keys, utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.pass_reader import PassReader
from nexhealth_pipeline.sync.plan import PassPlan, owner_keys, passes_of
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slice_lock import Held, SliceLock
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.knowledge import record_capability, record_freshness, refused_since
from nexhealth_pipeline.warehouse.quarantine import close_unnamed, met_unread
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.state import PassState, least, load_elsewhere, load_state, take_over
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog

__all__ = ["SliceReader"]

_log = logging.getLogger(__name__)
_NOT_OFFERED: dict[int | None, str] = {
    **dict.fromkeys((401, 403), "not_enabled"),
    **dict.fromkeys((404, 405, 415, 501), "unsupported"),
}
"""What the API answers for what a practice, or its practice system, does not have. A location that is gone fails all
the same: by its patients and whatever else every practice has."""
_REFUSED = (MissingRights, ValueRefused)
"""What PostgreSQL says of one table or value."""


class SliceReader:
    """Reads one slice. A failure is in the result, not raised, unless no other slice would fare better, and but for bugs.

    So is what PostgreSQL refuses for a right or a value: it may be one table's alone, which costs its own slices and not
    the night of all others.
    """

    def __init__(self, session: SyncSession, piece: Slice, options: SyncOptions) -> None:
        self.session = session
        self.slice = piece
        self.options = options
        self.today = options.today or utc_today()
        self.counts = Counts()
        self.states: list[PassState] = []
        """State of each pass after it."""
        self.records: list[bytes] = []
        self.read_anything = False
        """Whether any pass was not fresh already."""
        self._had_rows = False
        """Whether what was read last had records: this read, of changes or of what is due, may have none."""
        self._goes_on = False
        """Whether a pass went on from pages that an earlier run had read."""
        self._log_row: SyncLog | None = None
        self._watermark_from: datetime | None = None
        self._rows_through: list[datetime] = []
        """Up to when the rows are complete that another location reads for this one."""
        self._began = time.monotonic()

    def read(self) -> SliceResult:
        """Read the slice. Raises WarehouseError where no other slice would fare better."""
        if self.session.stop.is_set():
            return self._result(Status.CANCELLED, reason="stopped before this slice was begun")
        if (refused := self.session.refusals.get(self.slice.collection.name)) is not None:
            return self._result(Status.FAILED, reason=str(refused), exit_status=refused.exit_status)
        with driver_errors(self._doing), self.session.pool.connection() as connection:
            try:
                with SliceLock(connection, self.slice, self.session.stop, waits=self.options.waits):
                    return self._read_locked(connection)
            except Held:
                result = self._result(Status.SKIPPED, reason="another run reads it just now")
                result.held = True
                return result
            except Cancelled as stopped:
                return self._result(Status.CANCELLED, reason=str(stopped))

    def _read_locked(self, connection: psycopg.Connection) -> SliceResult:
        if not self.options.dry_run:
            self._log_row = self._open_log(connection)
        self.loader = Loader(connection, self.slice, run_id=self.session.run_id, dry_run=self.options.dry_run)
        self.loader.open()
        try:
            return self._read_through(connection)
        except PipelineError as failure:
            if isinstance(failure, MissingRights):
                self.session.refusals[self.slice.collection.name] = failure
            failed = self._fail(connection, failure)
            if isinstance(failure, WarehouseError) and not isinstance(failure, _REFUSED):
                raise
            return failed

    def _read_through(self, connection: psycopg.Connection) -> SliceResult:
        """Passes and end. Refusals by PostgreSQL are told from its other errors: after those nothing can be noted of it."""
        try:
            self.passes(connection)
            return self._succeed(connection)
        except (psycopg.errors.InsufficientPrivilege, psycopg.DataError):
            with driver_errors(self._doing):
                raise

    @property
    def _doing(self) -> str:
        return f"loading {self.slice.collection.table}"

    def passes(self, connection: psycopg.Connection) -> None:
        """Make every pass of the slice that is not fresh already."""
        self._require_owner(connection)
        committing = partial(self.commit, connection)
        plans = passes_of(self.slice, self.today, self.options.filters, reconcile=self.options.reconciles)
        self._take_over(connection, plans)
        readers = [
            PassReader(self.session, connection, self.slice, plan, self.options, self.loader, committing)
            for plan in plans
        ]
        # Not since the passes read last: one that broke off has not asked again for what the last complete one met.
        last = least(reader.stored.fresh_at for reader in readers)
        again, read = self._met_unread(connection, last), 0
        for reader in readers:
            reader.again = again
            self._had_rows |= reader.stored.records > 0
            watermarks = filter(None, (self._watermark_from, reader.stored.watermark))
            self._watermark_from = min(watermarks, default=None)
            if reader.fresh:
                self.states.append(reader.stored)
                continue
            self.read_anything = True
            read += 1
            try:
                reader.read()
            finally:
                self._goes_on |= reader.resumed_at is not None
                if reader.resumed_at is not None and self._log_row is not None:
                    self._log_row.resumed(connection, reader.resumed_at)
            self.records += reader.records
            self.states.append(reader.state)
        quiet = not self.counts.records_read and any(one.since is not None for one in self.states)
        if quiet and not self._had_rows and self._was_refused(connection):
            self._had_rows = self._holds_rows(connection)
        if self.loader.has_open_notes and read == len(readers):
            self._close_unnamed(connection, readers, last)

    def _was_refused(self, connection: psycopg.Connection) -> bool:
        """Whether a list that is no part of one is offered again; what it held was forgotten when it was refused."""
        if not self.slice.collection.may_be_disabled or self.options.partial:
            return False
        collection, institution_id, location_id = self._place
        place = {"institution_id": institution_id, "location_id": location_id}
        return refused_since(connection, **place, collection=collection) is not None

    def _holds_rows(self, connection: psycopg.Connection) -> bool:
        """Whether the table has live rows of the place: a quiet list brings none of those that it holds.

        Of any office of its database, since a row says but one, or none; where no row says any, of the institution.
        """
        collection, location = self.slice.collection, self.slice.location
        query = "SELECT EXISTS (SELECT FROM {} WHERE institution_id = %s AND deleted_at IS NULL"
        values: list[object] = [self.slice.institution_id]
        if location is not None and "location_id" in {
            one.name for one in (*collection.from_request, *collection.columns)
        }:
            query += " AND (location_id = ANY(%s) OR location_id IS NULL)"
            values.append([location.id, *location.members])
        row = connection.execute(sql.SQL(query + ")").format(sql.Identifier(collection.table)), values).fetchone()
        return row is not None and bool(row[0])

    def _met_unread(self, connection: psycopg.Connection, last: datetime | None) -> bool:
        """Whether records could not be read since: who asks again finds out if they were spoilt on the way."""
        if not self.loader.has_open_notes or self.options.partial:
            return False
        return met_unread(connection, *self._place, last)

    def _close_unnamed(self, connection: psycopg.Connection, readers: list[PassReader], last: datetime | None) -> None:
        """Where all was asked for that may have held it: what has no id and did not come again was spoilt on its way."""
        content = [reader for reader in readers if not reader.lists_members]
        began = least(reader.state.pass_started_at for reader in content)
        if began is not None and all(reader.covers for reader in content):
            everything = all(reader.covers_all for reader in content)
            # A retry from the quarantine may close some of the same, in an order of its own.
            repeated(partial(close_unnamed, connection, *self._place, began, None if everything else last))

    @property
    def _place(self) -> tuple[str, int, int]:
        piece = self.slice
        return piece.collection.name, piece.institution_id, piece.location_id

    def commit(self, connection: psycopg.Connection, work: Callable[[], Counts]) -> None:
        """Commit what `work` does, which says what it counted, with the log's counts; then tell whoever watches.

        A transaction that PostgreSQL ended because of somebody else's is made again: its failure would end the whole run.
        """
        once = partial(self._transaction, connection, work)
        undo = partial(self.loader.go_back, self.loader.mark())
        # A dry run's stage holds all that was read so far, and nobody else is in its way.
        self.counts = once() if self.options.dry_run else repeated(once, undo=undo)
        reach("after_commit", self.slice.collection.name)
        self.session.progress(self.slice.label, self.counts.pages, self.counts.records_read)

    def _transaction(self, connection: psycopg.Connection, work: Callable[[], Counts]) -> Counts:
        """One try; returns what the slice has counted with it."""
        with connection.transaction():
            counts = replace(self.counts)
            counts.add(work())
            if self._log_row is not None:
                self._log_row.progress(connection, counts)
            reach("before_commit", self.slice.collection.name)
        return counts

    def _take_over(self, connection: psycopg.Connection, plans: list[PassPlan]) -> None:
        """Where offices have come to share a database, its owner goes on from where the one least far had come."""
        location = self.slice.location
        if location is None or self.options.partial:
            return
        for plan in plans:
            if plan.pass_.reader is Reader.OWNER:
                take_over(connection, plan.key, location.members)

    def _require_owner(self, connection: psycopg.Connection) -> None:
        """A sibling's rows come with its database's owner, which must have been read first.

        By that of all its members, where some read for themselves until lately: what they lack nobody has read yet.
        """
        keys = [] if self.options.filters or self.options.dry_run else owner_keys(self.slice)
        marks = [load_state(connection, key).watermark for key in keys]
        members = self.slice.location.members if self.slice.location else ()
        marks += [one.watermark for key in keys for one in load_elsewhere(connection, key, members)]
        if keys and self.session.stop.is_set():
            raise Cancelled("stopped before the owner of the database was read")
        if None in marks:
            raise ServerFailed(
                f"{self.slice.label}: shares an EHR database with location {keys[0].location_id}, "
                "whose read is not complete: read that location first"
            )
        self._rows_through = [mark for mark in marks if mark is not None]

    def _open_log(self, connection: psycopg.Connection) -> SyncLog:
        piece = self.slice
        return SyncLog.open(
            connection,
            run_id=self.session.run_id,
            asset=piece.collection.table,
            collection=piece.collection.name,
            institution_id=piece.institution_id or None,
            location_id=piece.location_id or None,
            partition_key=piece.partition_key,
            mode=self.options.mode.value,
        )

    def _fail(self, connection: psycopg.Connection, failure: PipelineError) -> SliceResult:
        self.counts.add(Counts.of(failure))
        status = Status.CANCELLED if isinstance(failure, Cancelled) else Status.FAILED
        answered = getattr(failure, "status", None)
        lacking = _NOT_OFFERED.get(answered) if self.slice.collection.may_be_disabled else None
        if isinstance(failure, KeyRefused | TryLater):
            lacking = None  # the same statuses, of a key or a proxy, or given for no token: no verdict on the list
        if self.options.filters and answered == 404:
            lacking = None  # what the filter names may be unknown, not the list
        if self.counts.pages or self._goes_on:
            lacking = None  # a list of which pages came is there: taken for none, half of it would look like all
        if lacking is not None:
            status = Status.SKIPPED
            if not self.options.partial:
                self._capability(connection, lacking, str(answered))
        self._close_log(connection, status, str(failure))
        result = self._result(status, reason=str(failure), exit_status=failure.exit_status)
        result.passing = isinstance(failure, TryLater | KeyRefused)
        if isinstance(failure, ApiError):
            result.refused_keys = failure.refused_keys
        return result

    def _succeed(self, connection: psycopg.Connection) -> SliceResult:
        if self.options.dry_run:
            self.loader.classify(self.counts)
        elif not self.options.partial:
            repeated(partial(self._note_end, connection))
        status = Status.SUCCEEDED if self.read_anything else Status.SKIPPED
        reason = None if self.read_anything else "already read completely since this sync began"
        complete = not self.options.partial and self.as_of() is not None
        rows = self._rows(connection) if complete else None
        self._close_log(connection, status, reason)
        result = self._result(status, reason=reason, complete=complete)
        result.rows = rows
        return result

    def _note_end(self, connection: psycopg.Connection) -> None:
        """Note what is known of a slice that was read to its end, in one transaction."""
        with connection.transaction():
            self._remember(connection)

    def _rows(self, connection: psycopg.Connection) -> int | None:
        """Rows of the slice: those a whole read met (a shared database's: those listed there); of a month those in it."""
        piece, window = self.slice, self.slice.collection.window
        if window is None:
            members = {one.name for one in piece.collection.passes if one.membership}
            first = [one for one in self.states if one.key.pass_name not in piece.collection.second_looks]
            states = [state for state in first if state.key.pass_name in members] or first
            whole = all(state.since is None for state in states) and piece.collection.per is None
            return sum(state.records for state in states) if whole else None
        if piece.window_key == CHANGES:
            return None
        query = sql.SQL(
            "SELECT count(*) FROM {} WHERE institution_id = %s AND location_id = %s AND {} >= %s AND {} < %s"
        ).format(sql.Identifier(piece.collection.table), *[sql.Identifier(window.column)] * 2)
        bounds = month_bounds(piece.window_key, self.today)
        row = connection.execute(query, (piece.institution_id, piece.location_id, *bounds)).fetchone()
        return int(row[0]) if row else None

    def _remember(self, connection: psycopg.Connection) -> None:
        """Freshness and capability of a slice that was read to its end."""
        through, full = self.as_of(), least(state.last_full_at for state in self.states)
        if self.slice.collection.window is not None:
            through, full = self._windowed_freshness(connection)
        if self.slice.institution_id and self.read_anything and self.slice.window_key != CHANGES:
            has_rows = self.counts.records_read or self._had_rows or any(state.records for state in self.states)
            self._capability(connection, *(("supported", "rows") if has_rows else ("empty", "no rows")))
        record_freshness(
            connection,
            institution_id=self.slice.institution_id,
            location_id=self.slice.location_id,
            collection=self.slice.collection.name,
            complete_through=through,
            last_full_at=full,
            changed=bool(self.counts.inserted or self.counts.updated or self.loader.nested_changes),
        )

    def as_of(self) -> datetime | None:
        """Every change up to here is in the warehouse: the earliest start of the passes that bring its rows."""
        return least([*(state.watermark for state in self.states), *self._rows_through])

    def _windowed_freshness(self, connection: psycopg.Connection) -> tuple[datetime | None, datetime | None]:
        """Of all months of the location together; nothing while one of them was never complete."""
        piece = self.slice
        regular = [one.name for one in piece.collection.regular_passes]
        rows = connection.execute(
            # A month counts once all its passes were complete.
            "SELECT window_key = %s, count(*), min(watermark), min(last_full_at) FROM ("
            " SELECT window_key, min(watermark) AS watermark, min(last_full_at) AS last_full_at FROM nexhealth_sync_state"
            " WHERE collection = %s AND institution_id = %s AND location_id = %s AND pass = ANY(%s)"
            " GROUP BY 1 HAVING count(watermark) = %s) complete GROUP BY 1",
            (CHANGES, piece.collection.name, piece.institution_id, piece.location_id, regular, len(regular)),
        ).fetchall()
        found = {is_changes: (months, watermark, full) for is_changes, months, watermark, full in rows}
        months, watermark, full = found.get(False, (0, None, None))
        if months < len(month_keys(self.today)):
            return None, None
        changed_through = found.get(True, (0, None, None))[1]
        return max(filter(None, (watermark, changed_through)), default=None), full

    def _capability(self, connection: psycopg.Connection, status: str, evidence: str) -> None:
        if self.options.dry_run:
            return
        record_capability(
            connection,
            institution_id=self.slice.institution_id,
            location_id=self.slice.location_id,
            collection=self.slice.collection.name,
            status=status,
            evidence=evidence,
            at=self.session.client.clock.now(),
        )

    def _close_log(self, connection: psycopg.Connection, status: Status, reason: str | None) -> None:
        if self._log_row is not None:
            self._log_row.finish(
                connection,
                status.value,
                self.counts,
                error=reason,
                watermark_from=self._watermark_from,
                watermark_to=self.as_of() if status is Status.SUCCEEDED and not self.options.partial else None,
            )
        # A line a slice would be an event each in Dagster's database: only what needs a look is told by default.
        _log.log(
            logging.WARNING if status is Status.FAILED else logging.DEBUG,
            "slice read",
            extra={"nexhealth": {"slice": self.slice.label, "status": status.value, **self.counts.as_dict()}},
        )

    def _result(
        self, status: Status, *, reason: str | None = None, complete: bool = False, exit_status: int = 0
    ) -> SliceResult:
        loader = getattr(self, "loader", None)
        return SliceResult(
            slice=self.slice,
            status=status,
            counts=self.counts,
            seconds=time.monotonic() - self._began,
            complete=complete,
            as_of=self.as_of() if complete else None,
            reason=reason,
            exit_status=exit_status,
            changes=loader.changes if loader else [],
            records=self.records,
            new_notes=loader.new_notes if loader else 0,
        )
