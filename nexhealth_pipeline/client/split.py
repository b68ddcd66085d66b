"""Cuts an envelope into records by brackets alone, for pages that no strict parser takes.

Used only after a tolerant parser has accepted the page (see `page.py`); works without recursion,
so depth does not matter.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["EnvelopeParts", "split_envelope"]

_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{},:]', re.DOTALL)
_CLOSES = {b"]": b"[", b"}": b"{"}


@dataclass(frozen=True, slots=True)
class EnvelopeParts:
    """`rest` is the envelope with `data` set to null; `elements` are the bytes of each record."""

    rest: bytes = field(repr=False)
    elements: list[bytes] = field(repr=False)
    is_list: bool


def split_envelope(body: bytes) -> EnvelopeParts | None:
    """The parts of `body`, or None where its brackets do not match or `data` is no list or object."""
    stack: list[bytes] = []
    key = b""  # the envelope's field that is being read
    last_text = b""
    start = end = -1
    commas: list[int] = []
    for match in _TOKEN.finditer(body):
        token, depth = match.group(), len(stack)
        if token[:1] == b'"':
            last_text = token
        elif token == b":" and depth == 1:
            key = last_text
        elif token in (b"[", b"{"):
            if depth == 1 and key == b'"data"':
                start = match.start()
            stack.append(token)
        elif token in _CLOSES:
            if not stack or stack.pop() != _CLOSES[token]:
                return None
            if depth == 2 and key == b'"data"':
                end = match.end()
        elif token == b"," and depth == 2 and key == b'"data"':
            commas.append(match.start())
    if stack or start < 0:
        return None
    return _parts(body, start, end, commas)


def _parts(body: bytes, start: int, end: int, commas: list[int]) -> EnvelopeParts:
    rest = body[:start] + b"null" + body[end:]
    if body[start : start + 1] == b"{":
        return EnvelopeParts(rest, [body[start:end]], is_list=False)
    edges = [start, *commas, end - 1]
    elements = [body[left + 1 : right].strip() for left, right in pairwise(edges)]
    return EnvelopeParts(rest, [element for element in elements if element], is_list=True)
