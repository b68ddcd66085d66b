"""A slice: what is read, logged and materialized as one; and what came of reading it."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.sync.practice import Institution, Location
from nexhealth_pipeline.warehouse.merge import Change
from nexhealth_pipeline.warehouse.sync_log import Counts

__all__ = ["Absence", "Slice", "SliceResult", "Status", "place_of"]


class Status(StrEnum):
    """How reading a slice ended; the words of `nexhealth_sync_logs.status`."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Slice:
    """One collection at one institution, location or location and month."""

    collection: Collection
    institution: Institution | None = None
    """None for key-wide collections."""
    location: Location | None = None
    window_key: str = ""
    """Month `YYYY-MM`, `changes`, or empty."""
    members: tuple[Location, ...] = ()
    """Locations to ask one by one, where an institution-wide list needs it."""

    @property
    def institution_id(self) -> int:
        """0 for key-wide collections."""
        return self.institution.id if self.institution else 0

    @property
    def location_id(self) -> int:
        """0 where the slice is not one location's."""
        return self.location.id if self.location else 0

    @property
    def subdomain(self) -> str | None:
        """Scope of its requests."""
        return self.institution.subdomain if self.institution else None

    @property
    def partition_key(self) -> str | None:
        """Key of its Dagster partition: subdomain, location key, `location|YYYY-MM`, or None."""
        if self.location is None:
            return self.subdomain
        return f"{self.location.key}|{self.window_key}" if self.window_key else self.location.key

    @property
    def label(self) -> str:
        """Short name for people: collection and partition."""
        return f"{self.collection.name} {self.partition_key}" if self.partition_key else self.collection.name


def place_of(key: str) -> str:
    """The subdomain or location key that a `Slice.partition_key` begins with: the key without its month."""
    return key.partition("|")[0]


@dataclass(frozen=True, slots=True)
class Absence:
    """What a reconcile found missing at one place: an EHR database, a slice, or the rows of no location."""

    live: int = 0
    """Rows not deleted, before."""
    seen: int = 0
    """Records that the complete read met."""
    missing: int = 0
    """Rows that it lacked."""
    confirmed: int = 0
    """Of these, rows whose single read answered 404, where the API has one."""
    found: int = 0
    """Rows whose single read still had them: loaded instead."""
    tombstoned: int = 0
    revived: int = 0
    """Rows marked before that the read met again."""
    braked: bool = False
    """So many at once that nothing was marked."""

    @property
    def quiet(self) -> bool:
        """Whether nothing was missing and nothing came back."""
        return not (self.missing or self.revived or self.tombstoned)


@dataclass(slots=True)
class SliceResult:
    """What came of one slice."""

    slice: Slice
    status: Status
    counts: Counts
    seconds: float
    complete: bool = False
    """The slice has been read completely (in this run, or before and is current enough)."""
    as_of: datetime | None = None
    """Every change up to here is in the warehouse, where complete."""
    reason: str | None = None
    """Why it was skipped or failed; holds no record's values."""
    exit_status: int = 0
    refused_keys: frozenset[str] = frozenset()
    """Names of API keys: it failed by their refusal alone, and what the others reach was loaded (`sync.every_key`)."""
    held: bool = False
    """It was skipped because another run reads it just now, which was not waited for (`SyncOptions.waits`)."""
    passing: bool = False
    """It failed by what passes by itself, the API did not answer or had no room; or once the API key is corrected."""
    changes: list[Change] = field(default_factory=list)
    """Months that changed, for windowed collections."""
    rows: int | None = None
    """Rows that the slice has now, where this read tells; None after an incremental one."""
    records: list[bytes] = field(default_factory=list, repr=False)
    """Of a dry run of a practice collection: what it read, since nothing was stored to plan from."""
    new_notes: int = 0
    """Faults that are new in quarantine."""
    absence: Absence | None = None
    """Of a judgement of absences (`sync.reconcile`), which is no read of a slice."""
