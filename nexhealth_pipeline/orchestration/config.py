"""What a run may be told in Dagit's launchpad, and how it becomes options of a sync."""

from dataclasses import replace
from datetime import date, datetime

import msgspec
from dagster import Config
from pydantic import Field

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.filters import STATUSES, Filters, moment_of
from nexhealth_pipeline.sync.options import Mode, SyncOptions, require_judged
from nexhealth_pipeline.sync.practice import Practices

__all__ = ["ApplyConfig", "PatientConfig", "ReplayConfig", "SetupConfig", "SyncConfig"]

_NARROWING = ("start", "end", "status", "providers", "updated_since")
"""Fields of a sync that reads a part."""


class SyncConfig(Config):
    """Run config of every sync; all fields have defaults."""

    mode: str = Field(
        default="incremental",
        description="incremental (since the watermark), full (read all again) or reconcile (full, then mark what is gone)",
    )
    concurrency: int | None = Field(
        default=None, description="slices read at once, 1 to 64; default NEXHEALTH_CONCURRENCY"
    )
    batch_pages: int | None = Field(
        default=None, description="pages a transaction, at most, 1 to 100; default NEXHEALTH_BATCH_PAGES"
    )
    start: str | None = Field(
        default=None, description="first day (YYYY-MM-DD) of a window of appointments: only months in it are read"
    )
    end: str | None = Field(default=None, description="last day (YYYY-MM-DD) of it")
    status: str | None = Field(
        default=None, description="only rows that are active, or inactive; where the collections can be filtered so"
    )
    providers: list[int] = Field(default=[], description="only rows of these providers (ids); likewise")
    updated_since: str | None = Field(
        default=None, description="only rows changed since this day (YYYY-MM-DD) or time (ISO 8601); likewise"
    )
    dry_run: bool = Field(
        default=False,
        description="read everything, write nothing, report what would be written; of a reconcile not what is gone",
    )
    allow_mass_delete: bool = Field(
        default=False, description="in a reconcile: mark rows as gone even where suspiciously many are"
    )
    every_list: bool = Field(
        default=True,
        description="in a reconcile: read the lists under all patients and coverages again; else, as at night, those due",
    )
    partitions: list[str] = Field(default=[], description="partition keys, where the run has no partition tag")
    fresh_after: str | None = Field(default=None, description="skip what a pass begun after this time has completed")

    practices: str | None = Field(default=None, description="of a dry run: what it found, instead of the warehouse's")
    whole_after: str | None = Field(default=None, description="the same for lists that can only be read whole")

    def known_practices(self) -> Practices | None:
        """Institutions and locations that a dry run found and stored nowhere.

        Raises InvalidSetting: a run that writes takes none but the warehouse's.
        """
        if self.practices is None:
            return None
        if not self.dry_run:
            raise InvalidSetting(
                "practices: only a dry run takes its institutions and locations from here; leave it out"
            )
        try:
            return msgspec.json.decode(self.practices, type=Practices)
        except msgspec.DecodeError:
            raise InvalidSetting(
                "practices: not what `nexhealth sync --dry-run` puts here; leave it out, and the warehouse's are taken"
            ) from None

    def options(self, settings: Settings, fresh_after: datetime) -> SyncOptions:
        """The options of the sync. Raises InvalidSetting naming field and value."""
        try:
            mode = Mode(self.mode)
        except ValueError:
            raise InvalidSetting(f"mode {self.mode!r}: use one of {', '.join(Mode)}") from None
        _require_within("concurrency", self.concurrency, 1, 64)
        _require_within("batch_pages", self.batch_pages, 1, 100)
        start, end = _day("start", self.start), _day("end", self.end)
        if start and end and start > end:
            raise InvalidSetting(f"start {start} is after end {end}")
        part = [name for name in _NARROWING if getattr(self, name)]
        require_judged(mode, allow_mass_delete=self.allow_mass_delete, part=part)
        options = SyncOptions.of(settings)
        return replace(
            options,
            mode=mode,
            concurrency=self.concurrency or options.concurrency,
            batch_pages=self.batch_pages or options.batch_pages,
            start=start,
            end=end,
            filters=self._filters(),
            dry_run=self.dry_run,
            allow_mass_delete=self.allow_mass_delete,
            every_list=self.every_list,
            fresh_after=_moment("fresh_after", self.fresh_after) or fresh_after,
            whole_after=_moment("whole_after", self.whole_after),
        )

    def _filters(self) -> Filters:
        if self.status is not None and self.status not in STATUSES:
            raise InvalidSetting(f"status {self.status!r}: use one of {', '.join(STATUSES)}")
        if bad := [number for number in self.providers if number < 1]:
            raise InvalidSetting(f"providers {bad[0]}: write NexHealth's ids of providers")
        since = None if self.updated_since is None else moment_of("updated_since", self.updated_since)
        return Filters(self.status, tuple(self.providers), since)


class PatientConfig(Config):
    """Which patient to refresh."""

    patient_id: int = Field(description="NexHealth's id of the patient")

    def patient(self) -> int:
        """`patient_id`. Raises InvalidSetting."""
        if self.patient_id < 1:
            raise InvalidSetting(f"patient_id {self.patient_id}: write NexHealth's id of the patient")
        return self.patient_id


class ApplyConfig(Config):
    """How long a run that applies webhook events stays."""

    linger_seconds: float = Field(
        default=30.0, description="wait so long for more events before the run ends, 0.1 to 600"
    )
    turn_seconds: float = Field(default=600.0, description="end after so long in any case, 0.001 to 2400")
    due_only: bool = Field(
        default=False,
        description="instead of both: end when every event that was due when the run began has been tried",
    )

    def stay(self) -> tuple[float, float]:
        """`linger_seconds` and `turn_seconds`. Raises InvalidSetting."""
        # With the longest wait, and a batch, a run ends before the job's `dagster/max_runtime` does: that kills.
        _require_within("linger_seconds", self.linger_seconds, 0.1, 600)
        _require_within("turn_seconds", self.turn_seconds, 0.001, 2400)
        return self.linger_seconds, self.turn_seconds


class ReplayConfig(Config):
    """Which webhook events to apply again: those that fit everything given; something must be."""

    since: str | None = Field(
        default=None, description="received at this day (YYYY-MM-DD) or time (ISO 8601), or later"
    )
    until: str | None = Field(default=None, description="received before this day or time")
    resources: list[str] = Field(default=[], description="names of collections, for example patients")
    statuses: list[str] = Field(default=[], description="applied, superseded or parked; all of these unless given")
    ids: list[int] = Field(default=[], description="ids of nexhealth_webhook_events")
    dry_run: bool = Field(default=False, description="count them, change nothing")

    def period(self) -> tuple[datetime | None, datetime | None]:
        """`since` and `until`. Raises InvalidSetting."""
        since, until = (
            None if text is None else moment_of(name, text)
            for name, text in (("since", self.since), ("until", self.until))
        )
        return since, until


class SetupConfig(Config):
    """What to register with NexHealth."""

    url: str = Field(description="where NexHealth shall post events to: https://<host>/api/nexhealth-webhook")
    rotate: bool = Field(default=False, description="take a new secret; the old one is taken for 49 hours more")
    prune: bool = Field(default=False, description="remove subscriptions and endpoints of ours that are stale")
    replace: bool = Field(
        default=False, description="delete another's endpoint with this URL whose secret NexHealth does not show"
    )
    dry_run: bool = Field(default=False, description="say what would be changed, change nothing")


def _require_within(name: str, given: float | None, least: float, most: float) -> None:
    """Refuse what is out of bounds. Pydantic would as it builds the config, before the step: by a traceback."""
    if given is not None and not least <= given <= most:
        raise InvalidSetting(f"{name} {given}: write a number from {least} to {most}")


def _day(name: str, text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise InvalidSetting(f"{name} {text!r}: write a day as YYYY-MM-DD") from None


def _moment(name: str, text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text) if text else None
    except ValueError:
        moment = None
    if text and (moment is None or moment.tzinfo is None):
        raise InvalidSetting(f"{name} {text!r}: write a time as ISO 8601 with a zone")
    return moment
