"""Work in processes of its own, to be killed: a server imports once, then forks one process a line of its input.

A process of its own costs a second of imports; a fork of a plain process costs none, and dies just the same. Each
line is an order as JSON, answered with the process's number; a line with a number waits for that process and is
answered with its exit status (negative: the signal that ended it).
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_REPO = Path(__file__).resolve().parents[1]


def serve(work: Callable[..., int]) -> None:
    """The server's side: do each order, its fields given by name, in a fork that exits with what `work` returns.

    What it raises is written to the file that the order names as `output`, and the status is 2.
    """
    for line in sys.stdin:
        given = json.loads(line)
        if isinstance(given, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(given, 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _work(work, given)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _work(work: Callable[..., int], given: dict[str, Any]) -> None:
    """Never returns."""
    status = 2
    try:
        status = work(**given)
    except BaseException:
        Path(given["output"]).write_text(traceback.format_exc())
    os._exit(status)


class Forks:
    """Starts such processes, kills them, and says how they ended."""

    def __init__(self, server: "subprocess.Popen[str]", output: Path) -> None:
        self._server = server
        self.output = output
        """What the processes have to say."""

    def start(self, **order: object) -> int:
        """The number of a process that does it; an order may name another file for its output."""
        return self._ask(json.dumps({"output": str(self.output), **order}))

    def wait(self, pid: int) -> int:
        """Its exit status; negative: the signal that ended it."""
        return self._ask(str(pid))

    def kill(self, pid: int) -> None:
        """Not collected before `wait`, so the number is still that process's."""
        os.kill(pid, signal.SIGKILL)

    def run(self, **order: object) -> int:
        """Start one and wait for it."""
        self.output.write_text("")
        return self.wait(self.start(**order))

    def finish(self, **order: object) -> None:
        """A run that nobody disturbs and that must succeed."""
        assert self.run(**order) == 0, self.output.read_text()

    def _ask(self, line: str) -> int:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(line + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


@contextmanager
def forks(module: str, folder: Path) -> Iterator[Forks]:
    """A server of `module`, which calls :func:`serve` where it is run; messages go to a file in `folder`."""
    with subprocess.Popen(
        [sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPO
    ) as server:
        yield Forks(server, folder / "output")
        assert server.stdin
        server.stdin.close()
