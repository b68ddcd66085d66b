"""The trace of refused requests: complete in number, small in rows."""

import asyncio
from typing import Any

import pytest

from nexhealth_pipeline.errors import WarehouseUnreachable
from nexhealth_pipeline.webhooks.audit import Audit
from nexhealth_pipeline.webhooks.rows import Row


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
        audit.note(sender, Row(reason, "rejected", source=sender))


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
