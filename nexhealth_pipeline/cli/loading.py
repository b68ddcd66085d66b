"""Loading Dagster, most of what a command does before its first request."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["loading"]


@contextmanager
def loading() -> Iterator[None]:
    """Import modules within, before anything is forked: no garbage is looked for meanwhile, nor in them later.

    Modules stay, so there is none to find, and the looks were a fifth of the processor time of the imports of a sync.
    A forked child that looked would also copy every page of memory that it shares with its parent.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
