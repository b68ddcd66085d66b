"""What a sync is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from enum import StrEnum

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.filters import NO_FILTERS, Filters

__all__ = ["Mode", "SyncOptions", "require_judged"]


class Mode(StrEnum):
    """How much a sync reads."""

    FULL = "full"
    """Everything again, patients' documents too; marks nothing absent."""
    INCREMENTAL = "incremental"
    """Changes since the stored watermark; what was never complete is read in full."""
    RECONCILE = "reconcile"
    """As full, and rows that the complete read lacked are marked as absent (`sync.reconcile`)."""

    @property
    def whole(self) -> bool:
        """Whether everything is read, changed or not."""
        return self is not Mode.INCREMENTAL


def require_judged(mode: Mode, *, allow_mass_delete: bool, part: Sequence[str]) -> None:
    """Refuse what asks for a judgement of absences that nobody would make: it would look as if nothing were gone.

    `part` is what was given that narrows the read, by the names that whoever asks knows. Raises InvalidSetting.
    """
    if allow_mass_delete and mode is not Mode.RECONCILE:
        raise InvalidSetting(
            f"mode {mode}: to allow mass deletes (--allow-mass-delete, allow_mass_delete in a run's config) goes with mode "
            "reconcile, which reads all that it marks rows by"
        )
    if mode is Mode.RECONCILE and part:
        raise InvalidSetting(f"mode reconcile tells what is gone by complete reads: leave out {', '.join(part)}")


@dataclass(frozen=True, slots=True)
class SyncOptions:
    """How slices are read. Defaults are those of the settings."""

    mode: Mode = Mode.INCREMENTAL
    concurrency: int = 6
    """Slices of a lane (`sync.order`), or patients' documents, read at once."""
    batch_pages: int = 6
    """Pages committed in one transaction; `run_slices` gives each of many slices fewer."""
    fetch_ahead: bool = True
    """Ask for the next page while one is encoded; `run_slices` lets none of many slices do so."""
    overlap: timedelta = timedelta(minutes=60)
    """Subtracted from a watermark when it is used (API.md J.1)."""
    start: date | None = None
    end: date | None = None
    """Days whose months of appointments, and those between, are read whole; a windowed read moves no watermark."""
    filters: Filters = NO_FILTERS
    """Only some rows; a filtered read moves no watermark and says nothing about the others."""
    dry_run: bool = False
    """Read everything, write nothing, report what would be written."""
    allow_mass_delete: bool = False
    """In a reconcile: mark absences past the brake as well."""
    fresh_after: datetime | None = None
    """A slice completely read in a pass begun after this is not read again (a sweep taken up, an overlapping run); in a
    reconcile no longer ago than `sync.runner` has it."""
    whole_after: datetime | None = None
    """As `fresh_after`, of passes that have no increment and can only be read whole; None = the same moment."""
    resume_within: timedelta = timedelta(hours=24)
    """An unfinished pass older than this is begun anew."""
    every_list: bool = True
    """In a reconcile: read the lists under all rows; else those that are due, as in an incremental sync."""
    waits: bool = True
    """A slice that another run reads just now is read after it; else its result says that it is held. `run_slices` reads all
    others meanwhile."""
    rotation_days: int = 30
    """Each list under a row is read at least once in so many nights, a share each night, and judged by."""
    today: date | None = None
    """The day by which months are counted; None = whichever it is. `run_slices` keeps to the one on which it began: read or
    judged on the first of the next month, the last month would end sooner, and another one was never read."""

    @classmethod
    def of(cls, settings: Settings) -> "SyncOptions":
        """An incremental sync of everything, as the settings say."""
        return cls(concurrency=settings.concurrency, batch_pages=settings.batch_pages, overlap=settings.overlap)

    @property
    def reconciles(self) -> bool:
        """Whether absences are judged after it: never after a read that sees only part."""
        return self.mode is Mode.RECONCILE and not self.partial

    @property
    def judges_lists(self) -> bool:
        """Whether absences are judged by lists under rows: each list answered tells all of its own row."""
        return self.mode is not Mode.FULL and not self.partial

    @property
    def mode_of_lists(self) -> Mode:
        """How lists under rows are read."""
        return self.mode if self.every_list else Mode.INCREMENTAL

    @property
    def partial(self) -> bool:
        """Whether the read sees only part of a slice, so that it moves no watermark and completes nothing."""
        return self.dry_run or bool(self.filters) or self.start is not None or self.end is not None
