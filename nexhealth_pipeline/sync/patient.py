"""One patient, now: the record, its address, guarantor, and every list that can be limited to it, or to who pays.

Rows of the ledger that name nobody but who pays are left to the next sync: each list would have to be asked twice.
A partial read: it moves no watermark, completes no slice and materializes nothing.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial

import msgspec
import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.page import Page, fields_of
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import (
    ApiError,
    InvalidSetting,
    KeyRefused,
    MissingSetting,
    NoAccess,
    NotFound,
    PipelineError,
    RecordRefused,
)
from nexhealth_pipeline.sync.filters import NO_FILTERS
from nexhealth_pipeline.sync.heed import Heed
from nexhealth_pipeline.sync.loader import EncodedPage, Loaded, Loader
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.plan import PassPlan, passes_of
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.sync.wide_window import pages_in_parts
from nexhealth_pipeline.warehouse.child_reads import ChildRead, DueRow, record_child_reads
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.knowledge import record_locations
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.sync_log import Counts, SyncLog
from nexhealth_pipeline.warehouse.values import CONVERTERS

__all__ = ["refresh_patient"]

_PATIENTS, _ADDRESSES = COLLECTIONS["patients"], COLLECTIONS["patient_addresses"]
_Answers = list[tuple[Page, Mapping[str, int]]]
_LARGEST_ID = 2**63 - 1
_KNOWN = "SELECT institution_id FROM nexhealth_patients WHERE institution_id = ANY(%s) AND id = %s"
"""By the key from its beginning on: asked for the id alone, PostgreSQL before 18 reads it from end to end."""


def refresh_patient(session: SyncSession, practices: Practices, patient_id: int) -> list[SliceResult]:
    """Read everything about one patient; one result a collection.

    Raises InvalidSetting when no institution knows the patient, MissingSetting when none has a key or that of the patient
    has none, ApiError and WarehouseError.
    """
    began = time.monotonic()
    with driver_errors("refreshing a patient"), session.pool.connection() as connection:
        institution, page = _find(session, connection, practices, patient_id)
        return _Refresh(session, connection, practices, institution, patient_id, began).run(page)


def _find(
    session: SyncSession, connection: psycopg.Connection, practices: Practices, patient_id: int
) -> tuple[Institution, Page]:
    """The institution of the patient and the answer that proved it; known institutions are asked first."""
    ids = [one.id for one in practices.institutions]
    known = {row[0] for row in connection.execute(_KNOWN, (ids, patient_id))}
    # The first: if any is the patient's own, that one is.
    refused: ApiError | MissingSetting | None = None
    keyless: MissingSetting | None = None
    asked = False
    for institution in sorted(practices.institutions, key=lambda one: one.id not in known):
        try:
            return institution, session.client.get(_single(institution, patient_id))
        except NotFound:
            asked = True
        except (KeyRefused, NoAccess) as refusal:
            refused = refused or refusal  # one tenant's key says nothing about the others
        except MissingSetting as missing:
            keyless = missing  # nor does that it has none, unless the patient is known to be its own
            if institution.id in known:
                refused = refused or missing
    if refused is None and not asked:
        refused = keyless
    if refused is not None:
        raise refused
    raise InvalidSetting(f"patient {patient_id}: no institution that the key reaches has it")


def _single(institution: Institution, patient_id: int) -> ApiRequest:
    return ApiRequest(f"/patients/{patient_id}", (("include[]", "address"),), institution.subdomain, Paging.ONE)


@dataclass
class _Refresh:
    session: SyncSession
    connection: psycopg.Connection
    practices: Practices
    institution: Institution
    patient_id: int
    began: float
    """Before anything was asked for, by `time.monotonic`."""
    _asked: dict[str, list[DueRow]] = field(default_factory=dict)
    """By collection the rows whose lists were asked for, as they were before that."""

    def run(self, page: Page) -> list[SliceResult]:
        record = fields_of(page.records[0])
        locations = self._locations(record)
        home = locations[0] if locations else None
        payer, offices = _guarantor(record) or self.patient_id, self._offices(locations)
        results = [self._read(_PATIENTS, home, partial(self._people, page, record))]
        self._remember_locations(record, page.requested_at)
        results.append(self._read(_ADDRESSES, home, partial(self._address, page, record)))
        for collection in COLLECTIONS.values():
            if collection.per and collection is not _ADDRESSES:
                results.append(self._read(collection, home, partial(self._children, collection, home)))
            elif collection.patient_filter:
                only = (collection.patient_filter, str(self.patient_id))
                results.append(self._read(collection, home, partial(self._filtered, collection, only, locations)))
            elif collection.guarantor_filter:
                only = (collection.guarantor_filter, str(payer))
                results.append(self._read(collection, home, partial(self._filtered, collection, only, offices)))
        return results

    def _locations(self, record: Mapping[str, msgspec.Raw]) -> list[Location]:
        """Active locations that list the patient; all of the institution's where the answer names none."""
        ids = set(_location_ids(record) or ())
        active = self.practices.active(self.institution.id)
        return [location for location in active if location.id in ids] or list(active)

    def _offices(self, locations: list[Location]) -> list[Location]:
        """Active locations of the same databases: a balance is at the one that keeps the account."""
        ids = {id_ for location in locations for id_ in (location.id, *location.members)}
        return [location for location in self.practices.active(self.institution.id) if location.id in ids]

    def _people(self, page: Page, record: Mapping[str, msgspec.Raw]) -> _Answers:
        """The patient and the guarantor, both cut to the shape that lists give."""
        answers: _Answers = [(_list_shape(page, record), {})]
        guarantor = _guarantor(record)
        if guarantor is not None and guarantor != self.patient_id:
            try:
                other = self.session.client.get(_single(self.institution, guarantor))
            except NotFound:
                return answers
            fields = fields_of(other.records[0])
            answers.append((_list_shape(other, fields), {}))
        return answers

    def _address(self, page: Page, record: Mapping[str, msgspec.Raw]) -> _Answers:
        address = bytes(record.get("address", msgspec.Raw(b"null")))
        records = [] if address.strip() == b"null" else [address]
        piece = Slice(_ADDRESSES, self.institution)
        Heed(piece.label, NO_FILTERS).require(passes_of(piece, self._today())[0], [page])
        # The answer is the patient's, whose cost is counted there.
        free = replace(page, records=records, requests=0, retries=0, throttled_seconds=0.0, bytes=0)
        self._asked[_ADDRESSES.name] = [DueRow(self.patient_id, _version(record))]
        return [(free, {"patient_id": self.patient_id})]

    def _children(self, collection: Collection, home: Location | None) -> _Answers:
        piece = Slice(collection, self.institution)
        plans, heed = passes_of(piece, self._today()), Heed(piece.label, NO_FILTERS)
        # Looked at before the lists: one that changes meanwhile stays due.
        self._asked[collection.name] = self._parents(collection)

        def fetch(row: DueRow) -> _Answers:
            known = dict.fromkeys(collection.parent_columns, row.id)
            known["location_id"] = home.id if home else 0
            answers: _Answers = []
            for plan in plans:
                request = replace(plan.request, path=plan.request.path.format(id=row.id))
                answers += [(page, known) for page in _heeded(heed, plan, self.session.client.pages(request))]
            return answers

        return self._where_offered(collection, [partial(fetch, row) for row in self._asked[collection.name]])

    def _parents(self, collection: Collection) -> list[DueRow]:
        """The rows whose lists are read: the patient, or what is the patient's in another collection."""
        parents = COLLECTIONS[collection.per or _PATIENTS.name]
        mine = "id" if parents is _PATIENTS else "patient_id"
        question = sql.SQL("SELECT id, updated_at FROM {} WHERE institution_id = %s AND {} = %s ORDER BY id").format(
            sql.Identifier(parents.table), sql.Identifier(mine)
        )
        return [DueRow(*row) for row in self.connection.execute(question, (self.institution.id, self.patient_id))]

    def _remember_children(self, collection: Collection, answers: _Answers, loaded: Loaded) -> None:
        """Note that the patient's own lists were read; other rows' are read again when they change, which is harmless.

        A list whose record could not be read, perhaps spoilt on its way, is due: the next sync asks once more.
        """
        again = {answers[position][1][collection.parent_columns[0]] for position in loaded.unread}
        records = sum(len(page.records) for page, _ in answers)
        reads = [ChildRead(row, records, self.began) for row in self._asked[collection.name] if row.id not in again]
        record_child_reads(
            self.connection,
            collection=collection,
            institution_id=self.institution.id,
            reads=reads if collection.per_patient else [],
            again=again,
            left=loaded.left,
        )

    def _filtered(self, collection: Collection, only: tuple[str, str], locations: list[Location]) -> _Answers:
        """A list limited by the parameter `only`; where it is a location's, at each of the locations."""
        pieces = [Slice(collection, self.institution)]
        if collection.scope is not Scope.INSTITUTION:
            window = CHANGES if collection.window else ""
            pieces = [Slice(collection, self.institution, location, window) for location in locations]
        return self._where_offered(collection, [partial(self._piece, piece, only) for piece in pieces])

    def _piece(self, piece: Slice, only: tuple[str, str]) -> _Answers:
        heed = Heed(piece.label, NO_FILTERS)
        answers: _Answers = []
        for plan in passes_of(piece, self._today()):
            request, window = replace(plan.request, params=(*plan.request.params, only)), piece.collection.window
            client = self.session.client
            pages = client.pages(request) if window is None else pages_in_parts(client, request, window)
            # What limits the list is one of the parameters without which it is another list.
            limited = replace(plan, pass_=replace(plan.pass_, params=(*plan.pass_.params, only)))
            answers += [(page, {"location_id": piece.location_id}) for page in _heeded(heed, limited, pages)]
        return answers

    @staticmethod
    def _where_offered(collection: Collection, fetches: Iterable[Callable[[], _Answers]]) -> _Answers:
        """What is answered, where one place may have what another has not; raises the refusal where all refuse."""
        answers: _Answers = []
        refused: list[ApiError] = []
        answered = False
        for fetch in fetches:
            try:
                answers += fetch()
                answered = True
            except (NoAccess, NotFound) as refusal:
                if not collection.may_be_disabled:
                    raise
                refused.append(refusal)
        if refused and not answered:
            raise refused[0]
        return answers

    def _today(self) -> date:
        return self.session.client.clock.now().date()

    def _remember_locations(self, record: Mapping[str, msgspec.Raw], seen_at: datetime) -> None:
        ids = _location_ids(record)
        if ids is None:
            return

        def note() -> None:
            with self.connection.transaction():
                record_locations(self.connection, self.institution.id, self.patient_id, ids, seen_at)

        repeated(note)

    def _read(self, collection: Collection, home: Location | None, fetch: Callable[[], _Answers]) -> SliceResult:
        """Read and load one collection with a log row of its own."""
        piece = Slice(collection, self.institution, home)
        began = self.session.client.clock.now()
        log = SyncLog.open(
            self.connection,
            run_id=self.session.run_id,
            asset=collection.table,
            collection=collection.name,
            institution_id=self.institution.id,
            location_id=home.id if home else None,
            partition_key=None,
            mode="patient",
        )
        loader = Loader(self.connection, piece, run_id=self.session.run_id, dry_run=False)
        counts, status, reason, exit_status = Counts(), Status.SUCCEEDED, None, 0
        try:
            answers = fetch()
            loader.open()
            # Before the transaction, which may be made again: a drift is told once only.
            encoded = [loader.encode(*answer) for answer in answers]
            load = partial(self._load, loader, collection, answers, encoded)
            counts = repeated(load, undo=partial(loader.go_back, loader.mark()))
        except PipelineError as failure:
            skipped = isinstance(failure, NoAccess | NotFound) and collection.may_be_disabled
            status, reason = Status.SKIPPED if skipped else Status.FAILED, str(failure)
            exit_status = failure.exit_status
        log.finish(self.connection, status.value, counts, error=reason)
        seconds = (self.session.client.clock.now() - began).total_seconds()
        result = SliceResult(piece, status, counts, seconds, reason=reason, exit_status=exit_status)
        result.new_notes = loader.new_notes
        self.session.note(result)
        return result

    def _load(self, loader: Loader, collection: Collection, answers: _Answers, encoded: list[EncodedPage]) -> Counts:
        """Load one collection's answers, in one transaction."""
        with self.connection.transaction():
            loaded = loader.load(encoded, None)
            if collection.per:
                self._remember_children(collection, answers, loaded)
        return loaded.counts


def _heeded(heed: Heed, plan: PassPlan, pages: Iterable[Page]) -> Iterator[Page]:
    """The pages, each looked at before the next is asked for: unlimited, a patient's list is the whole location's."""
    for page in pages:
        heed.require(plan, [page])
        yield page


def _decoded(record: Mapping[str, msgspec.Raw], name: str) -> object:
    """A field's value; None where it is absent or cannot be read (the loader says so)."""
    try:
        return msgspec.json.decode(record.get(name, msgspec.Raw(b"null")))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _guarantor(record: Mapping[str, msgspec.Raw]) -> int | None:
    """Who pays for the patient, where the record names somebody: 0 stands for the patient."""
    try:
        text = CONVERTERS[SqlType.BIGINT](_decoded(record, "guarantor_id"))
    except RecordRefused:
        return None  # as the patient's own row has it
    return int(text) if text is not None and int(text) > 0 else None


def _version(record: Mapping[str, msgspec.Raw]) -> datetime | None:
    """The record's `updated_at`; None where it has none that can be read."""
    try:
        text = CONVERTERS[SqlType.TIMESTAMPTZ](_decoded(record, "updated_at"))
    except RecordRefused:
        return None  # as the patient's own row has it
    return None if text is None else datetime.fromisoformat(text)


def _location_ids(record: Mapping[str, msgspec.Raw]) -> list[int] | None:
    """Ids of the locations that list the patient; None where the answer does not say, or says what cannot be one."""
    ids = _decoded(record, "location_ids")
    if not isinstance(ids, list) or not all(_is_id(str(one)) for one in ids):
        return None
    return [int(one) for one in ids]


def _is_id(text: str) -> bool:
    """Whether a column takes it; asked for its length first, since a number of any length may come."""
    return text.isdecimal() and len(text) <= len(str(_LARGEST_ID)) and int(text) <= _LARGEST_ID


def _list_shape(page: Page, record: Mapping[str, msgspec.Raw]) -> Page:
    """The answer with its one record without the keys that lists lack: `raw` is always the list's shape."""
    kept = {name: value for name, value in record.items() if name not in _PATIENTS.single_only}
    return replace(page, records=[msgspec.json.encode(kept)])
