"""The ASGI application: counts, limits, spoils, authenticates and answers each request, then logs it.

Written against ASGI directly, without a framework: a small answer then costs tens of microseconds.
"""

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qsl, urlencode

import orjson

from .api import Api, PageFault, check_version
from .auth import Access, Auth
from .control import control
from .faults import FaultRule, Faults
from .limits import Limits
from .log import RequestLog
from .params import Query
from .reply import LEGACY_JSON, ApiError, Reply, failure, one
from .routes import find_route
from .routes_webhooks import ENDPOINTS_PATH, WebhookRoutes
from .state import State
from .times import Clock
from .webhooks import Webhooks

__all__ = ["App", "Receive", "Scope", "Send"]

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PAGE_FAULTS = frozenset(PageFault)
_MALFORMED = b'{"code":true,"description":"","error":[],"data":[{"id":'
_HTML = b"<!DOCTYPE html><html><head><title>Maintenance</title></head><body><h1>Back soon</h1></body></html>"
_PDF = b"%PDF-1.4\n% a synthetic document of the sandbox\n%%EOF\n"


@dataclass(frozen=True, slots=True)
class _Request:
    """What of an HTTP request matters here."""

    method: str
    path: str
    query: str
    authorization: str | None
    version: str | None
    arrived: float
    body: bytes = b""


@dataclass(slots=True)
class App:
    """A NexHealth over `state`. Every part can be reached and changed while it runs."""

    state: State
    auth: Auth
    limits: Limits
    faults: Faults
    requests: RequestLog
    clock: Clock
    api: Api
    webhooks: Webhooks
    stopping: bool = False
    webhook_routes: WebhookRoutes = field(init=False)

    def __post_init__(self) -> None:
        self.webhook_routes = WebhookRoutes(self.webhooks.registry, self.state, self.webhooks.deliveries.discard)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            return
        request = self._read(scope)
        if request.path.startswith("/sandbox/"):
            if request.path == "/sandbox/webhooks":
                await self._until_idle(Query.parse(request.query).get("wait"))
            reply = control(self, request.method, request.path, request.query, await _body(receive))
            await self._send(send, reply)
            return
        if request.method != "GET" and request.path.startswith(ENDPOINTS_PATH):
            request = replace(request, body=await _body(receive))
        api_key = self.auth.owner(request.authorization)
        wait = self.limits.admit(api_key, request.path, request.arrived)
        rule = None if wait else self._fault(request)
        if wait:
            reply = self._throttled(wait, self.limits.retry_after)
        else:
            reply = self._spoilt(rule, request) if rule else self._answer(request)
        if rule and rule.kind in _PAGE_FAULTS and not reply.spoilt:  # a first page can hardly be a repeated one
            self.faults.take_back(rule, request.path, request.query)
            rule = None
        self._log(request, api_key, reply, rule)
        if rule and rule.kind == "hang":
            await self._hang(rule.seconds)
        await self._send(send, reply, cut=rule is not None and rule.kind == "cut")

    def _read(self, scope: Scope) -> _Request:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEADERS}
        return _Request(
            scope["method"],
            scope["path"],
            scope["query_string"].decode("latin-1"),
            headers.get(b"authorization"),
            headers.get(b"nex-api-version"),
            self.clock(),
        )

    def _fault(self, request: _Request) -> FaultRule | None:
        return self.faults.choose(request.method, request.path, request.query)

    def _answer(self, request: _Request, fault: PageFault | None = None) -> Reply:
        try:
            return self._route(request, fault)
        except ApiError as error:
            return failure(error.status, error.messages)
        except Exception:  # a record broken on purpose may break a filter: the real server would answer 500 too
            logger.exception("the sandbox could not answer", extra={"nexhealth": {"path": request.path}})
            return failure(500, ["Internal server error"])

    def _route(self, request: _Request, fault: PageFault | None) -> Reply:
        check_version(request.version)
        if request.path == "/authenticates":
            return self._authenticate(request)
        access = self.auth.access(request.authorization)
        if request.path.startswith(ENDPOINTS_PATH):
            return self._webhook_answer(request, access)
        if request.method != "GET":
            known = find_route(request.path) is not None
            raise ApiError(405 if known else 404, f"No route matches {request.method} {request.path}")
        if request.path.startswith("/documents/"):
            return self._download(request.path, access.subdomains)
        return self.api.answer(request.path, request.query, allowed=access.subdomains, fault=fault)

    def _webhook_answer(self, request: _Request, access: Access) -> Reply:
        return self.webhook_routes.answer(request.method, request.path, request.query, request.body, access)

    def _authenticate(self, request: _Request) -> Reply:
        if request.method != "POST":
            raise ApiError(405, "No route matches GET /authenticates")
        token = self.auth.issue(request.authorization or "")
        return one(orjson.dumps({"token": token}), "Authenticated", LEGACY_JSON, status=201)

    def _download(self, path: str, allowed: frozenset[str] | None) -> Reply:
        """The file behind a document's url; the route is not in the vendor's specification."""
        number = path.removeprefix("/documents/").removesuffix("/download")
        row = self.state.store("documents").rows.get(int(number)) if number.isdecimal() else None
        if row is None:
            raise ApiError(404, "Document not found")
        home = self.state.row("institutions", row.institution_id).facts["subdomain"]
        if allowed is not None and home not in allowed:
            raise ApiError(403, "You don't have access to perform this action")
        return Reply(200, _PDF, row.value("type"))

    def _spoilt(self, rule: FaultRule, request: _Request) -> Reply:
        """The answer a fault makes of this request."""
        match rule.kind:
            case "status":
                return failure(rule.status, [rule.message])
            case "throttle":
                return self._throttled(rule.seconds, rule.retry_after)
            case "malformed":
                return Reply(200, _broken(self._answer(request).body))
            case "garbled":
                return Reply(200, _garbled(self._answer(request).body))
            case "wrong_object" | "null_data":
                return Reply(200, _with(self._answer(request).body, data=_STRANGER[rule.kind]))
            case "ignored_parameter":
                return self._ignoring(rule.parameter, request)
            case "html":
                return Reply(200, _HTML, "text/html; charset=utf-8")
            case "code_false":
                return failure(200, [rule.message])
            case "token_expired":
                self.auth.revoke(request.authorization)
                return failure(401, ["Signature has expired"])
            case "redirect":
                return Reply(302, b"", headers=(("Location", rule.target),))
        return self._answer(request, PageFault(rule.kind) if rule.kind in _PAGE_FAULTS else None)

    def _ignoring(self, parameter: str, request: _Request) -> Reply:
        """The answer to the same request without a parameter, saying so (API.md C.1)."""
        kept = [(name, value) for name, value in parse_qsl(request.query, keep_blank_values=True) if name != parameter]
        reply = self._answer(replace(request, query=urlencode(kept)))
        if reply.status != 200:
            return reply
        said = f"The {parameter.removesuffix('[]')} parameter is not supported by this endpoint and was ignored"
        return replace(reply, body=_with(reply.body, description=said))

    def _throttled(self, seconds: float, form: str) -> Reply:
        headers: tuple[tuple[str, str], ...] = ()
        if form == "seconds":
            headers = (("Retry-After", str(math.ceil(seconds))),)
        elif form == "date":
            headers = (("Retry-After", formatdate(math.ceil(self.clock() + seconds), usegmt=True)),)
        return failure(429, ["Rate limit exceeded"], headers)

    async def _hang(self, seconds: float) -> None:
        """Wait (real time, whatever the clock says), but not past the end of the server."""
        end = time.monotonic() + seconds
        while not self.stopping and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.05))

    async def _until_idle(self, text: str | None) -> None:
        """Wait up to `text` seconds of real time for the deliveries; other requests are answered meanwhile."""
        end = time.monotonic() + min(float(text or 0), 600) if (text or "0").replace(".", "", 1).isdecimal() else 0.0
        while not self.stopping and not self.webhooks.idle and time.monotonic() < end:
            await asyncio.sleep(0.01)

    def _log(self, request: _Request, api_key: str, reply: Reply, rule: FaultRule | None) -> None:
        self.requests.add(
            arrived=request.arrived,
            method=request.method,
            path=request.path,
            query=request.query,
            api_key=api_key,
            status=reply.status,
            records=reply.records,
            bytes=len(reply.body),
            fault=rule.kind if rule else None,
        )

    async def _send(self, send: Send, reply: Reply, *, cut: bool = False) -> None:
        """Send an answer; a cut one promises its whole length and returns in the middle, so the server hangs up."""
        promised = max(len(reply.body), 2) if cut else len(reply.body)
        described = [(b"content-type", reply.content_type.encode()), (b"content-length", str(promised).encode())]
        headers = [
            *(described if reply.status != 204 else ()),
            (b"date", formatdate(self.clock(), usegmt=True).encode()),
            *((name.lower().encode(), value.encode()) for name, value in reply.headers),
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        body = reply.body[: len(reply.body) // 2] if cut else reply.body
        await send({"type": "http.response.body", "body": body, "more_body": cut})


_HEADERS = frozenset({b"authorization", b"nex-api-version"})


def _broken(body: bytes) -> bytes:
    """Half of an answer: no JSON parser takes it."""
    return body[: len(body) // 2] if len(body) > 200 else _MALFORMED


def _garbled(body: bytes) -> bytes:
    """An answer in which one record has lost its id, whose name holds a byte that is no UTF-8."""
    return body.replace(b'"id"', b'"\xffd"', 1)


_STRANGER = {"wrong_object": {"status": "ok"}, "null_data": None}


def _with(body: bytes, **fields: object) -> bytes:
    """An answer that says something else."""
    return orjson.dumps(orjson.loads(body) | fields)


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)
