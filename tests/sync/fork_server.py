"""Syncs in processes of their own, to be killed: `python fork_server.py` imports once, then forks one a line of input.

A process of its own costs a second of imports; a fork of this plain script costs none, and dies just the same. Each
line is an :class:`Order` as JSON, answered with the process's number; a line with a number waits for that process and
is answered with its exit status (negative: the signal that ended it).
"""

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg

from nexhealth_pipeline.catalog.paging import MOST_A_PAGE, Paging
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import children, fault_points, months
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse.sweeps import begin_sweep, finish_sweep

sys.path.insert(0, __file__.rsplit("/", 2)[0])
from sync.kit import sync_all


@dataclass
class Order:
    """One sync: of `only` (and the practice collections), or of everything."""

    api_url: str
    api_key: str
    database_url: str
    mode: str
    output: str
    """File for what it has to say."""
    only: list[str] | None = None
    point: str = ""
    """Where to die, as NEXHEALTH_FAULT_POINT says it."""
    page: int = 5
    """Records a page."""
    options: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        return json.dumps(asdict(self))


def few_months() -> tuple[date, int]:
    """This month, with everything earlier, and the next, with everything later."""
    return datetime.now(UTC).date().replace(day=1), 1


def run(order: Order) -> int:
    """Sync as `nexhealth sync` does, with small pages and a transaction for each."""
    months.FIRST_MONTH, months.MONTHS_AHEAD = few_months()
    MOST_A_PAGE[Paging.CURSOR] = MOST_A_PAGE[Paging.PAGE] = order.page
    children._BATCH_ROWS = order.page
    fault_points.armed = fault_points.killing(order.point) if order.point else None
    settings = load_settings(
        {"NEXHEALTH_API_URL": order.api_url, "NEXHEALTH_API_KEY": order.api_key, "DATABASE_URL": order.database_url},
        environ={},
        env_file=None,
    )
    with psycopg.connect(order.database_url, autocommit=True) as connection:
        sweep, began, _ = begin_sweep(connection, order.mode, "everything")
    options = SyncOptions(mode=Mode(order.mode), batch_pages=1, fresh_after=began, **order.options)
    results = sync_all(settings, options, only=None if order.only is None else set(order.only))
    with psycopg.connect(order.database_url, autocommit=True) as connection:
        finish_sweep(connection, sweep)
    bad = [f"{result.slice.label}: {result.reason}" for result in results if result.status == "failed"]
    Path(order.output).write_text("\n".join(bad))
    return 1 if bad else 0


def child(order: Order) -> None:
    """Never returns."""
    status = 2
    try:
        status = run(order)
    except BaseException:
        Path(order.output).write_text(traceback.format_exc())
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        given = json.loads(line)
        if isinstance(given, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(given, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                child(Order(**given))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
