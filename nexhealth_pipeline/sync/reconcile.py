"""Absences: after a complete read, rows that it lacked are marked as gone. Careful in every doubt.

Judged per collection and EHR database (institution-wide lists: per institution), and only by reads that this
reconcile made completely, in all locations, passes and months. Lists under one row tell all of that row by
themselves, so incremental syncs judge by those they read as well: per slice, by the rows whose list was
answered. A record met anywhere in the institution is present. Nothing is marked where the practice was offline,
a record's id could not be read, too much is missing at once, or a single read whose 404 would prove it
(`Collection.by_id`) says anything else.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import psycopg

from nexhealth_pipeline.catalog.collection import Collection, Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.errors import MissingRights, ValueRefused
from nexhealth_pipeline.sync.children import ROWS
from nexhealth_pipeline.sync.keeper import kept_in_turn
from nexhealth_pipeline.sync.months import utc_today
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import passes_of, slices_of
from nexhealth_pipeline.sync.practice import Institution, Location, Practices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slice_lock import SliceLock
from nexhealth_pipeline.sync.slices import Absence, Slice, SliceResult, Status
from nexhealth_pipeline.sync.verdict import Sources, Verdict
from nexhealth_pipeline.warehouse.absence import Ground, is_placed, never_had
from nexhealth_pipeline.warehouse.connect import driver_errors
from nexhealth_pipeline.warehouse.judgements import end_turns, held, judged
from nexhealth_pipeline.warehouse.knowledge import NOT_OFFERED
from nexhealth_pipeline.warehouse.repeats import repeated
from nexhealth_pipeline.warehouse.seen import SeenPass, offline_locations, seen_passes
from nexhealth_pipeline.warehouse.state import PassKey, database_time
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["judge"]


def judge(session: SyncSession, slices: Iterable[Slice], options: SyncOptions) -> Iterator[SliceResult]:
    """Judge the absences of what was read, one result a judgement worth telling, and of a read that they took one.

    Raises WarehouseError.

    Call it when `slices` have been read. What they lack to make whole databases may have been read
    by another run since `options.fresh_after`.
    """
    places: dict[tuple[str, int], set[int]] = {}
    institutions: dict[int, Institution] = {}
    for one in slices:
        judges = options.judges_lists if one.collection.per else options.reconciles
        if judges and one.institution is not None:
            places.setdefault((one.collection.name, one.institution.id), set()).add(one.location_id)
            institutions[one.institution.id] = one.institution
    if not places:
        return
    practices, sources = session.practices(), Sources(session)
    with driver_errors("judging absences"), session.pool.connection() as connection:
        # Filled just now (the memberships by a first read), and the best way to look for what is missing depends on how
        # much that is: taken for empty, they would be read once for each patient. For lists they are not asked.
        memberships = b", nexhealth_patient_locations" if options.reconciles else b""
        connection.execute(b"ANALYZE nexhealth_seen" + memberships)
    for name, institution_id in sorted(places, key=lambda pair: (_order(pair[0]), pair[1])):
        try:
            with driver_errors(f"marking {name} or what stands under them"), session.pool.connection() as connection:
                court = _Court(session, connection, practices, COLLECTIONS[name], institution_id, options, sources)
                for result in court.sit(places[name, institution_id]):
                    if _is_news(result, options):
                        session.note(result)
                        yield result
        except (MissingRights, ValueRefused) as failure:  # of one table, it may be: the others are judged
            piece = Slice(COLLECTIONS[name], institutions[institution_id], None)
            reason = f"absences not judged: {failure}"
            refused = SliceResult(piece, Status.FAILED, Counts(), 0.0, reason=reason, exit_status=failure.exit_status)
            refused.absence = Absence()
            session.note(refused)
            yield refused


def _is_news(result: SliceResult, options: SyncOptions) -> bool:
    """Whether to tell of it: of lists that came in turn only what was missing or came back."""
    in_turn = result.slice.collection.per is not None and not options.mode_of_lists.whole
    return not in_turn or (result.absence is not None and not result.absence.quiet)


def _order(name: str) -> int:
    """Rows before the lists under them."""
    return list(COLLECTIONS).index(name) + (len(COLLECTIONS) if COLLECTIONS[name].per else 0)


@dataclass(frozen=True, slots=True)
class _Place:
    """What is judged at once."""

    location: Location | None
    """Whom the result is filed under: the owner of an EHR database."""
    pieces: tuple[Slice, ...]
    locations: tuple[int, ...]
    nowhere: bool
    """Rows that belong to no location; alone where there are no `locations`."""


class _Court:
    """Judges one collection at one institution."""

    def __init__(
        self,
        session: SyncSession,
        connection: psycopg.Connection,
        practices: Practices,
        collection: Collection,
        institution_id: int,
        options: SyncOptions,
        sources: Sources,
    ) -> None:
        self._session, self._connection, self._options = session, connection, options
        self._collection, self._institution_id, self._sources = collection, institution_id, sources
        self._active = practices.active(institution_id)
        self._today = options.today or utc_today()
        every = slices_of(collection, practices, self._today)
        self._slices = [one for one in every if one.institution_id == institution_id]
        self._reads: dict[frozenset[int], tuple[int, ...]] = {}
        self._since = options.fresh_after or database_time(connection) - options.resume_within

    def sit(self, touched: set[int]) -> Iterator[SliceResult]:
        """Judge what belongs to the locations `touched` (0 = institution-wide), then forget what need not be kept."""
        if not self._slices:
            return
        everywhere = Slice(self._collection, self._slices[0].institution, None, "absence")
        with SliceLock(self._connection, everywhere, self._session.stop):
            self._passes = seen_passes(self._connection, self._collection.name, self._institution_id)
            never = never_had(self._connection, self._collection, self._institution_id)
            self._had = [one for one in self._slices if one.location is None or one.location_id not in never]
            self._done: list[SeenPass] = []
            self._undecided: set[int] = set()
            self._heard: list[SeenPass] = []
            self._held: list[SeenPass] = []
            self._shared: set[int] = set()
            for place in self._places(touched):
                if self._session.stop.is_set():
                    return
                yield from self._judge(place)
            repeated(self._note_ends)
            yield from self._verdict(None, alone=True).look_under_gone()

    def _note_ends(self) -> None:
        """Note what was judged, in one transaction."""
        with self._connection.transaction():
            if self._collection.per is not None:
                end_turns(self._connection, self._collection.name, self._institution_id, self._heard)
            held(self._connection, self._held)
            # What came to no end is judged again by whoever goes on with it: its reads are fresh, and not made again.
            ended = [one for one in self._done if one.id not in self._undecided]
            judged(self._connection, self._collection, ended, self._shared)

    def _places(self, touched: set[int]) -> Iterator[_Place]:
        """EHR databases, slices or the institution; and, where all was read, the rows of no location."""
        if self._collection.per is not None or self._collection.scope is Scope.INSTITUTION:
            for piece in self._slices:
                if piece.location_id in touched:
                    mine = (piece.location_id,) if piece.location else tuple(one.id for one in self._active)
                    yield _Place(piece.location, (piece,), mine, nowhere=piece.location is None)
            return
        for owner, members in _databases(self._active):
            ids = tuple(one.id for one in members)
            pieces = tuple(one for one in self._had if one.location_id in ids)
            if touched & set(ids) and pieces:
                yield _Place(owner, pieces, ids, nowhere=False)
        yield _Place(None, tuple(self._had), (), nowhere=True)

    def _judge(self, place: _Place) -> Iterator[SliceResult]:
        passes = [self._passes.get(key) for key in self._keys(place.pieces)]
        why_not = self._why_not(place, passes)
        known = [one for one in passes if one is not None]
        alone = not place.locations and self._collection.scope is not Scope.INSTITUTION
        if why_not is not None and (alone or self._not_offered(place)):
            return  # what is lacking is told of the databases; what a practice does not have is no lack
        if why_not is None and any(one.judged_at for one in known):
            return
        if why_not is None:
            case = self._verdict(place.location, alone=alone)
            for result in case.hear(lambda: self._ground(place, known), self._sources):
                if result.absence is None:  # a read that it took
                    yield result
                    continue
                if self._ends_turns(place, result, undecided=case.undecided):
                    self._heard += known
                if _is_braked(result):
                    self._held += known
                if not (alone and result.status is Status.SKIPPED):
                    yield result
            self._done += known
            if place.location is not None and place.location.shared:
                self._shared.update(one.id for one in known)
            if case.undecided:
                self._undecided.update(one.id for one in known)
        else:
            piece = self._slice(place.location)
            yield SliceResult(piece, Status.SKIPPED, Counts(), 0.0, reason=why_not, absence=Absence())

    def _verdict(self, location: Location | None, *, alone: bool) -> Verdict:
        return Verdict(self._session, self._connection, self._slice(location), self._options, alone=alone)

    @staticmethod
    def _ends_turns(place: _Place, result: SliceResult, *, undecided: bool) -> bool:
        """Whether the turn of the lists under rows that were judged is over.

        The brake ends it, though it leaves the judgement open: whoever lifts it reads all lists, and until then those of a
        few rows would come first every night and leave no turn to the others. What was stopped, or could not be asked,
        comes first again; so does an office that was offline. An institution has offices that are offline for years: its
        lists' turns would never end.
        """
        if undecided:
            return _is_braked(result)
        return result.status is not Status.SKIPPED or place.location is None

    def _why_not(self, place: _Place, passes: Sequence[SeenPass | None]) -> str | None:
        """Why absences cannot be judged by these reads; None = they can."""
        lacking = sum(one is None or not one.complete or one.begun_at < self._since for one in passes)
        if lacking:
            return f"absences not judged: {lacking} of {len(passes)} reads are not complete in this reconcile"
        if any(one is not None and one.unreadable for one in passes):
            return "absences not judged: a record's id could not be read"
        if not place.pieces:
            return "absences not judged: nothing of it can be read"
        return None

    def _not_offered(self, place: _Place) -> bool:
        """Whether a practice does not have the collection."""
        row = self._connection.execute(
            "SELECT EXISTS (SELECT FROM nexhealth_capabilities WHERE institution_id = %s AND location_id = ANY(%s)"
            " AND collection = %s AND status = ANY(%s))",
            (
                self._institution_id,
                [one.location_id for one in place.pieces],
                self._collection.name,
                list(NOT_OFFERED),
            ),
        ).fetchone()
        return row is not None and bool(row[0])

    def _keys(self, pieces: Sequence[Slice]) -> list[PassKey]:
        if self._collection.per is not None:
            return [self._kept_at(replace(passes_of(one, self._today)[0].key, pass_name=ROWS)) for one in pieces]
        return [plan.key for one in pieces for plan in passes_of(one, self._today, reconcile=True)]

    def _kept_at(self, key: PassKey) -> PassKey:
        """Where is kept what was met of lists: who reads those that are due may have gone on with a read of all instead.

        Not while there is what was met of those that are due: a later read of all is another run's, which judges by it.
        """
        if self._options.mode_of_lists.whole:
            return key
        whole, due = self._passes.get(key), self._passes.get(kept_in_turn(key))
        if self._whole(due):
            return kept_in_turn(key)
        later = whole is not None and whole.complete and (due is None or due.begun_at < whole.begun_at)
        return key if later else kept_in_turn(key)

    def _offline(self, passes: Sequence[SeenPass]) -> set[int]:
        """Locations that were offline when the reads began, or are."""
        return offline_locations(self._connection, self._institution_id).union(*(one.offline for one in passes))

    def _ground(self, place: _Place, passes: Sequence[SeenPass]) -> Ground | str:
        """What to judge, or why nothing can be."""
        offline = self._offline(passes)
        active = {one.id for one in self._active}
        if self._collection.scope is Scope.INSTITUTION and self._collection.per is None:
            mine, nowhere = tuple(sorted(active - offline)), not active & offline
            dark = not nowhere and not (mine and is_placed(self._collection))
        else:
            mine, nowhere = place.locations, place.nowhere
            dark = bool(offline & (set(mine) or active))
        if dark:
            return "absences not judged: NexHealth is not known to reach the practice (its read status is not green)"
        return Ground(
            collection=self._collection,
            institution_id=self._institution_id,
            locations=mine,
            nowhere=nowhere,
            read=self._read(frozenset(offline & active)),
            active=tuple(sorted(active)),
            passes=tuple(one.id for one in passes),
            begun_at=min(one.begun_at for one in passes),
            started_at=min(one.started_at for one in passes if one.started_at is not None),
        )

    def _read(self, offline: frozenset[int]) -> tuple[int, ...]:
        """Active locations of the databases whose reads are all there to be judged by."""
        if offline not in self._reads:
            half = {key.location_id for key in self._keys(self._had) if not self._whole(self._passes.get(key))}
            self._reads[offline] = tuple(
                one.id
                for _, members in _databases(self._active)
                if not (half | offline) & {member.id for member in members}
                for one in members
            )
        return self._reads[offline]

    def _whole(self, one: SeenPass | None) -> bool:
        return one is not None and one.complete and one.begun_at >= self._since and one.judged_at is None

    def _slice(self, location: Location | None) -> Slice:
        """Under what a result is filed."""
        return Slice(self._collection, self._slices[0].institution, location)


def _is_braked(result: SliceResult) -> bool:
    return result.absence is not None and result.absence.braked


def _databases(locations: Sequence[Location]) -> Iterator[tuple[Location, list[Location]]]:
    """Active locations by EHR database, each with its owner."""
    by_owner = sorted(locations, key=lambda one: (one.owner_id, one.id))
    for _, group in groupby(by_owner, key=lambda one: one.owner_id):
        members = list(group)
        yield members[0], members
