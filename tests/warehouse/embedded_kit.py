"""Processes that use an embedded server, and those that are its own."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from nexhealth_pipeline.warehouse import binaries

USER = """
import sys
from pathlib import Path
from nexhealth_pipeline.warehouse.embedded import ensure
home, linger, durable = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "durable"
for line in sys.stdin:
    print(ensure(home, linger_seconds=linger, durable=durable).url("postgres"), flush=True)
"""
"""A process that uses the server: takes a lease for each line it gets, and ends with its input."""


class User:
    """One process that uses the server of `home`."""

    def __init__(self, home: Path, *, linger: float = 0, durable: bool = False, **options: Any) -> None:
        command = [sys.executable, "-c", USER, str(home), str(linger), "durable" if durable else ""]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: subprocess.Popen[str] = subprocess.Popen(command, **{**pipes, **options})
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout

    def ask(self) -> None:
        self.input.write("\n")
        self.input.flush()

    def url(self) -> str:
        return self.output.readline().strip()

    def ensure(self) -> str:
        self.ask()
        return self.url()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        self.input.close()
        self.process.wait(timeout=30)
        self.output.close()


def processes_of(folder: Path) -> dict[int, str]:
    """Processes, users aside, whose command line names `folder`."""
    listing = subprocess.run(["ps", "-ww", "-eo", "pid=,args="], check=True, capture_output=True, text=True).stdout
    found = (line.strip().split(" ", 1) for line in listing.splitlines() if str(folder) in line)
    return {int(pid): command for pid, command in found if " -c " not in command.split("postgres")[0]}


def postmaster(home: Path) -> int:
    """Number of the server's first process."""
    return int((home / "postgres/server/data/postmaster.pid").read_text().split()[0])


def value(url: str, query: str) -> object:
    """The one value that a query finds."""
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def copied_programs(folder: Path) -> Path:
    """PostgreSQL's programs, copied below `folder` as pip would put them there."""
    installed = binaries.bin_folder().parents[1]
    shutil.copytree(installed, folder / installed.name, ignore=shutil.ignore_patterns("include"))
    libraries = installed.with_suffix(".libs")
    shutil.copytree(libraries, folder / libraries.name)
    return folder / installed.name / "pginstall" / "bin"
