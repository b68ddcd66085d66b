"""Whether the settings' crons name times that exist: Dagster, whose schedules they are for, is the judge."""

from datetime import UTC, datetime

from dagster._utils.schedules import get_next_cron_tick, is_valid_cron_string

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.settings import Settings

__all__ = ["check_crons"]


def check_crons(settings: Settings) -> None:
    """Raise InvalidSetting where a cron can never come."""
    for name, cron in (("NEXHEALTH_NIGHTLY", settings.nightly), ("NEXHEALTH_CATCHUP", settings.catchup)):
        if not _comes(cron):
            raise InvalidSetting(
                f"{name} (value: {cron!r}): there is no such time: minute 0-59, hour 0-23, day 1-31 that one of the "
                "months has, month 1-12, day of the week 0-7, for example 0 2 * * *"
            )


def _comes(cron: str) -> bool:
    try:
        get_next_cron_tick(cron, datetime.now(UTC), "UTC")  # what takes any line takes the 31st of April, too
    except ValueError:
        return False
    return is_valid_cron_string(cron)
