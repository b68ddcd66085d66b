"""The set-up of one API key: its endpoint, and the subscriptions of the institutions that it reaches.

Each step looks first and changes then, so that a set-up that was killed anywhere is gone on with by the next one.
"""

import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AnySet
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import psycopg

from nexhealth_pipeline.errors import (
    ApiError,
    BadRequest,
    InvalidSetting,
    MissingSetting,
    NoAccess,
    ServerFailed,
    TryLater,
)
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.webhooks.endpoints import (
    Endpoint,
    Subscription,
    adopt,
    known_endpoints,
    record_active,
    record_deleted,
    record_inactive,
    record_subscriptions,
    retire,
    store,
)
from nexhealth_pipeline.webhooks.registering.attempts import adopt_attempts, attempt_begins, attempt_over, ours_among
from nexhealth_pipeline.webhooks.registering.checking import delete_if_due, learn_secret
from nexhealth_pipeline.webhooks.registering.remote import DryRemote, Remote, RemoteEndpoint
from nexhealth_pipeline.webhooks.registering.subscribing import LOOKS, Outage, Subscribed, Subscriber, Topic
from nexhealth_pipeline.webhooks.sealing import Sealer

__all__ = ["Institutions", "KeySetUp", "KeyWork", "Order", "Progress"]

Institutions = list[tuple[int, str]]
"""Id and subdomain of each."""


@dataclass(slots=True)
class KeySetUp:
    """What was done for one API key."""

    key_name: str
    """The institution whose key it is, "" for the key of all others."""
    endpoint_id: int
    """The endpoint that events are posted to; 0 = would be made (dry run)."""
    created: bool = False
    reactivated: bool = False
    rotated_from: int | None = None
    """The endpoint before it, which is deleted after 49 hours."""
    institutions: int = 0
    subscriptions: int = 0
    """Active ones, of what was asked for."""
    subscriptions_created: int = 0
    subscriptions_resumed: int = 0
    subscriptions_moved: int = 0
    subscriptions_removed: int = 0
    endpoints_removed: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    """Endpoints with the same URL that are not ours: each posts the same events again."""
    not_enabled: dict[str, list[str]] = field(default_factory=dict)
    """Resource types that the vendor has not enabled, by institution."""

    @property
    def changes(self) -> int:
        """How many things were made, changed or deleted at NexHealth."""
        counted = (self.subscriptions_created, self.subscriptions_resumed, self.subscriptions_moved)
        removed = self.subscriptions_removed + len(self.endpoints_removed)
        return self.created + self.reactivated + sum(counted) + removed


class Progress:
    """Adds up the subscriptions that the threads have settled; `tell` is called with them and :attr:`planned`."""

    def __init__(self, tell: Callable[[int, int], None] | None) -> None:
        self._tell, self._lock = tell, threading.Lock()
        self._settled: dict[int, int] = {}
        self.planned = 0

    def settled(self, institution_id: int, count: int) -> None:
        """So many of one institution are."""
        with self._lock:
            self._settled[institution_id] = count
            if self._tell is not None:
                self._tell(sum(self._settled.values()), self.planned)


@dataclass(slots=True)
class Order:
    """What a set-up is asked for, the same for every key."""

    session: SyncSession
    connection: psycopg.Connection
    sealer: Sealer
    url: str
    topics: Sequence[Topic]
    counter: Progress
    prune: bool = False
    rotate: bool = False
    replace: bool = False
    dry_run: bool = False
    subdomains: dict[int, str] = field(default_factory=dict)
    """Of every institution that is known, wanted or not."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(institution, or API key; why): what was refused, or kept failing."""


class KeyWork:
    """The set-up of one key, by id and subdomain of the institutions that it reaches."""

    def __init__(self, order: Order, name: str, institutions: Institutions) -> None:
        self._order, self._institutions = order, institutions
        self._connection, self._sealer, self._url = order.connection, order.sealer, order.url
        client = order.session.client
        self._hash = client.key_hash(name)
        wanted = {subdomain for _, subdomain in institutions}
        self._kept = wanted if order.prune else {one for one in order.subdomains.values() if self._reaches(one)}
        self._remote = DryRemote(client, name) if order.dry_run else Remote(client, name)
        self._done = KeySetUp(name, 0, institutions=len(institutions))

    def run(self) -> KeySetUp:
        """Find or make the endpoint, subscribe it, delete what its time is over.

        Raises InvalidSetting where another's endpoint is in the way, ApiError, Cancelled.
        """
        by_id = self._look()
        known = {one.endpoint_id: one for one in self._known()}
        self._note_switched_off(known.values(), by_id)
        candidates = sorted(
            (one for one in by_id.values() if one.target_url == self._url and not _retiring(known.get(one.id))),
            key=lambda one: (one.id not in known, one.id),
        )
        usable = [one for one in candidates if self._has_secret(one, known.get(one.id))]
        orphans = self._orphans([one.id for one in candidates if one not in usable], alone=not usable)
        current = self._activated(usable[0]) if usable else self._create(by_id)
        for one in usable[1:]:
            if one.id in known:  # two of ours with one URL post everything twice
                retire(self._connection, known[one.id], heir=current)
        orphans += self._doubles([one.id for one in usable[1:] if one.id not in known])
        if self._order.rotate and not self._done.created:
            current = self._rotate(current, by_id)
        self._done.endpoint_id = current.endpoint_id
        gone = known.keys() - by_id.keys()
        results = self._subscribe(current, orphans, gone)
        self._forget_missing(gone, results, current)  # not before: a hole passes to an endpoint that has subscriptions
        unmoved = {number for number in orphans if any(one.may_be_on(number) for one in results)}
        self._delete(number for number in orphans if number not in unmoved)
        if not unmoved:
            attempt_over(self._connection, self._hash, self._url)
        self._delete_retired()
        if self._order.prune:
            self._prune(current, results)
        return self._done

    def end(self) -> KeySetUp:
        """Delete our endpoints, and with them their subscriptions: of what the key reaches nobody wants anything.

        Raises ApiError, Cancelled.
        """
        present = self._order.session.client.names_by_hash()
        if any(one.key_hash not in present for one in known_endpoints(self._connection)):
            self._look()
        self._delete([one.endpoint_id for one in self._known()])
        return self._done

    # The endpoint ------------------------------------------------------------------------------------------------

    def _look(self) -> dict[int, RemoteEndpoint]:
        """The account's endpoints by id; those of a key that this one has replaced are this one's from now on."""
        by_id = {one.id: one for one in self._remote.endpoints()}
        present = list(self._order.session.client.names_by_hash())
        adopt(self._connection, self._hash, by_id, present)
        adopt_attempts(self._connection, self._hash, by_id, present)
        return by_id

    def _known(self) -> list[Endpoint]:
        return known_endpoints(self._connection, [self._hash])

    def _row(self, endpoint_id: int) -> Endpoint:
        return next(one for one in self._known() if one.endpoint_id == endpoint_id)

    def _has_secret(self, found: RemoteEndpoint, known: Endpoint | None) -> bool:
        """Whether we have the secret that it signs with, taken from the list where that shows it."""
        if known is not None:
            return learn_secret(self._connection, self._sealer, known, found.secret)
        return bool(found.secret)

    def _orphans(self, secretless: list[int], *, alone: bool) -> list[int]:
        """Those that are to be deleted: ours, whose secret got lost, and with `replace` another's as well."""
        ours = ours_among(self._connection, self._hash, self._url, secretless)
        others = [one for one in secretless if one not in ours]
        if self._order.replace or not others:
            return secretless
        if alone and not self._order.session.settings.webhook_secrets:  # else the receiver may know their secrets
            raise InvalidSetting(_in_the_way(others))
        self._done.others += others
        return sorted(ours)

    def _doubles(self, unknown: list[int]) -> list[int]:
        """Those beside the one we use that are to be deleted: what a killed rotation has made; others' are named."""
        ours = ours_among(self._connection, self._hash, self._url, unknown)
        self._done.others += [one for one in unknown if one not in ours]
        return sorted(ours)

    def _activated(self, found: RemoteEndpoint) -> Endpoint:
        """An endpoint that is there: remembered, and posted to again if it was switched off."""
        if not any(one.endpoint_id == found.id for one in self._known()):
            self._store(found)
        row = self._row(found.id)
        if not found.active:
            if row.seen_active_at is not None:
                record_inactive(self._connection, row)
            self._remote.activate(found.id)
            self._done.reactivated = True
        record_active(self._connection, row)
        return row

    def _note_switched_off(self, known: Iterable[Endpoint], listed: Mapping[int, RemoteEndpoint]) -> None:
        """Endpoints that NexHealth posts nothing to, or has no more: their holes go with their subscriptions."""
        for one in known:
            found = listed.get(one.endpoint_id)
            if one.subscriptions and (found is None or not found.active):
                record_inactive(self._connection, one)

    def _store(self, found: RemoteEndpoint) -> None:
        secret = self._sealer.seal(found.secret or "")
        store(self._connection, self._hash, found.id, target_url=self._url, active=found.active, secret=secret)

    def _create(self, before: Iterable[int]) -> Endpoint:
        """A new endpoint, its secret stored at once."""
        with self._attempt(before):
            return self._make(before)

    @contextmanager
    def _attempt(self, before: Iterable[int]) -> Iterator[None]:
        """Written down before, and until it is known what became of it."""
        attempt_begins(self._connection, self._hash, self._url, before)
        try:
            yield
        except ApiError as error:
            if not isinstance(error, TryLater):
                attempt_over(self._connection, self._hash, self._url)
            raise

    def _make(self, before: Iterable[int]) -> Endpoint:
        """Make one. Where the answer is lost, what it made is looked for."""
        known = set(before)
        for look in range(LOOKS):
            try:
                made: RemoteEndpoint | None = self._remote.create(self._url)
            except TryLater:
                if look == LOOKS - 1:
                    raise
                made = self._made_since(known)
            if made is not None and made.secret is not None:
                self._store(made)
                self._done.created = True
                return self._row(made.id)
            if made is not None:
                self._remote.delete(made.id)
                known.add(made.id)
        raise ServerFailed("NexHealth makes endpoints without telling their secret: no event could be verified")

    def _made_since(self, before: Iterable[int]) -> RemoteEndpoint | None:
        known = set(before)
        mine = (one for one in self._remote.endpoints() if one.target_url == self._url and one.id not in known)
        return next(mine, None)

    def _rotate(self, current: Endpoint, before: Iterable[int]) -> Endpoint:
        """A successor with another secret; the two are exchanged in one transaction."""
        with self._attempt(before), self._connection.transaction():
            successor = self._make(before)
            retire(self._connection, current, heir=successor)
        self._done.rotated_from = current.endpoint_id
        return successor

    def _forget_missing(self, gone: Container[int], results: Iterable[Subscribed], heir: Endpoint) -> None:
        """Endpoints that somebody deleted: what they would have been sent is read by polling.

        One that an institution had which has no other now, for it was refused or not asked for, stays missing for that
        one alone, as it does for events that the API failed at: its hole is read for the others, which the `heir` has.
        """
        without = self._kept - {one.subdomain for one in results if one.settled and one.subscriptions}
        told = {(each.subdomain, each.resource_type, each.event) for one in results for each in one.subscriptions}
        for one in self._known():
            if one.endpoint_id not in gone:
                continue
            unsettled = [each for each in one.subscribed if each.subdomain in without]
            left = [each for each in unsettled if (each.subdomain, each.resource_type, each.event) not in told]
            if not left:
                record_deleted(self._connection, one)
            elif len(left) < len(one.subscriptions):
                with self._connection.transaction():  # what is noted of it says whether its hole was passed on
                    record_subscriptions(self._connection, one, left)
                    retire(self._connection, one, heir=heir)

    # Subscriptions -----------------------------------------------------------------------------------------------

    def _subscribe(self, current: Endpoint, orphans: Sequence[int], gone: Container[int]) -> list[Subscribed]:
        """Each institution's subscriptions, noted. Raises ServerFailed where the API failed and none has any."""
        retired = [one for one in self._known() if one.retire_at is not None and one.endpoint_id not in gone]
        fresh = self._done.rotated_from
        sources = [one.endpoint_id for one in retired if one.subscriptions or one.endpoint_id == fresh]
        results = self._in_threads(current, [*orphans, *sources])
        settled = [one for result in results for one in result.subscriptions]
        failure = next((one.server_failed for one in results if one.server_failed is not None), None)
        if failure is not None and not settled:
            raise failure
        self._record(current, settled, {one.subdomain for one in results if one.settled})
        for one in retired:
            if one.endpoint_id in sources:
                seen = [result for result in results if one.endpoint_id in result.left_behind]
                left = [each for result in seen for each in result.left_behind[one.endpoint_id]]
                looked_at = {result.subdomain for result in seen}
                self._record(one, left, looked_at)
                still_there = {each.id for each in left}
                if any(each.subdomain in looked_at and each.id not in still_there for each in one.subscribed):
                    retire(self._connection, one, heir=current)  # its 49 hours are those of the last that was moved
        self._add_up(results)
        return results

    def _record(self, endpoint: Endpoint, found: Sequence[Subscription], seen: AnySet[str]) -> None:
        """Remember what it is subscribed to: what was `found`, and what was before of institutions not `seen` just now.

        Those may have been refused, or not asked for; of one that the key reaches no more nothing is kept, nor with
        `prune` of one that is not wanted: else its silence were told of for ever, and a retired endpoint never deleted.
        """
        unseen = self._kept - seen
        ids = {one.id for one in found}
        before = [one for one in endpoint.subscribed if one.subdomain in unseen and one.id not in ids]
        record_subscriptions(self._connection, endpoint, [*found, *before])

    def _reaches(self, subdomain: str) -> bool:
        """Whether the institution's key is this one."""
        with suppress(MissingSetting):
            return self._order.session.client.key_hash(subdomain) == self._hash
        return False

    def _in_threads(self, current: Endpoint, sources: Sequence[int]) -> list[Subscribed]:
        session, outage = self._order.session, Outage()
        wanted = [
            Subscriber(
                *(self._remote, current.endpoint_id, institution, self._order.topics),
                move_from=sources,
                outage=outage,
                on_topic=partial(self._order.counter.settled, institution[0]),
            )
            for institution in self._institutions
        ]
        with ThreadPoolExecutor(max_workers=session.settings.concurrency) as threads:
            waiting = [threads.submit(one.run) for one in wanted]
            try:
                return [each.result() for each in waiting]
            except BaseException as error:
                threads.shutdown(wait=False, cancel_futures=True)
                if isinstance(error, KeyboardInterrupt):
                    session.stop.set()
                raise

    def _add_up(self, results: Iterable[Subscribed]) -> None:
        for one in results:
            self._done.subscriptions += len(one.subscriptions)
            self._done.subscriptions_created += one.created
            self._done.subscriptions_resumed += one.resumed
            self._done.subscriptions_moved += one.moved
            if one.not_enabled:
                self._done.not_enabled[one.subdomain] = one.not_enabled
            self._order.failures += [(one.subdomain, reason) for reason in one.failures]

    # Pruning -----------------------------------------------------------------------------------------------------

    def _prune(self, current: Endpoint, results: Sequence[Subscribed]) -> None:
        """Delete what is ours and nobody wants; of an institution that was refused, or that the API failed at, nothing."""
        failed = {one.institution_id: one.subdomain for one in results if one.failures}
        dropped = self._prune_subscriptions(current, [each for one in results for each in one.subscriptions], failed)
        known = self._row(current.endpoint_id).subscribed
        record_subscriptions(self._connection, current, [one for one in known if one.id not in dropped])
        others = [one for one in self._known() if one.target_url != self._url and one.retire_at is None]
        spared = set(failed.values())
        self._delete(one.endpoint_id for one in others if spared.isdisjoint(each.subdomain for each in one.subscribed))

    def _prune_subscriptions(
        self, current: Endpoint, kept: Iterable[Subscription], failed: Container[int | None]
    ) -> set[int]:
        """Delete what this endpoint is told of and nobody wants; ids of what was deleted."""
        wanted = {one.id for one in kept}
        dropped: set[int] = set()
        for found in self._remote.subscriptions(current.endpoint_id):
            if found.id in wanted or found.institution_id in failed:
                continue
            subdomain = self._order.subdomains.get(found.institution_id or self._institutions[0][0])
            try:
                self._remote.drop(current.endpoint_id, found.id, subdomain)
                dropped.add(found.id)
            except (NoAccess, BadRequest) as error:
                self._order.failures.append((subdomain or f"institution {found.institution_id}", str(error)))
        self._done.subscriptions_removed += len(dropped)
        return dropped

    def _delete(self, endpoint_ids: Iterable[int]) -> None:
        for number in endpoint_ids:
            self._remote.delete(number)
            self._done.endpoints_removed.append(number)
            for row in self._known():
                if row.endpoint_id == number:
                    record_deleted(self._connection, row)

    def _delete_retired(self) -> None:
        for one in self._known():
            if delete_if_due(self._connection, self._remote, one):
                self._done.endpoints_removed.append(one.endpoint_id)


def _in_the_way(others: Sequence[int]) -> str:
    named = ", ".join(map(str, others))
    return (
        f"not made by this pipeline, with the same URL and a secret that NexHealth does not show: endpoint {named}."
        " Either register another URL (with a query like ?2 at its end it reaches the receiver as well), or set"
        " NEXHEALTH_WEBHOOK_SECRETS to its secret,"
        " or give --replace: its subscriptions move to a new endpoint, and it is deleted"
    )


def _retiring(known: Endpoint | None) -> bool:
    return known is not None and known.retire_at is not None
