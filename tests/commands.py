"""`nexhealth` commands in forks of one process that has imported everything, which takes each of them seconds.

They know six months of appointments instead of fifty, which cost as many requests at ten a second.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.forks import Forks, forks, serve


def command(argv: Sequence[str], environment: Mapping[str, str], folder: str, output: str) -> int:
    """Run one in `folder`, with nothing but `environment` set, and all it says written to `output`."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for path, flags, numbers in ((os.devnull, os.O_RDONLY, (0,)), (output, os.O_WRONLY | os.O_CREAT, (1, 2))):
        opened = os.open(path, flags, 0o600)
        for number in numbers:
            os.dup2(opened, number)
    from nexhealth_pipeline.cli import main

    try:
        return main(argv)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


@dataclass
class Commands:
    """Runs commands with one environment, in a folder that holds their output as well."""

    forks: Forks
    environment: dict[str, str]
    folder: Path
    number: int = 0

    def start(self, *argv: str) -> tuple[int, Path]:
        """Number of its process, and where its output goes."""
        self.number += 1
        output = self.folder / f"output {self.number}"
        given = {"argv": argv, "environment": self.environment, "folder": str(self.folder), "output": str(output)}
        return self.forks.start(**given), output

    def run(self, *argv: str, status: int = 0) -> str:
        """Run one, which must end with `status`, and wait; all it has said."""
        pid, output = self.start(*argv)
        ended, said = self.forks.wait(pid), output.read_text()
        assert ended == status, f"nexhealth {' '.join(argv)} ended with {ended}:\n{said}"
        return said


@contextmanager
def commands(folder: Path, environment: dict[str, str]) -> Iterator[Commands]:
    """What runs them."""
    with forks("tests.commands", folder) as started:
        yield Commands(started, environment, folder)


if __name__ == "__main__":
    # What the commands import when they need it.
    import nexhealth_pipeline.definitions
    import nexhealth_pipeline.orchestration.launch
    import nexhealth_pipeline.orchestration.webhook_launch
    import nexhealth_pipeline.webhooks.receiving.serving  # noqa: F401 - imported once, before the forks
    from nexhealth_pipeline.sync import months
    from tests.sync.kit import first_test_month

    months.FIRST_MONTH, months.MONTHS_AHEAD = first_test_month(), 1
    serve(command)
