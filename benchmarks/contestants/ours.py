"""Ours: `nexhealth_pipeline.sync` from a plain script, with raw JSON, hash, version guard and change feed kept."""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import due_slices
from nexhealth_pipeline.sync.runner import run_slices
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult, Status
from nexhealth_pipeline.warehouse.migrate import upgrade


class Unlimited:
    """The machine is measured here, not NexHealth's rate limits."""

    def acquire(self, classes: object) -> float:
        """Never wait."""
        return 0.0

    def throttle(self, classes: object, seconds: float) -> None:
        """Never called."""


def read(session: SyncSession, slices: Iterable[Slice], options: SyncOptions) -> list[SliceResult]:
    """Read slices. Raises SystemExit where one was not read: what ends early would be fast."""
    results = list(run_slices(session, slices, options))
    for one in results:
        if one.status is not Status.SUCCEEDED:
            raise SystemExit(f"{one.slice.label}: {one.status}, {one.reason}")
    return results


def main(api_url: str, database_url: str, mode: str) -> None:
    """Read patients in `mode` full or incremental; or only `prepare`, as `nexhealth db upgrade` does."""
    upgrade(database_url)
    if mode == "prepare":
        return
    choices = {"NEXHEALTH_API_KEY": "bench", "NEXHEALTH_API_URL": api_url, "DATABASE_URL": database_url}
    settings = load_settings(choices, environ={}, env_file=None)
    options = SyncOptions(mode=Mode(mode), fresh_after=datetime.now(UTC))
    today = datetime.now(UTC).date()
    with SyncSession(settings, database_url, budget_for=lambda _: Unlimited()) as session:
        practice = [one for one in DECLARED if one.scope is Scope.PRACTICE and one.is_asset]
        read(session, due_slices(practice, session.practices(), {}, options, today), options)
        patients = [COLLECTIONS["patients"]]
        watermarks = session.watermarks(["patients"])
        for result in read(session, due_slices(patients, session.practices(), watermarks, options, today), options):
            print(result.counts.records_read, result.counts.inserted, result.counts.updated)


if __name__ == "__main__":
    main(*sys.argv[1:])
