"""One judgement of absences: what is missing, whether to believe it, and marking it."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import psycopg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import Cancelled, PipelineError
from nexhealth_pipeline.sync.confirm import Confirmation
from nexhealth_pipeline.sync.every_key import was_read_for
from nexhealth_pipeline.sync.fault_points import ABSENCES, reach
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.reader import SliceReader
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Absence, Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.absence import Figures, Ground, Missing
from nexhealth_pipeline.warehouse.history import Cause, state_cause
from nexhealth_pipeline.warehouse.judgements import overtake
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog
from nexhealth_pipeline.warehouse.under_gone import mark_come_since

__all__ = ["MOST_AT_ONCE", "Sources", "Verdict", "brake"]

MOST_AT_ONCE = 500
"""More rows of one judgement never vanish unless they are allowed to."""
_FEW, _SHARE = 10, 0.05
_log = logging.getLogger(__name__)


def brake(figures: Figures) -> str | None:
    """Why so many rows are not believed to be gone at once; None = they may be.

    Those that lists may leave out do not count before their single reads have said that they are gone.
    """
    if figures.empty:
        return f"the answer was empty, and {figures.live} rows are there"
    if figures.missing > MOST_AT_ONCE or figures.missing > max(_FEW, _SHARE * figures.live):
        return f"{figures.missing} of {figures.live} rows would vanish at once"
    return None


def _lacks(figures: Figures) -> int:
    """All rows that the read lacked and that are asked for or marked."""
    return figures.missing + figures.unlisted


class Sources:
    """Which locations' practice systems NexHealth is not known to reach; asked again once, when it matters."""

    def __init__(self, session: SyncSession) -> None:
        self._session = session
        self._answer: SliceResult | None = None

    def ask_again(self) -> SliceResult | None:
        """Read `sync_status` anew, and what came of that; None where it was done already."""
        if self._answer is not None:
            return None
        self._answer = SliceReader(self._session, Slice(COLLECTIONS["sync_status"]), SyncOptions()).read()
        return self._answer

    def trouble(self, subdomain: str) -> str | None:
        """Why that could not be asked again of an institution: a key that is refused is not everybody's."""
        answer = self._answer
        if answer is None or answer.status is Status.SUCCEEDED:
            return None
        if was_read_for(self._session.client, answer, subdomain):
            return None
        return f"whether the practice was online could not be asked: {answer.reason}"


class Verdict:
    """One judgement: what is missing, whether to believe it, and marking it."""

    def __init__(
        self, session: SyncSession, connection: psycopg.Connection, piece: Slice, options: SyncOptions, *, alone: bool
    ) -> None:
        self._session, self._connection = session, connection
        self._slice, self._options = piece, options
        self._alone = alone
        self._began = time.monotonic()
        self._counts = Counts()
        self._log_row: SyncLog | None = None
        self.undecided = False
        """Whether it came to no end: whoever looks at its reads again is to judge anew."""

    def hear(self, ground: Callable[[], Ground | str], sources: Sources) -> Iterator[SliceResult]:
        """Judge; one result, and one more for each collection whose lists went with their rows.

        Before them that of the read of `sync_status`, where one was made: it has its row in the log. That is an observation
        (not `complete`), since a materialization is told by runs that were asked for the asset; and no failure of a run that
        was asked for other things: what it stands in the way of is told by the judgement.
        """
        found = self._find(ground)
        if not isinstance(found, str) and _lacks(found[1]) and (asked := sources.ask_again()) is not None:
            status = Status.SKIPPED if asked.status is Status.FAILED else asked.status
            yield replace(asked, complete=False, status=status)
            found = self._find(ground)
        trouble = sources.trouble(self._slice.subdomain or "")
        if isinstance(found, str) or (_lacks(found[1]) and trouble):
            reason = found if isinstance(found, str) else trouble
            self.undecided |= not isinstance(found, str)
            yield self._result(Status.SKIPPED, Absence(), reason)
            return
        missing, figures = found
        absence = Absence(figures.live, figures.seen, _lacks(figures), revived=self._revived(missing.ground))
        if self._alone:  # told of the databases
            absence = replace(absence, seen=0, revived=0)
        if not absence.quiet:
            self._log_row = self._open_log(self._slice.collection)
        if (braked := self._braked(figures)) is not None:
            yield self._result(Status.FAILED, replace(absence, braked=True), braked)
            return
        yield from self._carry_out(missing, figures, absence)

    def _braked(self, figures: Figures) -> str | None:
        """Why nothing is marked because it would be too much; None = it may be."""
        why = brake(figures) if figures.missing and not self._options.allow_mass_delete else None
        return why and f"absences not marked: {why}; a reconcile with --allow-mass-delete marks them"

    def _find(self, ground: Callable[[], Ground | str]) -> tuple[Missing, Figures] | str:
        """What is missing, in one snapshot of the reads and the rows."""
        with self._connection.transaction():
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            made = ground()
            if isinstance(made, str):
                return made
            missing = Missing(self._connection, made)
            if not missing.still_complete():
                self.undecided = True
                return "absences not judged: another run has begun to read it again"
            return missing, missing.find(None if self._options.allow_mass_delete else MOST_AT_ONCE)

    def _revived(self, ground: Ground) -> int:
        row = self._connection.execute(
            "SELECT coalesce(sum(revived), 0)::bigint FROM nexhealth_seen_passes WHERE id = ANY(%s)",
            (list(ground.passes),),
        ).fetchone()
        return int(row[0]) if row else 0

    def _carry_out(self, missing: Missing, figures: Figures, absence: Absence) -> Iterator[SliceResult]:
        confirmation = Confirmation(self._session, self._connection, self._slice, missing)
        try:
            if absence.missing and self._slice.collection.by_id:
                confirmation.run(self._options.concurrency)
        except PipelineError as failure:
            self._counts.add(confirmation.counts)
            stopped = isinstance(failure, Cancelled)
            yield self._result(
                Status.CANCELLED if stopped else Status.FAILED,
                absence,
                f"absences not marked: a missing row could not be asked for: {failure}",
            )
            return
        self._counts.add(confirmation.counts)
        absence = replace(absence, confirmed=confirmation.gone, found=confirmation.found)
        if figures.unlisted:
            # What of them is gone counts as all else does, and those that were not asked for are like those that were.
            gone = confirmation.gone + round(missing.unlisted_gone() / figures.unlisted * figures.unasked)
            if (braked := self._braked(replace(figures, missing=gone, empty=False))) is not None:
                result = self._result(Status.FAILED, replace(absence, braked=True), braked)
                result.new_notes = confirmation.new_notes
                yield result
                return
        results = repeated(partial(self._mark, missing, absence))
        reach("after_commit", ABSENCES)
        results[0].new_notes = confirmation.new_notes
        yield from results

    def _mark(self, missing: Missing, absence: Absence) -> list[SliceResult]:
        """Mark what is gone, in one transaction; the result, and those of lists that went with their rows."""
        with self._connection.transaction():
            at = self._session.client.clock.now()
            state_cause(self._connection, Cause.PAGE, run_id=self._session.run_id)
            if missing.hold():  # else another run meets everything once more, and judges by that
                if self._slice.collection.per is not None:
                    overtake(self._connection, missing.ground.passes)
                missing.leave_locations()
                missing.relocate()
            marked = missing.mark(at) if absence.missing else 0
            lists = missing.mark_lists(at) if marked else {}
            self._counts.tombstoned = marked
            result = self._result(Status.SUCCEEDED, replace(absence, tombstoned=marked), None)
            results = [result, *(self._with(name, rows) for name, rows in lists.items())]
            reach("before_commit", ABSENCES)
        return results

    def look_under_gone(self) -> list[SliceResult]:
        """Mark what came under rows of the collection after they had been marked; a result for each that it is of."""
        return repeated(self._mark_come_since)

    def _mark_come_since(self) -> list[SliceResult]:
        """In one transaction."""
        with self._connection.transaction():
            state_cause(self._connection, Cause.PAGE, run_id=self._session.run_id)
            lists = mark_come_since(self._connection, self._slice.collection, self._slice.institution_id)
            return [self._with(name, rows) for name, rows in lists.items()]

    def _with(self, name: str, rows: int) -> SliceResult:
        """The result of lists that went with the rows they belong to."""
        collection = COLLECTIONS[name]
        counts = Counts(tombstoned=rows)
        reason = f"the {self._slice.collection.name} they belong to are gone"
        self._open_log(collection).finish(self._connection, Status.SUCCEEDED.value, counts, error=reason)
        piece = replace(self._slice, collection=collection)
        absence = Absence(missing=rows, tombstoned=rows)
        return SliceResult(piece, Status.SUCCEEDED, counts, 0.0, reason=reason, absence=absence)

    def _open_log(self, collection: Collection) -> SyncLog:
        piece = self._slice
        return SyncLog.open(
            self._connection,
            run_id=self._session.run_id,
            asset=collection.table,
            collection=collection.name,
            institution_id=piece.institution_id,
            location_id=piece.location_id or None,
            partition_key=f"{piece.partition_key} absence",
            mode=self._options.mode.value,
        )

    def _result(self, status: Status, absence: Absence, reason: str | None) -> SliceResult:
        if self._log_row is not None:
            self._log_row.finish(self._connection, status.value, self._counts, error=reason)
        self.undecided |= status in (Status.FAILED, Status.CANCELLED)
        if status is Status.FAILED:
            told = {"slice": self._slice.label, "reason": reason, "missing": absence.missing}
            _log.warning("absences not marked", extra={"nexhealth": told})
        seconds = time.monotonic() - self._began
        exit_status = PipelineError.exit_status if status is Status.FAILED else 0
        return SliceResult(
            self._slice, status, self._counts, seconds, reason=reason, exit_status=exit_status, absence=absence
        )
