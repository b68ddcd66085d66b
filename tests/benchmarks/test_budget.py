"""Processes that send side by side: one that fails keeps nobody waiting."""

import multiprocessing
import threading
import time
from collections.abc import Iterator

import budget
import pytest


class Client:
    """Ready to send at once."""

    def __init__(self, **_: object) -> None: ...

    def authenticate(self) -> None: ...


def dies(*_: object) -> None:
    """In the place of a sender that cannot begin."""
    raise SystemExit(1)


def hangs(*_: object) -> None:
    time.sleep(300)


@pytest.fixture(autouse=True)
def nobody_left() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        process.kill()


def test_a_sender_waits_for_the_others_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that could not sign in kept all from ever beginning."""
    monkeypatch.setattr(budget, "NexHealthClient", Client)
    monkeypatch.setattr(budget, "START", 0.01)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, pytest.raises(threading.BrokenBarrierError):
        budget.send(theirs, "", "", (), 0.0, threading.Barrier(2))  # type: ignore[arg-type]  # one of threads waits alike


@pytest.mark.timeout(60)
@pytest.mark.parametrize("sender", [dies, hangs])
def test_a_trial_whose_sender_does_not_report_ends(monkeypatch: pytest.MonkeyPatch, sender: object) -> None:
    monkeypatch.setattr(budget, "send", sender)
    monkeypatch.setattr(budget, "START", 1.0)
    monkeypatch.setattr(budget, "asked", lambda _: [])
    with pytest.raises(SystemExit, match="a sending process died, or did not report within 2 s"):
        budget.trial("", "", "patients", 1, 0.0)
    assert all(one.daemon for one in multiprocessing.active_children()), "else the benchmark's own end waits for it"
