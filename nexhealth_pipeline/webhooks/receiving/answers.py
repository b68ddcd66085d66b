"""The answers of the receiver: a status and one word. All signature failures share one of them."""

from dataclasses import dataclass

__all__ = [
    "BUSY",
    "DUPLICATE",
    "FORBIDDEN",
    "METHOD",
    "PARKED",
    "REFUSED",
    "STORED",
    "TOO_LARGE",
    "TOO_MANY",
    "TYPE",
    "UNAVAILABLE",
    "Answer",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer."""

    status: int
    word: str
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def body(self) -> bytes:
        """The word as sent."""
        return self.word.encode()

    def lines(self, *, close: bool) -> list[tuple[bytes, bytes]]:
        """Its headers; `close` ends the connection after it."""
        length = str(len(self.word)).encode()
        fixed = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", length), *self.headers]
        return [*fixed, (b"connection", b"close")] if close else fixed


_SOON, _LATER = (b"retry-after", b"1"), (b"retry-after", b"5")

STORED = Answer(200, "stored")
DUPLICATE = Answer(200, "duplicate")
PARKED = Answer(200, "parked")
"""Signed and stored, but it cannot be applied: to repeat it would not help."""
REFUSED = Answer(401, "refused")
"""Signature or timestamp: nothing tells which."""
FORBIDDEN = Answer(403, "forbidden")
METHOD = Answer(405, "method", ((b"allow", b"POST"),))
TOO_LARGE = Answer(413, "large")
TYPE = Answer(415, "type", ((b"accept", b"application/json"),))
TOO_MANY = Answer(429, "later", (_SOON,))
BUSY = Answer(503, "busy", (_SOON,))
"""Too much at once."""
UNAVAILABLE = Answer(503, "unavailable", (_LATER,))
"""The warehouse is away, or there is no secret yet."""
