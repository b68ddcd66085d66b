"""Subscriptions of one institution: what the catalog declares, looked up at NexHealth and made where it is missing.

A POST whose answer was lost is not repeated blindly: the list is looked at again, and what is still missing is
made. So a subscription is never made twice, whatever goes wrong in between.

An API that keeps failing at one institution, or at one event, is no reason to leave out the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import BadRequest, NoAccess, NotFound, ServerFailed, TryLater
from nexhealth_pipeline.webhooks.endpoints import Subscription
from nexhealth_pipeline.webhooks.registering.remote import Remote, RemoteSubscription

__all__ = ["LOOKS", "Outage", "Subscribed", "Subscriber", "Topic", "declared_topics"]

LOOKS = 5
"""Times the API is asked what there is, where answers to changes get lost."""
_TRIES = 2
"""Times one event is asked for whose answer is a failure; before one is made again, it is looked whether it was made."""
_GIVE_UP_AFTER = 3
"""Institutions in a row that the API fails at as a whole."""

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Topic:
    """An event to subscribe to."""

    resource_type: str
    event: str
    optional: bool
    """Not every practice has it: a refusal is no failure."""

    @property
    def key(self) -> Key:
        """What NexHealth tells subscriptions of one institution apart by."""
        return self.resource_type, self.event


def declared_topics() -> tuple[Topic, ...]:
    """Every event that some collection takes, each once."""
    found: dict[Key, Topic] = {}
    for collection in DECLARED:
        if (events := collection.events) is not None:
            for name in events.names:
                topic = Topic(events.resource_type, name, collection.may_be_disabled)
                found.setdefault(topic.key, topic)
    return tuple(found.values())


@dataclass(slots=True)
class Subscribed:
    """What one institution's subscriptions are now, and what was done for that."""

    institution_id: int
    subdomain: str
    subscriptions: list[Subscription] = field(default_factory=list)
    settled: bool = False
    """These are all; else what was known of the institution before may be there as well."""
    left_behind: dict[int, list[Subscription]] = field(default_factory=dict)
    """Wanted ones that could not be moved off another endpoint, by its id; only those that were looked through."""
    created: int = 0
    resumed: int = 0
    moved: int = 0
    failures: list[str] = field(default_factory=list)
    server_failed: ServerFailed | None = None
    """Why not all was settled, where that is no refusal; it is among the failures as well."""
    not_enabled: list[str] = field(default_factory=list)
    """Resource types that the vendor has not enabled."""

    def may_be_on(self, endpoint_id: int) -> bool:
        """Whether the API failed before all of that endpoint's subscriptions were moved."""
        return self.server_failed is not None and self.left_behind.get(endpoint_id) != []


class Outage:
    """Whether the API fails at every institution: after a few in a row the rest is not asked, for each costs minutes.

    Shared by threads, to which exact figures are no matter.
    """

    def __init__(self) -> None:
        self.failure: ServerFailed | None = None
        """Set once it does."""
        self._in_a_row = 0

    def note(self, done: Subscribed) -> None:
        """Note how one institution ended."""
        vain = done.server_failed is not None and not done.subscriptions
        self._in_a_row = self._in_a_row + 1 if vain else 0
        if self._in_a_row >= _GIVE_UP_AFTER:
            self.failure = done.server_failed


class Subscriber:
    """Subscribes endpoint `endpoint_id` to `topics` of one institution; `on_topic` is told of each that is settled."""

    def __init__(
        self,
        remote: Remote,
        endpoint_id: int,
        institution: tuple[int, str],
        topics: Sequence[Topic],
        *,
        move_from: Sequence[int],
        outage: Outage,
        on_topic: Callable[[int], None],
    ) -> None:
        """`move_from` are endpoints whose subscriptions to `topics` are moved here instead of making others."""
        self._remote, self._endpoint_id, self._topics = remote, endpoint_id, topics
        self._move_from, self._outage, self._on_topic = move_from, outage, on_topic
        self._done = Subscribed(*institution)
        self._refused: dict[str, str] = {}
        self._failed: dict[Key, list[ServerFailed]] = {}
        """How the API failed at single topics."""
        self._in_doubt = False
        """Whether it did on this look, so that there may be more than was seen."""

    def run(self) -> Subscribed:
        """Settle all of them. What the API refuses or keeps failing at is named in the result.

        Raises other ApiErrors, and Cancelled.
        """
        if self._outage.failure is None:
            self._look()
        else:
            self._give_up(self._outage.failure)
        self._outage.note(self._done)
        self._on_topic(len(self._topics))
        return self._done

    def _look(self) -> None:
        for look in range(LOOKS):
            try:
                self._settle()
            except TryLater as failure:
                if look == LOOKS - 1:
                    self._give_up(failure)
            except (NoAccess, NotFound, BadRequest) as refusal:  # of the list itself
                self._done.failures.append(str(refusal))
                break
            else:
                if not self._in_doubt:
                    break
        self._judge_refusals()

    def _give_up(self, failure: TryLater) -> None:
        """An institution's own failure, unless the API cannot be reached at all."""
        if not isinstance(failure, ServerFailed):
            raise failure
        self._done.server_failed = failure
        self._done.failures.append(str(failure))

    def _settle(self) -> None:
        """Look what there is and make the rest. Raises TryLater where nobody knows whether a change was made."""
        have = self._listed(self._endpoint_id)
        self._in_doubt = False
        self._move(have)
        self._refused.clear()
        self._done.failures.clear()
        self._done.subscriptions.clear()
        self._done.server_failed = None
        for number, topic in enumerate(self._topics):
            self._on_topic(number)
            if topic.resource_type not in self._refused:
                self._settle_one(topic, have.get(topic.key, []))
        self._done.settled = self._done.server_failed is None

    def _settle_one(self, topic: Topic, have: list[RemoteSubscription]) -> None:
        number = next((one.id for one in have if one.active), None)
        try:
            if number is None:
                number = self._activated(topic, have)
        except NoAccess as refusal:
            self._refused[topic.resource_type] = str(refusal)
        except (BadRequest, NotFound) as refusal:
            self._done.failures.append(f"{topic.event}: {refusal}")
        except ServerFailed as failure:
            self._done.server_failed = failure
            self._done.failures.append(str(failure))
        else:
            self._done.subscriptions.append(self._remembered(number, topic.resource_type, topic.event))

    def _activated(self, topic: Topic, have: list[RemoteSubscription]) -> int:
        """Resume or make one. A failure is its own: the others are no worse for it, and it is tried again but once."""
        failed = self._failed.setdefault(topic.key, [])
        if len(failed) >= _TRIES:
            raise failed[-1]
        try:
            return self._resume(have[0]) if have else self._create(topic)
        except ServerFailed as failure:
            failed.append(ServerFailed(f"{topic.event}: {failure}", status=failure.status))
            self._in_doubt = True
            raise failed[-1] from failure

    def _create(self, topic: Topic) -> int:
        subdomain = self._done.subdomain
        made = self._remote.subscribe(self._endpoint_id, subdomain, topic.resource_type, topic.event)
        self._done.created += 1
        return made.id

    def _resume(self, found: RemoteSubscription) -> int:
        self._remote.resume(self._endpoint_id, found.id, self._done.subdomain)
        self._done.resumed += 1
        return found.id

    def _move(self, have: dict[Key, list[RemoteSubscription]]) -> None:
        """Bring here what the endpoints before this one are told of, and add it to `have`."""
        wanted = {topic.key: topic for topic in self._topics}
        for source in self._move_from:
            left: list[Subscription] = []
            try:
                listed = self._listed(source)
            except NotFound:  # deleted just now, with what it was still to send: the next look finds it missing
                continue
            for key, found in ((key, one) for key, several in listed.items() for one in several):
                if key in wanted and not self._moved(source, wanted[key], found, have):
                    left.append(self._remembered(found.id, *key))
            self._done.left_behind[source] = left

    def _moved(
        self, source: int, topic: Topic, found: RemoteSubscription, have: dict[Key, list[RemoteSubscription]]
    ) -> bool:
        """Move one subscription; drop it where there is an active one here, or every event would come twice.

        An inactive one is resumed first: it may be refused, and the institution would be left with none.
        """
        key = topic.key
        try:
            told = self._is_told(topic, have)
        except ServerFailed:  # of this one alone; where it is now, its events still come
            return False
        try:
            if told:
                self._remote.drop(source, found.id, self._done.subdomain)
                return True
            self._remote.move(source, found.id, self._done.subdomain, to=self._endpoint_id)
        except NotFound:  # perhaps the second try of a request whose first answer was lost
            have |= self._listed(self._endpoint_id)
            return key in have
        except (NoAccess, BadRequest):
            return False
        have[key] = [RemoteSubscription(found.id, *key)]
        self._done.moved += 1
        return True

    def _is_told(self, topic: Topic, have: dict[Key, list[RemoteSubscription]]) -> bool:
        """Whether there is an active subscription here, resumed if need be. Raises ServerFailed."""
        twins = have.get(topic.key, [])
        if not twins or any(one.active for one in twins):
            return bool(twins)
        try:
            have[topic.key] = [RemoteSubscription(self._activated(topic, twins), *topic.key)]
        except (NoAccess, BadRequest, NotFound):
            return False
        return True

    def _listed(self, endpoint_id: int) -> dict[Key, list[RemoteSubscription]]:
        """The institution's subscriptions there, by what they are about."""
        listed: dict[Key, list[RemoteSubscription]] = {}
        for one in self._remote.subscriptions(endpoint_id, self._done.subdomain):
            if one.institution_id in (None, self._done.institution_id):
                listed.setdefault((one.resource_type, one.event), []).append(one)
        return listed

    def _remembered(self, number: int, resource_type: str, event: str) -> Subscription:
        return Subscription(number, self._done.subdomain, resource_type, event, active=True)

    def _judge_refusals(self) -> None:
        """Everything refused: the institution is. Otherwise what some practices lack is none of our failures."""
        if self._refused and not self._done.subscriptions:
            self._done.failures.append(next(iter(self._refused.values())))
            return
        optional = {topic.resource_type for topic in self._topics if topic.optional}
        self._done.not_enabled = sorted(optional & self._refused.keys())
        self._done.failures += [text for name, text in self._refused.items() if name not in optional]
