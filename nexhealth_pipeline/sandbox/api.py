"""Answers one GET: who may ask, what must be said, which rows, in which pages. Knows nothing of HTTP connections.

The order of checks: unknown path 404, missing parameters 400 (one message each), institution 403, location or parent
404, not enabled there 403, bad values 400, unknown ids 404.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from enum import StrEnum

from .access import address, check_enabled, enabled, institutions_of, reachable, singular
from .call import FORBIDDEN, Call
from .cursor import decode_cursor, encode_cursor
from .listing import mark_of, view_of
from .params import Query, parse_int
from .reply import JSON, LEGACY_JSON, ApiError, Reply, many, one
from .route import Scope
from .routes import find_route
from .rows import Record, Row
from .shapes import list_shape, location_groups
from .singles import single_shape
from .state import State
from .store import Slice, View

__all__ = ["MAX_PER_PAGE", "Api", "PageFault", "check_version"]

DEFAULT_PER_PAGE, MAX_PER_PAGE = 5, 1000
_VERSIONS = frozenset({"v3.0.0", "v20240412"})


class PageFault(StrEnum):
    """A way for a cursor page to be wrong."""

    REPEATED = "repeated_page"
    """The rows of the page before, under this page's cursors."""
    LOOP = "cursor_loop"
    """The right rows, but the cursor does not move and more is claimed."""
    EMPTY = "empty_page"
    """No rows, but more is claimed."""


class Api:
    """The read side of NexHealth v3.0.0 over a State."""

    def __init__(self, state: State, secret: bytes, now: Callable[[], str]) -> None:
        self._state = state
        self._secret = secret
        self._now = now

    def answer(
        self, path: str, raw_query: str, *, allowed: frozenset[str] | None = None, fault: PageFault | None = None
    ) -> Reply:
        """Answer a GET; `allowed` are the subdomains of the key (None = all). Raises ApiError."""
        found = find_route(path)
        if found is None:
            raise ApiError(404, f"No route matches GET {path}")
        call = Call(found.route, Query.parse(raw_query), found.number, found.inner, allowed)
        with self._state.lock:
            self._check(call, found.known)
            if call.route.single:
                return self._single(call)
            if call.route.paged:
                return self._numbered_page(call, fault)
            return self._cursor_page(call, fault) if call.route.cursor else self._whole_list(call)

    def _check(self, call: Call, known: frozenset[str]) -> None:
        self._check_present(call)
        self._check_unknown(call, known)
        address(self._state, call)
        check_enabled(self._state, call)

    def _check_present(self, call: Call) -> None:
        route, query = call.route, call.query
        needed: tuple[str, ...] = () if route.scope is Scope.KEY else ("subdomain",)
        needed += ("location_id",) if route.scope is Scope.LOCATION else ()
        missing = [f"Missing parameter {name}" for name in (*needed, *route.required) if query.get(name) is None]
        if route.one_of and not any(query.get(name) for name in route.one_of):
            missing.append(f"Missing parameter: at least one of {', '.join(route.one_of)} is required")
        if missing:
            raise ApiError(400, *missing)

    def _check_unknown(self, call: Call, known: frozenset[str]) -> None:
        ignored = sorted(name for name in call.query.values if name not in known)
        includes = [name for name in ignored if name in ("include", "include[]")]
        if includes:
            call.warnings.append("The include parameter is not supported by this endpoint and was ignored")
        others = [name for name in ignored if name not in includes]
        if others:
            call.warnings.append(f"Ignored unknown parameters: {', '.join(others)}")
        asked = call.query.all("include[]") if "include[]" in known else []
        bad = sorted(set(asked) - set(call.route.includes))
        if bad:
            call.warnings.append(f"Ignored unknown include values: {', '.join(bad)}")
        call.includes = tuple(asked) or call.route.default_includes

    def _whole_list(self, call: Call) -> Reply:
        route = call.route
        typed = route.collection == "appointment_types"
        rows = self._types(call) if typed else self._view(call, mark_of(call)).rows
        if route.collection == "locations":
            bodies = location_groups(self._state, institutions_of(self._state, call), {row.id for row in rows})
        else:
            bodies = [list_shape(self._state, route.collection, row, call.includes, call.location_id) for row in rows]
        return many(bodies, _joined(call.warnings), LEGACY_JSON if route.legacy else JSON, count=len(bodies))

    def _types(self, call: Call) -> list[Row]:
        """Appointment types: per location where the institution says so, which then must be named."""
        scoped = self._state.row("institutions", call.scope_id).value("appointment_types_location_scoped")
        if call.location_id is None and (scoped or call.includes):
            raise ApiError(400, "Missing parameter location_id")
        parent = call.location_id if scoped else call.scope_id
        rows = self._state.store("appointment_types").find("institution_id", call.scope_id)
        return sorted((row for row in rows if row.facts["parent_id"] == parent), key=lambda row: row.id)

    def _view(self, call: Call, mark: bytes) -> View:
        return view_of(self._state, call, mark, self._now())

    def _numbered_page(self, call: Call, fault: PageFault | None) -> Reply:
        size = _size(call.query, call.route.paged)
        number = parse_int("page", call.query.get("page") or "1")
        if number < 1:
            raise ApiError(400, "page is invalid")
        rows = self._view(call, mark_of(call)).rows
        shown = number - 1 if fault is PageFault.REPEATED and number > 1 else number
        bodies = [row.body for row in rows[(shown - 1) * size : shown * size]]
        reply = many(bodies, _joined(call.warnings), LEGACY_JSON if call.route.legacy else JSON, count=len(rows))
        return replace(reply, spoilt=shown != number)

    def _cursor_page(self, call: Call, fault: PageFault | None) -> Reply:
        mark, size = mark_of(call), _size(call.query, MAX_PER_PAGE)
        view = self._view(call, mark)
        forward, backward = call.query.get("end_cursor"), call.query.get("start_cursor")
        key = decode_cursor(self._secret, mark, forward or backward or "") if forward or backward else None
        page = view.before(key, size) if key and not forward else view.after(key, size)
        due = page.rows, self._page_info(mark, view, page)
        rows, info = due
        if fault is PageFault.REPEATED and forward and rows:
            rows = view.before(view.order.key(rows[0]), size).rows
        elif fault is PageFault.LOOP:
            info = info | {"has_next_page": True, "end_cursor": forward or info["end_cursor"]}
        elif fault is PageFault.EMPTY:
            rows, info = [], info | {"has_next_page": True}
        return replace(self._page(call, rows, info), spoilt=(rows, info) != due)

    def _page(self, call: Call, rows: Iterable[Row], info: Record) -> Reply:
        name = call.route.collection
        bodies = [list_shape(self._state, name, row, call.includes, call.location_id) for row in rows]
        return many(bodies, _joined(call.warnings), LEGACY_JSON if call.route.legacy else JSON, page=info)

    def _page_info(self, mark: bytes, view: View, page: Slice) -> Record:
        keys = [view.order.key(row) for row in page.rows[:1] + page.rows[-1:]]
        first, last = (encode_cursor(self._secret, mark, key) for key in keys) if keys else ("", "")
        return {
            "has_previous_page": page.before,
            "has_next_page": page.after,
            "start_cursor": first,
            "end_cursor": last,
        }

    def _single(self, call: Call) -> Reply:
        route, number = call.route, call.number if call.inner is None else call.inner
        row = self._state.store(route.collection).rows.get(number or 0)
        if row is None or not reachable(self._state, call, row):
            raise ApiError(route.unknown, f"{singular(route.collection)} with id {number} not found")
        if not enabled(self._state, route.collection, row):
            raise ApiError(500 if route.unknown == 500 else 403, FORBIDDEN)
        if route.collection == "appointment_types" and "descriptors" in call.includes and call.location_id is None:
            raise ApiError(400, "Missing parameter location_id")
        body = single_shape(self._state, route.collection, row, call.includes, call.location_id, self._now())
        return one(body, _joined(call.warnings), LEGACY_JSON if route.legacy else JSON)


def check_version(version: str | None) -> None:
    """The version header may be absent (v3.0.0 is the default, API.md D.3). Raises ApiError 400 for another version."""
    if version is not None and version not in _VERSIONS:
        raise ApiError(400, "Nex-Api-Version is not supported by this server: send v3.0.0")


def _size(query: Query, most: int) -> int:
    text = query.get("per_page")
    size = DEFAULT_PER_PAGE if text is None else parse_int("per_page", text)
    if size < 1:
        raise ApiError(400, "per_page is invalid")
    return min(size, most)


def _joined(warnings: list[str]) -> str:
    return "; ".join(warnings)
