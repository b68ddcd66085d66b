"""Answers of one collection into its table, inside the caller's transaction."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import psycopg

from nexhealth_pipeline.client.page import Page
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.encode import Note, RecordEncoder
from nexhealth_pipeline.warehouse.merge import Change, Stage
from nexhealth_pipeline.warehouse.quarantine import quarantine
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["Loaded", "Loader", "cost_of"]


@dataclass(slots=True)
class Loaded:
    """What one batch did."""

    counts: Counts = field(default_factory=Counts)
    ids: list[int] = field(default_factory=list)
    """Ids of the records, where they have one."""


class Loader:
    """Loads batches of one slice on one connection; a dry one only says what it would do."""

    def __init__(self, connection: psycopg.Connection, piece: Slice, *, run_id: str, dry_run: bool) -> None:
        self._connection = connection
        self._slice = piece
        self._run_id = run_id
        self._dry_run = dry_run
        self._encoder = RecordEncoder(piece.collection, piece.institution.id if piece.institution else None)
        self._stage = Stage(connection, piece.collection, self._encoder)
        self.changes: list[Change] = []
        self.new_notes = 0
        """Faults that were not in quarantine before."""
        self.refused = 0
        """Records that could not be loaded at all."""

    def open(self) -> None:
        """Make the stage ready."""
        self._stage.open()

    def load(self, pages: Iterable[tuple[Page, Mapping[str, int]]], not_before: datetime | None) -> Loaded:
        """Load pages, each with what its request knew; the caller commits."""
        loaded = Loaded()
        notes: list[Note] = []
        for page, request in pages:
            encoded = self._encoder.encode(page.records, page.requested_at, request)
            self._stage.copy(encoded.lines)
            loaded.counts.add(cost_of(page))
            loaded.ids += encoded.ids
            notes += encoded.notes
        refused = sum(not note.loaded for note in notes)
        self.refused += refused
        loaded.counts.quarantined = refused
        if not self._dry_run:
            self._merge(loaded.counts, notes, not_before)
        return loaded

    def classify(self, counts: Counts) -> None:
        """End a dry run: add to `counts` what the whole read would have done."""
        exists = self._connection.execute("SELECT to_regclass(%s)", (self._slice.collection.table,)).fetchone()
        merged = self._stage.classify(None, target_exists=bool(exists and exists[0]))
        counts.inserted, counts.updated = merged.inserted, merged.updated
        counts.unchanged = counts.records_read - counts.quarantined - merged.inserted - merged.updated

    def _merge(self, counts: Counts, notes: list[Note], not_before: datetime | None) -> None:
        self.changes += self._stage.changes(not_before)
        merged = self._stage.merge(not_before)
        counts.inserted, counts.updated = merged.inserted, merged.updated
        counts.unchanged = counts.records_read - counts.quarantined - merged.inserted - merged.updated
        self.new_notes += quarantine(
            self._connection,
            notes,
            collection=self._slice.collection.name,
            institution_id=self._slice.institution_id,
            location_id=self._slice.location_id,
            run_id=self._run_id,
        )


def cost_of(page: Page) -> Counts:
    """What getting one page cost, and how many records it brought."""
    return Counts(
        pages=1,
        records_read=len(page.records),
        requests=page.requests,
        retries=page.retries,
        throttled_seconds=page.throttled_seconds,
        bytes=page.bytes,
    )
