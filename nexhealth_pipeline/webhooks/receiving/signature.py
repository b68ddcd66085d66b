"""Whether a request really comes from NexHealth: its signature over the bytes received, and its time.

`signature` is the lower-case hex HMAC-SHA256, keyed with the endpoint's secret as text, of the `timestamp`
header's bytes as they came, a dot, and the body in base64 (API.md F.4). Which base64 alphabet is not known
for certain, so both are tried; which one it was is part of the verdict.

Everything is computed for every secret, whatever was found wrong before: neither the answer nor the time it
takes tells which part was.
"""

import binascii
import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.webhooks.endpoints import LiveSecret
from nexhealth_pipeline.webhooks.moment import moment_of

__all__ = ["VALID", "VALID_URLSAFE", "Verdict", "Window", "verify"]

VALID, VALID_URLSAFE = "valid", "valid-urlsafe"
"""Words of a verdict that lets a request in: signed over standard base64, or over the urlsafe alphabet."""
_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True)
class Window:
    """How far a request's timestamp may be from now."""

    past: timedelta = timedelta(hours=49)
    """The vendor repeats for 48 hours and may not stamp anew (API.md F.5)."""
    ahead: timedelta = timedelta(minutes=5)

    @classmethod
    def of(cls, settings: Settings) -> "Window":
        """As NEXHEALTH_WEBHOOK_PAST_HOURS and NEXHEALTH_WEBHOOK_FUTURE_MINUTES say."""
        return cls(timedelta(hours=settings.webhook_past_hours), timedelta(minutes=settings.webhook_future_minutes))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of the checks; `word` is for the audit row only, never for the sender."""

    word: str
    """`valid`, `valid-urlsafe`, or what was wrong: no-timestamp, no-signature, doubled-header, bad-signature,
    bad-timestamp, too-old, too-new."""
    endpoint_id: int | None = None
    """Endpoint whose secret signed it; None for a secret from the settings, or where none did."""

    @property
    def valid(self) -> bool:
        """Whether the request is let in."""
        return self.word in {VALID, VALID_URLSAFE}


def verify(
    secrets: Sequence[LiveSecret],
    headers: Iterable[tuple[bytes, bytes]],
    body: bytes,
    now: datetime,
    window: Window,
) -> Verdict:
    """Whether one of `secrets` signed `body`, at a time within `window` of `now`.

    `headers` are (lower-case name, value) as received. An empty secret never matches.
    """
    stamps, signatures = _values(headers)
    stamp, given = stamps[0] if stamps else b"", signatures[0] if signatures else b""
    match, urlsafe = _signer(secrets, _message(stamp, body), _message(stamp, body, urlsafe=True), given)
    fault = _headers_fault(stamps, signatures)
    if fault or match is None:
        return Verdict(fault or "bad-signature")
    return Verdict(_time_fault(stamp, now, window) or (VALID_URLSAFE if urlsafe else VALID), match.endpoint_id)


def _signer(
    secrets: Sequence[LiveSecret], standard: bytes, urlsafe: bytes, given: bytes
) -> tuple[LiveSecret | None, bool]:
    """The secret that made the signature `given`, and whether over the urlsafe alphabet. Compares with all of them."""
    found: LiveSecret | None = None
    over_urlsafe = False
    alike = standard == urlsafe  # tells of the body only, which the sender knows
    for one in secrets:
        key = one.secret.encode()
        expected = _hex(key, standard)
        by_standard = hmac.compare_digest(expected, given)
        by_urlsafe = hmac.compare_digest(expected if alike else _hex(key, urlsafe), given)
        if (by_standard or by_urlsafe) and key and found is None:
            found, over_urlsafe = one, not by_standard
    return found, over_urlsafe


def _hex(key: bytes, message: bytes) -> bytes:
    return binascii.hexlify(hmac.digest(key, message, "sha256"))


def _message(timestamp: bytes, body: bytes, *, urlsafe: bool = False) -> bytes:
    encoded = binascii.b2a_base64(body, newline=False)
    return timestamp + b"." + (encoded.translate(_TO_URLSAFE) if urlsafe else encoded)


def _values(headers: Iterable[tuple[bytes, bytes]]) -> tuple[list[bytes], list[bytes]]:
    stamps: list[bytes] = []
    signatures: list[bytes] = []
    for name, value in headers:
        if name == b"timestamp":
            stamps.append(value)
        elif name == b"signature":
            signatures.append(value)
    return stamps, signatures


def _headers_fault(stamps: list[bytes], signatures: list[bytes]) -> str | None:
    """A doubled header is no header: a proxy and we might each believe another one."""
    if len(stamps) > 1 or len(signatures) > 1:
        return "doubled-header"
    if not stamps or not stamps[0]:
        return "no-timestamp"
    return None if signatures and signatures[0] else "no-signature"


def _time_fault(stamp: bytes, now: datetime, window: Window) -> str | None:
    moment = moment_of(stamp.decode("ascii", "replace"))
    if moment is None:
        return "bad-timestamp"
    age = now.astimezone(UTC) - moment
    if age > window.past:
        return "too-old"
    return "too-new" if -age > window.ahead else None
