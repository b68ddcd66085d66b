"""Servers over a small world: one shared by tests that only read, one per test for those that change things."""

import gc
from collections.abc import Iterator

import pytest

from nexhealth_pipeline.sandbox import SandboxServer, World, build_app, build_world

from .calls import BASE, Caller, HandClock
from .receiving import Receiver, receiver


@pytest.fixture(scope="package")
def default_world() -> Iterator[World]:
    """The default world, for tests that only read it; the garbage collector need not look through it."""
    world = build_world(base=BASE)
    gc.freeze()
    yield world
    gc.unfreeze()


@pytest.fixture(scope="module")
def reader() -> Iterator[Caller]:
    """A caller of a server whose data nobody changes."""
    with SandboxServer(patients=200, appointments_per_patient=4, base=BASE, limits=False, clock=HandClock()) as server:
        caller = Caller(server)
        yield caller
        caller.close()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(scope="module")
def changing_server() -> Iterator[SandboxServer]:
    """The server under `caller`; each test gets a world of its own on it."""
    with SandboxServer(patients=1, appointments_per_patient=0, base=BASE) as server:
        yield server


@pytest.fixture
def caller(changing_server: SandboxServer, clock: HandClock) -> Iterator[Caller]:
    """A caller of a fresh world, with a clock to turn, 20 second tokens and limits switched off."""
    changing_server.replace(
        build_app(patients=60, appointments_per_patient=5, base=BASE, limits=False, token_seconds=20, clock=clock)
    )
    caller = Caller(changing_server)
    yield caller
    caller.close()


@pytest.fixture(scope="package")
def small_world() -> World:
    """A world for servers that post webhooks."""
    return build_world(base=BASE, patients=40, appointments_per_patient=4)


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Receiver]:
    """A receiver for a module's tests."""
    with receiver() as kept:
        yield kept


@pytest.fixture
def inbox(mailbox: Receiver) -> Receiver:
    """It, empty; it takes everything."""
    mailbox.got.clear()
    mailbox.answer = lambda _number: 200
    return mailbox


@pytest.fixture
def server(changing_server: SandboxServer, small_world: World, clock: HandClock) -> Iterator[SandboxServer]:
    """A sandbox that delivers in order; it ends its workers when the next test begins."""
    changing_server.replace(build_app(world=small_world, limits=False, clock=clock, webhooks={"workers": 1}))
    yield changing_server
    changing_server.webhooks.stop()
