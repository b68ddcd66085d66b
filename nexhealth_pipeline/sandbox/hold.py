"""A state folder is one sandbox's at a time: two that write its journal would give new rows the same ids.

The kernel takes the hold back when its process dies, however it dies.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Self

__all__ = ["FolderHeldError", "Hold", "holder_of"]

_NAME = "in-use"
_PATIENCE_SECONDS, _POLL_SECONDS = 2.0, 0.02
"""How long to wait for a holder that is perhaps just ending."""


class FolderHeldError(ValueError):
    """Another sandbox serves the folder; `holder` is its process, 0 where that is not known."""

    def __init__(self, holder: int) -> None:
        super().__init__(
            f"process {holder or '(unknown)'} serves this state folder, as `nexhealth demo`, `dev --demo` and `sandbox`"
            " do: end it first, or use another folder"
        )
        self.holder = holder


class Hold:
    """The exclusive use of a state folder; of None there is nothing to hold."""

    def __init__(self, folder: Path | str | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._file: int | None = None

    def take(self) -> None:
        """Take it, unless this object has it already. Raises FolderHeldError, ValueError for a folder that cannot be used."""
        if self._folder is None or self._file is not None:
            return
        file = _opened(self._folder)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not _locked(file):
            if time.monotonic() > deadline:
                holder = _number(os.pread(file, 20, 0))
                os.close(file)
                raise FolderHeldError(holder)
            time.sleep(_POLL_SECONDS)
        self._file = file  # from here on it is to be released, whatever happens
        try:
            os.truncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        except OSError as error:
            self.release()
            raise ValueError(f"this folder cannot be used ({error.strerror})") from None

    def release(self) -> None:
        """Give it back, where it was taken."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def holder_of(folder: Path) -> int | None:
    """The process that serves a state folder (0 = not known), None where none does or can."""
    try:
        with Hold(folder if (folder / _NAME).exists() else None):
            return None
    except FolderHeldError as held:
        return held.holder
    except (OSError, ValueError):  # it cannot even be looked at: whoever is to use it will say why
        return None


def _opened(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ValueError(f"this folder cannot be used ({error.strerror})") from None


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a network's file system may have no locks
        os.close(file)
        raise ValueError(f"this folder cannot be used: it cannot be locked ({error.strerror})") from None
    return True


def _number(text: bytes) -> int:
    return int(text) if text.isdigit() else 0
