"""Ends the processes that a command started once that command is gone, even after `kill -9`.

Run as `python -I -S reaper.py`, with a pipe for standard input whose other end only the command (and what
it forked) holds. Each line names a process group. When the pipe closes, every group is asked to end and,
after a grace, killed. A command that ends in good order closes the pipe and waits: one way for all ends.
Standard library only, so that it starts in milliseconds and needs little memory.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["end_groups", "lives"]

_PAUSE_SECONDS = 0.05


def end_groups(groups: Iterable[int], grace: float) -> None:
    """Ask every process of `groups` to end; kill what is left after `grace` seconds."""
    left = list(groups)
    for group in left:
        _send(group, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (left := [group for group in left if lives(group)]) and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    for group in left:
        _send(group, signal.SIGKILL)


def lives(group: int) -> bool:
    """Whether a process of the group runs; one that ended and that nobody has collected does not."""
    if Path("/proc/self/stat").exists():
        return any(found == group for found in _running_groups())
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _running_groups() -> Iterable[int]:
    """The group of each process of this machine that has not ended (Linux)."""
    for folder in os.listdir("/proc"):  # noqa: PTH208 - plain names are enough, and cheaper
        if folder.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                # The command's name is in brackets and may hold blanks and brackets itself.
                state, _parent, group = Path(f"/proc/{folder}/stat").read_text().rpartition(")")[2].split()[:3]
                if state not in "ZX":
                    yield int(group)


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _keep(grace: float) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_groups([int(line) for line in sys.stdin], grace)


if __name__ == "__main__":
    _keep(float(sys.argv[1]))
