"""Answers of one collection into its table: encoded, which needs no database, then loaded in the caller's transaction."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import starmap

import psycopg

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import nested_in
from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.sync.fault_points import reach
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.drift import Drift, record_drift
from nexhealth_pipeline.warehouse.encode import Encoded, Note, RecordEncoder
from nexhealth_pipeline.warehouse.history import Cause, state_cause
from nexhealth_pipeline.warehouse.merge import Change, Stage
from nexhealth_pipeline.warehouse.nested import EncodedLists, NestedStage
from nexhealth_pipeline.warehouse.quarantine import OpenNotes, quarantine
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["EncodedPage", "Loaded", "Loader"]


@dataclass(frozen=True, slots=True)
class EncodedPage:
    """One answer as the database takes it."""

    page: Page
    """Without its records, which would take as much memory again while this waits to be loaded."""
    cost: Counts
    """What getting it cost, and how many records it brought."""
    request: Mapping[str, int]
    """What its request knew and the records do not say."""
    rows: Encoded = field(repr=False)
    lists: list[EncodedLists] = field(repr=False)
    """What lies inside the records, by nested collection."""
    drifts: list[Drift]
    absent_fields: set[str] | None
    """Declared fields that no record had; None = there was no record."""


@dataclass(slots=True)
class Loaded:
    """What one batch did."""

    counts: Counts = field(default_factory=Counts)
    ids: list[int] = field(default_factory=list)
    """Ids of the records, where they have one."""
    absent_fields: set[str] | None = None
    """Declared fields that no record had; None = there was no record."""
    refused: list[Note] = field(default_factory=list)
    """Why records could not be loaded at all."""
    named: list[str] = field(default_factory=list)
    """Keys of rows whose record was such a one."""
    nameless: set[int] = field(default_factory=set)
    """Which of the answers (by position) held such a record of which not even the id could be read."""
    unread: set[int] = field(default_factory=set)
    """Which of the answers held such a record that was not met before."""
    left: list[int] = field(default_factory=list)
    """Rows (patients) whose own lists lost records to another's."""

    def lacks(self, fields: set[str] | None) -> None:
        """One more answer, with the fields that it lacks."""
        if fields is not None:
            self.absent_fields = fields if self.absent_fields is None else self.absent_fields & fields


class Loader:
    """Loads batches of one slice on one connection; a dry one only says what it would do.

    `encode` shares nothing with the rest, so one thread may encode what another loads next.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        piece: Slice,
        *,
        run_id: str,
        dry_run: bool,
        cause: Cause = Cause.PAGE,
    ) -> None:
        self._connection = connection
        self._slice = piece
        self._run_id = run_id
        self._dry_run = dry_run
        self._cause = cause
        institution_id = piece.institution.id if piece.institution else None
        self._encoder = RecordEncoder(piece.collection, institution_id)
        self._stage = Stage(connection, piece.collection, self._encoder)
        nested = () if dry_run else nested_in(piece.collection)
        self._nested = [NestedStage(connection, one, piece.collection, institution_id) for one in nested]
        self._open_notes = [OpenNotes(connection, one, piece.institution_id) for one in (piece.collection, *nested)]
        self.changes: list[Change] = []
        self.nested_changes = 0
        """Rows changed in the tables of lists inside the records."""
        self.before_merge: Callable[[str], None] | None = None
        """Called with the stage's name while it holds what is about to be merged."""
        self.new_notes = 0
        """Faults that were not in quarantine before."""
        self.refused = 0
        """Records that could not be loaded at all."""

    def open(self) -> None:
        """Make the stage ready."""
        self._stage.open()
        for nested in self._nested:
            nested.open()
        for notes in self._open_notes:
            if not self._dry_run:
                notes.look()

    def mark(self) -> tuple[int, int, int, int]:
        """How far it has come, for :meth:`go_back`."""
        return len(self.changes), self.nested_changes, self.new_notes, self.refused

    def go_back(self, mark: tuple[int, int, int, int]) -> None:
        """Be as it was at `mark`: what was loaded since was rolled back, and with it perhaps the stage."""
        changes, self.nested_changes, self.new_notes, self.refused = mark
        del self.changes[changes:]
        self.open()

    @property
    def has_open_notes(self) -> bool:
        """Whether quarantine held open notes of the collection when the loader was opened."""
        return self._open_notes[0].any

    def encode(self, page: Page, request: Mapping[str, int]) -> EncodedPage:
        """One answer as the database takes it; `request` is what its request knew. One thread at a time."""
        rows = self._encoder.encode(page.records, page.requested_at, request)
        lists = [nested.encode(page.records, page.requested_at) for nested in self._nested]
        watch = self._encoder.drift
        return EncodedPage(
            replace(page, records=[]), _cost_of(page), request, rows, lists, watch.drain(), watch.drain_absent()
        )

    def encode_and_load(self, answers: Iterable[tuple[Page, Mapping[str, int]]]) -> Loaded:
        """Load answers, each with what its request knew, as they come; the caller commits."""
        return self.load(starmap(self.encode, answers), None)

    def load(self, pages: Iterable[EncodedPage], not_before: datetime | None) -> Loaded:
        """Load encoded answers; the caller commits."""
        loaded = Loaded()
        notes: list[Note] = []
        drifts: list[Drift] = []
        origins: list[int] = []
        owners: list[int] = []
        listed: list[list[int]] = [[] for _ in self._nested]
        read_at: datetime | None = None
        for position, encoded in enumerate(pages):
            page, rows = encoded.page, encoded.rows
            self._stage.add(rows)
            for nested, lists, with_list in zip(self._nested, encoded.lists, listed, strict=True):
                self._quarantine(nested.collection, lists.notes)
                nested.add(lists)
                with_list.extend(lists.owners)
            loaded.counts.add(encoded.cost)
            loaded.ids += rows.ids
            loaded.lacks(encoded.absent_fields)
            drifts += encoded.drifts
            notes += rows.notes
            origins += [position] * len(rows.notes)
            owners += self._open_notes[0].owners(encoded.request)
            read_at = min(read_at or page.requested_at, page.requested_at)
        if self._dry_run or self.before_merge is not None:
            self._stage.fill()
        reach("after_copy", self._slice.collection.name)
        loaded.refused = [note for note in notes if not note.loaded]
        # The id in a record tells its row only where that is the row's key.
        by_id = self._slice.collection.key == ("institution_id", "id")
        loaded.named = [str(int(note.record_id)) for note in loaded.refused if by_id and note.record_id]
        loaded.nameless = {
            at for at, note in zip(origins, notes, strict=True) if not (note.loaded or (by_id and note.record_id))
        }
        self.refused += len(loaded.refused)
        loaded.counts.quarantined = len(loaded.refused)
        if not self._dry_run:
            new = self._merge(loaded, notes, not_before)
            record_drift(self._connection, self._slice.collection.name, drifts)
            unread = {note.fingerprint for note in new if not note.loaded}
            loaded.unread = {at for at, note in zip(origins, notes, strict=True) if note.fingerprint in unread}
            if read_at is not None:
                self._resolve(loaded.ids, owners, listed, read_at)
        return loaded

    def classify(self, counts: Counts) -> None:
        """End a dry run: add to `counts` what the whole read would have done."""
        exists = self._connection.execute("SELECT to_regclass(%s)", (self._slice.collection.table,)).fetchone()
        merged = self._stage.classify(target_exists=bool(exists and exists[0]))
        counts.inserted, counts.updated = merged.inserted, merged.updated
        counts.unchanged = counts.records_read - counts.quarantined - merged.inserted - merged.updated

    def _merge(self, loaded: Loaded, notes: list[Note], not_before: datetime | None) -> list[Note]:
        """Merge what is staged; returns the notes that are new."""
        counts = loaded.counts
        if counts.records_read:
            state_cause(self._connection, self._cause, run_id=self._run_id)
        if self.before_merge is not None and self._stage.rows:
            self.before_merge(self._stage.name)
        self.changes += self._stage.changes(not_before)
        merged = self._stage.merge(not_before)
        loaded.left = merged.left
        counts.inserted, counts.updated = merged.inserted, merged.updated
        counts.unchanged = counts.records_read - counts.quarantined - merged.inserted - merged.updated
        for nested in self._nested:
            inside = nested.merge()
            self.nested_changes += inside.inserted + inside.updated
        return self._quarantine(self._slice.collection, notes)

    def _resolve(self, ids: list[int], owners: list[int], listed: list[list[int]], read_at: datetime) -> None:
        """Close the notes of records that came without their fault; those in a record's lists where the list came."""
        own, *nested = self._open_notes
        own.resolve(ids, owners, read_at)
        for one, with_list in zip(nested, listed, strict=True):
            one.resolve((), with_list, read_at)

    def _quarantine(self, collection: Collection, notes: list[Note]) -> list[Note]:
        new = quarantine(
            self._connection,
            notes,
            collection=collection.name,
            institution_id=self._slice.institution_id,
            location_id=self._slice.location_id,
            run_id=self._run_id,
        )
        self.new_notes += len(new)
        return new


def _cost_of(page: Page) -> Counts:
    """What getting one page cost, and how many records it brought."""
    return Counts(
        pages=1,
        records_read=len(page.records),
        requests=page.requests,
        retries=page.retries,
        throttled_seconds=page.throttled_seconds,
        bytes=page.bytes,
    )
