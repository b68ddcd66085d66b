"""What arrived, against the documented limits."""

import arrivals
import pytest

from nexhealth_pipeline.catalog.limits import RateClass


def at(path: str, *moments: float) -> list[arrivals.Arrival]:
    return [(moment, path, 200) for moment in moments]


def test_a_request_counts_in_each_of_its_classes():
    counts = arrivals.counts_of([*at("/appointments", 0.0), *at("/patients/7/documents", 0.0), *at("/providers", 0.0)])
    assert counts == {
        RateClass.GENERAL: 3,
        RateClass.PATIENTS: 2,
        RateClass.OTHER: 1,
        RateClass.APPOINTMENT_LIST: 1,
    }


def test_the_floor_is_the_slowest_classs_since_they_overlap():
    counts = {RateClass.PATIENTS: 1600, RateClass.OTHER: 1600, RateClass.APPOINTMENT_LIST: 400}
    assert arrivals.floor_seconds(counts, 0.8) == pytest.approx(120.0)
    assert arrivals.floor_seconds({**counts, RateClass.APPOINTMENT_LIST: 1600}, 0.8) == pytest.approx(200.0)
    assert arrivals.floor_seconds({}, 0.8) == 0


def test_a_peak_is_of_any_sliding_window_not_of_the_clocks_seconds():
    peaks = arrivals.peaks(at("/appointments", 0.9, 0.95, 1.05, 1.1, 2.5))
    assert peaks[RateClass.APPOINTMENT_LIST] == 4
    assert peaks[RateClass.PATIENTS] == 5


def test_use_is_of_the_share_between_two_moments():
    times = [second / 8 for second in range(8 * 10)]  # 8 a second for ten seconds: all of 80 % of ten
    assert arrivals.use(times, RateClass.APPOINTMENT_LIST, 0.8, 2.0, 8.0) == pytest.approx(1.0)
    assert arrivals.use(times[::2], RateClass.APPOINTMENT_LIST, 0.8, 2.0, 8.0) == pytest.approx(0.5)


@pytest.mark.parametrize(("counts", "least"), [([5, 5], 1.0), ([2, 4], 2 / 3), ([0, 4], 0.0), ([], 0.0), ([0, 0], 0.0)])
def test_fairness_is_what_the_slowest_got_of_an_equal_part(counts, least):
    assert arrivals.fairness(counts) == pytest.approx(least)
