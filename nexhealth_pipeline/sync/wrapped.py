"""Records that lie inside the one object that a single read gives: a patient's address, a coverage's subscriber.

A null there says that the row has none. Where no object of a whole read has the key at all, the API did not do what it
was asked for, or gives it no more: it looks like a practice in which nobody has an address, at a request a patient.
"""

import logging
from collections.abc import Iterable

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.page import Page, fields_of
from nexhealth_pipeline.warehouse.state import PassState

__all__ = ["Wrapped"]

_log = logging.getLogger(__name__)


class Wrapped:
    """Remembers whether any answer of one slice had the key to its records."""

    def __init__(self, collection: Collection, label: str) -> None:
        self._label = label
        self.path = collection.records_at if collection.paging is Paging.ONE else ()
        """Keys to the records; empty where the answers are no such objects."""
        self._answered = self._told = False

    def note(self, pages: Iterable[Page]) -> None:
        """Look whether the whole objects of these answers have the key to the records that were taken out of them."""
        for page in pages if self.path else ():
            # Only ever set, never put back: another thread may have told meanwhile.
            self._answered = True
            if self.path[0] in fields_of(page.whole):
                self._told = True

    def absent_fields(self, stored: PassState, state: PassState, *, whole: bool) -> list[str] | None:
        """Of the pass with that state: the key, where no answer of a whole read had it, in one go from its beginning.

        What those before a kill had nobody knows, nor what the rows have that failed, unless the read is `whole`; and few or
        none tell of all. Then what is stored of the last such read holds, until one has the key.
        """
        if self._told:
            return []
        in_one_go = whole and state.since is None and state.begun_at != stored.begun_at
        return [".".join(self.path)] if self._answered and in_one_go else stored.absent_fields

    def warn(self, fields: list[str]) -> None:
        """Tell of those that were noted as missing just now, of the whole institution."""
        for field in fields:
            _log.warning(
                "no answer has the field that holds its records: ask NexHealth whether the API gives it",
                extra={"nexhealth": {"slice": self._label, "field": field}},
            )
