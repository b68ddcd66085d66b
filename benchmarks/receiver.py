"""How many signed events a second `nexhealth serve` takes, how fast, and whether any acknowledged one is missing.

    python benchmarks/receiver.py                        # a ladder of rates, 10 s each, up to the first that is not kept
    python benchmarks/receiver.py --rate 300 --seconds 60
    python benchmarks/receiver.py --rate 300 --bad 1000  # beside so many bad signatures a second, from the same address

Starts the real command on an embedded PostgreSQL of its own (with fsync) in a temporary folder, sends from one or
more processes at a fixed rate, and compares what was answered 2xx with what is in the table. Latency is counted from
the moment an event was due, so a receiver that falls behind cannot hide it. Sender, receiver and PostgreSQL share
this machine; its load before the run is printed.
"""

import asyncio
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from measure import peak_rss
from results import Chart, Part, Table, arguments, show
from serving import reported

from nexhealth_pipeline.sandbox.posting import sign
from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.warehouse.connect import warehouse_url
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH

SECRET = "benchmark-secret-of-no-endpoint"
LADDER = (100, 300, 500, 750, 1000, 1500, 2000, 3000, 4000, 6000, 8000)
CONNECTIONS = 32
"""Per sending process; a proxy keeps about as many."""


@dataclass
class Sent:
    """What one sending process saw."""

    latencies: list[float] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    lost: int = 0
    seconds: float = 0.0
    """From when the first event was due to the last answer, which may come after the last one was sent."""
    cpu_seconds: float = 0.0


def body_of(number: int, moment: str) -> bytes:
    """One event, about 1.4 KB, as a practice's day brings thousands of."""
    record = {
        "id": number,
        "email": f"patient{number}@example.com",
        "first_name": "Ada",
        "last_name": "Example",
        "created_at": "2024-01-01T08:00:00.000Z",
        "updated_at": moment,
        "institution_id": 1,
        "foreign_id": str(number),
        "bio": {"phone_number": "5550100000", "date_of_birth": "1980-01-01", "gender": "Female", "note": "x" * 700},
        "inactive": False,
        "location_ids": [1],
        "billing_type": "standard",
        "guarantor_id": number,
        "unsubscribe_sms": False,
    }
    event = {"resource_type": "Patient", "event_name": "patient_updated", "event_time": moment, "subdomain": "bench"}
    return json.dumps(event | {"data": {"patients": [record]}, "delivery_errors": []}).encode()


def request_of(number: int, secret: str) -> bytes:
    """The whole request of event `number`, signed now."""
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body = body_of(number, moment)
    head = (
        f"POST {WEBHOOK_PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"timestamp: {moment}\r\nsignature: {sign(secret, moment, body)}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Line(asyncio.Protocol):
    """One kept connection; sends one request at a time."""

    def __init__(self, sender: "Sender") -> None:
        self.sender, self.due, self.number, self.received = sender, 0.0, 0, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ready to send."""
        self.transport = transport
        self.sender.free.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """An event under way is lost."""
        self.sender.dropped(self)

    def send(self, number: int, due: float) -> None:
        """Send event `number`, which was due at `due`."""
        self.number, self.due = number, due
        self.transport.write(request_of(number, self.sender.secret))  # type: ignore[attr-defined]  # asyncio types it without `write`

    def data_received(self, data: bytes) -> None:
        """Hand over the answer once it is whole."""
        self.received += data
        head, end, body = self.received.partition(b"\r\n\r\n")
        if end and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            self.sender.answered(self, int(head[9:12]))
            self.received = b""


class Sender:
    """Sends at a fixed rate, whatever the answers."""

    def __init__(self, rate: float, seconds: float, first: int, secret: str) -> None:
        self.rate, self.seconds, self.first, self.secret = rate, seconds, first, secret
        self.free: list[Line] = []
        self.waiting: deque[tuple[int, float]] = deque()
        self.open, self.ended = 0, False
        self.where = ("", 0)
        self.began = 0.0
        self.sent = Sent()

    def answered(self, line: Line, status: int) -> None:
        """Note the answer, and send what waits on this connection."""
        now = time.perf_counter()
        self.sent.latencies.append(now - line.due)
        self.sent.seconds = now - self.began
        self.sent.statuses[status] += 1
        if status == 200:
            self.sent.acknowledged.append(line.number)
        line.number = 0
        self.open -= 1
        if self.waiting:
            line.send(*self.waiting.popleft())
        else:
            self.free.append(line)

    def dropped(self, line: Line) -> None:
        """Note what got no answer; the receiver also ends connections that are not used."""
        if line.number:
            self.open -= 1
            self.sent.lost += 1
        elif line in self.free:
            self.free.remove(line)
        if not self.ended:
            self.again = asyncio.create_task(self.connect())

    async def connect(self) -> None:
        """One more connection; it sends what waits."""
        await asyncio.get_running_loop().create_connection(lambda: Line(self), *self.where)
        while self.free and self.waiting:
            self.free.pop().send(*self.waiting.popleft())

    async def run(self, host: str, port: int) -> Sent:
        """Send everything, then wait for the last answers."""
        self.where = host, port
        for _ in range(CONNECTIONS):
            await self.connect()
        self.began, total = time.perf_counter(), int(self.rate * self.seconds)
        for k in range(total):
            due = self.began + k / self.rate
            if (wait := due - time.perf_counter()) > 0.001:
                await asyncio.sleep(wait)
            elif k % 20 == 0:
                await asyncio.sleep(0)
            self.open += 1
            if self.free:
                self.free.pop().send(self.first + k, due)
            else:
                self.waiting.append((self.first + k, due))
        until = time.perf_counter() + 15
        while self.open > 0 and time.perf_counter() < until:
            await asyncio.sleep(0.01)
        self.sent.lost += self.open
        self.ended = True
        for line in list(self.free):
            line.transport.close()
        return self.sent


def send(connection: Connection, address: str, rate: float, seconds: float, first: int, secret: str) -> None:
    """A sending process; hands over what it saw."""
    import uvloop

    where = urlsplit(address)
    sent = uvloop.run(Sender(rate, seconds, first, secret).run(where.hostname or "", where.port or 80))
    used = resource.getrusage(resource.RUSAGE_SELF)
    sent.cpu_seconds = used.ru_utime + used.ru_stime
    connection.send(sent)


@dataclass(frozen=True, slots=True)
class Step:
    """One rate: what became of its events."""

    rate: float
    taken: float
    """Answered 2xx a second, until the last answer: who falls behind is answered long after all was sent."""
    p50: float
    """Milliseconds, as the others."""
    p99: float
    most: float
    lost: int
    """Without an answer."""
    missing: int
    """Answered 2xx and not in the table."""
    cpu: float
    """The receiver's, part of one core."""
    sender: float
    """A sending process's, likewise: near a whole core, it is the sender that cannot do more."""

    @property
    def kept(self) -> bool:
        """Whether all were taken in time, and none is missing."""
        return self.p99 < 100 and not self.missing and not self.lost and self.taken >= 0.99 * self.rate


def step(address: str, url: str, pid: int, rate: float, seconds: float, processes: int, first: int, bad: float) -> Step:
    """One rate, beside `bad` requests a second with wrong signatures; prints its line."""
    before = cpu_of(pid)
    context = multiprocessing.get_context("spawn")
    plans = [(rate / processes, first + k * 1_000_000, SECRET) for k in range(processes)]
    plans += [(bad, first + 9_000_000, "wrong")] if bad else []
    ends = []
    for each, begin, secret in plans:
        ours, theirs = context.Pipe()
        process = context.Process(target=send, args=(theirs, address, each, seconds, begin, secret), daemon=True)
        process.start()
        theirs.close()
        ends.append((process, ours))
    began = time.perf_counter()
    parts: list[Sent] = [reported(ours, seconds + 60) for _, ours in ends]
    took = time.perf_counter() - began
    for process, _ in ends:
        process.join()
    refused = parts.pop() if bad else None
    used = cpu_of(pid) - before
    acknowledged = {one for part in parts for one in part.acknowledged}
    found = outcome(rate, seconds, parts, len(acknowledged - stored(url, first)), used)
    statuses = sum((part.statuses for part in parts), Counter[int]())
    other = " ".join(f"{status}:{count}" for status, count in sorted(statuses.items()) if status != 200) or "-"
    print(
        f"{rate:>8.0f} {found.taken:>9.0f} {found.p50:>8.1f} {found.p99:>8.1f} {found.most:>8.1f}"
        f" {other:>12} {found.lost:>10} {found.missing:>8} {found.cpu * 100:>9.0f} {found.sender * 100:>8.0f}"
        f"   {took:.1f} s",
        flush=True,
    )
    if refused is not None:
        told = " ".join(f"{status}:{count}" for status, count in sorted(refused.statuses.items()))
        print(f"         bad signatures: {told}, unanswered {refused.lost}")
    return found


def outcome(rate: float, seconds: float, parts: list[Sent], missing: int, cpu: float) -> Step:
    """One rate in figures: of events due within so many seconds, what their senders saw."""
    latencies = sorted(one * 1000 for part in parts for one in part.latencies)
    p50, p99 = (latencies[int(len(latencies) * share)] if latencies else 0.0 for share in (0.5, 0.99))
    most = latencies[-1] if latencies else 0.0
    busy = max([seconds, *(part.seconds for part in parts)])
    taken = sum(part.statuses[200] for part in parts) / busy
    sender = max((part.cpu_seconds for part in parts), default=0.0) / busy
    return Step(rate, taken, p50, p99, most, sum(part.lost for part in parts), missing, cpu / busy, sender)


def climbed(steps: Iterable[Step]) -> Iterator[Step]:
    """Steps up to the first that is not kept: beyond it only the queue grows."""
    for one in steps:
        yield one
        if not one.kept:
            return


def cpu_of(pid: int) -> float:
    """CPU seconds that the receiver used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stored(url: str, first: int) -> set[int]:
    """Ids of the events in the table from `first` on."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT resource_ids[1] FROM nexhealth_webhook_events WHERE status = 'pending' AND resource_ids[1] >= %s",
            (first,),
        )
        return {row[0] for row in rows}


def start(home: Path) -> tuple[subprocess.Popen[str], str, str]:
    """The receiver, its address, and the address of its warehouse."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NEXHEALTH_", "DATABASE"))}
    environment |= {"NEXHEALTH_HOME": str(home), "NEXHEALTH_WEBHOOK_SECRETS": SECRET}
    environment |= {"NEXHEALTH_WEBHOOK_RATE": "100000", "NEXHEALTH_LOG_LEVEL": "WARNING"}
    settings = load_settings({"NEXHEALTH_HOME": str(home)}, environ={}, env_file=None)
    url = warehouse_url(settings)
    command = [sys.executable, "-P", "-m", "nexhealth_pipeline.cli", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=home)
    assert process.stdout is not None
    return process, process.stdout.readline().strip(), url


def memory_of(pid: int) -> float | None:
    """MiB that the receiver took at most; None where it has ended, and the steps until then are all there is to tell."""
    try:
        return peak_rss(pid)
    except OSError:
        return None


def part_of(steps: list[Step], seconds: float, processes: int, rss: float | None) -> Part:
    """The ladder as a table and a chart; `rss` is what the receiver took of memory at most, MiB, where that is known."""
    rows = [[f"{one.rate:,.0f}", f"{one.taken:,.0f}", f"{one.p50:.1f}", f"{one.p99:.1f}", f"{one.most:.0f}", str(one.lost),
             str(one.missing), f"{one.cpu:.0%}", f"{one.sender:.0%}", "yes" if one.kept else "no"] for one in steps]  # fmt: skip
    columns = [
        "events/s due",
        "taken/s",
        "p50 ms",
        "p99 ms",
        "most ms",
        "unanswered",
        "missing",
        "receiver's CPU",
        "a sender's CPU",
        "kept",
    ]
    chart = Chart("latency", "The receiver: latency by rate", "ms", [row[0] for row in rows],
                  {"p50": [one.p50 for one in steps], "p99": [one.p99 for one in steps]}, "lines", logarithmic=True)  # fmt: skip
    text = (
        f"`nexhealth serve` with fsync, {seconds:g} s a step, {processes} sending process(es) on the same machine. Latency counts "
        "from when an event was due. Kept = p99 below 100 ms, all answered 2xx, every answered one in the table; the ladder ends at the "
        "first rate that is not kept. CPU is a part of one core; PostgreSQL has what is left of the cores."
        + ("" if rss is None else f" The receiver took {rss:.0f} MiB of memory at most.")
    )
    return Part("receiver", "The receiver: events a second against latency", text, [Table(columns, rows)], [chart])


def main() -> int:
    """Run the ladder; status 1 where an acknowledged event is missing or not even the first rate was kept."""
    parser = arguments(__doc__)
    parser.add_argument("--rate", type=float, nargs="*", default=list(LADDER), help="events a second, one step each")
    parser.add_argument("--seconds", type=float, default=10, help="of each step")
    parser.add_argument("--processes", type=int, default=1, help="that send")
    parser.add_argument(
        "--bad", type=float, default=0, help="requests a second with wrong signatures, beside each step"
    )
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="nexhealth-bench-"))
    home.chmod(0o755)
    process = None
    try:
        process, address, url = start(home)
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(
            f"{os.cpu_count()} CPUs, load before: {load}; {given.processes} sending process(es), {given.seconds:g} s a step"
        )
        print("     due    2xx/s   p50 ms   p99 ms   max ms        other unanswered  missing  CPU recv CPU send")
        steps = list(climbed(
            step(address, url, process.pid, rate, given.seconds, given.processes, 10_000_000 * (k + 1), given.bad)
            for k, rate in enumerate(given.rate)
        ))  # fmt: skip
        if len(steps) > 1:
            good = max((one.rate for one in steps if one.kept), default=0)
            print(f"highest rate kept (p99 below 100 ms, all answered 2xx, none missing): {good:.0f}/s")
        rss = memory_of(process.pid)
        print("the receiver has ended" if rss is None else f"the receiver's peak RSS: {rss:.0f} MiB")
        show(part_of(steps, given.seconds, given.processes, rss), given.json)
        return 0 if steps[0].kept and not any(one.missing for one in steps) else 1
    finally:
        if process is not None:
            process.send_signal(signal.SIGTERM)
            process.wait()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
