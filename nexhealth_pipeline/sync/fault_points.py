"""Where a test may end this process: between the steps of one transaction. Test-only, off in production.

`NEXHEALTH_FAULT_POINT=point[:collection[:n]]` in the process environment kills the process (as `kill -9`
does: nothing is cleaned up) when it reaches that point for the n-th time, 1 unless given; an empty
collection means any. Read once, when this module is imported. Off, a point costs one test of a variable.

    after_fetch      answers have come, nothing of them is in the database
    after_copy       they are in the stage, the transaction is open
    before_commit    rows, state and counts are written, the transaction is open
    after_commit     all of it is durable, nobody has been told
"""

import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Literal

from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["ABSENCES", "POINTS", "VARIABLE", "Point", "armed", "killing", "reach"]

Point = Literal["after_fetch", "after_copy", "before_commit", "after_commit"]
POINTS: tuple[Point, ...] = ("after_fetch", "after_copy", "before_commit", "after_commit")
"""All points, in the order of one transaction."""
ABSENCES = "absences"
"""Stands for the collection where a reconcile marks what is gone; it has only the two points of the commit."""
VARIABLE = "NEXHEALTH_FAULT_POINT"
_FORM = re.compile(r"(?P<point>[a-z_]+)(:(?P<collection>[a-z_]*)(:(?P<n>[1-9][0-9]*))?)?")


def killing(order: str) -> Callable[[Point, str], None]:
    """What to call at each point so that `order` is carried out. Raises InvalidSetting."""
    match = _FORM.fullmatch(order)
    if match is None or match["point"] not in POINTS:
        raise InvalidSetting(f"{VARIABLE}: write point[:collection[:n]] with a point of {', '.join(POINTS)}")
    left = int(match["n"] or 1)
    lock = threading.Lock()

    def reached(point: Point, collection: str) -> None:
        nonlocal left
        if point == match["point"] and (match["collection"] or collection) == collection:
            with lock:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    return reached


armed: Callable[[Point, str], None] | None = killing(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
"""What happens at a point; None = nothing."""


def reach(point: Point, collection: str) -> None:
    """Say that work on `collection` has come to `point`."""
    if armed is not None:
        armed(point, collection)
