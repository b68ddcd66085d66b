"""What a state folder keeps: which world was served, and every change made to it since, in order."""

import errno
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

__all__ = ["Journal", "Origin"]

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """What a world was made from."""

    seed: int
    base: datetime
    patients: int
    appointments_per_patient: float


class Journal:
    """Files of a state folder: `world.json` and `changes.jsonl`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._world = folder / "world.json"
        self._changes = folder / "changes.jsonl"
        self._lock = threading.Lock()
        self._cut()

    def origin(self) -> Origin | None:
        """The world of this folder; None in a new folder. Raises ValueError where another format wrote it."""
        if not self._world.exists():
            return None
        kept: dict[str, Any] = orjson.loads(self._world.read_bytes())
        if kept.pop("format", None) != _FORMAT:
            raise ValueError(f"{self._world.parent} was written by another version of the sandbox: delete that folder")
        return Origin(**(kept | {"base": datetime.fromisoformat(kept["base"])}))

    def begin(self, origin: Origin) -> None:
        """Remember the world; done once per folder."""
        kept = {"format": _FORMAT, "seed": origin.seed, "base": origin.base.isoformat()}
        kept |= {"patients": origin.patients, "appointments_per_patient": origin.appointments_per_patient}
        part = self._world.with_suffix(".part")
        part.write_bytes(orjson.dumps(kept))
        part.replace(self._world)

    def append(self, entry: dict[str, Any]) -> None:
        """Add one change. Raises OSError where all of it cannot be written; then none of it is."""
        line = orjson.dumps(entry) + b"\n"
        with self._lock, self._changes.open("ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            if file.write(line) < len(line):
                file.truncate(before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._changes))

    def entries(self) -> Iterator[dict[str, Any]]:
        """All changes that can be read, oldest first."""
        if not self._changes.exists():
            return
        for line in self._changes.read_bytes().splitlines():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError:
                logger.warning("a kept change cannot be read", extra={"nexhealth": {"file": str(self._changes)}})

    def _cut(self) -> None:
        """Cut off a last line that a crash left unfinished: the next change would be joined to it."""
        if self._changes.exists():
            whole = self._changes.read_bytes().rfind(b"\n") + 1
            os.truncate(self._changes, whole)
