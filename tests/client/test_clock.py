"""The API's time out of `Date` headers."""

from email.utils import formatdate

import pytest

from nexhealth_pipeline.client.clock import ApiClock, http_date

BASE = 1_700_000_000.0


def header(moment: float) -> str:
    return formatdate(int(moment), usegmt=True)


@pytest.fixture
def clock() -> ApiClock:
    return ApiClock(wall=lambda: BASE, monotonic=lambda: 0.0)


def test_a_clock_that_may_be_right_is_believed(clock):
    """`Date` has whole seconds: a difference below one is no proof."""
    clock.observe(BASE + 0.2, BASE + 0.4, header(BASE))
    assert clock.skew == 0.0
    assert clock.at(BASE).timestamp() == BASE


@pytest.mark.parametrize(("ahead", "offset"), [(60, 59.6), (-60, -59.2)])
def test_a_clock_that_is_off_is_corrected_by_the_least_that_explains_it(clock, ahead, offset):
    clock.observe(BASE + 0.2, BASE + 0.4, header(BASE + ahead))
    assert clock.skew == pytest.approx(offset)
    assert clock.at(BASE).timestamp() == pytest.approx(BASE + offset)


def test_a_slow_answer_proves_nothing(clock):
    clock.observe(BASE, BASE + 30, header(BASE + 90))
    assert clock.skew is None


@pytest.mark.parametrize("text", [None, "", "yesterday", "Thu, 99 Foo 2023"])
def test_no_date_is_no_proof(clock, text):
    clock.observe(BASE, BASE, text)
    assert clock.skew is None
    assert http_date(text) is None


@pytest.mark.parametrize("text", ["Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_date_that_is_days_off_is_told_and_not_believed(clock, text):
    """No read would ever count as newer than what was read by such a time; the last of all days even ended the run."""
    clock.observe(BASE + 0.2, BASE + 0.4, header(BASE + 60))
    clock.observe(BASE + 1.2, BASE + 1.4, text)
    assert abs(clock.skew) > 86_400
    assert clock.at(BASE + 2).timestamp() == pytest.approx(BASE + 61.6)
    clock.observe(BASE + 3.2, BASE + 3.4, header(BASE + 3))
    assert (clock.skew, clock.at(BASE + 90).timestamp()) == (0.0, BASE + 90)


def test_later_moments_never_map_to_earlier_ones(clock):
    """The order of versions is made of these times."""
    clock.observe(BASE, BASE, header(BASE + 60))
    before = clock.at(BASE + 1)
    clock.observe(BASE + 2, BASE + 2, header(BASE + 2))
    assert clock.at(BASE + 2) >= before
    assert clock.at(BASE + 0.5) <= clock.at(BASE + 2)
