"""A stub server and clients for it, which never really sleep."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from nexhealth_pipeline.catalog.limits import RateClass
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.retry import RetryPolicy
from tests.client.stub import KEY, Stub, running


class CountingBudget:
    """Grants everything at once and remembers what was asked."""

    def __init__(self) -> None:
        self.grants: list[tuple[RateClass, ...]] = []
        self.throttled: list[float] = []
        self.wait = 0.0
        self.on_acquire: Callable[[], None] = lambda: None

    def acquire(self, classes: tuple[RateClass, ...]) -> float:
        self.grants.append(classes)
        self.on_acquire()
        return self.wait

    def throttle(self, classes: tuple[RateClass, ...], seconds: float) -> None:
        self.throttled.append(seconds)


class Naps:
    """Time that passes by sleeping, on top of the real clock unless that is stopped."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self._clock: Callable[[], float] = time.monotonic

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    def monotonic(self) -> float:
        return self._clock() + sum(self.slept)

    def stop_clock(self) -> None:
        """Time passes only by sleeping from now on, however busy the machine is."""
        now = time.monotonic()
        self._clock = lambda: now


@pytest.fixture
def naps() -> Naps:
    return Naps()


@pytest.fixture
def budget() -> CountingBudget:
    return CountingBudget()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running(Stub()) as stub:
        yield stub


@pytest.fixture
def make_client(stub: Stub, naps: Naps, budget: CountingBudget) -> Iterator[Callable[..., NexHealthClient]]:
    made: list[NexHealthClient] = []

    def make(*, retry: dict[str, Any] | None = None, **options: Any) -> NexHealthClient:
        policy = RetryPolicy(random=lambda: 0.0, sleep=naps.sleep, monotonic=naps.monotonic)
        values: dict[str, Any] = {
            "api_url": stub.url,
            "api_keys": {"": KEY},
            "budget_for": lambda key_hash: budget,
            "timeout_seconds": 5.0,
            "retry": replace(policy, **(retry or {})),
        }
        made.append(NexHealthClient(**(values | options)))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(make_client: Callable[..., NexHealthClient]) -> NexHealthClient:
    return make_client()


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()
