"""How the keys that are too sensitive to keep (`Collection.sensitive`) may be written in what is perhaps no JSON."""

import re
from collections.abc import Set as AnySet
from functools import cache

__all__ = ["as_written"]


@cache
def as_written(names: AnySet[str]) -> re.Pattern[bytes]:
    """One of the names as JSON may write it, or a text that holds JSON, where it is a name only before a value.

    Nearly no body has one, and it is looked for in the bytes. Of no names it finds nothing.
    """
    spelt = b"|".join(
        # Each letter as it is, or escaped.
        b"".join(b"(?:%s|(?i:\\\\+u%04x))" % (re.escape(letter).encode(), ord(letter)) for letter in name)
        for name in sorted(names)
    )
    # Of backslashes before its first quote only the last is looked at: a run of them would be looked through from each one on.
    quoted = b'(?:"|\\\\u0022)(?:%s)(?:"|\\\\+(?:"|u0022)(?:\\s|\\\\+[nrt])*[:=])' % spelt
    return re.compile(quoted if names else b"(?!)")
