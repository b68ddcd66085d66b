"""A sync in a process of its own, to be killed: `python plain_sync.py API_URL API_KEY DATABASE_URL MODE`."""

import sys

import psycopg

from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync import months, plan
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse.sweeps import begin_sweep, finish_sweep

sys.path.insert(0, __file__.rsplit("/", 2)[0])
from sync.kit import first_test_month, sync_all


def main(api_url: str, api_key: str, database_url: str, mode: str) -> int:
    months.FIRST_MONTH, months.MONTHS_AHEAD = first_test_month(), 3
    plan.PER_PAGE = 20
    settings = load_settings(
        {
            "NEXHEALTH_API_URL": api_url,
            "NEXHEALTH_API_KEY": api_key,
            "DATABASE_URL": database_url,
            "NEXHEALTH_BATCH_PAGES": "1",
        },
        environ={},
        env_file=None,
    )
    with psycopg.connect(database_url, autocommit=True) as connection:
        sweep, began, _ = begin_sweep(connection, mode, "everything")
        results = sync_all(settings, SyncOptions(mode=Mode(mode), batch_pages=1, fresh_after=began))
        finish_sweep(connection, sweep)
    bad = [f"{result.slice.label}: {result.reason}" for result in results if result.status == "failed"]
    sys.stdout.write("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
