"""Answers one GET: who may ask, what must be said, which rows, in which pages. Knows nothing of HTTP connections.

The order of checks: unknown path 404, missing parameters 400 (one message each), institution 403, location 404,
bad values 400, unknown ids 404.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from .cursor import decode_cursor, encode_cursor, query_mark
from .params import Query, parse_int
from .reply import JSON, LEGACY_JSON, ApiError, Reply, many, one
from .routes import Route, Scope, find_route
from .rows import Record, Row
from .shapes import list_shape, location_groups, single_shape
from .state import NoSuchRowError, State
from .store import Order, Slice, View

__all__ = ["MAX_PER_PAGE", "Api", "PageFault", "check_version"]

DEFAULT_PER_PAGE, MAX_PER_PAGE = 5, 1000
_FORBIDDEN = "You don't have access to perform this action"
_VERSIONS = frozenset({"v3.0.0", "v20240412"})
_PAGING = frozenset({"per_page", "start_cursor", "end_cursor"})


class PageFault(StrEnum):
    """A way for a cursor page to be wrong."""

    REPEATED = "repeated_page"
    """The rows of the page before, under this page's cursors."""
    LOOP = "cursor_loop"
    """The right rows, but the cursor does not move and more is claimed."""
    EMPTY = "empty_page"
    """No rows, but more is claimed."""


@dataclass(slots=True)
class _Call:
    """One request, as far as it is understood."""

    route: Route
    query: Query
    number: int | None
    allowed: frozenset[str] | None
    warnings: list[str]
    institution: Row | None = None
    location_id: int | None = None
    includes: tuple[str, ...] = ()

    @property
    def scope_id(self) -> int:
        """The institution the request is scoped to."""
        if self.institution is None:
            raise ApiError(400, "Missing parameter subdomain")
        return self.institution.id


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
        route, known, number = found
        call = _Call(route, Query.parse(raw_query), number, allowed, [])
        with self._state.lock:
            self._check(call, known)
            if route.single:
                return self._single(call)
            return self._cursor_page(call, fault) if route.cursor else self._whole_list(call)

    def _check(self, call: _Call, known: frozenset[str]) -> None:
        self._check_present(call)
        self._check_unknown(call, known)
        self._find_institution(call)
        self._find_location(call)
        if call.route.collection == "documents":
            self._patient(call, call.number)

    def _check_present(self, call: _Call) -> None:
        route, query = call.route, call.query
        needed: tuple[str, ...] = () if route.scope is Scope.KEY else ("subdomain",)
        needed += ("location_id",) if route.scope is Scope.LOCATION else ()
        missing = [f"Missing parameter {name}" for name in (*needed, *route.required) if query.get(name) is None]
        if route.one_of and not any(query.get(name) for name in route.one_of):
            missing.append(f"Missing parameter: at least one of {', '.join(route.one_of)} is required")
        if missing:
            raise ApiError(400, *missing)

    def _check_unknown(self, call: _Call, known: frozenset[str]) -> None:
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

    def _find_institution(self, call: _Call) -> None:
        subdomain = call.query.get("subdomain")
        if subdomain is None or (call.route.scope is Scope.KEY and call.route.single):
            return
        if call.allowed is not None and subdomain not in call.allowed:
            raise ApiError(403, _FORBIDDEN)
        try:
            call.institution = self._state.institution(subdomain)
        except NoSuchRowError:
            raise ApiError(403, _FORBIDDEN) from None

    def _find_location(self, call: _Call) -> None:
        text = call.query.get("location_id")
        if text is None or call.institution is None:
            return
        number = parse_int("location_id", text)
        place = self._state.store("locations").rows.get(number)
        if place is None or place.institution_id != call.institution.id or place.facts["inactive"]:
            raise ApiError(404, f"Location with id {number} not found")
        call.location_id = number

    def _patient(self, call: _Call, number: int | None) -> Row:
        row = self._state.store("patients").rows.get(number or 0)
        if row is None or row.institution_id != call.scope_id:
            raise ApiError(404, f"Patient with id {number} not found")
        return row

    def _institutions(self, call: _Call) -> list[Row]:
        """The institutions of a key-wide request."""
        if call.institution is not None:
            return [call.institution]
        rows = sorted(self._state.store("institutions").rows.values(), key=lambda row: row.id)
        return [row for row in rows if call.allowed is None or row.facts["subdomain"] in call.allowed]

    def _candidates(self, call: _Call, values: Record) -> Iterable[Row]:
        """The rows a list chooses from, by the narrowest index."""
        route, store = call.route, self._state.store(call.route.collection)
        if route.scope is Scope.KEY:
            return [row for home in self._institutions(call) for row in store.find("institution_id", home.id)]
        match route.collection:
            case "patients":
                place = self._state.row("locations", call.location_id or 0)
                return store.find("database", place.facts["database"])
            case "documents":
                return store.find("patient_id", call.number)
            case "operatories" | "document_types":
                return store.find("location_id", call.location_id)
            case "appointments" if values.get("patient_ids[]"):
                return [row for number in values["patient_ids[]"] for row in self._of(call, "patient_id", number)]
            case "appointments" if call.location_id:
                return store.find("location_id", call.location_id)
            case "insurance_coverages" if values.get("patient_id") is not None:
                return store.find("patient_id", self._patient(call, values["patient_id"]).id)
        return store.find("institution_id", call.scope_id)

    def _of(self, call: _Call, fact: str, value: Any) -> list[Row]:
        rows = self._state.store(call.route.collection).find(fact, value)
        return [row for row in rows if row.institution_id == call.scope_id]

    def _select(self, call: _Call, values: Record) -> Iterable[Row]:
        rows = self._candidates(call, values)
        for name, chosen in call.route.filters.items():
            value = values[name]
            if value is not None:
                rows = filter(partial(_kept, chosen.keep, value), rows)
        if values.get("location_strict"):
            rows = filter(partial(_belongs, call.location_id), rows)
        return rows

    def _values(self, call: _Call) -> Record:
        values = {name: chosen.read(name, call.query) for name, chosen in call.route.filters.items()}
        if values.get("start") and values["start"] > values["end"]:
            raise ApiError(400, "end must not be before start")
        if values.get("patient_id") is not None:
            self._patient(call, values["patient_id"])
        return values

    def _order(self, call: _Call) -> Order:
        text = (call.query.get("sort") or "").split(",")[0].strip() if call.route.sorts else ""
        if text and text not in call.route.sorts:
            raise ApiError(400, "sort does not have a valid value")
        return Order(text.lstrip("-") or "id", text.startswith("-"))

    def _mark(self, call: _Call) -> bytes:
        settled = [
            (name, value)
            for name, values in call.query.values.items()
            for value in values
            if name not in _PAGING and value
        ]
        path = call.route.path if call.number is None else f"{call.route.path}#{call.number}"
        return query_mark(path, settled)

    def _view(self, call: _Call, mark: bytes) -> View:
        values, order = self._values(call), self._order(call)
        store = self._state.store(call.route.collection)
        return store.view(mark + repr(sorted(call.allowed or ())).encode(), order, partial(self._select, call, values))

    def _whole_list(self, call: _Call) -> Reply:
        route = call.route
        typed = route.collection == "appointment_types"
        rows = self._types(call) if typed else self._view(call, self._mark(call)).rows
        if route.collection == "locations":
            bodies = location_groups(self._state, self._institutions(call), {row.id for row in rows})
        else:
            bodies = [list_shape(self._state, route.collection, row, call.includes, call.location_id) for row in rows]
        return many(bodies, _joined(call.warnings), LEGACY_JSON if route.legacy else JSON, count=len(bodies))

    def _types(self, call: _Call) -> list[Row]:
        """Appointment types: per location where the institution says so, which then must be named."""
        scoped = self._state.row("institutions", call.scope_id).value("appointment_types_location_scoped")
        if call.location_id is None and (scoped or call.includes):
            raise ApiError(400, "Missing parameter location_id")
        parent = call.location_id if scoped else call.scope_id
        rows = self._state.store("appointment_types").find("institution_id", call.scope_id)
        return sorted((row for row in rows if row.facts["parent_id"] == parent), key=lambda row: row.id)

    def _cursor_page(self, call: _Call, fault: PageFault | None) -> Reply:
        mark, size = self._mark(call), _page_size(call.query)
        view = self._view(call, mark)
        forward, backward = call.query.get("end_cursor"), call.query.get("start_cursor")
        key = decode_cursor(self._secret, mark, forward or backward or "") if forward or backward else None
        page = view.before(key, size) if key and not forward else view.after(key, size)
        info = self._page_info(mark, view, page)
        rows = page.rows
        if fault is PageFault.REPEATED and forward and rows:
            rows = view.before(view.order.key(rows[0]), size).rows
        elif fault is PageFault.LOOP:
            info |= {"has_next_page": True, "end_cursor": forward or info["end_cursor"]}
        elif fault is PageFault.EMPTY:
            rows = []
            info |= {"has_next_page": True}
        return self._page(call, rows, info)

    def _page(self, call: _Call, rows: Iterable[Row], info: Record) -> Reply:
        name = call.route.collection
        if name in ("providers", "operatories"):
            bodies = [list_shape(self._state, name, row, call.includes, call.location_id) for row in rows]
        else:
            bodies = [row.body for row in rows]
        return many(bodies, _joined(call.warnings), JSON, page=info)

    def _page_info(self, mark: bytes, view: View, page: Slice) -> Record:
        keys = [view.order.key(row) for row in page.rows[:1] + page.rows[-1:]]
        first, last = (encode_cursor(self._secret, mark, key) for key in keys) if keys else ("", "")
        return {
            "has_previous_page": page.before,
            "has_next_page": page.after,
            "start_cursor": first,
            "end_cursor": last,
        }

    def _single(self, call: _Call) -> Reply:
        route, number = call.route, call.number
        row = self._state.store(route.collection).rows.get(number or 0)
        if row is None or not self._reachable(call, row):
            raise ApiError(404, f"{_singular(route.collection)} with id {number} not found")
        if route.collection == "appointment_types" and "descriptors" in call.includes and call.location_id is None:
            raise ApiError(400, "Missing parameter location_id")
        body = single_shape(self._state, route.collection, row, call.includes, call.location_id, self._now())
        return one(body, _joined(call.warnings), LEGACY_JSON if route.legacy else JSON)

    def _reachable(self, call: _Call, row: Row) -> bool:
        if call.route.scope is Scope.KEY:
            return row.institution_id in {home.id for home in self._institutions(call)}
        if call.route.scope is Scope.LOCATION and row.facts["location_id"] != call.location_id:
            return False
        return row.institution_id == call.scope_id


def check_version(version: str | None) -> None:
    """The version header may be absent (v3.0.0 is the default, API.md D.3). Raises ApiError 400 for another version."""
    if version is not None and version not in _VERSIONS:
        raise ApiError(400, "Nex-Api-Version is not supported by this server: send v3.0.0")


def _kept(keep: Callable[[Row, Any], bool], value: Any, row: Row) -> bool:
    return keep(row, value)


def _belongs(location_id: int | None, row: Row) -> bool:
    homes: Collection[int] = row.facts["location_ids"]
    return location_id in homes


def _page_size(query: Query) -> int:
    text = query.get("per_page")
    size = DEFAULT_PER_PAGE if text is None else parse_int("per_page", text)
    if size < 1:
        raise ApiError(400, "per_page is invalid")
    return min(size, MAX_PER_PAGE)


def _joined(warnings: list[str]) -> str:
    return "; ".join(warnings)


def _singular(collection: str) -> str:
    return collection.removesuffix("s").replace("_", " ").capitalize()
