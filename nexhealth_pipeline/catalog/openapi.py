"""A vendor's OpenAPI file against the declarations: what a newer version of the API would change for us.

Which schema belongs to a collection follows from the path of its declaration. What the catalog leaves out
on purpose is listed here with its reason, so that only news is told.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from nexhealth_pipeline.catalog.collection import Collection, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["KNOWN_INCLUDES", "NOT_ASKED", "NOT_COPIED", "NOT_HEARD", "Difference", "compare"]

Node = dict[str, Any]

_ACCOUNTS = "about accounts, not about the practice"

NOT_COPIED: dict[str, str] = {
    "/appointments/{}/appointment_descriptors": (
        "a request for each visit; the location's list has all descriptors, but not which of them a visit has"
    ),
    "/appointment_types/{}/appointment_descriptors": (
        "the same as `descriptors` of the types' own list, with a request for each type and location"
    ),
    "/available_slots": "computed for each question, nothing to keep",
    "/onboardings": _ACCOUNTS,
    "/webhook_endpoints": "settings of the receiver, with its secret",
    "/webhook_endpoints/{}/webhook_subscriptions": "settings of the receiver",
}
"""Lists that no collection reads, and why; `{}` stands for an id."""

NOT_ASKED: dict[tuple[str, str], str] = {
    ("/appointment_types", "descriptors"): (
        "which of the location's descriptors a kind of visit has: that differs by location, and a type is one row for all"
    ),
    ("/appointments/{}", "booking_details"): (
        "how a visit was booked online, and by which campaign: a request for each visit"
    ),
    ("/insurance_plans/{}", "fee_schedule"): "which price list a plan goes by: a request for each plan",
    ("/operatories", "appt_categories"): "the API does not say what it would bring",
    ("/providers", "appointment_types"): (
        "which kinds of visit a provider takes; `nexhealth_working_hours` has them by provider, room and time"
    ),
}
"""What only a value of `include[]` brings that no sync sends, and why; the others repeat what tables of their own hold."""

_NO_LIST = "no list has its records: what is missed could never be read"
NOT_HEARD: dict[str, str] = {
    "appointment_requested": (
        "the API does not say what it tells, nor that what is asked for is a visit: of one, `appointment_created` tells"
    ),
    "form_response_insertion": _NO_LIST,
    "message_created": _NO_LIST,
    "message_updated": _NO_LIST,
    "onboarding_availability_ready": _ACCOUNTS,
    "onboarding_created": _ACCOUNTS,
    "onboarding_updated": _ACCOUNTS,
    "procedure_code_created": _NO_LIST,
    "procedure_code_deleted": _NO_LIST,
    "procedure_code_updated": _NO_LIST,
}
"""Webhook events that feed no collection, and why."""

_PERSONS = frozenset({"guarantor", "patient", "provider"})
KNOWN_INCLUDES: dict[str, frozenset[str]] = {
    "/adjustments/{}": _PERSONS | {"adjustment_type", "charge", "claim"},
    "/appointment_types": frozenset({"descriptors"}),
    "/appointment_types/{}": frozenset({"descriptors"}),
    "/appointments/{}": frozenset(
        {
            *("appointment_type", "booking_details", "descriptors", "guarantor", "operatory", "patient"),
            "procedures",
        }
    ),
    "/charges": frozenset({"claim_payouts"}),
    "/charges/{}": _PERSONS | {"claim_payouts", "claims", "procedure", "totals"},
    "/claims/{}": _PERSONS | {"charge_payouts", "charges"},
    "/fee_schedules/{}": frozenset({"procedure_fees"}),
    "/guarantor_balances/{}": frozenset({"guarantor"}),
    "/insurance_plans/{}": frozenset({"fee_schedule", "patient_coverages", "subscribers"}),
    "/operatories": frozenset({"appointment_types", "appt_categories"}),
    "/operatories/{}": frozenset({"appointment_types", "appt_categories"}),
    "/patients/{}": frozenset(
        {
            *("address", "adjustments", "charges", "children", "guarantor", "insurance_coverages"),
            *("last_visited_appointment", "patient_alerts", "payments", "procedures", "provider", "upcoming_appts"),
        }
    ),
    "/payment_plans/{}": frozenset({"guarantor", "patient"}),
    "/payments/{}": _PERSONS | {"charge", "claim", "payment_plan", "payment_type"},
    "/providers": frozenset({"appointment_types", "availabilities", "locations"}),
    "/providers/{}": frozenset({"appointment_types", "availabilities", "locations"}),
    "/working_hours": frozenset({"appointment_types"}),
    "/working_hours/{}": frozenset({"appointment_types"}),
}
"""Values of `include[]` in v3.0.0, of lists and single reads: which of them are asked for was decided."""

_TYPES: dict[SqlType, set[str]] = {
    SqlType.BIGINT: {"integer", "string"},
    SqlType.TEXT: {"string"},
    SqlType.BOOLEAN: {"boolean"},
    SqlType.TIMESTAMPTZ: {"string"},
    SqlType.DATE: {"string"},
    SqlType.NUMERIC: {"string", "number", "integer"},
    SqlType.DOUBLE: {"number", "integer"},
    SqlType.JSONB: {"object", "array"},
}
"""Types of the API that a column can hold."""
_OF_PAGES = {"end_cursor", "page", "per_page", "sort", "start_cursor"}
"""Parameters whose default hides no row of a list that is read to its end."""
_SUBSCRIPTIONS = "/webhook_endpoints/{}/webhook_subscriptions"
_EITHER = ("anyOf", "oneOf")
_REFUSED = "the API refuses requests without it"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT")
_DEEPEST = 30
"""References followed in a row: a file may hold a circle."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One way in which the file is not what the catalog says."""

    kind: str
    """`endpoint`, `parameter`, `value`, `include`, `field` or `event`, then `new`, `missing`, `required` or `retyped`."""
    where: str
    """The path, or the collection; of an event that is new, the event."""
    name: str
    message: str
    """What it means for the copy."""


def compare(spec: Node) -> list[Difference]:
    """Every difference between a parsed OpenAPI file and the catalog; empty = the catalog fits it.

    Raises ValueError where `spec` is no OpenAPI file.
    """
    if not _has_paths(spec):
        raise ValueError("it has no `paths`")
    file = _File(spec)
    found = [*_new_lists(file), *_other_includes(file), *_of_single_reads(file), *_events(file)]
    for collection in DECLARED:
        found += _of_collection(file, collection)
    return found


def _has_paths(spec: object) -> bool:
    return isinstance(spec, dict) and isinstance(spec.get("paths"), dict)


class _File:
    """An OpenAPI file: its reads by path, with references resolved."""

    def __init__(self, spec: Node) -> None:
        self._spec = spec
        self.reads: dict[str, Node] = {}
        self._shared: dict[str, list[Node]] = {}
        """Parameters of all operations of a path."""
        for path, item in spec["paths"].items():
            if isinstance(item, dict) and isinstance(item.get("get"), dict):
                self.reads[_bare(path)], self._shared[_bare(path)] = item["get"], item.get("parameters") or []

    def resolved(self, node: object, within: tuple[int, ...] = ()) -> Node:
        """`node` without references, its `allOf` or `anyOf` merged; an empty one where it leads nowhere.

        `within`: the nodes that it is a part of. Raises ValueError where it is a part of itself.
        """
        for _ in range(_DEEPEST):
            if not isinstance(node, dict) or "$ref" not in node:
                break
            node = self._target(str(node["$ref"]))
        if not isinstance(node, dict) or "$ref" in node:
            return {}
        if not node.keys() & {"allOf", *_EITHER}:
            return node
        if id(node) in within:
            raise ValueError("a schema is a part of itself by its `allOf` or `anyOf`")
        within = (*within, id(node))
        properties = dict(node.get("properties", {}))
        if "allOf" in node:
            for part in node["allOf"]:
                properties |= self.resolved(part, within).get("properties", {})
            return {**node, "type": "object", "properties": properties}
        return self._any_of([self.resolved(one, within) for name in _EITHER for one in node.get(name, ())], node)

    def _any_of(self, choices: list[Node], node: Node) -> Node:
        """`node` with what the choices say, but null: what may be null, OpenAPI 3.1 writes as a choice of two."""
        said = _united([one for one in choices if one.get("type") != "null"])
        own = {name: value for name, value in node.items() if name not in _EITHER}
        properties = said.get("properties", {}) | own.get("properties", {})
        return {**said, **own} | ({"properties": properties} if properties else {})

    def _target(self, reference: str) -> object:
        node: object = self._spec
        for part in reference.removeprefix("#/").split("/"):
            node = node.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
        return node

    def parameters(self, path: str) -> dict[str, Node]:
        """Query parameters of a read, by name."""
        found = [self.resolved(one) for one in (*self._shared[path], *(self.reads[path].get("parameters") or []))]
        return {str(one["name"]): one for one in found if one.get("in") == "query" and "name" in one}

    def data(self, path: str) -> Node:
        """Schema of `data` in the answer of a read."""
        answer = self.resolved(self.reads[path].get("responses", {}).get("200", {}))
        media: Node = next(iter(answer.get("content", {}).values()), {})
        return self.resolved(self.properties(self.resolved(media.get("schema", {}))).get("data", {}))

    def properties(self, node: Node) -> Node:
        """Properties of an object; of a free one (a patient's `bio`) those that its example shows."""
        if "properties" in node or not isinstance(node.get("example"), dict):
            return dict(node.get("properties", {}))
        kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}
        return {
            name: {"type": kinds.get(type(value), "object"), "example": value}
            for name, value in node["example"].items()
        }

    def inside(self, node: Node, names: Iterable[str]) -> Node:
        """The schema below `names`, through lists."""
        node = self._element(node)
        for name in names:
            node = self._element(self.resolved(self.properties(node).get(name, {})))
        return node

    def _element(self, node: Node) -> Node:
        return self.resolved(node.get("items", {})) if "array" in _kinds(node) else node


def _kinds(node: Node) -> set[str]:
    """Types of a value that is not null; OpenAPI 3.1 writes one that may be null as a list of two."""
    kinds = node.get("type", "object")
    return {str(one) for one in kinds} - {"null"} if isinstance(kinds, list) else {str(kinds)}


def _united(choices: list[Node]) -> Node:
    """What holds of a value that is any of the choices: none of them must speak for all."""
    united: Node = {}
    properties: Node = {}
    for one in choices:
        united |= one
        properties |= one.get("properties", {})
    if properties:  # an empty one would hide those of an example
        united["properties"] = properties
    united["type"] = sorted({kind for one in choices for kind in _kinds(one)})
    if len({one.get("format") for one in choices}) > 1:
        united.pop("format", None)
        if isinstance(united.get("example"), str):  # it would show the format of one
            del united["example"]
    enums: list[list[object]] = [one.get("enum") or [] for one in choices if "array" not in _kinds(one)]
    united["enum"] = [value for enum in enums for value in enum] if all(enums) else []
    items = [one["items"] for one in choices if "items" in one]
    return united | ({"items": {"anyOf": items}} if len(items) > 1 else {})


def _bare(path: str) -> str:
    """A path whose placeholders have no names."""
    return re.sub(r"\{[^}]*\}", "{}", path)


def _new_lists(file: _File) -> Iterator[Difference]:
    """Lists of the file that nothing reads."""
    read = {_bare(one.path) for one in DECLARED} | NOT_COPIED.keys()
    for path in sorted(file.reads.keys() - read):
        if "array" in _kinds(file.data(path)):
            yield Difference("endpoint new", path, path, "a list that no collection reads")


def _other_includes(file: _File) -> Iterator[Difference]:
    """Of single reads that no collection makes: they may show what is nowhere else."""
    made = {_bare(one.path) for one in DECLARED}
    for path in sorted(one for one in file.reads.keys() - made if one.endswith("/{}")):
        yield from _includes(file, path, path)


def _of_single_reads(file: _File) -> Iterator[Difference]:
    """Fields that a single read of a collection's rows has and its list has not."""
    by_path = {_bare(one.path): one for one in DECLARED if one.inside is None}
    for path in sorted(one for one in file.reads if one.endswith("/{}")):
        within = path.removesuffix("/{}")
        collection = by_path.get(within)
        if collection is None or within not in file.reads:
            continue
        listed = file.properties(file.inside(file.data(within), collection.records_at)).keys()
        known = {*collection.single_only, *(column.path[0] for column in collection.columns)}
        known |= KNOWN_INCLUDES.get(path, frozenset())
        for name in sorted(file.properties(file.inside(file.data(path), ())).keys() - listed - known):
            yield Difference("field new", path, name, "the list has it not, and no column holds it")


def _events(file: _File) -> Iterator[Difference]:
    """Webhook events that can be subscribed to, or no longer can."""
    if _SUBSCRIPTIONS not in file.reads:
        return
    offered = _enum(file, file.parameters(_SUBSCRIPTIONS).get("event", {}))
    heard = {name: one.name for one in DECLARED if one.events for name in one.events.names}
    for name in sorted(offered - heard.keys() - NOT_HEARD.keys()):
        yield Difference("event new", name, name, "nothing subscribes to it")
    for name in sorted(heard.keys() - offered) if offered else ():
        yield Difference("event missing", heard[name], name, "it is subscribed to, and no longer offered")
    kinds = _enum(file, file.parameters(_SUBSCRIPTIONS).get("resource_type", {}))
    for one in DECLARED if kinds else ():
        if one.events and one.events.resource_type not in kinds:
            told = "subscriptions name it, and it is no longer allowed"
            yield Difference("value missing", one.name, f"resource_type={one.events.resource_type}", told)


def _of_collection(file: _File, collection: Collection) -> Iterator[Difference]:
    if collection.by_id is not None:
        yield from _confirming(file, collection.name, _bare(collection.by_id))
    path = _bare(collection.path)
    if path not in file.reads:
        yield Difference("endpoint missing", collection.name, path, "the collection cannot be read any more")
        return
    if collection.is_asset:
        yield from _parameters(file, collection, path)
        yield from _includes(file, collection.name, path)
    yield from _fields(file, collection, path)


def _confirming(file: _File, name: str, path: str) -> Iterator[Difference]:
    """Of the single read whose 404 says that a row is gone."""
    if path not in file.reads:
        yield Difference("endpoint missing", name, path, "it would answer 404 for every row, as if all were gone")
        return
    for parameter, said in sorted(file.parameters(path).items()):
        if said.get("required") and parameter != "subdomain":
            yield Difference("parameter required", path, parameter, _REFUSED)


def _asked(collection: Collection) -> dict[str, set[str]]:
    """Parameters that a sync sends, with the values it sends where they are fixed."""
    asked: dict[str, set[str]] = {}
    for pass_ in collection.passes:
        for name, value in pass_.params:
            asked.setdefault(name, set()).add(value)
    if collection.sort:
        asked["sort"] = {collection.sort}
    window = (collection.window.start, collection.window.end) if collection.window else ()
    by_filter = [parameter for _, parameter in collection.filters]
    for name in (collection.increment, collection.patient_filter, collection.guarantor_filter, *window, *by_filter):
        if name is not None:
            asked.setdefault(name, set())
    if collection.paging is Paging.CURSOR:
        asked |= {"end_cursor": set(), "per_page": set()}
    elif collection.paging is Paging.PAGE:
        asked |= {"page": set(), "per_page": set()}
    located = collection.scope in (Scope.LOCATION, Scope.LOCATION_MONTH) or collection.per_location_if
    if located and not collection.per and "{location_id}" not in collection.path:
        asked["location_id"] = set()
    return asked


def _parameters(file: _File, collection: Collection, path: str) -> Iterator[Difference]:
    known, asked = file.parameters(path), _asked(collection)
    for name in sorted(asked.keys() - known.keys()):
        yield Difference(
            "parameter missing", collection.name, name, "it is sent, and what the API does not know it ignores"
        )
    for name in sorted(known.keys() - asked.keys() - {"subdomain"}):
        if known[name].get("required"):
            yield Difference("parameter required", collection.name, name, _REFUSED)
        elif name not in _OF_PAGES and _may_hide(name, file.resolved(known[name].get("schema", {}))):
            yield Difference("parameter new", collection.name, name, "without it rows may be hidden")
    for name in sorted(asked.keys() & known.keys()):
        allowed = _enum(file, known[name])
        for value in sorted(asked[name] - allowed) if allowed else ():
            yield Difference("value missing", collection.name, f"{name}={value}", "it is sent, and no longer allowed")


def _may_hide(name: str, schema: Node) -> bool:
    """Whether a list may leave out rows where the parameter is not sent: not every such one says its default."""
    by_name = name.startswith(("include_", "show_")) and _kinds(schema) == {"boolean"}
    return by_name or schema.get("default") is not None


def _includes(file: _File, where: str, path: str) -> Iterator[Difference]:
    offered = _enum(file, file.parameters(path).get("include[]", {}))
    for value in sorted(offered - KNOWN_INCLUDES.get(path, frozenset())):
        yield Difference("include new", where, value, "the API can deliver more with each record")


def _enum(file: _File, parameter: Node) -> set[str]:
    """Values that a parameter may have, as they are sent; empty = any."""
    schema = file.resolved(parameter.get("schema", {}))
    schema = file.resolved(schema["items"]) if "items" in schema else schema
    return {str(value) for value in schema.get("enum", ())}


def _fields(file: _File, collection: Collection, path: str) -> Iterator[Difference]:
    entity = file.inside(file.data(path), _records_at(collection))
    declared = {column.path: column for column in collection.columns}
    for place, column in declared.items():
        node = file.inside(entity, place[:-1])
        if place[-1] not in file.properties(node):
            name = ".".join(place)
            yield Difference("field missing", collection.name, name, f"column {column.name} gets no new values")
            continue
        node = file.resolved(file.properties(node)[place[-1]])
        if not _holds(column.type, node):
            kind = node.get("format") or " or ".join(sorted(_kinds(node)))
            message = f"column {column.name} is {column.type.value}, the field is {kind}"
            yield Difference("field retyped", collection.name, ".".join(place), message)
    for place in _leaves(file, entity, (), set(declared)):
        if place not in declared and place not in _left_out(collection):
            yield Difference("field new", collection.name, ".".join(place), "it is in `raw`, no column holds it")


def _records_at(collection: Collection) -> tuple[str, ...]:
    """Where the records stand below `data`; those inside other records stand below these."""
    if collection.inside is None:
        return collection.records_at
    return (*_records_at(COLLECTIONS[collection.inside]), *collection.records_at)


def _left_out(collection: Collection) -> set[tuple[str, ...]]:
    """Fields that no column holds on purpose: the key, what is too sensitive, tables of their own, what must be included."""
    children = (one.records_at for one in DECLARED if one.inside == collection.name)
    included = ((name,) for name in KNOWN_INCLUDES.get(_bare(collection.path), ()))
    return {("institution_id",), *collection.sensitive, *children, *included}


def _holds(type_: SqlType, node: Node) -> bool:
    """Whether a column of `type_` can hold what the schema describes."""
    if not _kinds(node) <= _TYPES[type_]:
        return False
    is_time = node.get("format") == "date-time" or _TIME.match(str(node.get("example", ""))) is not None
    return is_time == (type_ is SqlType.TIMESTAMPTZ)


def _leaves(file: _File, node: Node, place: tuple[str, ...], declared: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths of fields; inside an object only where its fields are declared one by one."""
    found: list[tuple[str, ...]] = []
    for name, inner in file.properties(node).items():
        below = (*place, name)
        if any(len(one) > len(below) and one[: len(below)] == below for one in declared):
            found += _leaves(file, file.resolved(inner), below, declared)
        else:
            found.append(below)
    return found
