"""Amounts as the API prints them: text in whole dollars with two decimals (API.md E.0). Inside, whole cents."""

from decimal import Decimal

from .rows import Record

__all__ = ["cents", "money"]


def money(amount: int) -> Record:
    """An amount in cents as the API's object."""
    sign, rest = "-" if amount < 0 else "", abs(amount)
    return {"amount": f"{sign}{rest // 100}.{rest % 100:02d}", "currency": "USD"}


def cents(price: object) -> int:
    """The cents of the API's object; 0 for anything else, so that a record broken on purpose adds nothing."""
    amount = price.get("amount") if isinstance(price, dict) else None
    return int(Decimal(amount) * 100) if isinstance(amount, str) else 0
