"""Servers over a small world: one shared by tests that only read, one per test for those that change things."""

from collections.abc import Iterator

import pytest

from nexhealth_pipeline.sandbox import SandboxServer

from .calls import BASE, Caller, HandClock


@pytest.fixture(scope="module")
def reader() -> Iterator[Caller]:
    """A caller of a server whose data nobody changes."""
    with SandboxServer(patients=200, appointments_per_patient=4, base=BASE, limits=False) as server:
        caller = Caller(server)
        yield caller
        caller.close()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def caller(clock: HandClock) -> Iterator[Caller]:
    """A caller of a server of its own, with a clock to turn, 20 second tokens and limits switched off."""
    with SandboxServer(
        patients=60, appointments_per_patient=5, base=BASE, limits=False, token_seconds=20, clock=clock
    ) as server:
        caller = Caller(server)
        yield caller
        caller.close()
