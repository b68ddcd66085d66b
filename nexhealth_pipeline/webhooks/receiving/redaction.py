"""What of a signed body is not stored: keys that the catalog declares too sensitive to keep (`Collection.sensitive`).

Wherever they stand, for an event of a visit may hold the visit's patient. All else stays as it came, byte for byte in
the parts that hold none of them: what reads a stored event finds the records that were sent.
"""

import msgspec

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.warehouse.sensitive import as_written

__all__ = ["before_sensitive", "without_sensitive"]

_NAMES = frozenset(path[-1] for one in DECLARED for path in one.sensitive)
_WRITTEN = as_written(_NAMES)
_DEEPEST = 100
"""Levels that are looked through, each of which is read anew; what is nested deeper and has such a key goes whole."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_text = msgspec.json.Decoder(str).decode


def without_sensitive(body: bytes) -> bytes:
    """The body without such keys and their values; of one that is no JSON what comes before the first of them."""
    try:
        return _kept(body, 0)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return before_sensitive(body)


def before_sensitive(body: bytes) -> bytes:
    """What comes before the first such key, all of it where it has none; as fast for whatever anybody sends."""
    found = _WRITTEN.search(body)
    return body if found is None else body[: found.start()]


def _kept(raw: bytes, depth: int) -> bytes:
    if _WRITTEN.search(raw) is None:
        return raw
    if depth == _DEEPEST:
        return b"null"
    opening = raw.lstrip()[:1]
    if opening == b"{":
        kept = {name: value for name, value in _object(raw).items() if name not in _NAMES}
        return msgspec.json.encode({name: msgspec.Raw(_kept(bytes(one), depth + 1)) for name, one in kept.items()})
    if opening == b"[":
        return msgspec.json.encode([msgspec.Raw(_kept(bytes(one), depth + 1)) for one in _list(raw)])
    if opening == b'"':
        # JSON in a text, as of a body that was encoded twice.
        text = _text(raw).encode()
        kept_text = without_sensitive(text)
        return raw if kept_text == text else msgspec.json.encode(kept_text.decode())
    return before_sensitive(raw)
