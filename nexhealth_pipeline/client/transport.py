"""One HTTP exchange with the API: bounded in time and size, never redirected, never explained in
the words of an HTTP library.

Exceptions of `requests` hold the prepared request and with it the token, so none leaves this
module: a failed exchange is returned as a `Fault`.
"""

import http.client
import os
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies_environment

import requests
import urllib3.exceptions
from requests.auth import AuthBase
from requests.utils import get_environ_proxies, select_proxy

from nexhealth_pipeline.client.clock import ApiClock
from nexhealth_pipeline.client.deadline import BoundedAdapter, Deadline
from nexhealth_pipeline.client.loopback import is_loopback
from nexhealth_pipeline.client.retry import Fault
from nexhealth_pipeline.errors import Cancelled, InvalidSetting

__all__ = ["Answer", "Transport"]

CONNECT_SECONDS = 10.0
"""Longest time to get a connection."""
BODY_LIMIT = 64 * 1024 * 1024
"""Bytes of one answer after decompression (DESIGN 7); 1000 wide records are about 3 MB."""
_IDLE_SECONDS = 50.0
"""An idle connection that is older is not used again: firewalls forget flows without a word to either end, some after a minute,
and the next request on such a one would wait in silence for the whole of its time."""
_READ_SIZE = 64 * 1024
_GONE = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. `sent` and `received` are local times, seconds since 1970."""

    status: int
    body: bytes = field(repr=False)
    sent: float
    received: float
    date: str | None
    retry_after: str | None


class _Session(requests.Session):
    """Knows no redirects: even where none is to be followed, `requests` reads the whole body of one and its address."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:  # noqa: ARG002 - whatever it says
        return None


class _Authorization(AuthBase):
    """Sets the header for one request only; also keeps `requests` from taking a login out of ~/.netrc."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


class Transport:
    """Sends requests below one root address. Thread-safe: each exchange borrows a session of its own."""

    def __init__(
        self,
        api_url: str,
        *,
        timeout_seconds: float,
        clock: ApiClock,
        answer_seconds: float | None = None,
        body_limit: int = BODY_LIMIT,
        stop: threading.Event | None = None,
        monotonic: Callable[[], float],
    ) -> None:
        self._root = api_url.rstrip("/")
        self._timeout = (min(CONNECT_SECONDS, timeout_seconds), timeout_seconds)
        # A server that sends a byte now and then never times out by itself.
        self._answer_seconds = answer_seconds if answer_seconds is not None else max(120.0, 3 * timeout_seconds)
        self._body_limit = body_limit
        self._clock, self._stop, self._monotonic = clock, stop, monotonic
        self._idle: list[tuple[requests.Session, Deadline, float]] = []
        self._closed = False

    def exchange(
        self,
        method: str,
        path: str,
        *,
        params: list[tuple[str, str]],
        headers: Mapping[str, str],
        authorization: str,
        body: bytes | None = None,
    ) -> Answer | Fault:
        """Send once. Raises Cancelled, after :meth:`close` too; InvalidSetting for an address or certificate of no use."""
        if self._closed:
            raise Cancelled("stopped before a request to NexHealth was sent")
        session, deadline = self._borrow()
        deadline.start(self._answer_seconds)
        try:
            answer = self._exchange(session, deadline, method, path, params, headers, authorization, body)
            return Fault.TOO_SLOW if answer is Fault.TIMEOUT and deadline.over else answer
        finally:
            self._give_back(session, deadline)

    def close(self) -> None:
        """Close idle connections and send nothing more; those in use close when their exchange ends."""
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()

    def _exchange(
        self,
        session: requests.Session,
        deadline: Deadline,
        method: str,
        path: str,
        params: list[tuple[str, str]],
        headers: Mapping[str, str],
        authorization: str,
        body: bytes | None,
    ) -> Answer | Fault:
        sent = self._clock.local()
        fault: Fault | None = None
        try:
            with session.request(
                method,
                self._root + path,
                params=params,
                data=body,
                headers=dict(headers),
                auth=_Authorization(authorization),
                timeout=self._timeout,
                allow_redirects=False,
                stream=True,
            ) as response:
                received = self._clock.local()
                content = self._body(response, deadline)
                if isinstance(content, Fault):
                    return content
                return Answer(
                    status=response.status_code,
                    body=content,
                    sent=sent,
                    received=received,
                    date=response.headers.get("Date"),
                    retry_after=response.headers.get("Retry-After"),
                )
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
            fault = None
        except _GONE as error:
            fault = _fault(error)
        if fault is None:
            raise _unusable(session, self._root)
        return fault

    def _body(self, response: requests.Response, deadline: Deadline) -> bytes | Fault:
        """The whole body, or why not. Reads what has arrived instead of waiting for full blocks."""
        if _stated_length(response) > self._body_limit:
            return Fault.TOO_LARGE
        chunks: list[bytes] = []
        size = 0
        while chunk := response.raw.read1(_READ_SIZE, decode_content=True):
            size += len(chunk)
            if size > self._body_limit:
                return Fault.TOO_LARGE
            if deadline.over:
                return Fault.TOO_SLOW
            if self._stop is not None and self._stop.is_set():
                raise Cancelled("stopped while reading an answer of NexHealth")
            chunks.append(chunk)
        return b"".join(chunks)

    def _borrow(self) -> tuple[requests.Session, Deadline]:
        with suppress(IndexError):
            while True:
                session, deadline, since = self._idle.pop()
                if self._monotonic() - since < _IDLE_SECONDS:
                    return session, deadline
                session.close()
        deadline = Deadline(self._monotonic)
        return _session(deadline, self._root), deadline

    def _give_back(self, session: requests.Session, deadline: Deadline) -> None:
        session.cookies.clear()
        if self._closed:
            session.close()
        else:
            self._idle.append((session, deadline, self._monotonic()))


def _session(deadline: Deadline, root: str) -> requests.Session:
    session = _Session()
    session.headers.clear()  # each exchange names all its headers
    for scheme in ("http://", "https://"):
        session.mount(scheme, BoundedAdapter(deadline))
    with suppress(ValueError):  # an address that cannot be read: sending finds out and says so
        _heed_environment(session, root)
    return session


def _heed_environment(session: requests.Session, root: str) -> None:
    """Take proxies and certificates for `root` from the environment, once.

    `requests` would with each request, going through every variable there is.
    """
    session.trust_env = False
    session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
    # A proxy's own 127.0.0.1 is not ours, as that of `nexhealth demo` is. Without a variable `requests` would ask the
    # system: on macOS that ends a process that was forked, as those of a sync are.
    if not is_loopback(urlsplit(root).hostname or "") and getproxies_environment():
        session.proxies = get_environ_proxies(root)
    if root.lower().startswith("https:") and isinstance(session.verify, str):
        _require_certificates(session.verify)


def _require_certificates(path: str) -> None:
    """Raise InvalidSetting where those of the environment cannot be used: every request would look like a lost one."""
    try:
        place = {"capath" if Path(path).is_dir() else "cafile": path}
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(**place)
    except OSError:
        name = "REQUESTS_CA_BUNDLE" if os.environ.get("REQUESTS_CA_BUNDLE") else "CURL_CA_BUNDLE"
        raise InvalidSetting(
            f"{name}: {path} is no file of certificates that can be read, nor a folder of them: correct or unset it"
        ) from None


def _unusable(session: requests.Session, root: str) -> InvalidSetting:
    """Which setting holds the address that cannot be used: the proxy's where there is one and our own is right.

    A proxy's is never shown, since a password may stand in it.
    """
    proxied = False
    with suppress(requests.RequestException, ValueError):
        requests.Request("GET", root).prepare()
        session.get_adapter(root)
        proxied = select_proxy(root, session.proxies) is not None
    if not proxied:
        return InvalidSetting("NEXHEALTH_API_URL is no usable address: write https:// and a host name")
    scheme = root.partition(":")[0].lower()
    return InvalidSetting(
        f"{scheme.upper() if scheme in session.proxies else 'ALL'}_PROXY is no usable address of a proxy: write http://,"
        " host and port, what is special in a password percent-encoded; for socks5:// install the package PySocks"
    )


def _stated_length(response: requests.Response) -> int:
    """Bytes on the wire that the answer says it has; 0 where it does not say."""
    stated = response.headers.get("Content-Length", "")
    return int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else 0


def _fault(error: BaseException) -> Fault:
    """The kind of a lost exchange."""
    if isinstance(error, requests.exceptions.SSLError | urllib3.exceptions.SSLError):
        # Who hangs up in the middle of the handshake is restarting, and has no fault of a certificate.
        hung_up = any(isinstance(one, ssl.SSLEOFError | ssl.SSLZeroReturnError) for one in _chain(error))
        return Fault.NO_CONNECTION if hung_up else Fault.NO_TLS
    if isinstance(error, requests.exceptions.ReadTimeout | urllib3.exceptions.ReadTimeoutError):
        return Fault.TIMEOUT
    if isinstance(error, urllib3.exceptions.ProtocolError | urllib3.exceptions.DecodeError | http.client.HTTPException):
        return Fault.CUT
    return Fault.NO_CONNECTION


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those it was made of; the libraries keep them as `reason` or as an argument."""
    inner: BaseException | None = error
    while inner is not None:
        yield inner
        inner = next(
            (one for one in (getattr(inner, "reason", None), *inner.args) if isinstance(one, BaseException)), None
        )
