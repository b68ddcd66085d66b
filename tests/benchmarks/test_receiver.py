"""The receiver's benchmark: what it makes of a receiver that falls behind, or says nothing."""

import asyncio
from collections import Counter

import pytest
import receiver

RATE, SECONDS = 200.0, 0.5


class Slow(asyncio.Protocol):
    """Answers half as many events a second as are sent, one after the other."""

    free_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        Slow.free_at = max(Slow.free_at, loop.time()) + 2 / RATE
        loop.call_at(Slow.free_at, self.answer)

    def answer(self) -> None:
        self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")  # type: ignore[attr-defined]  # asyncio types it without `write`


async def sent_to_slow() -> receiver.Sent:
    listener = await asyncio.get_running_loop().create_server(Slow, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        return await receiver.Sender(RATE, SECONDS, 1, receiver.SECRET).run("127.0.0.1", port)


def test_what_is_answered_after_the_last_was_sent_is_not_counted_as_if_it_had_come_by_then() -> None:
    """Twice what it took stood there, for whoever answered everything within 15 s."""
    sent = asyncio.run(sent_to_slow())
    assert sent.statuses == Counter({200: 100})
    assert sent.seconds > 0.99
    found = receiver.outcome(RATE, SECONDS, [sent], 0, cpu=0.5)
    assert found.taken <= 1.01 * RATE / 2
    assert found.cpu <= 0.51, "of the time in which it worked"
    assert not found.kept


def test_a_receiver_that_keeps_up_is_measured_by_the_time_of_the_step() -> None:
    """The last answer comes just before its end: no event more a second than were due."""
    parts = [receiver.Sent([0.001] * 100, [], Counter({200: 100}), seconds=0.497) for _ in range(2)]
    found = receiver.outcome(2 * RATE, SECONDS, parts, 0, cpu=0.1)
    assert found.taken == pytest.approx(2 * RATE)
    assert found.kept


def test_a_receiver_that_answers_nothing_has_figures_too() -> None:
    found = receiver.outcome(RATE, SECONDS, [receiver.Sent(lost=100)], 0, cpu=0.0)
    assert (found.taken, found.p50, found.p99, found.most, found.lost, found.kept) == (0, 0, 0, 0, 100, False)


def test_the_ladder_ends_with_the_first_rate_that_is_not_kept() -> None:
    """Its figures are the knee; beyond it only the queue would grow."""
    tried: list[float] = []

    def step(rate: float) -> receiver.Step:
        tried.append(rate)
        parts = [receiver.Sent([0.001] * 10, [], Counter({200: min(10, int(1000 / rate * 10))}), seconds=0.01)]
        return receiver.outcome(rate, 10 / rate, parts, 0, cpu=0.0)

    steps = list(receiver.climbed(step(rate) for rate in (500.0, 1000.0, 2000.0, 4000.0)))
    assert [one.kept for one in steps] == [True, True, False]
    assert tried == [500.0, 1000.0, 2000.0]


def test_how_busy_the_busiest_sender_was_stands_beside_what_the_receiver_took() -> None:
    """Else a ladder that ends where the sender can do no more would be called the receiver's."""
    parts = [receiver.Sent([0.001], [], Counter({200: 1}), cpu_seconds=cpu) for cpu in (0.1, 0.45)]
    found = receiver.outcome(RATE, SECONDS, parts, 0, cpu=0.2)
    assert found.sender == pytest.approx(0.9)
    table = receiver.part_of([found], SECONDS, 2, 80.4).tables[0]
    assert table.rows[0][table.columns.index("a sender's CPU")] == "90%"


def test_what_the_receiver_took_of_memory_is_told() -> None:
    """A pod's limit, and a host's size, are to be chosen by it."""
    found = receiver.outcome(RATE, SECONDS, [receiver.Sent([0.001], [], Counter({200: 1}))], 0, cpu=0.2)
    assert "took 80 MiB of memory" in receiver.part_of([found], SECONDS, 1, 80.4).text
