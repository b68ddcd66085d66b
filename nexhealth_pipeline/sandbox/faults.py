"""Faults on request: rules that say which requests go wrong, how often and how.

Whether a rule with a probability fires for a request depends only on the seed, the rule, the URL and how often that
URL was asked, not on the order in which concurrent requests arrive.
"""

import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any
from urllib.parse import parse_qs
from zlib import crc32

__all__ = ["KINDS_OF_FAULT", "RETRY_FORMS", "FaultRule", "Faults"]

RETRY_FORMS = ("seconds", "date", "none")
"""How a 429 can say when to come again."""

KINDS_OF_FAULT: dict[str, str] = {
    "status": "an error envelope with `status` (500, 502, 503, ...)",
    "throttle": "429; `retry_after` = seconds, date or none; `seconds` = how long",
    "hang": "the answer comes after `seconds`",
    "cut": "Content-Length promises more than is sent, then the connection closes",
    "malformed": "200 with half of the JSON, Content-Length fitting",
    "garbled": "200 in which a byte of a record, in the name of its id, is no UTF-8",
    "wrong_object": "200 whose data is an object that nobody asked for",
    "null_data": "200 whose data is null",
    "html": "200 with a web page",
    "code_false": "200 with `code` false and an error message",
    "token_expired": "401, and the token that was sent stays expired",
    "redirect": "302 to `target`",
    "ignored_parameter": "200 as if `parameter` had not been sent, and `description` says so",
    "repeated_page": "the rows of the page before under this page's cursors",
    "cursor_loop": "`end_cursor` does not move and `has_next_page` stays true",
    "empty_page": "no rows, `has_next_page` true",
}
"""Every kind of fault with what it does."""


@dataclass(slots=True)
class FaultRule:
    """Which requests go wrong, and how.

    A request matches when its whole path matches the regular expression `path`, the expression `query` is found in
    its query string as sent (percent-encoded), and method, subdomain and location are those given. Of the matching
    requests the rule skips the first `skip`, then fires with `probability`, at most `count` times; `nth` (1-based)
    fires for that one only. With `per_url` all three count per URL: `count=2, per_url=True` spoils the first two
    answers of every page.
    """

    kind: str
    path: str = ".*"
    query: str = ""
    method: str | None = None
    subdomain: str | None = None
    location_id: int | None = None
    probability: float = 1.0
    count: int | None = None
    nth: int | None = None
    skip: int = 0
    per_url: bool = False
    status: int = 500
    seconds: float = 1.0
    retry_after: str = "seconds"
    message: str = "Something went wrong"
    target: str = "http://other.example.com/"
    parameter: str = ""
    id: int = 0
    fired: int = 0
    _seen: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _done: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS_OF_FAULT:
            raise ValueError(f"no fault {self.kind!r}: one of {', '.join(KINDS_OF_FAULT)}")
        for one in fields(self):
            _check_type(one.name, one.type, getattr(self, one.name, None))
        if self.retry_after not in RETRY_FORMS:
            raise ValueError("retry_after is seconds, date or none")
        if not 0 <= self.probability <= 1:
            raise ValueError("probability is 0 to 1")
        if self.kind == "ignored_parameter" and not self.parameter:
            raise ValueError("ignored_parameter needs the name of a `parameter`")
        for name, text in (("path", self.path), ("query", self.query)):
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"{name} is no regular expression: {error}") from None

    def fires(self, method: str, path: str, query: str, seed: int) -> bool:
        """Whether this request, which is counted, goes wrong by this rule."""
        if not self._matches(method, path, query):
            return False
        url, slot = f"{path}?{query}", self._slot(path, query)
        self._seen[slot] += 1
        seen = self._seen[slot]
        if seen <= self.skip or (self.nth is not None and seen != self.nth):
            return False
        if self.count is not None and self._done[slot] >= self.count:
            return False
        if self.probability < 1.0 and self._dice(seed, url) >= self.probability:
            return False
        self._done[slot] += 1
        self.fired += 1
        return True

    def take_back(self, path: str, query: str) -> None:
        """Count this request, for which it fired, as one that it let pass."""
        self._done[self._slot(path, query)] -= 1
        self.fired -= 1

    def _slot(self, path: str, query: str) -> str:
        """What its firing is counted by."""
        return f"{path}?{query}" if self.per_url else ""

    def _dice(self, seed: int, url: str) -> float:
        """A number from 0 to 1 that only the seed, the rule, the URL and its repetition decide."""
        self._seen["#" + url] += 1
        return crc32(f"{seed}:{self.id}:{url}:{self._seen['#' + url]}".encode()) / 2**32

    def _matches(self, method: str, path: str, query: str) -> bool:
        if self.method and method != self.method:
            return False
        if not re.fullmatch(self.path, path) or not re.search(self.query, query):
            return False
        if self.subdomain is None and self.location_id is None:
            return True
        sent = parse_qs(query)
        if self.subdomain is not None and self.subdomain not in sent.get("subdomain", ()):
            return False
        return self.location_id is None or str(self.location_id) in sent.get("location_id", ())


_WORDS: dict[Any, str] = {
    str: "a text",
    str | None: "a text",
    int: "a whole number",
    int | None: "a whole number",
    float: "a number",
    bool: "true or false",
}


def _check_type(name: str, kind: Any, value: object) -> None:
    """Raises TypeError for a value that is not of the field's type: it would be compared with others, and never be met."""
    if kind in _WORDS and (
        not isinstance(value, int | float if kind is float else kind) or isinstance(value, bool) != (kind is bool)
    ):
        raise TypeError(f"{name} is {_WORDS[kind]}")


class Faults:
    """The rules in force; the first that fires decides."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._rules: list[FaultRule] = []
        self._last_id = 0
        self._lock = threading.Lock()

    def add(self, rule: FaultRule | str, **options: Any) -> FaultRule:
        """Put a rule in force: a FaultRule, or a kind with its options. Raises ValueError or TypeError for a bad one."""
        made = replace(rule, fired=0, **options) if isinstance(rule, FaultRule) else FaultRule(rule, **options)
        with self._lock:
            self._last_id += 1
            made.id = self._last_id
            self._rules.append(made)
        return made

    def remove(self, rule_id: int) -> None:
        """Take a rule away; nothing happens if it is not there."""
        with self._lock:
            self._rules = [rule for rule in self._rules if rule.id != rule_id]

    def clear(self) -> None:
        """Take all rules away."""
        with self._lock:
            self._rules = []

    def choose(self, method: str, path: str, query: str) -> FaultRule | None:
        """The rule this request falls to, if any. Every rule in force counts it until one fires."""
        if not self._rules:
            return None
        with self._lock:
            fires = (rule for rule in self._rules if rule.fires(method, path, query, self._seed))
            return next(fires, None)

    def take_back(self, rule: FaultRule, path: str, query: str) -> None:
        """A rule that was chosen for this request had nothing to spoil there: it may fire once more."""
        with self._lock:
            rule.take_back(path, query)

    def describe(self) -> list[dict[str, Any]]:
        """The rules in force with how often each fired."""
        shown = [one.name for one in fields(FaultRule) if not one.name.startswith("_")]
        return [_public(asdict(rule), shown) for rule in self._rules]


def _public(rule: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: rule[name] for name in names}
