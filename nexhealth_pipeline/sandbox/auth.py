"""API keys and bearer tokens: a JWT signed with HS256 that lives as long as the caller wants (API.md B)."""

import base64
import hmac
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from .reply import ApiError
from .times import Clock

__all__ = ["SANDBOX_API_KEY", "Access", "Auth"]

SANDBOX_API_KEY = "sandbox-key-not-a-secret"
"""The key every sandbox accepts unless told otherwise."""

_UNAUTHORIZED = "Unauthorized"


@dataclass(frozen=True, slots=True)
class Access:
    """Who asks: the key, and the subdomains it reaches (None = all)."""

    api_key: str
    subdomains: frozenset[str] | None


class Auth:
    """Issues and checks tokens. `token_seconds` may be changed while running."""

    def __init__(self, keys: Mapping[str, tuple[str, ...] | None], secret: bytes, token_seconds: float, clock: Clock):
        self.token_seconds = token_seconds
        self._keys = {key: Access(key, None if names is None else frozenset(names)) for key, names in keys.items()}
        self._secret = secret
        self._clock = clock
        self._lock = threading.Lock()
        self._issued = 0
        self._known: dict[str, tuple[float, Access]] = {}
        self._revoked: set[str] = set()

    @property
    def issued(self) -> tuple[str, ...]:
        """The tokens given out since the start: what must stand in no log."""
        return tuple(self._known)

    def issue(self, api_key: str) -> str:
        """A token for a key. Raises ApiError 401 for an unknown key."""
        access = self._keys.get(api_key)
        if access is None:
            raise ApiError(401, "Invalid API key")
        now = self._clock()
        with self._lock:
            self._issued += 1
            number = self._issued
        expires = _whole(now + self.token_seconds, self.token_seconds)
        claims = {"sub": str(list(self._keys).index(api_key) + 1), "scp": "api_user"}
        token = self._sign(claims | {"iat": int(now), "exp": expires, "jti": f"{int(now * 1e6):x}-{number}"})
        self._known[token] = (expires, access)
        return token

    def access(self, authorization: str | None) -> Access:
        """Who a bearer token speaks for. Raises ApiError 401 where it is missing, unknown, revoked or expired."""
        scheme, _, token = (authorization or "").partition(" ")
        if scheme != "Bearer" or not token:
            raise ApiError(401, _UNAUTHORIZED)
        expires, access = self._known.get(token) or self._read(token)
        if token in self._revoked or self._clock() >= expires:
            raise ApiError(401, "Signature has expired")
        return access

    def owner(self, authorization: str | None) -> str:
        """The key to charge a request to, even with an expired token; empty for nobody's."""
        text = authorization or ""
        if text in self._keys:
            return text
        try:
            token = text.removeprefix("Bearer ")
            return (self._known.get(token) or self._read(token))[1].api_key
        except ApiError:
            return ""

    def revoke(self, authorization: str | None = None) -> None:
        """End one token now, or every token issued so far."""
        with self._lock:
            self._revoked |= {authorization.removeprefix("Bearer ")} if authorization else set(self._known)

    def _read(self, token: str) -> tuple[float, Access]:
        """A token of an earlier run of this sandbox: valid if the signature is."""
        head, _, seal = token.rpartition(".")
        if not hmac.compare_digest(seal.encode(), self._seal(head)):
            raise ApiError(401, _UNAUTHORIZED)
        claims: dict[str, Any] = orjson.loads(_decode(head.partition(".")[2]))
        access = list(self._keys.values())[int(claims["sub"]) - 1 :]
        if not access:
            raise ApiError(401, _UNAUTHORIZED)
        self._known[token] = (float(claims["exp"]), access[0])
        return self._known[token]

    def _sign(self, claims: dict[str, Any]) -> str:
        head = b".".join(_encode(orjson.dumps(part)) for part in ({"alg": "HS256"}, claims)).decode()
        return f"{head}.{self._seal(head).decode()}"

    def _seal(self, head: str) -> bytes:
        return _encode(hmac.new(self._secret, head.encode(), sha256).digest())


def _whole(expires: float, lifetime: float) -> int | float:
    """JWT times are whole seconds by habit; a very short lifetime keeps its fraction."""
    return int(expires) if lifetime >= 2 else expires


def _encode(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
