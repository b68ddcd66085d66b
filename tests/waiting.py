"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable
from typing import Any


def until(look: Callable[[], Any], what: str = "it happens", seconds: float = 45.0, pause: float = 0.02) -> Any:
    """What `look` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        time.sleep(pause)
    return found
