"""Which collection an event feeds, and how: told by the catalog's declarations."""

from dataclasses import dataclass

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["FEEDS", "Feed", "event_names"]

_SNAPSHOT_KEY = ("institution_id", "id")
_DELETED = "_deleted"


@dataclass(frozen=True, slots=True)
class Feed:
    """What one event means."""

    collection: Collection
    snapshot: bool
    """Its `data` holds the record; else the API is asked again."""
    deletes: bool
    """It tells that the record was deleted."""


def _feeds(collection: Collection) -> dict[str, Feed]:
    events = collection.events
    if events is None:
        return {}
    # Without a version nothing tells which of two is the newer one; without an id, which row it is.
    loads = collection.version is not None and collection.key == _SNAPSHOT_KEY and not collection.from_request
    return {
        name: Feed(collection, loads and name in events.snapshots, name.endswith(_DELETED)) for name in events.names
    }


FEEDS: dict[str, Feed] = {name: feed for one in DECLARED for name, feed in _feeds(one).items()}
"""By the event's name without suffix."""


def event_names(resources: tuple[str, ...]) -> list[str]:
    """Names of the events that feed these collections. Raises InvalidSetting for one that no event feeds."""
    fed = {feed.collection.name for feed in FEEDS.values()}
    unknown = sorted(set(resources) - fed)
    if unknown:
        raise InvalidSetting(f"resource {unknown[0]!r} is fed by no event; use one of: {', '.join(sorted(fed))}")
    return [name for name, feed in FEEDS.items() if feed.collection.name in resources]
