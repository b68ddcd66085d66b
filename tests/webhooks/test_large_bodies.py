"""Large bodies, and many secrets: anybody can send one, and to check it costs hashes for every secret."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from nexhealth_pipeline.webhooks.receiving import receiver as receiver_module
from nexhealth_pipeline.webhooks.receiving.receiver import Limits
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from nexhealth_pipeline.webhooks.receiving.signature import Verdict, verify
from tests.waiting import until

from .receiving import SECRET, Running, event, events, receiver, settings, signed

LARGE = 100_000
SECRETS = ",".join([*(f"secret-number-{number}" for number in range(20)), SECRET])


class Checks:
    """Counts the checks of large bodies, and holds them up while it is told to."""

    def __init__(self) -> None:
        self.count = self.at_once = self.most_at_once = 0
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, *given: Any) -> Verdict:
        if len(given[2]) < LARGE:
            return verify(*given)
        self.count += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go_on.wait(20)
        verdict = verify(*given)
        self.at_once -= 1
        return verdict


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Checks]:
    checks = Checks()
    monkeypatch.setattr(receiver_module, "verify", checks)
    yield checks
    checks.go_on.set()


def large(number: int) -> bytes:
    return event(number, note="x" * LARGE)


def good(running: Running, number: int) -> int:
    return running.ask(large(number)).status


def bad(running: Running, number: int) -> int:
    return running.ask(large(number), signed(large(number), secret="guess")).status


@pytest.mark.usefixtures("no_refill")
def test_who_sent_bad_ones_does_not_queue_and_is_not_shut_out_either(no_events: str, checks: Checks) -> None:
    """A megabyte and a hundred secrets were a second of computing a request. Behind a proxy all share one address."""
    plan = Plan(audit_seconds=0.05)
    with (
        receiver(no_events, settings(NEXHEALTH_WEBHOOK_SECRETS=SECRETS), plan) as running,
        ThreadPoolExecutor() as pool,
    ):
        assert [bad(running, number) for number in range(4)] == [401] * 4
        checks.go_on.clear()
        first = pool.submit(bad, running, 4)
        until(lambda: checks.at_once == 1)
        assert [bad(running, number) for number in range(5, 10)] == [429] * 5
        assert checks.count == 5
        assert running.ask(event(1)).status == 200
        checks.go_on.set()
        assert first.result(20) == 401
        assert good(running, 11) == 200
        rows = until(lambda: len(found := events(no_events, "status = 'rejected'")) == 10 and found)
    assert Counter(row["verdict"] for row in rows) == {"bad-signature": 5, "checks": 5}
    assert {row["body_hash"] for row in rows} == {None}


def test_good_ones_are_checked_one_at_a_time(no_events: str, checks: Checks) -> None:
    """Five threads of hashes are five processors that answer nobody else."""
    checks.go_on.clear()
    plan = Plan(limits=Limits(check_seconds=60))
    with receiver(no_events, plan=plan) as running, ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(good, running, number) for number in range(5)]
        until(lambda: running.lines("/metrics")["nexhealth_webhook_bytes_total"] > 5 * LARGE)
        checks.go_on.set()
        assert [one.result(20) for one in answers] == [200] * 5
    assert (checks.count, checks.most_at_once) == (5, 1)


def test_nobody_waits_for_ever_to_be_checked(no_events: str, checks: Checks) -> None:
    checks.go_on.clear()
    with (
        receiver(no_events, plan=Plan(limits=Limits(check_seconds=0.05))) as running,
        ThreadPoolExecutor() as pool,
    ):
        first = pool.submit(good, running, 1)
        until(lambda: checks.at_once == 1)
        assert good(running, 2) == 429
        checks.go_on.set()
        assert first.result(20) == 200
        assert good(running, 2) == 200


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each check was made beside the event loop."""
    made: list[bool] = []

    def check(*given: Any) -> Verdict:
        made.append(asyncio._get_running_loop() is None)
        return verify(*given)

    monkeypatch.setattr(receiver_module, "verify", check)
    return made


@pytest.mark.parametrize(("secrets", "size", "long"), [(500, 60_000, True), (1000, 2000, True), (20, 2000, False)])
def test_nobody_waits_for_hashes_of_very_many_secrets(
    no_events: str, beside: list[bool], secrets: int, size: int, long: bool
) -> None:
    """A body that is not large took a tenth of a second of the loop with a thousand secrets, from anybody."""
    known = ",".join([*(f"secret-number-{number}" for number in range(secrets)), SECRET])
    body = event(1, note="x" * size)
    with receiver(no_events, settings(NEXHEALTH_WEBHOOK_SECRETS=known)) as running:
        assert running.ask(body, signed(body, secret="guess")).status == 401
        assert running.ask(body).status == 200
    assert beside == [long] * 2


@pytest.mark.usefixtures("no_refill")
def test_an_event_waits_for_no_large_body_and_answers_for_no_other(no_events: str, checks: Checks) -> None:
    """Who sends bad ones may share its address."""
    known = ",".join([*(f"secret-number-{number}" for number in range(1000)), SECRET])
    with (
        receiver(no_events, settings(NEXHEALTH_WEBHOOK_SECRETS=known)) as running,
        ThreadPoolExecutor() as pool,
    ):
        for number in range(4):
            assert bad(running, number) == 401
        checks.go_on.clear()
        first = pool.submit(bad, running, 4)
        until(lambda: checks.at_once == 1)
        assert running.ask(event(1, note="x" * 2000)).status == 200
        checks.go_on.set()
        assert first.result(20) == 401
