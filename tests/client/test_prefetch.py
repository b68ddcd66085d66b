"""Fetching ahead on a second thread."""

import threading
import time

import pytest

from nexhealth_pipeline.client.prefetch import prefetched
from nexhealth_pipeline.errors import Cancelled, ServerFailed


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "nexhealth-prefetch"]


def test_the_same_items_come_in_the_same_order():
    assert list(prefetched(iter(range(20)))) == list(range(20))
    assert not _threads()


def test_fetching_runs_ahead_of_the_consumer_but_only_so_far():
    """Bounded memory (promise 9)."""
    fetched = []
    items = prefetched((fetched.append(n) or n for n in range(100)), depth=2)
    assert next(items) == 0
    deadline = time.monotonic() + 20
    while len(fetched) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(fetched) == 4  # one out, two waiting, one in the thread's hand
    items.close()


def test_an_exception_comes_after_the_items_before_it():
    def source():
        yield 1
        raise ServerFailed("down", status=500)

    items = prefetched(source())
    assert next(items) == 1
    with pytest.raises(ServerFailed, match="down"):
        next(items)
    assert not _threads()


def test_closing_ends_the_thread_and_the_source():
    ended = []

    def source():
        try:
            while True:
                yield 1
        finally:
            ended.append(1)

    items = prefetched(source())
    next(items)
    items.close()
    assert ended == [1]
    assert not _threads()


def test_pages_dropped_by_a_stop_never_look_like_the_end():
    """The slice would be marked complete without them."""
    stop = threading.Event()
    items = prefetched(iter([1, 2, 3]), stop=stop)
    assert next(items) == 1
    stop.set()
    with pytest.raises(Cancelled):
        list(items)
