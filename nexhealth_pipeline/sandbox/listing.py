"""Which rows a list holds, and in which order."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

from .access import institutions_of, patient_of
from .call import Call
from .cursor import query_mark
from .reply import ApiError
from .route import Scope
from .rows import Record, Row
from .state import State
from .store import Order, View

__all__ = ["listed_at", "mark_of", "unlisted", "view_of"]

_PAGING = frozenset({"per_page", "page", "start_cursor", "end_cursor"})


def listed_at(place: Row, row: Row) -> bool:
    """Whether a location lists a row: its own, and those of its EHR database that name no location [guess]."""
    number = row.facts.get("location_id")
    if number is not None:
        return bool(number == place.id)
    return bool(row.facts.get("database") == place.facts["database"])


def unlisted(state: State, patient: Row, now: str) -> bool:
    """Whether lists leave a patient out: a new one without an appointment ahead (the vendor's text of `new_patient`)."""
    if not patient.facts["bio.new_patient"]:
        return False
    visits = (row.facts for row in state.store("appointments").find("patient_id", patient.id))
    return not any(str(one["start_time"]) > now and not one["cancelled"] and not one["deleted"] for one in visits)


def mark_of(call: Call) -> bytes:
    """A fingerprint of everything that decides which rows the list has."""
    settled = [
        (name, value) for name, values in call.query.values.items() for value in values if name not in _PAGING and value
    ]
    path = call.route.path if call.number is None else f"{call.route.path}#{call.number}"
    return query_mark(path, settled)


def view_of(state: State, call: Call, mark: bytes, now: str) -> View:
    """The rows of a list, filtered and sorted. Raises ApiError 400 for a value that cannot be meant."""
    values, order = _values(state, call), _order(call)
    name = mark + repr(sorted(call.allowed or ())).encode()
    if values.get("ignore_past_dates"):
        name += now[:10].encode()
    if call.route.collection == "patients":  # who is listed changes with the time, which is told to the minute here
        name += f"{now[:16]}#{state.store('appointments').version}".encode()
    if call.route.under[0]:
        name += str(state.store(call.route.under[0]).version).encode()
    return state.store(call.route.collection).view(name, order, partial(_select, state, call, values, now))


def _values(state: State, call: Call) -> Record:
    values = {name: chosen.read(name, call.query) for name, chosen in call.route.filters.items()}
    if values.get("start") and values["start"] > values["end"]:
        raise ApiError(400, "end must not be before start")
    if call.route.collection == "insurance_coverages" and values["patient_id"] is not None:
        patient_of(state, call.scope_id, values["patient_id"])
    return values


def _order(call: Call) -> Order:
    text = (call.query.get("sort") or "") if call.route.sorts else ""
    fields = [field.strip() for field in text.split(",") if field.strip()]
    if not {*fields} <= {*call.route.sorts}:
        raise ApiError(400, "sort does not have a valid value")
    first, *others = fields or ["id"]
    ids = next((field for field in others if field in ("id", "-id")), first)
    return Order(first.lstrip("-"), first.startswith("-"), crossed=ids.startswith("-") != first.startswith("-"))


def _select(state: State, call: Call, values: Record, now: str) -> Iterable[Row]:
    rows = _candidates(state, call, values)
    for name, chosen in call.route.filters.items():
        value = values[name]
        if value is not None:
            rows = filter(partial(_kept, chosen.keep, value), rows)
    if values.get("location_strict"):
        rows = filter(partial(_belongs, call.location_id), rows)
    if call.route.collection == "patients":
        rows = [row for row in rows if not unlisted(state, row, now)]
    if values.get("ignore_past_dates"):
        rows = [row for row in rows if (row.facts["specific_date"] or "~") >= now[:10]]
    if state.store(call.route.collection).kind.hidden_delete:
        rows = [row for row in rows if row.facts.get("deleted_at") is None]
    return rows


def _candidates(state: State, call: Call, values: Record) -> Iterable[Row]:
    """The rows a list chooses from, by the narrowest index."""
    route, store = call.route, state.store(call.route.collection)
    if route.under[0]:
        return _under(state, call)
    if route.scope is Scope.KEY:
        return [row for home in institutions_of(state, call) for row in store.find("institution_id", home.id)]
    if route.collection == "nex_staff":
        return [row for row in store.rows.values() if call.scope_id in row.facts["inst_ids"]]
    if values.get("patient_ids[]"):
        return [row for number in values["patient_ids[]"] for row in _own(call, store.find("patient_id", number))]
    for name in route.narrow:
        if values.get(name) is not None:
            rows = _own(call, store.find(name, values[name]))
            return [row for row in rows if listed_at(call.location, row)] if _located(call) and call.location else rows
    return _at(state, call) if _located(call) else store.find("institution_id", call.scope_id)


def _located(call: Call) -> bool:
    return call.route.scope is Scope.LOCATION


def _at(state: State, call: Call) -> Iterable[Row]:
    """Rows of the request's location; of patients, those of its EHR database."""
    store, place = state.store(call.route.collection), call.location
    if place is None:
        raise ApiError(400, "Missing parameter location_id")
    if call.route.collection == "patients":
        return store.find("database", place.facts["database"])
    loose = _own(call, store.find("location_id", None))
    return [*store.find("location_id", place.id), *(row for row in loose if listed_at(place, row))]


def _under(state: State, call: Call) -> Iterable[Row]:
    """Rows of the row that the path names; an appointment's descriptors are those of its type at its location."""
    store, (parent, fact) = state.store(call.route.collection), call.route.under
    if parent != "appointments":
        return store.find(fact, call.number)
    visit = state.row("appointments", call.number or 0)
    rows = store.find("appointment_type_id", visit.value("appointment_type_id") or 0)
    return [row for row in rows if row.facts["location_id"] == visit.facts["location_id"]]


def _own(call: Call, rows: Iterable[Row]) -> list[Row]:
    return [row for row in rows if row.institution_id == call.scope_id]


def _kept(keep: Callable[[Row, Any], bool], value: Any, row: Row) -> bool:
    return keep(row, value)


def _belongs(location_id: int | None, row: Row) -> bool:
    homes: Collection[int] = row.facts["location_ids"]
    return location_id in homes
