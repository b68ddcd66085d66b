"""Fetches ahead on a second thread, so that the network works while rows are loaded."""

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Generic, TypeVar

from nexhealth_pipeline.errors import Cancelled

__all__ = ["prefetched"]

T = TypeVar("T")

_POLL = 0.2
"""Seconds between looks at whether the other side has gone away."""
_GOODBYE = 5.0
"""Seconds that closing waits for the thread; a request under way may take longer and then ends it alone."""


def prefetched(items: Iterator[T], depth: int = 2, stop: threading.Event | None = None) -> Generator[T, None, None]:
    """The same items, with up to `depth` fetched ahead; memory is bounded by that.

    An exception of `items` is raised here after the items before it. Closing the generator (or
    leaving its loop and dropping it) ends the thread. When `stop` is set, what is already fetched
    is dropped and Cancelled is raised; the source must end soon by itself (NexHealthClient does).
    """
    ahead = _Ahead(items, depth)
    ahead.start()
    try:
        while (item := ahead.next(stop)) is not None:
            yield item[0]
    finally:
        ahead.end()


class _Ahead(Generic[T]):
    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._queue: queue.Queue[tuple[T] | None] = queue.Queue(maxsize=max(1, depth))
        self._closing = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="nexhealth-prefetch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def next(self, stop: threading.Event | None) -> tuple[T] | None:
        """The next item in a tuple, None at the end. Raises what the source raised."""
        item = self._queue.get()
        if stop is not None and stop.is_set():
            while item is not None:
                item = self._queue.get()
            if self._failure is None:
                # What was dropped must not look like the end of the list.
                raise Cancelled("stopped with pages fetched ahead")
        if item is None and self._failure is not None:
            raise self._failure
        return item

    def end(self) -> None:
        self._closing.set()
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._thread.join(_GOODBYE)

    def _run(self) -> None:
        try:
            self._fetch()
        except BaseException as error:
            self._failure = error
        self._put(None)

    def _fetch(self) -> None:
        for item in self._items:
            if not self._put((item,)):
                break
        close = getattr(self._items, "close", None)
        if close is not None:
            close()

    def _put(self, item: tuple[T] | None) -> bool:
        """Hand over an item; False when nobody wants it any more."""
        while not self._closing.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=_POLL)
                return True
        return False
