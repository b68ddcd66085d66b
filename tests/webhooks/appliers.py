"""Starts runs that apply events as processes of their own, and kills them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .fork_server import Order


class Appliers:
    """Starts them, and says how they ended."""

    def __init__(self, process: "subprocess.Popen[str]", output: Path) -> None:
        self._process = process
        self.output = output

    def start(self, url: str, *, point: str = "", batch: int = 20) -> int:
        """The number of a process that applies what is pending."""
        return self._ask(Order(url, str(self.output), point, batch).line())

    def wait(self, pid: int) -> int:
        """Its exit status; negative: the signal that ended it."""
        return self._ask(str(pid))

    def kill(self, pid: int) -> int:
        """Not collected before `wait`, so the number is still that process's."""
        os.kill(pid, signal.SIGKILL)
        return self.wait(pid)

    def finish(self, url: str, *, batch: int = 20) -> None:
        """A run that nobody disturbs and that must succeed."""
        self.output.write_text("")
        assert self.wait(self.start(url, batch=batch)) == 0, self.output.read_text()

    def _ask(self, line: str) -> int:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


@contextmanager
def appliers(folder: Path) -> Iterator[Appliers]:
    """A process that forks them."""
    script = Path(__file__).with_name("fork_server.py")
    with subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Appliers(process, folder / "output")
        assert process.stdin
        process.stdin.close()
