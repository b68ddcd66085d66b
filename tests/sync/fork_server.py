"""Syncs in processes of their own (`tests.forks`), to be killed: as `nexhealth sync` does them, from a plain script."""

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import children, fault_points, months
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse.sweeps import begin_sweep, finish_sweep
from tests.forks import serve

from .kit import sync_all


def few_months() -> tuple[date, int]:
    """This month, with everything earlier, and the next, with everything later."""
    return datetime.now(UTC).date().replace(day=1), 1


def run(
    api_url: str,
    api_key: str,
    database_url: str,
    mode: str,
    output: str,
    *,
    only: list[str] | None = None,
    point: str = "",
    page: int = 5,
    options: dict[str, Any] | None = None,
) -> int:
    """Sync `only` (and the practice collections) or everything, `page` records a page, and a transaction for each.

    Dies at `point`, as NEXHEALTH_FAULT_POINT says it. What failed is written to the file `output`.
    """
    months.FIRST_MONTH, months.MONTHS_AHEAD = few_months()
    MOST_A_PAGE[Paging.CURSOR] = MOST_A_PAGE[Paging.PAGE] = page
    children._BATCH_ROWS = page
    fault_points.armed = fault_points.killing(point) if point else None
    settings = load_settings(
        {"NEXHEALTH_API_URL": api_url, "NEXHEALTH_API_KEY": api_key, "DATABASE_URL": database_url},
        environ={},
        env_file=None,
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        sweep, began, _ = begin_sweep(connection, mode, "everything")
    given = SyncOptions(mode=Mode(mode), batch_pages=1, fresh_after=began, **(options or {}))
    results = sync_all(settings, given, only=None if only is None else set(only))
    with psycopg.connect(database_url, autocommit=True) as connection:
        finish_sweep(connection, sweep)
    bad = [f"{result.slice.label}: {result.reason}" for result in results if result.status == "failed"]
    Path(output).write_text("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    serve(run)
