"""Reads of one object each because of events: a patient's documents, and what lists of a changed row lack.

A patient's address and a coverage's subscriber come with the single read of their row alone (collections with
`per` whose path ends in the row's id). A changed version makes such a row due by itself
(`warehouse.child_reads`); those of a run's events are read at once, the rest by the next sync. The single read
of a patient also tells its locations: a new patient is in no list yet.

Answers are loaded together; those that the database refuses are found by halving what is here already, since asking
once more would cost a request each.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated

import msgspec
import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.client.account import id_of
from nexhealth_pipeline.client.page import Page, fields_of
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import ApiError, Cancelled, KeyRefused, NoAccess, NotFound, TryLater
from nexhealth_pipeline.sync.filters import NO_FILTERS
from nexhealth_pipeline.sync.heed import Heed
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.months import utc_today
from nexhealth_pipeline.sync.plan import PassPlan, passes_of
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.child_reads import ChildRead, DueRow, changed_among, record_child_reads, was_begun
from nexhealth_pipeline.warehouse.knowledge import record_locations
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog
from nexhealth_pipeline.webhooks.applying.failures import in_words, is_the_tables, may_be_at_fault

__all__ = ["Failure", "ListsRead", "SingleReads", "children_of"]

_GIVE_UP_AFTER = 3
"""Failures in a row after which the rest is left to a later try: each costs all its retries."""
_MOST_REFUSALS = 3
"""Lists that may be refused before any was answered. One record may be closed to a key that others are open to."""
_REPEATS = 3
"""Times that answers are loaded which met a deadlock; what else the transaction holds may be its cause, so not for long."""
_Ids = list[Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]]
"""Numbers that a column takes."""
_LOCATIONS = "location_ids"
"""Of a patient's single read: the locations that list it (API.md E.3)."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one row's list could not be read."""

    reason: str
    passing: bool
    """It passes by itself, or once the API key is corrected: no fault of what was asked for."""
    own: bool = False
    """The row's answer is the cause: another row would fare better."""


@dataclass(slots=True)
class ListsRead:
    """What came of reading some rows' lists."""

    collection: Collection
    read: set[int] = field(default_factory=set)
    failures: dict[int, Failure] = field(default_factory=dict)
    """Rows that could not be read; one in neither was not asked for, because the run was stopped."""
    ended: Failure | None = None
    """Why the rest was not asked for: no other row would fare better."""
    gone: set[int] = field(default_factory=set)
    """Of those read, rows that the API knows no more."""
    met: set[int] = field(default_factory=set)
    """Ids of the records in the lists, of those that could not be loaded too."""
    records: int = 0
    """Records in them."""
    changed: int = 0
    """Rows of the collection that changed."""


@dataclass(frozen=True, slots=True)
class _Answer:
    row: DueRow
    pages: list[Page]
    asked: float
    """When, by `time.monotonic`."""
    locations: list[int] | None = None


class _Account:
    """When to stop asking. Shared by threads, to which exact figures are no matter."""

    def __init__(self) -> None:
        self.given_up: ApiError | None = None
        """The failure that no other row would fare better with: the first such, whatever still comes from other threads."""
        self.offered = False
        """Whether a list was answered: then no refusal says that the practice has none."""
        self._refused = 0
        self._in_a_row = 0

    def answered(self, answer: _Answer) -> None:
        """Note an answer."""
        self._in_a_row = 0
        self.offered |= bool(answer.pages)  # a row that is gone says nothing of its list

    def failed(self, failure: ApiError) -> None:
        """Note a failure."""
        self._in_a_row += isinstance(failure, TryLater)
        self._refused += isinstance(failure, NoAccess)
        closed = self._refused > _MOST_REFUSALS and not self.offered
        if isinstance(failure, KeyRefused) or closed or self._in_a_row >= _GIVE_UP_AFTER:
            self.given_up = self.given_up or failure

    def verdict(self) -> Failure | None:
        """What came of the rows that were not asked for, and would have come of any other; None where nothing ended it.

        Who was not asked for has not failed. But where a practice refuses all lists, thousands would wait for days
        until each was asked for itself.
        """
        if self.given_up is None:
            return None
        refused = isinstance(self.given_up, NoAccess) and not self.offered
        return Failure(str(self.given_up), passing=not refused)


def children_of(collection: Collection) -> list[Collection]:
    """Collections that come with the single read of a row of `collection`."""
    return [one for one in DECLARED if one.per == collection.name and one.path.endswith("{id}")]


class SingleReads:
    """Reads single objects and loads them on `connection`; the caller commits."""

    def __init__(self, session: SyncSession, connection: psycopg.Connection) -> None:
        self._session = session
        self._connection = connection

    def due(self, child: Collection, institution: Institution, rows: Iterable[int], most: int) -> list[int]:
        """At most so many of these parents whose own list was read for another version, or never.

        None where no list of the institution was read: the first read asks for all of them. Not where some were not: one
        that fails every night would keep all others as they are.
        """
        if not was_begun(self._connection, collection=child, institution_id=institution.id):
            return []
        return changed_among(self._connection, collection=child, institution_id=institution.id, rows=rows, most=most)

    def read(self, collection: Collection, institution: Institution, rows: Sequence[int]) -> ListsRead:
        """Read and load the lists of these rows; where the API is away or refuses all, the rest is not asked for."""
        done, account = ListsRead(collection), _Account()
        if not rows:
            return done
        answers: list[_Answer] = []
        left: list[int] = []
        for row, answer in self._fetch(collection, institution, self._versions(collection, institution, rows), account):
            if isinstance(answer, _Answer):
                answers.append(answer)
            elif isinstance(answer, Failure):
                done.failures[row] = answer
            elif answer is not None:
                left.append(row)
        done.ended = account.verdict()
        if done.ended is not None:
            done.failures |= dict.fromkeys(left, done.ended)
        elif account.offered:
            done.failures = {row: replace(failure, own=True) for row, failure in done.failures.items()}
        if answers:
            log = self._open_log(Slice(collection, institution))
            counts = self._load(collection, institution, answers, done)
            done.read = {one.row.id for one in answers} - done.failures.keys()
            done.gone = {one.row.id for one in answers if not one.pages}
            done.met = {id_ for one in answers for page in one.pages for id_ in _ids(page.records)}
            done.records, done.changed = counts.records_read, counts.inserted + counts.updated
            reason = next((one.reason for one in done.failures.values()), None)
            log.finish(self._connection, "succeeded" if done.read else "failed", counts, error=reason)
        return done

    def _versions(self, collection: Collection, institution: Institution, rows: Sequence[int]) -> list[DueRow]:
        found = self._connection.execute(
            sql.SQL("SELECT id, updated_at FROM {} WHERE institution_id = %s AND id = ANY(%s)").format(
                sql.Identifier(f"nexhealth_{collection.per}")
            ),
            (institution.id, list(rows)),
        )
        known: dict[int, datetime | None] = dict(found.fetchall())
        return [DueRow(row, known.get(row)) for row in rows]

    def _fetch(
        self, collection: Collection, institution: Institution, rows: Sequence[DueRow], account: _Account
    ) -> Iterator[tuple[int, _Answer | Failure | ApiError | None]]:
        piece = Slice(collection, institution)
        plans, heed = passes_of(piece, utc_today()), Heed(piece.label, NO_FILTERS)
        width = self._session.settings.concurrency
        with ThreadPoolExecutor(width, thread_name_prefix="nexhealth-singles") as pool:
            answers = pool.map(lambda row: self._ask(collection, plans, row, account, heed), rows)
            yield from ((row.id, answer) for row, answer in zip(rows, answers, strict=True))

    def _ask(
        self, collection: Collection, plans: Sequence[PassPlan], row: DueRow, account: _Account, heed: Heed
    ) -> _Answer | Failure | ApiError | None:
        """What came of one row, or the error because of which it was not asked for; None = the run was stopped."""
        if self._session.stop.is_set():
            return None
        if account.given_up is not None:
            return account.given_up
        asked = time.monotonic()
        try:
            if collection.path.endswith("{id}"):
                answer = self._ask_object(collection, plans[0], row, asked, heed)
            else:
                answer = self._ask_list(plans, row, asked, heed)
        except NotFound:
            # Gone since; the next read of its collection says what became of it.
            answer = _Answer(row, [], asked)
        except Cancelled:
            return None
        except ApiError as failure:
            account.failed(failure)
            return Failure(str(failure), isinstance(failure, TryLater | KeyRefused))
        account.answered(answer)
        return answer

    def _ask_list(self, plans: Sequence[PassPlan], row: DueRow, asked: float, heed: Heed) -> _Answer:
        answers = [(plan, list(self._session.client.pages(_about(plan.request, row)))) for plan in plans]
        for plan, pages in answers:
            heed.require(plan, pages)
        return _Answer(row, [page for _, pages in answers for page in pages], asked)

    def _ask_object(self, collection: Collection, plan: PassPlan, row: DueRow, asked: float, heed: Heed) -> _Answer:
        """The records lie inside an object, beside what else it tells."""
        page = self._session.client.get(_about(plan.request, row))
        heed.require(plan, [page])
        return _Answer(row, [page], asked, _locations(page.whole) if collection.per_patient else None)

    def _load(
        self, collection: Collection, institution: Institution, answers: Sequence[_Answer], done: ListsRead
    ) -> Counts:
        """Load all of these answers but those that cannot be, which are noted in `done`."""
        try:
            return self._repeated(collection, institution, answers)
        except Exception as failure:
            for_all = is_the_tables(failure)
            if not (for_all or may_be_at_fault(failure)):
                raise
            reason = f"{collection.name}: {in_words(failure)}"
        counts = Counts()
        if for_all or len(answers) == 1:
            done.failures |= {one.row.id: Failure(reason, passing=False, own=not for_all) for one in answers}
            return counts
        middle = len(answers) // 2
        for half in (answers[:middle], answers[middle:]):
            counts.add(self._load(collection, institution, half, done))
        return counts

    def _repeated(self, collection: Collection, institution: Institution, answers: Sequence[_Answer]) -> Counts:
        def load() -> Counts:
            with self._connection.transaction():
                return self._load_all(collection, institution, answers)

        return repeated(load, tries=_REPEATS)

    def _load_all(self, collection: Collection, institution: Institution, answers: Sequence[_Answer]) -> Counts:
        loader = Loader(self._connection, Slice(collection, institution), run_id=self._session.run_id, dry_run=False)
        loader.open()
        pages = [(answer.row, page) for answer in answers for page in answer.pages]
        loaded = loader.encode_and_load([(page, _known(collection, row)) for row, page in pages])
        again = {pages[position][0].id for position in loaded.unread}
        reads = [
            ChildRead(one.row, sum(len(page.records) for page in one.pages), one.asked)
            for one in answers
            if one.pages and one.row.id not in again
        ]
        record_child_reads(
            self._connection,
            collection=collection,
            institution_id=institution.id,
            reads=reads,
            again=again,
            left=loaded.left,
        )
        for one in answers:
            if one.locations is not None:
                record_locations(self._connection, institution.id, one.row.id, one.locations, one.pages[0].requested_at)
        return loaded.counts

    def _open_log(self, piece: Slice) -> SyncLog:
        return SyncLog.open(
            self._connection,
            run_id=self._session.run_id,
            asset=piece.collection.table,
            collection=piece.collection.name,
            institution_id=piece.institution_id,
            location_id=None,
            partition_key=None,
            mode="webhook",
        )


def _about(request: ApiRequest, row: DueRow) -> ApiRequest:
    return replace(request, path=request.path.format(id=row.id))


def _known(collection: Collection, row: DueRow) -> Mapping[str, int]:
    """What the request knows: the row it asks about, under the name that the declaration gives it."""
    return {**dict.fromkeys(collection.parent_columns, row.id), "location_id": 0}


def _ids(records: Iterable[bytes]) -> set[int]:
    return {int(text) for record in records if (text := id_of(record)).isdecimal()}


def _locations(patient: bytes) -> list[int] | None:
    """Ids of the locations that list the patient; None where the answer does not say, or says what cannot be one."""
    try:
        return msgspec.json.decode(fields_of(patient).get(_LOCATIONS, b"null"), type=_Ids)
    except msgspec.MsgspecError:
        return None
