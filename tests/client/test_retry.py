"""The retry table as data, and how long a wait is."""

import threading
from email.utils import formatdate

import pytest

from nexhealth_pipeline.client.retry import FAULTS, Action, Fault, RetryPolicy, retry_after_seconds, rule_for_status
from nexhealth_pipeline.errors import ApiError, BadRequest, Cancelled, ServerFailed, TryLater


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520, 599, 302, 307])
def test_what_passes_is_repeated_and_ends_as_try_later(status):
    rule = rule_for_status(status)
    assert rule.action is Action.RETRY
    assert issubclass(rule.error, TryLater)


@pytest.mark.parametrize("status", [400, 402, 403, 404, 405, 409, 410, 415, 422, 451, 501])
def test_what_does_not_pass_is_not_repeated(status):
    rule = rule_for_status(status)
    assert rule.action is Action.FAIL
    assert issubclass(rule.error, ApiError)
    assert not issubclass(rule.error, TryLater)


def test_unknown_statuses_fall_into_their_hundred():
    assert rule_for_status(418).error is BadRequest
    assert rule_for_status(599).error is ServerFailed


def test_every_fault_has_a_rule():
    assert set(FAULTS) == set(Fault)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 2.5 ", 2.5),
        (formatdate(1_000_030, usegmt=True), 30.0),
        (formatdate(999_000, usegmt=True), None),
        ("0", None),
        ("-1", None),
        ("nan", None),
        ("1e9", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("²", None),
        (".", None),
    ],
)
def test_retry_after_is_read_in_both_forms(header, seconds):
    assert retry_after_seconds(header, api_now=1_000_000.0) == seconds


def test_backoff_is_jittered_by_half_and_bounded():
    lowest, highest = RetryPolicy(random=lambda: 0.0), RetryPolicy(random=lambda: 1.0)
    assert [(lowest.backoff(n), highest.backoff(n)) for n in (1, 2, 3, 99)] == [
        (0.25, 0.5),
        (0.5, 1.0),
        (1.0, 2.0),
        (15.0, 30.0),
    ]


def test_a_wish_of_the_server_is_never_undercut():
    assert RetryPolicy(random=lambda: 0.0).bounded(3.0) == 3.0
    assert RetryPolicy(random=lambda: 1.0).bounded(3.0) == 3.5
    assert RetryPolicy(random=lambda: 0.0).bounded(300.0, throttled=True) == 300.0


def test_a_pause_ends_as_soon_as_the_user_asks_to_stop():
    stop = threading.Event()
    stop.set()
    with pytest.raises(Cancelled):
        RetryPolicy().pause(60.0, stop)
