"""What a command asks a sync for: the words that the parent and its forked children share."""

from dataclasses import dataclass
from datetime import date

from nexhealth_pipeline.sync.options import Mode

__all__ = ["SyncRequest"]


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """What to sync. Empty = everything that the key reaches."""

    mode: Mode
    resources: tuple[str, ...] = ()
    """Names of collections."""
    locations: tuple[str, ...] = ()
    """Keys, ids or names of locations."""
    start: date | None = None
    end: date | None = None
    dry_run: bool = False
    patient: int | None = None
