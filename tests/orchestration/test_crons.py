"""Crons that can never come: refused by name before anything is made of them."""

import pytest

from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration.crons import check_crons
from nexhealth_pipeline.settings import load_settings


@pytest.mark.parametrize(
    "cron", ["0 2 * * *", "*/15 1-5 * * MON-FRI", "0 2 L * *", "0 2 * * FRI#2", "0 2 29 2 *", "0 2 31 */2 *"]
)
def test_what_comes_is_taken(cron: str) -> None:
    """If only once in four years."""
    check_crons(load_settings(environ={"NEXHEALTH_NIGHTLY": cron, "NEXHEALTH_CATCHUP": cron}))


@pytest.mark.parametrize("name", ["NEXHEALTH_NIGHTLY", "NEXHEALTH_CATCHUP"])
@pytest.mark.parametrize(
    "cron",
    ["0 25 * * *", "60 2 * * *", "0 2 31 2 *", "0 2 31 4 *", "0 2 * * 8", "0 2 * * MON#7", "A B C D E", "- - - - -"],
)
def test_what_never_comes_is_named_with_its_setting_and_the_fix(name: str, cron: str) -> None:
    """Dagster's own words name neither the setting nor what is wrong with it."""
    with pytest.raises(InvalidSetting, match="hour 0-23") as caught:
        check_crons(load_settings(environ={name: cron}))
    assert f"{name} (value: {cron!r})" in str(caught.value)
