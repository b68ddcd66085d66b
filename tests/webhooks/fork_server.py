"""Runs that apply events, in processes of their own, to be killed: imports once, then forks one a line of input.

Each line is an :class:`Order` as JSON, answered with the process's number; a line with a number waits for that
process and is answered with its exit status (negative: the signal that ended it).
"""

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, __file__.rsplit("/", 3)[0])

from nexhealth_pipeline.sync import fault_points
from nexhealth_pipeline.webhooks import applying
from tests.webhooks.kit import apply_all, settings_for


@dataclass
class Order:
    """One run."""

    url: str
    output: str
    """File for what it has to say."""
    point: str = ""
    """Where to die, as NEXHEALTH_FAULT_POINT says it."""
    batch: int = 20
    """Events a transaction."""

    def line(self) -> str:
        return json.dumps(asdict(self))


def child(order: Order) -> None:
    """Never returns."""
    status = 2
    try:
        applying.BATCH = order.batch
        fault_points.armed = fault_points.killing(order.point) if order.point else None
        apply_all(settings_for(order.url))
        status = 0
    except BaseException:
        Path(order.output).write_text(traceback.format_exc())
    os._exit(status)


def main() -> None:
    for line in sys.stdin:
        given = json.loads(line)
        if isinstance(given, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(given, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                child(Order(**given))
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
