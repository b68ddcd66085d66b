"""Asking for missing rows one by one: only a 404 says that a row is gone; what is answered is loaded instead.

A record that is answered may say of itself that it is deleted. It is not there either, and loading it marks it so.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import msgspec
import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.page import Page, fields_of
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import NotFound, ProtocolBroken
from nexhealth_pipeline.sync.loader import EncodedPage, Loader
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice
from nexhealth_pipeline.warehouse.absence import Missing
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["Confirmation"]

_AT_ONCE = 100
"""Rows asked for between commits."""


class Confirmation:
    """The single reads of one judgement's missing rows."""

    def __init__(self, session: SyncSession, connection: psycopg.Connection, piece: Slice, missing: Missing) -> None:
        self._session, self._connection = session, connection
        self._slice, self._missing = piece, missing
        self._loader = Loader(connection, piece, run_id=session.run_id, dry_run=False)
        self.counts = Counts()
        self.gone = 0
        """Rows that the API answered 404 for, or called deleted."""
        self.found = 0
        """Rows that are there although no list held them."""

    @property
    def new_notes(self) -> int:
        """Faults of the records loaded that are new in quarantine."""
        return self._loader.new_notes

    def run(self, width: int) -> None:
        """Ask for every missing row, `width` at a time. Raises ApiError for any answer but 200 and 404."""
        self._loader.open()
        with ThreadPoolExecutor(width, thread_name_prefix="nexhealth-absent") as pool:
            while ids := self._missing.unconfirmed(_AT_ONCE):
                self._commit(dict(zip(ids, pool.map(self._ask, ids), strict=True)))

    def _ask(self, row_id: int) -> Page | NotFound:
        collection = self._slice.collection
        assert collection.by_id is not None
        request = ApiRequest(
            collection.by_id.format(id=row_id),
            subdomain=self._slice.subdomain,
            paging=Paging.ONE,
            legacy_accept=collection.by_id_legacy,
        )
        try:
            page = self._session.client.get(request)
        except NotFound as gone:
            return gone
        if not page.records:
            raise ProtocolBroken(f"{request.path}: the answer succeeded and held no record")
        return page

    def _commit(self, answers: dict[int, Page | NotFound]) -> None:
        there = {row_id: page for row_id, page in answers.items() if isinstance(page, Page)}
        for gone in answers.values():
            if isinstance(gone, NotFound):
                self.counts.add(Counts.of(gone))
        # Before the transaction, which may be made again: a drift is told once only.
        encoded = [self._loader.encode(page, {}) for page in self._list_shapes(there)] if there else []
        gone_ids = [row_id for row_id in answers if row_id not in there]
        undo = partial(self._loader.go_back, self._loader.mark())
        counts, found = repeated(partial(self._load, encoded, list(there), gone_ids), undo=undo)
        self.counts.add(counts)
        self.gone += len(answers) - found
        self.found += found

    def _load(self, encoded: list[EncodedPage], there: list[int], gone: list[int]) -> tuple[Counts, int]:
        """Load what was answered and note all answers, in one transaction; its counts, and how many rows are not deleted."""
        counts, found = Counts(), 0
        with self._connection.transaction():
            if there:
                counts, found = self._loader.load(encoded, None).counts, self._present(there)
            self._missing.confirm(there, gone=False)
            self._missing.confirm(gone, gone=True)
        return counts, found

    def _present(self, ids: Iterable[int]) -> int:
        """How many of these rows, loaded just now, are not deleted."""
        row = self._connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE institution_id = %s AND id = ANY(%s) AND deleted_at IS NULL").format(
                sql.Identifier(self._slice.collection.table)
            ),
            (self._slice.institution_id, list(ids)),
        ).fetchone()
        return row[0] if row else 0

    def _list_shapes(self, pages: dict[int, Page]) -> Iterable[Page]:
        """The answers cut to what lists give: declared fields, and those that the stored record has.

        An earlier release may have stored what only single reads and events have.
        """
        collection = self._slice.collection
        declared = {column.path[0] for column in collection.columns}
        declared |= {collection.deleted_if} if collection.deleted_if else set()
        rows = self._connection.execute(
            sql.SQL(
                "SELECT id, ARRAY(SELECT jsonb_object_keys(raw)) FROM {} WHERE institution_id = %s AND id = ANY(%s)"
            ).format(sql.Identifier(collection.table)),
            (self._slice.institution_id, list(pages)),
        )
        stored = {row[0]: declared | set(row[1]) - set(collection.single_only) for row in rows}
        for row_id, page in pages.items():
            record = fields_of(page.records[0])
            kept = {name: value for name, value in record.items() if name in stored.get(row_id, declared)}
            yield replace(page, records=[msgspec.json.encode(kept)])
