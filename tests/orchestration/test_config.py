"""Run config: what a person types into Dagit's launchpad, checked with words that help."""

from datetime import UTC, date, datetime
from typing import Any

import msgspec
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.orchestration.config import ApplyConfig, PatientConfig, SyncConfig
from nexhealth_pipeline.orchestration.names import (
    APPLY_JOB,
    APPLY_OP,
    CHANGES_JOB,
    CHANGES_OP,
    PATIENT_JOB,
    PATIENT_OP,
    SCOPE_JOBS,
    WEBHOOK_TAGS,
)
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.sync.filters import Filters
from nexhealth_pipeline.sync.options import Mode
from nexhealth_pipeline.sync.practice import Practices

from .kit import House

SETTINGS = load_settings({"NEXHEALTH_CONCURRENCY": "3", "NEXHEALTH_BATCH_PAGES": "7"}, environ={}, env_file=None)
NOW = datetime(2026, 11, 23, tzinfo=UTC)


def test_an_empty_config_means_the_settings() -> None:
    """Nobody should have to fill in a form for a run."""
    options = SyncConfig().options(SETTINGS, NOW)
    assert (options.mode, options.concurrency, options.batch_pages) == (Mode.INCREMENTAL, 3, 7)
    assert (options.fresh_after, options.partial, options.overlap) == (NOW, False, SETTINGS.overlap)


def test_a_reconcile_reads_every_list_unless_it_is_the_nights() -> None:
    """Who asks for one in Dagit, or by the command, wants to know now; the night has thirty of them for that."""
    assert SyncConfig(mode="reconcile").options(SETTINGS, NOW).mode_of_lists is Mode.RECONCILE
    assert SyncConfig(mode="reconcile", every_list=False).options(SETTINGS, NOW).mode_of_lists is Mode.INCREMENTAL


def test_what_is_given_wins() -> None:
    config = SyncConfig(
        mode="full", concurrency=9, start="2026-01-05", end="2026-01-05", fresh_after="2026-01-01T00:00:00+00:00"
    )
    options = config.options(SETTINGS, NOW)
    assert (options.mode, options.concurrency) == (Mode.FULL, 9)
    assert (options.start, options.end) == (date(2026, 1, 5), date(2026, 1, 5))
    assert options.fresh_after == datetime(2026, 1, 1, tzinfo=UTC)
    assert options.partial


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("mode", "ful", "use one of full, incremental"),
        ("start", "05.01.2026", "YYYY-MM-DD"),
        ("end", "2026-02-30", "YYYY-MM-DD"),
        ("fresh_after", "yesterday", "ISO 8601 with a zone"),
        ("status", "archived", "use one of active, inactive"),
        ("updated_since", "yesterday", "ISO 8601 with a zone"),
        ("fresh_after", "2026-01-01T00:00:00", "ISO 8601 with a zone"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_the_way_to_write_it(field: str, value: str, says: str) -> None:
    """A launchpad has no help page."""
    given: dict[str, Any] = {field: value}
    with pytest.raises(InvalidSetting) as caught:
        SyncConfig(**given).options(SETTINGS, NOW)
    assert str(caught.value).startswith(f"{field} '{value}': ")
    assert says in str(caught.value)


def test_a_window_that_ends_before_it_begins_is_refused() -> None:
    """It would read nothing and look like a success."""
    with pytest.raises(InvalidSetting, match="start 2026-02-01 is after end 2026-01-01"):
        SyncConfig(start="2026-02-01", end="2026-01-01").options(SETTINGS, NOW)


@pytest.mark.parametrize(
    "given",
    [
        {"start": "2026-01-05"},
        {"end": "2026-01-05"},
        {"status": "active"},
        {"providers": [5]},
        {"updated_since": "2026-01-02"},
    ],
)
def test_a_reconcile_of_a_part_is_refused(given: dict[str, Any]) -> None:
    """It judges nothing, and a green run would say that nothing is gone."""
    with pytest.raises(InvalidSetting, match=f"complete reads: leave out {next(iter(given))}$"):
        SyncConfig(mode="reconcile", **given).options(SETTINGS, NOW)
    assert SyncConfig(mode="full", **given).options(SETTINGS, NOW).partial


@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_mass_deletes_are_allowed_to_a_reconcile_only(mode: str) -> None:
    """Ignored, it would look as if the brake were off."""
    with pytest.raises(
        InvalidSetting, match=f"^mode {mode}: to allow mass deletes .*allow_mass_delete.* goes with mode reconcile"
    ):
        SyncConfig(mode=mode, allow_mass_delete=True).options(SETTINGS, NOW)
    assert SyncConfig(mode="reconcile", allow_mass_delete=True).options(SETTINGS, NOW).allow_mass_delete


def test_filters_become_those_of_the_sync() -> None:
    """A filter that is lost reads everything, and would be taken for a complete read."""
    options = SyncConfig(status="inactive", providers=[5, 6], updated_since="2026-01-02").options(SETTINGS, NOW)
    assert options.filters == Filters("inactive", (5, 6), datetime(2026, 1, 2, tzinfo=UTC))
    assert options.partial
    with pytest.raises(InvalidSetting, match="providers 0"):
        SyncConfig(providers=[0]).options(SETTINGS, NOW)


@pytest.mark.parametrize("text", ["x", "{}", '{"institutions": 3}'])
def test_practices_are_taken_of_a_dry_run_only_and_refused_in_words_where_they_cannot_be_read(text: str) -> None:
    """A run that writes would take somebody's list for what there is."""
    with pytest.raises(InvalidSetting, match=r"^practices: not what `nexhealth sync --dry-run` puts here"):
        SyncConfig(practices=text, dry_run=True).known_practices()
    none = Practices((), ())
    good = msgspec.json.encode(none).decode()
    assert SyncConfig(practices=good, dry_run=True).known_practices() == none
    with pytest.raises(InvalidSetting, match=r"^practices: only a dry run takes"):
        SyncConfig(practices=good).known_practices()
    assert SyncConfig().known_practices() is None


@pytest.mark.parametrize("value", [0, -1, 65])
def test_numbers_have_bounds(value: int) -> None:
    """Zero threads would wait for ever."""
    with pytest.raises(InvalidSetting, match=f"^concurrency {value}: write a number from 1 to 64$"):
        SyncConfig(concurrency=value).options(SETTINGS, NOW)
    with pytest.raises(InvalidSetting, match=f"^batch_pages {2 * value}: write a number from 1 to 100$"):
        SyncConfig(batch_pages=2 * value).options(SETTINGS, NOW)
    if value < 1:
        with pytest.raises(InvalidSetting, match=f"^patient_id {value}: "):
            PatientConfig(patient_id=value).patient()


@pytest.mark.parametrize(
    ("name", "op", "config", "says"),
    [
        (SCOPE_JOBS[Scope.PRACTICE], "read_practice", {"concurrency": 0}, "write a number from 1 to 64"),
        (CHANGES_JOB, CHANGES_OP, {"batch_pages": 101}, "write a number from 1 to 100"),
        (PATIENT_JOB, PATIENT_OP, {"patient_id": 0}, "write NexHealth's id of the patient"),
        (APPLY_JOB, APPLY_OP, {"turn_seconds": 2401.0}, "write a number from 0.001 to 2400"),
    ],
)
def test_a_number_out_of_bounds_ends_a_run_by_one_line(
    house: House, name: str, op: str, config: dict[str, object], says: str
) -> None:
    """Dagit's launchpad lets it pass, and a traceback of pydantic's names no fix."""
    result = house.job(name, op, config=config)
    ((field, value),) = config.items()
    assert house.failure(result) == f"{field} {value}: {says}"


def test_the_longest_turn_ends_by_itself_before_the_run_is_killed() -> None:
    """Whoever lets a run stay long would see it fail, and the next one kept waiting as after an error."""
    linger, turn = ApplyConfig(linger_seconds=600, turn_seconds=2400).stay()
    assert linger + turn <= int(WEBHOOK_TAGS["dagster/max_runtime"]) - 600, "its last batch takes a while"
    with pytest.raises(InvalidSetting, match=r"^linger_seconds 600\.1: write a number from 0\.1 to 600$"):
        ApplyConfig(linger_seconds=600.1).stay()
    for wrong in (0.0, -1.0, 2400.1, float("nan")):
        with pytest.raises(InvalidSetting, match=rf"^turn_seconds {wrong}: write a number from 0\.001 to 2400$"):
            ApplyConfig(turn_seconds=wrong).stay()
