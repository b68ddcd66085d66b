"""The vendor's own words out of an error text, without what may be a record's value.

An API error can quote what was asked for or found: a name, a birthday, an address. What helps the
reader is the vendor's fixed sentence ("Missing parameter start", "Location with id ... not
found"). So only lower-case words stay, and
a few capitalised ones with which such sentences begin.
"""

import re
from collections.abc import Iterable

__all__ = ["vendor_words"]

_LONGEST = 200
"""Characters kept; the vendor's known sentences have fewer than 100 (API.md A.4)."""
_PLAIN = re.compile(r"[a-z][a-z_']{0,23}[,.:;]?")
_BEGINNINGS = frozenset(
    [
        "Access",
        "Bad",
        "Ignored",
        "Invalid",
        "Include",
        "Location",
        "Missing",
        "No",
        "Not",
        "Parameter",
        "Please",
        "Subdomain",
        "The",
        "Too",
        "Unauthorized",
        "Unknown",
        "Unsupported",
        "You",
    ]
)


def vendor_words(texts: Iterable[str]) -> str:
    """The texts, joined and reduced; "" where nothing is left."""
    return "; ".join(filter(None, (_reduced(text) for text in texts)))[:_LONGEST]


def _reduced(text: str) -> str:
    words = text[: 5 * _LONGEST].split()
    kept = [word if _PLAIN.fullmatch(word) or word in _BEGINNINGS else "…" for word in words]
    return "" if set(kept) <= {"…"} else " ".join(kept)
