"""What is said of a tick: what it cost, and whether it had anything to do."""

from types import SimpleNamespace

import dagster as dg
import pytest
import ticks


@pytest.mark.parametrize(
    ("requests", "skipped", "answer"),
    [
        ([], "no run is dead", "idle: no run is dead"),
        ([], None, "idle: no reason given"),
        ([dg.RunRequest(run_config={"a": 1})] * 2, None, "2 run(s), 16 bytes of config"),
    ],
)
def test_who_asks_for_nothing_is_idle(requests: list[dg.RunRequest], skipped: str | None, answer: str) -> None:
    """A tick of 15 ms that found nothing stood like any other beside those that plan a night."""
    assert ticks.answer_of(SimpleNamespace(run_requests=requests, skip_message=skipped)) == answer


def test_a_tick_s_figures_have_their_spread_as_all_others_have() -> None:
    found = [(ticks.Cost(wall, wall / 2, 0.01), "1 run(s), 2 bytes of config") for wall in (0.1, 0.4, 0.2)]
    assert ticks.row("nexhealth_dead_runs", found) == [
        "nexhealth_dead_runs", "0.200 (0.100-0.400)", "0.100 (0.050-0.200)", "0.010 (0.010-0.010)",
        "1 run(s), 2 bytes of config",
    ]  # fmt: skip
