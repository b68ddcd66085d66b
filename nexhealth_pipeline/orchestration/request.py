"""What a command asks a sync for: the words that the parent and its forked children share."""

from dataclasses import dataclass
from datetime import date

from nexhealth_pipeline.sync.filters import NO_FILTERS, Filters
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
    filters: Filters = NO_FILTERS
    dry_run: bool = False
    allow_mass_delete: bool = False
    """In a reconcile: mark absences past the brake as well."""
    patient: int | None = None

    @property
    def partial(self) -> bool:
        """Whether only part of its slices is read: what was read of it is read anew by the next one, not gone on with."""
        return bool(self.start or self.end or self.filters) or self.patient is not None
