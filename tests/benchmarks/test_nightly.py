"""A run against the rate floor."""

import nightly
import pytest


def test_the_floor_is_of_what_was_answered_since_what_was_refused_came_again() -> None:
    answered = [(float(second), "/patients/7/documents", 200) for second in range(1600)]
    refused = [(float(second), "/patients/7/documents", 429) for second in range(800)]
    run = nightly.Run(130.0, 0.0, answered + refused, 1.0, 1.0, 100.0, 1)
    assert run.floor == pytest.approx(120.0)
    assert nightly.row(run)[0] == "general 2,400, patients 2,400"
    assert nightly.row(run)[6] == "800"
