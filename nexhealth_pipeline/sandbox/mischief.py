"""How deliveries go wrong on purpose, and how fast their time runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from hashlib import blake2b
from typing import Any

__all__ = ["SHARES", "DeliverySettings", "dice"]

_MOST_SECONDS = 10 * 365 * 86_400.0
"""No time is longer: a stamp that far off is still a date, and a thread can wait that long."""

SHARES = frozenset({"duplicates", "reorder", "drop", "stale", "urlsafe", "wrong_signature"})
"""Settings that are a share of all deliveries: 0 to 1, or true and false."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Everything about deliveries that a test may choose. Shares are 0 to 1, all seconds are real ones.

    `enabled` false: changes make no events. `time_scale` stretches the waits before retries (0.001 = a thousand
    times faster), `timeout` is how long an answer may take, `workers` how many deliveries go out side by side (1 =
    in order). `delay` holds every event back. `duplicates` are sent twice, `reorder` held back by up to
    `reorder_seconds`, `drop` never sent. `stale`: an update is followed, `stale_seconds` later, by the version before
    it. `urlsafe` and `wrong_signature` choose attempts, not deliveries: a wrong one may be right when it is repeated.
    `restamp` false: retries keep the timestamp of the first attempt; `stamp_offset` moves all timestamps.
    `document_owner`: an event of a document tells its patient, which the list's shape does not [guess].
    """

    enabled: bool = True
    time_scale: float = 1.0
    timeout: float = 10.0
    workers: int = 4
    delay: float = 0.0
    duplicates: float = 0.0
    reorder: float = 0.0
    reorder_seconds: float = 1.0
    drop: float = 0.0
    stale: float = 0.0
    stale_seconds: float = 0.5
    urlsafe: float = 0.0
    wrong_signature: float = 0.0
    restamp: bool = True
    stamp_offset: float = 0.0
    document_owner: bool = True

    def changed(self, wanted: Mapping[str, Any]) -> "DeliverySettings":
        """These settings with some of them replaced. Raises ValueError or TypeError."""
        known = {one.name: one.default for one in fields(self)}
        clean: dict[str, Any] = {}
        for name, value in wanted.items():
            if name not in known:
                raise ValueError(f"no setting {name!r}: one of {', '.join(known)}")
            clean[name] = _checked(name, value, known[name])
        return replace(self, **clean)

    def describe(self) -> dict[str, Any]:
        """All settings by name."""
        return asdict(self)


def _checked(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise TypeError(f"{name} is true or false")
        return value
    if not isinstance(value, int | float):
        raise TypeError(f"{name} is a number")
    number = float(value)
    if name in SHARES and not 0 <= number <= 1:
        raise ValueError(f"{name} is a share, 0 to 1")
    if name != "stamp_offset" and number < 0:
        raise ValueError(f"{name} is not negative")
    if not abs(number) <= _MOST_SECONDS:
        raise ValueError(f"{name} is ten years at most, {_MOST_SECONDS:.0f} seconds")
    if name == "workers":
        if not 1 <= number <= 64:
            raise ValueError("workers is 1 to 64")
        return int(number)
    return number


def dice(seed: int, what: str, *numbers: int) -> float:
    """A number from 0 to 1 that only the seed, the question and the delivery decide."""
    text = f"{seed}:{what}:{':'.join(map(str, numbers))}".encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64
