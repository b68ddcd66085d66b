"""File locks that the kernel drops when their holder dies, however it dies.

A lock belongs to the open file, not to the process: a forked child shares its parent's, and it is gone
when the last of them has closed the file. So a lock is given back by closing it, never by unlocking.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nexhealth_pipeline.errors import WarehouseError

__all__ = ["exclusive", "shared_lock", "try_exclusive"]

_POLL_SECONDS = 0.02


def try_exclusive(path: Path) -> int | None:
    """A file descriptor that holds the exclusive lock of `path`, or None while others hold a lock."""
    descriptor = _open(path)
    if _locked(descriptor, fcntl.LOCK_EX):
        return descriptor
    os.close(descriptor)
    return None


def shared_lock(path: Path, timeout_seconds: float) -> int:
    """A file descriptor that holds a shared lock of `path`. Raises WarehouseError after the timeout."""
    return _wait(path, fcntl.LOCK_SH, timeout_seconds)


@contextmanager
def exclusive(path: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold the exclusive lock of `path`. Raises WarehouseError after the timeout."""
    descriptor = _wait(path, fcntl.LOCK_EX, timeout_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def _wait(path: Path, kind: int, timeout_seconds: float) -> int:
    descriptor = _open(path)
    deadline = time.monotonic() + timeout_seconds
    while not _locked(descriptor, kind):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise WarehouseError(f"{path} is still locked by another process after {timeout_seconds:.0f} s")
        time.sleep(_POLL_SECONDS)
    return descriptor


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in {errno.EWOULDBLOCK, errno.EINTR}:
            return False
        raise
    return True
