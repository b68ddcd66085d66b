"""Several hosts on one machine: network namespaces joined by a bridge, each with an address of its own.

The addresses are of the network reserved for tests of network devices (198.18.0.0/15). The machine's own namespace
has no way into it: what runs outside cannot reach these hosts, and they reach nothing but each other.
"""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_NETWORK = "198.18.0"
_KNOCK = "import socket, sys; s = socket.socket(); s.settimeout(5); print(s.connect_ex((sys.argv[1], 9)))"


def why_none() -> str:
    """Why hosts cannot be made here, found by making two that speak to each other; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program, package in (("ip", "iproute2"), ("setpriv", "util-linux")):
        if shutil.which(program) is None:
            return f"hosts in network namespaces need `{program}` (package {package})"
    try:
        with hosts(2) as (hub, other):
            answer = int(other.run(sys.executable, "-S", "-c", _KNOCK, hub.address))
    except subprocess.CalledProcessError as error:
        return f"no hosts can be made here: {shlex.join(error.cmd)}: {error.stderr.strip()}"
    return "" if answer == errno.ECONNREFUSED else f"hosts cannot speak to each other here: {os.strerror(answer)}"


class Host:
    """A network namespace with one address."""

    def __init__(self, namespace: str, number: int) -> None:
        self.namespace = namespace
        self.address = f"{_NETWORK}.{number}"
        self._processes: list[subprocess.Popen[str]] = []

    def start(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: Path = Path("/"),
        output: Path | None = None,
        as_user: tuple[int, int] | None = None,
    ) -> "subprocess.Popen[str]":
        """A process of this host. Its stdout is a pipe; stderr goes to `output`, else nowhere."""
        become = (
            [] if as_user is None else ["setpriv", f"--reuid={as_user[0]}", f"--regid={as_user[1]}", "--clear-groups"]
        )
        with Path(output or os.devnull).open("w") as error:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, *become, *command],
                env=dict(environment or {}) | {"PATH": os.environ["PATH"]},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=error,
                text=True,
            )
        self._processes.append(process)
        return process

    def run(self, *command: str) -> str:
        """What a command prints here. Raises CalledProcessError."""
        line = ["ip", "netns", "exec", self.namespace, *command]
        return subprocess.run(line, check=True, capture_output=True, text=True, cwd="/").stdout

    def vanish(self) -> None:
        """As if the power went: nothing arrives from here any more, and nobody is told."""
        _ip("-n", self.namespace, "link", "set", "up0", "down")

    def clear(self) -> None:
        """Kill what those left behind that were ended: nothing else lives in this namespace."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], check=False, capture_output=True, text=True)
        for pid in pids.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def end(self) -> None:
        """End what still runs, the youngest first, politely and then not."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """`count` hosts that reach each other; the first one carries the bridge."""
    name = f"nx{uuid.uuid4().hex[:6]}"
    made = [Host(f"{name}-{number}", number) for number in range(1, count + 1)]
    try:
        for host in made:
            _ip("netns", "add", host.namespace)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
        hub = made[0]
        _ip("-n", hub.namespace, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub.namespace, "addr", "add", f"{hub.address}/24", "dev", "bridge")
        _ip("-n", hub.namespace, "link", "set", "bridge", "up")
        for number, host in enumerate(made[1:], 2):
            port = f"port{number}"
            _ip(
                "-n", hub.namespace, "link", "add", port, "type", "veth", "peer", "name", "up0", "netns", host.namespace
            )
            _ip("-n", hub.namespace, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "up0")
            _ip("-n", host.namespace, "link", "set", "up0", "up")
        yield made
    finally:
        for host in reversed(made):
            host.end()
        for host in made:
            host.clear()
            subprocess.run(["ip", "netns", "del", host.namespace], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
