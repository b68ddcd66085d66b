"""The trace of refused requests: complete in number, small in rows."""

import asyncio
import logging
from collections import Counter
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.errors import WarehouseError, WarehouseUnreachable
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.event_rows import EventRow
from nexhealth_pipeline.webhooks.receiving.link import Link
from tests.webhooks.receiving import events


class Table:
    """What was written, by id."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}
        self.away = False
        self.statements = 0

    async def execute(self, statement: str, values: dict[str, Any]) -> list[Any]:
        if self.away:
            raise WarehouseUnreachable("away")
        self.statements += 1
        if "ids" in values:
            for number, more in zip(values["ids"], values["more"], strict=True):
                self.rows[number]["repeats"] += more
            return []
        first = len(self.rows)
        for k, verdict in enumerate(values["verdict"]):
            self.rows[first + k] = {
                "verdict": verdict, "source": values["source"][k], "repeats": int(values["repeats"][k]),
            }  # fmt: skip
        return [(first + k,) for k in range(len(values["verdict"]))]

    @property
    def total(self) -> int:
        return sum(row["repeats"] for row in self.rows.values())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def refuse(audit: Audit, count: int, sender: str = "203.0.113.1", reason: str = "bad-signature") -> None:
    for _ in range(count):
        audit.note(sender, EventRow(reason, "rejected", source=sender))


def write(audit: Audit, table: Table) -> None:
    asyncio.run(audit.write(table))


def test_a_flood_is_counted_in_one_row_a_minute() -> None:
    table, clock = Table(), Clock()
    audit = Audit(rows=60, clock=clock)
    for _ in range(30):
        refuse(audit, 100)
        clock.now += 1
        write(audit, table)
    assert (len(table.rows), table.total) == (61, 3000)
    clock.now += 60
    refuse(audit, 100)
    write(audit, table)
    assert (len(table.rows), table.total) == (122, 3100)


def test_senders_and_reasons_are_told_apart() -> None:
    audit, table = Audit(rows=2, clock=Clock()), Table()
    for sender in ("203.0.113.1", "203.0.113.2"):
        for reason in ("too-old", "bad-signature"):
            refuse(audit, 5, sender, reason)
    write(audit, table)
    assert (len(table.rows), table.total) == (12, 20)
    assert {row["source"] for row in table.rows.values()} == {"203.0.113.1", "203.0.113.2"}


def test_more_senders_than_can_be_remembered_are_counted_together() -> None:
    """A flood from everywhere must not fill memory or table."""
    audit, table = Audit(rows=1, most=10, clock=Clock()), Table()
    for k in range(1000):
        refuse(audit, 3, f"203.0.{k // 250}.{k % 250}")
    write(audit, table)
    assert table.total == 3000
    assert len(table.rows) <= 21
    assert max(table.rows.values(), key=lambda row: row["repeats"])["source"] == ""


def test_nothing_is_forgotten_while_the_database_is_away() -> None:
    table, clock = Table(), Clock()
    audit = Audit(rows=2, clock=clock)
    table.away = True
    for _ in range(3):
        refuse(audit, 10)
        clock.now += 45
        with pytest.raises(WarehouseUnreachable):
            write(audit, table)
    table.away = False
    write(audit, table)
    assert table.total == 30
    write(audit, table)
    assert table.total == 30


def test_quiet_times_cost_no_statement() -> None:
    audit, table = Audit(clock=Clock()), Table()
    write(audit, table)
    assert table.statements == 0


def test_all_senders_together_get_so_many_rows_a_minute() -> None:
    """Addresses cost an attacker nothing, and one may be refused for ten reasons."""
    table, clock = Table(), Clock()
    audit = Audit(clock=clock)
    reasons, minutes = ("bad-signature", "too-old", "method"), 5
    for second in range(minutes * 60):
        for k in range(300):
            refuse(audit, 1, f"203.0.{second % 250}.{k % 250}", reasons[k % 3])
        clock.now += 1
        write(audit, table)
    assert table.total == minutes * 60 * 300
    assert len(table.rows) <= (minutes + 1) * 120 + (minutes + 1) * len(reasons)
    assert len(table.rows) >= minutes * 120
    nobody = [row for row in table.rows.values() if not row["source"]]
    assert {row["verdict"] for row in nobody} == set(reasons)
    assert sum(row["repeats"] for row in nobody) > 0.9 * table.total


def test_after_a_flood_refusals_have_rows_of_their_own_again() -> None:
    table, clock = Table(), Clock()
    audit = Audit(clock=clock)
    for k in range(1000):
        refuse(audit, 1, f"203.0.{k // 250}.{k % 250}")
    write(audit, table)
    clock.now += 60
    refuse(audit, 5, "198.51.100.1")
    write(audit, table)
    assert [row["repeats"] for row in table.rows.values() if row["source"] == "198.51.100.1"] == [1] * 5
    assert table.total == 1005


UNWRITABLE = "fe80::1%eth0"


def real(url: str, audit: Audit) -> None:
    """Write it into a real table, twice: what is left of the first time is written by the second."""

    async def story() -> None:
        link = Link(url, on_change=lambda up: None)
        await link.open()
        try:
            for _ in range(2):
                await audit.write(link)
        finally:
            await link.close()

    asyncio.run(story())


@pytest.mark.parametrize("rows", [60, 0], ids=["rows of their own", "rows that count"])
def test_a_row_that_cannot_be_written_never_holds_up_the_others(
    rows: int, no_events: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It used to be tried again each second for good, and nothing was recorded of anybody."""
    audit = Audit(rows=rows)
    for sender in ("203.0.113.1", UNWRITABLE, "203.0.113.2", "a\0b", "203.0.113.3"):
        refuse(audit, 2, sender)
    with caplog.at_level(logging.WARNING):
        real(no_events, audit)
    found: Counter[str] = Counter()
    for row in events(no_events):
        found[str(row["source"])] += row["repeats"]
    assert found == {"203.0.113.1": 2, "203.0.113.2": 2, "203.0.113.3": 2, "None": 4}
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert {"22P02" in str(record.__dict__["nexhealth"]["error"]) for record in told} == {True, False}
    assert not [record for record in told if "eth0" in str(record.__dict__)]


def test_what_is_no_rows_fault_is_kept_for_the_next_time(no_events: str) -> None:
    """A full disk, a right that was taken away: each row would be thrown away by itself."""
    audit = Audit()
    refuse(audit, 3)
    with psycopg.connect(no_events, autocommit=True) as admin:
        admin.execute("ALTER TABLE nexhealth_webhook_events RENAME TO hidden")
        try:
            with pytest.raises(WarehouseError):
                real(no_events, audit)
        finally:
            admin.execute("ALTER TABLE hidden RENAME TO nexhealth_webhook_events")
    real(no_events, audit)
    assert [row["repeats"] for row in events(no_events)] == [1, 1, 1]
