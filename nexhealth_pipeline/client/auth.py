"""Tokens: one per API key, shared by all threads, renewed before it expires.

`POST /authenticates` with the bare key gives a JWT that lives an hour in production (API.md B).
Its `exp` is the API's time, so the lifetime is taken as a span (`exp - iat`, or `exp` less the
API's clock) and counted on the local monotonic clock.
"""

import base64
import binascii
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from nexhealth_pipeline.client.cost import Cost
from nexhealth_pipeline.errors import ApiError

__all__ = ["FixedCredential", "Token", "TokenKeeper", "token_lifetime", "usable_header"]

_DEFAULT_LIFETIME = 3000.0
"""Seconds for a token that does not say: production's hour less ten minutes; a 401 corrects a wrong guess."""
_AHEAD = 60.0
"""Seconds before its end a token is renewed ..."""
_AHEAD_PART = 0.2
"""... or this part of its life, where it lives for less than five minutes."""
_VISIBLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Token:
    """A token and how long it lives, in seconds from when it was asked for."""

    value: str = field(repr=False)
    lifetime: float


def usable_header(value: str) -> bool:
    """Whether `value` can stand in a header: visible ASCII only (a line break would end it)."""
    return _VISIBLE.fullmatch(value) is not None


def token_lifetime(token: str, *, api_now: float) -> float:
    """Seconds that a JWT lives; a default where it does not say."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        expires = float(claims["exp"])
        spans = [expires - api_now]
        if "iat" in claims:
            spans.append(expires - float(claims["iat"]))
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, binascii.Error, RecursionError):
        return _DEFAULT_LIFETIME
    return max(1.0, min(spans))


class FixedCredential:
    """One that nothing renews: the bare key of `/authenticates`, or a token of which is asked whether it still counts."""

    def __init__(self, value: str) -> None:
        self._value = value

    def current(self, cost: Cost) -> str:  # noqa: ARG002 - the interface of a credential
        """The header's value."""
        return self._value

    def fresh(self, value: str) -> bool:  # noqa: ARG002 - as above
        """Always: there is no other."""
        return True

    def accepted(self, value: str) -> None:
        """Nothing to note."""

    def refused(self, value: str) -> bool:  # noqa: ARG002 - as above
        """Always the key's fault."""
        return True


class TokenKeeper:
    """Keeps one key's token. `ask` fetches a new one and adds to the Cost it is given."""

    def __init__(self, ask: Callable[[Cost], Token], *, monotonic: Callable[[], float]) -> None:
        self._ask, self._monotonic = ask, monotonic
        self._lock = threading.Lock()
        self._value: str | None = None
        self._accepted: str | None = None
        """The token that the API took last."""
        self._renew_at = float("-inf")
        self._asked = 0
        self._failure: ApiError | None = None

    def current(self, cost: Cost) -> str:
        """The header's value with a token that still lives a while. Raises ApiError, Cancelled."""
        value = self._value
        if value is not None and self.fresh(value):
            return value
        asked = self._asked
        with self._lock:
            value = self._value
            if value is not None and self.fresh(value):
                return value
            if self._asked != asked and self._failure is not None:
                # Somebody used up every retry while we stood in line: 64 threads must not repeat that one by one.
                raise type(self._failure)(str(self._failure), status=self._failure.status)
            return self._renew(cost)

    def fresh(self, value: str) -> bool:
        """Whether `value` is the current token and not due for renewal."""
        return value == self._value and self._monotonic() < self._renew_at

    def accepted(self, value: str) -> None:
        """Note that the API took `value`: should it refuse it later, the token is over, and the key none the worse."""
        if value == self._accepted or value != self._value:
            return  # and no wait for the lock, which is held for as long as a new token is asked for
        with self._lock:
            if value == self._value:  # a late answer to one that is over says nothing of its successor
                self._accepted = value

    def refused(self, value: str) -> bool:
        """Forget `value` after a 401; whether the key may be at fault: nobody else lost it or was answered with it."""
        with self._lock:
            if value != self._value:
                return False
            self._value = None
            return value != self._accepted

    def _renew(self, cost: Cost) -> str:
        asked_at = self._monotonic()
        self._failure = None
        try:
            token = self._ask(cost)
        except ApiError as error:
            self._failure = error
            raise
        finally:
            self._asked += 1
        self._renew_at = asked_at + token.lifetime - min(_AHEAD, _AHEAD_PART * token.lifetime)
        self._value = f"Bearer {token.value}"
        return self._value
