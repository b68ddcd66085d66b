"""What treatment costs: procedure codes, fee schedules, and the kinds of payments and adjustments of a database."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from random import Random
from typing import NamedTuple

from .kinds import KINDS
from .money import money
from .practices import PracticePlan
from .rows import Record, Row, make_row
from .times import stamp

__all__ = ["TREATMENTS", "Prices", "Treatment", "fee_rows"]


class Treatment(NamedTuple):
    """Something done: its fee in cents, and the share in percent that insurers pay of what they allow."""

    code: str
    name: str
    fee: int
    covered: int
    teeth: int = 0


TREATMENTS = (
    Treatment("D0120", "Periodic exam", 6200, 100),
    Treatment("D1110", "Cleaning, adult", 11200, 100),
    Treatment("D0274", "X-rays, four bitewings", 7450, 100),
    Treatment("D0150", "First exam", 9800, 100),
    Treatment("D1120", "Cleaning, child", 8235, 100),
    Treatment("D2391", "Filling, one surface", 19500, 80, 1),
    Treatment("D2392", "Filling, two surfaces", 24175, 80, 1),
    Treatment("D7140", "Extraction", 21000, 80, 1),
    Treatment("D4341", "Deep cleaning, one quadrant", 26550, 80, 4),
    Treatment("D9110", "Emergency visit", 9500, 0),
    Treatment("D3310", "Root canal", 89500, 50, 1),
    Treatment("D2740", "Crown, porcelain", 128000, 50, 1),
    Treatment("D9972", "Whitening", 35000, 0),
    Treatment("D6010", "Implant", 210000, 0, 2),
    Treatment("N0001", "Follow-up without charge", 0, 0),
)
"""Made-up prices; common treatments come first."""

_SCHEDULES = (("Office fees", 100, True, True), ("PPO – Sample Dental", 78, False, True), ("Old fees", 85, True, False))
_PAYMENTS = ("Cash", "Check", "Credit card", "Insurance check", "Money order")
_ADJUSTMENTS = (
    ("Courtesy discount", "credit", True),
    ("Insurance write-off", "credit", True),
    ("Finance charge", "debit", True),
    ("Correction", "unknown", True),
    ("Old coupon", "credit", False),
)


@dataclass(frozen=True, slots=True)
class Prices:
    """What the ledger of one database books with: ids of types, and per treatment the insurers' fee row."""

    payment_types: tuple[int, ...]
    adjustment_types: tuple[int, ...]
    allowed: tuple[tuple[int, int], ...]
    """Per treatment: id of the fee schedule's row and the amount in cents."""


def _code_id(database: int, code: str) -> str:
    text = blake2b(f"{database}:{code}".encode(), digest_size=16).hexdigest()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class _Book:
    """Rows of one database as they are made, with ascending ids."""

    def __init__(self, plan: PracticePlan, database: int, base: datetime, rng: Random) -> None:
        self.plan, self.database, self.base, self.rng = plan, database, base, rng
        self.made: list[tuple[str, Row]] = []

    def add(self, name: str, number: int, fields: Record) -> int:
        updated = self.base - timedelta(days=self.rng.randrange(1, 700), milliseconds=self.rng.randrange(86_400_000))
        record: Record = {"id": number} | fields | {"updated_at": stamp(updated)}
        self.made.append((name, make_row(KINDS[name], record, self.plan.id, database=self.database)))
        return number

    def fees(self, schedule: int, first: int, share: int, place: int | None) -> list[tuple[int, int]]:
        prices = []
        for index, item in enumerate(TREATMENTS):
            bare = index == len(TREATMENTS) - 1
            amount = item.fee * share // 100
            fields: Record = {
                "procedure_code_id": None if bare else _code_id(self.database, item.code),
                "fee": money(amount),
                "code": None if bare else item.code,
                "location_id": place,
                "fee_schedule_id": None if bare and share == 85 else schedule,
            }
            prices.append((self.add("fee_schedule_procedures", first + index, fields), amount))
        return prices


def _database(plan: PracticePlan, database: int, base: datetime, rng: Random) -> tuple[_Book, Prices]:
    book, first = _Book(plan, database, base, rng), database * 1000
    payments = [
        book.add("payment_types", 5_000 + first + index, {"name": name, "active": name != "Money order"})
        for index, name in enumerate(_PAYMENTS)
    ]
    adjustments = [
        book.add("adjustment_types", 6_000 + first + index, {"name": name, "active": active, "action": action})
        for index, (name, action, active) in enumerate(_ADJUSTMENTS)
    ]
    allowed: list[tuple[int, int]] = []
    for which, place in enumerate(one for one in plan.active if one.database == database):
        for index, (name, share, local, active) in enumerate(_SCHEDULES):
            if which and not local:
                continue
            number, at = 70_000_000 + first + which * 10 + index, place.id if local else None
            fields: Record = {"name": name, "active": active, "location_id": at}
            book.add("fee_schedules", number, fields)
            prices = book.fees(number, number * 100, share, at)
            allowed = allowed if local else prices
    return book, Prices(tuple(payments), tuple(adjustments), tuple(allowed))


def fee_rows(plan: PracticePlan, base: datetime, rng: Random) -> tuple[list[tuple[str, Row]], dict[int, Prices]]:
    """Fee schedules, their procedures and the types of an institution, and what each database's ledger books with."""
    rows, prices = [], {}
    for database in _databases(plan):
        book, prices[database] = _database(plan, database, base, rng)
        rows += book.made
    return rows, prices


def _databases(plan: PracticePlan) -> Iterator[int]:
    yield from sorted({place.database for place in plan.active})
