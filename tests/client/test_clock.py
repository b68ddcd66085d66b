"""The API's time out of `Date` headers."""

from email.utils import formatdate
from itertools import pairwise

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


DAYS = 3 * 86_400


@pytest.mark.parametrize("ahead", [DAYS, -DAYS])
def test_a_machine_that_is_days_off_is_corrected_from_the_first_answer(clock, ahead):
    """Believed, it would write watermarks of days to come, and what changes until then would never be read."""
    clock.at(BASE)
    clock.observe(BASE + 0.2, BASE + 0.4, header(BASE + ahead))
    assert clock.skew == pytest.approx(ahead, abs=1)
    assert clock.at(BASE + 1).timestamp() == pytest.approx(BASE + 1 + ahead, abs=1)


@pytest.mark.parametrize(
    "text", ["Fri, 31 Dec 9999 23:59:59 GMT", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT"]
)
def test_a_date_of_another_age_is_not_believed(clock, text):
    """No read would ever count as newer than what was read by such a time; the last of all days even ended the run."""
    for seconds in range(3):
        clock.observe(BASE + seconds, BASE + seconds, text)
        assert clock.at(BASE + seconds).timestamp() == BASE + seconds
    assert clock.skew is None
    clock.observe(BASE + 3, BASE + 3, header(BASE + 63))
    clock.observe(BASE + 4, BASE + 4, text)
    assert clock.at(BASE + 5).timestamp() == pytest.approx(BASE + 65, abs=1)


@pytest.mark.parametrize("ahead", [DAYS, -DAYS, 20 * 365 * 86_400])
def test_one_answer_that_is_days_off_is_not_believed(clock, ahead):
    """Of a cache or a gateway on the way: it must not become the version of what is read."""
    clock.observe(BASE, BASE, header(BASE + 60))
    for seconds in (1, 3):
        clock.observe(BASE + seconds, BASE + seconds, header(BASE + seconds + ahead))
        assert clock.at(BASE + seconds).timestamp() == pytest.approx(BASE + seconds + 60, abs=1)
        clock.observe(BASE + seconds + 1, BASE + seconds + 1, header(BASE + seconds + 61))
    assert clock.skew == pytest.approx(60, abs=1)
    assert clock.at(BASE + 90).timestamp() == pytest.approx(BASE + 150, abs=1)


def test_two_answers_that_are_days_off_each_in_its_own_way_are_not_believed(clock):
    clock.observe(BASE, BASE, header(BASE))
    for seconds in (1, 2):
        clock.observe(BASE + seconds, BASE + seconds, header(BASE + seconds * DAYS))
    assert clock.at(BASE + 3).timestamp() == pytest.approx(BASE + 3, abs=1)


@pytest.mark.parametrize("ahead", [DAYS, -DAYS])
def test_what_the_next_answer_says_too_is_believed(clock, ahead):
    """A machine that slept has a clock that stood still; and where the first answer was the wrong one, it is left behind."""
    clock.observe(BASE, BASE, header(BASE))
    clock.at(BASE)
    for seconds in (1, 2):
        clock.observe(BASE + seconds, BASE + seconds, header(BASE + seconds + ahead))
    assert clock.skew == pytest.approx(ahead, abs=1)
    assert clock.at(BASE + 3).timestamp() == pytest.approx(BASE + 3 + ahead, abs=1)


def test_later_moments_never_map_to_earlier_ones(clock):
    """The order of versions is made of these times."""
    clock.observe(BASE, BASE, header(BASE + 60))
    before = clock.at(BASE + 1)
    clock.observe(BASE + 2, BASE + 2, header(BASE + 2))
    held = clock.at(BASE + 2)
    assert held > before
    assert clock.at(BASE + 0.5) <= held
    assert clock.at(BASE + 2) == held


def test_moments_of_a_clock_that_is_waited_for_still_differ(clock):
    """Two answers of one time would be one to what tells a record's rows from those of its older version."""
    clock.observe(BASE, BASE, header(BASE + 60))
    clock.at(BASE + 1)
    clock.observe(BASE + 2, BASE + 2, header(BASE + 2))
    moments = [clock.at(BASE + 2 + number / 1000) for number in range(500)]
    assert all(earlier < later for earlier, later in pairwise(moments))
