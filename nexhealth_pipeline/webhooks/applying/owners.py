"""Whose list a record is in that an event names without saying whose it is.

NexHealth's documents have no patient in them (API.md E.3), so its events may have none either. Their lists are
asked for one patient at a time: those who are most likely first, and a bounded number a try.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.sync.practice import Institution
from nexhealth_pipeline.warehouse.state import database_time
from nexhealth_pipeline.webhooks.applying.single_reads import Failure, ListsRead, SingleReads

__all__ = ["Found", "OwnerSearch"]

_SEARCHED = 100
"""Lists read in one try; each costs a request of the thousand a minute."""
_AT_ONCE = 20
"""Lists read between two looks whether everything was found."""
_AGAIN = timedelta(minutes=1)
"""After which a list is read again for a record that it lacked: events come ahead of the lists. Less than the second wait
between two tries."""

_LIKELY = """
SELECT p.id FROM {owners} p
LEFT JOIN nexhealth_child_reads r
    ON r.collection = %(collection)s AND r.institution_id = p.institution_id AND r.patient_id = p.id
LEFT JOIN (
    SELECT patient_id, min(abs(extract(epoch FROM start_time - %(since)s))) AS away FROM nexhealth_appointments
    WHERE institution_id = %(institution)s AND deleted_at IS NULL
    AND start_time BETWEEN %(since)s - interval '30 days' AND %(since)s + interval '30 days' GROUP BY patient_id
) visit ON visit.patient_id = p.id
WHERE p.institution_id = %(institution)s AND p.deleted_at IS NULL
AND coalesce(r.read_at, '-infinity') >= %(after)s AND coalesce(r.read_at, '-infinity') < %(before)s
ORDER BY CASE WHEN %(in_turn)s THEN r.read_at END, visit.away NULLS LAST, p.updated_at DESC, p.id LIMIT %(most)s
"""
"""Who was or will be here around then, then who has changed last; of those whose list was read in a time. In turn: whose
list was read first."""

_TO_COME = """
SELECT EXISTS (
    SELECT FROM nexhealth_locations l
    JOIN nexhealth_patient_locations o
        ON o.institution_id = l.institution_id AND o.location_id = l.id AND o.gone_at IS NULL
    JOIN {owners} p ON p.institution_id = o.institution_id AND p.id = o.patient_id AND p.deleted_at IS NULL
    WHERE l.institution_id = %(institution)s AND NOT coalesce(l.inactive, false) AND l.deleted_at IS NULL
    AND NOT EXISTS (
        SELECT FROM nexhealth_sync_state s WHERE s.collection = %(collection)s AND s.institution_id = l.institution_id
        AND s.location_id = l.id AND (s.watermark IS NOT NULL OR s.since IS NOT NULL))
    AND NOT EXISTS (
        SELECT FROM nexhealth_child_reads r WHERE r.collection = %(collection)s
        AND r.institution_id = p.institution_id AND r.patient_id = p.id)
) OR EXISTS (
    SELECT FROM nexhealth_locations l
    WHERE l.institution_id = %(institution)s AND NOT coalesce(l.inactive, false) AND l.deleted_at IS NULL
    AND NOT EXISTS (
        SELECT FROM nexhealth_freshness f WHERE f.collection = %(owners)s AND f.institution_id = l.institution_id
        AND f.location_id = l.id AND f.complete_through IS NOT NULL)
)
"""
"""Lists that were never read, of a location whose first read has not come to its end, or those of a location whose
patients are yet to come. A first read in which some lists failed has come to its end: it leaves `since` instead of a
watermark, and what failed may fail for ever."""


@dataclass(slots=True)
class Found:
    """What came of a search."""

    records: set[int] = field(default_factory=set)
    """Records that are in the table now."""
    lists: list[ListsRead] = field(default_factory=list)
    """What was read for it."""
    exhausted: bool = False
    """Nobody's list is left to be read."""
    failure: Failure | None = None
    """Why the search ended early."""


class OwnerSearch:
    """Searches lists of one collection (`per` patient) of one institution; the caller commits."""

    def __init__(
        self,
        connection: psycopg.Connection,
        single_reads: SingleReads,
        collection: Collection,
        institution: Institution,
    ) -> None:
        self._connection, self._single_reads = connection, single_reads
        self._collection, self._institution = collection, institution

    def known(self, records: Iterable[int]) -> dict[int, int]:
        """Owners of the records that are in the table, by record."""
        owner = self._collection.from_request[0].name
        rows = self._connection.execute(
            sql.SQL("SELECT id, {} FROM {} WHERE institution_id = %s AND id = ANY(%s)").format(
                sql.Identifier(owner), sql.Identifier(self._collection.table)
            ),
            (self._institution.id, list(records)),
        )
        return dict(rows.fetchall())

    def has_lists_to_come(self) -> bool:
        """Whether the first read of some location goes on, or is yet to begin, and will ask for lists never read."""
        question = sql.SQL(_TO_COME).format(owners=sql.Identifier(f"nexhealth_{self._collection.per}"))
        given = {
            "collection": self._collection.name,
            "owners": self._collection.per,
            "institution": self._institution.id,
        }
        row = self._connection.execute(question, given).fetchone()
        return bool(row and row[0])

    def search(self, records: Iterable[int], since: datetime, *, replayed: bool = False, anew: bool = False) -> Found:
        """Read likely lists until `records` are found, or enough was asked: some not read after `since`, some read since.

        The latter may have lacked a record that has come by now. That is true of any list where an event is `replayed`,
        which may be years after `since`: with its first try, `anew`, the search begins as if none had been read since.
        """
        missing, found = set(records), Found()
        likely, found.exhausted = self._chosen(since, replayed=replayed, anew=anew)
        for at in range(0, len(likely), _AT_ONCE):
            rows = sorted(likely[at : at + _AT_ONCE])  # in the order of everybody who locks them
            done = self._single_reads.read(self._collection, self._institution, rows)
            found.lists.append(done)
            found.records |= self.known(missing).keys()
            found.exhausted &= not done.failures
            shared = (one for one in done.failures.values() if not one.own)
            # By id the first may be one row's refusal, and what stands in the way an outage, which no event is tried by.
            found.failure = done.ended or min(shared, key=lambda one: not one.passing, default=None)
            if missing <= found.records or found.failure is not None:
                break
        return found

    def _chosen(self, since: datetime, *, replayed: bool, anew: bool) -> tuple[Sequence[int], bool]:
        """Whose lists to read, and whether none is left that was not read after `since`; of a replay, none at all.

        Either kind has half of them, where there are as many: the likeliest must not keep the others from their turn.
        """
        lately = database_time(self._connection) - _AGAIN
        unread = self._likely(since, "-infinity", "infinity" if anew else since)
        read = [] if anew else self._likely(since, since, lately, in_turn=replayed)
        again = read[: _SEARCHED - min(len(unread), (_SEARCHED + 1) // 2)]
        chosen = unread[: _SEARCHED - len(again)]
        left = replayed and not len(again) == len(read) < _SEARCHED
        return [*again, *chosen], len(chosen) == len(unread) < _SEARCHED and not left

    def _likely(
        self, since: datetime, after: datetime | str, before: datetime | str, *, in_turn: bool = False
    ) -> Sequence[int]:
        """Of those whose list was read from `after` until `before`."""
        question = sql.SQL(_LIKELY).format(owners=sql.Identifier(f"nexhealth_{self._collection.per}"))
        given = {"collection": self._collection.name, "institution": self._institution.id, "since": since}
        given |= {"after": after, "before": before, "in_turn": in_turn, "most": _SEARCHED}
        return [id_ for (id_,) in self._connection.execute(question, given)]
