"""A sync of the sandbox into a warehouse, without rate limits."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync import months
from nexhealth_pipeline.sync.filters import NO_FILTERS
from nexhealth_pipeline.sync.loader import Loader
from nexhealth_pipeline.sync.options import SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import SliceResult
from nexhealth_pipeline.warehouse.state import database_time
from tests.client.stub import Stub


class Unlimited:
    """A budget that never makes anybody wait."""

    def acquire(self, classes: object) -> float:
        return 0.0

    def throttle(self, classes: object, seconds: float) -> None:
        return None


def settings_of(office: Stub, database_url: str) -> Settings:
    """Of a sync of an office that a test makes up."""
    given = {"NEXHEALTH_API_URL": office.url, "NEXHEALTH_API_KEY": "k", "DATABASE_URL": database_url}
    return load_settings(given, environ={}, env_file=None)


def open_session(settings: Settings, **more: object) -> SyncSession:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    return SyncSession(settings, url, budget_for=lambda _: Unlimited(), **more)  # type: ignore[arg-type]


def sync_all(
    settings: Settings, options: SyncOptions | None = None, only: set[str] | None = None, **more: object
) -> list[SliceResult]:
    """Discovery, then everything that is due: what `nexhealth sync` does, in this process."""
    options = options or SyncOptions()
    today = datetime.now(UTC).date()
    assets = [collection for collection in DECLARED if collection.is_asset]
    with open_session(settings, **more) as session:
        practice = [collection for collection in assets if collection.scope is Scope.PRACTICE]
        whole = replace(options, filters=NO_FILTERS)
        results = list(run_slices(session, due_slices(practice, session.practices(), {}, whole, today), whole))
        rest = [one for one in assets if one.scope is not Scope.PRACTICE and (only is None or one.name in only)]
        practices = session.practices()
        watermarks = session.watermarks([collection.name for collection in rest])
        results += run_slices(session, due_slices(rest, practices, watermarks, options, today), options)
    return results


Rows = Callable[[str], list[tuple[Any, ...]]]


def first_test_month() -> date:
    """Four months ago: the first month owns everything earlier, so nothing is missed."""
    today = datetime.now(UTC).date()
    index = today.year * 12 + today.month - 1 - 4
    return date(index // 12, index % 12 + 1, 1)


def use_few_months(patch: pytest.MonkeyPatch) -> None:
    """Eight months instead of fifty."""
    patch.setattr(months, "FIRST_MONTH", first_test_month())
    patch.setattr(months, "MONTHS_AHEAD", 3)


def noting_loads(patch: pytest.MonkeyPatch, database_url: str, name: str) -> dict[int, datetime]:
    """When (database time) the list of each patient in that collection begins to be loaded, as it comes."""
    load, moments = Loader.load, dict[int, datetime]()

    def noting(self: Loader, pages: Any, not_before: datetime | None) -> Any:
        pages = list(pages)
        if self._slice.collection.name == name:
            with psycopg.connect(database_url) as other:
                moments.update({one.request["patient_id"]: database_time(other) for one in pages})
        return load(self, pages, not_before)

    patch.setattr(Loader, "load", noting)
    return moments


LISTS_READ = "SELECT patient_id, read_at FROM nexhealth_child_reads WHERE collection = 'documents'"
