"""Declarations against the vendor's OpenAPI file: nothing invented, nothing forgotten, hidden rows asked for."""

import ast
import json
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nexhealth_pipeline.catalog import collections as package
from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, Reader, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging

SPEC = Path(__file__).resolve().parents[3] / "shared" / "nexhealth" / "openapi-v3.0.0.json"
with_spec = pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")
each = pytest.mark.parametrize("collection", DECLARED, ids=lambda collection: collection.name)
each_asked = pytest.mark.parametrize(
    "collection", [one for one in DECLARED if one.is_asset], ids=lambda collection: collection.name
)

UNDECLARED: dict[str, dict[str, str]] = {
    "locations": {"institution_id": "is the key column institution_id, read by institution_at"},
    "sync_status": {"institution_id": "is the key column institution_id, read by institution_at"},
    "providers": {
        "tin": "too sensitive to keep",
        "availabilities": "comes only where it is included, and is a table of its own",
        "institution_id": "is the key column institution_id; the request names it",
    },
    "patients": {"institution_id": "is the key column institution_id; the request names it"},
    "appointment_types": {"descriptors": "comes only where it is included, and differs by location"},
    "charges": {"claim_payouts": "is a table of its own"},
    "treatment_plans": {"procedures": "is a table of its own"},
    "appointments": {"institution_id": "is the key column institution_id; the request names it"},
}
"""Properties of the vendor's schema that no column holds, and why."""

HIDDEN: dict[str, dict[str, set[str]]] = {
    "providers": {"inactive": {"true", "false"}},
    "patients": {"location_strict": {"true", "false"}},
    "nex_staff": {"inactive": {"true", "false"}},
    "document_types": {"active": {"true", "false"}},
    "insurance_plans": {"include_deleted": {"true"}},
    "insurance_coverages": {"active": {"true", "false"}},
    "appointments": {"cancelled": {"true", "false"}},
    "alerts": {"include_disabled": {"true"}},
    "working_hours": {"active": {"true", "false"}, "ignore_past_dates": {"false"}},
    "charges": {"include_deleted": {"true"}},
    "payments": {"include_deleted": {"true"}},
    "adjustments": {"include_deleted": {"true"}},
    "claims": {"include_deleted": {"true"}},
    "guarantor_balances": {"show_zero_balances": {"true"}},
    "payment_types": {"active": {"true", "false"}},
    "adjustment_types": {"active": {"true", "false"}},
    "fee_schedules": {"active": {"true", "false"}},
}
"""Parameters by which the API hides rows, and what has to be asked for to see all (API.md E)."""

SYSTEM = {"institution_id", "raw", "synced_at", "source_read_at", "row_hash", "deleted_by"}


@cache
def spec() -> dict[str, Any]:
    return json.loads(SPEC.read_text())


def resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = spec()
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = target
    if "allOf" in node:
        merged: dict[str, Any] = {}
        for part in node["allOf"]:
            merged |= resolved(part).get("properties", {})
        return node | {"properties": merged}
    return node


def operation(collection: Collection) -> dict[str, Any]:
    path = collection.path.replace("{location_id}", "{id}")
    assert path in spec()["paths"], f"the API has no {path}"
    return spec()["paths"][path]["get"]


def parameters(collection: Collection) -> dict[str, dict[str, Any]]:
    found = [resolved(parameter) for parameter in operation(collection).get("parameters", [])]
    return {parameter["name"]: parameter for parameter in found if parameter["in"] == "query"}


def entity(collection: Collection) -> dict[str, Any]:
    """Schema of one record in the collection's answer."""
    (media,) = resolved(operation(collection)["responses"]["200"])["content"].values()
    node = resolved(resolved(media["schema"])["properties"]["data"])
    for key in ("", *collection.records_at):
        node = resolved(node["properties"][key]) if key else node
        node = resolved(node["items"]) if node.get("type") == "array" else node
    return node


def properties_of(node: dict[str, Any]) -> dict[str, Any]:
    """Properties of an object; of a free one (a patient's `bio`) those that its example shows."""
    if "properties" in node or node.get("type") != "object":
        return node.get("properties", {})
    kinds = {str: "string", bool: "boolean", int: "integer"}
    return {name: {"type": kinds[type(value)], "example": value} for name, value in node.get("example", {}).items()}


def property_at(collection: Collection, path: tuple[str, ...]) -> dict[str, Any] | None:
    node = entity(collection)
    for key in path:
        if key not in properties_of(node):
            return None
        node = resolved(properties_of(node)[key])
    return node


TYPES: dict[SqlType, set[str]] = {
    SqlType.BIGINT: {"integer", "string"},
    SqlType.TEXT: {"string"},
    SqlType.BOOLEAN: {"boolean"},
    SqlType.TIMESTAMPTZ: {"string"},
    SqlType.DATE: {"string"},
    SqlType.NUMERIC: {"string", "number"},
    SqlType.DOUBLE: {"number"},
    SqlType.JSONB: {"object", "array"},
}


@with_spec
@each
def test_every_declared_column_is_a_property_of_its_type(collection: Collection) -> None:
    """Risk: a column at a misspelt path stays null for ever."""
    for column in collection.columns:
        found = property_at(collection, column.path)
        assert found is not None, f"{column.name}: the schema has no {'.'.join(column.path)}"
        assert found.get("type", "object") in TYPES[column.type], (column.name, found)
        looks = str(found.get("example", ""))
        is_time = found.get("format") == "date-time" or re.match(r"\d{4}-\d\d-\d\dT", looks) is not None
        assert is_time == (column.type is SqlType.TIMESTAMPTZ), (column.name, found)


@with_spec
@each
def test_a_day_is_one_of_utc_where_the_schema_says_so(collection: Collection) -> None:
    """Where it comes as a time, that of the ledger is the day in UTC, and a birthday the day as written."""
    days = [one for one in collection.columns if one.type is SqlType.DATE]
    assert [one.name for one in collection.columns if one.utc] == [
        one.name for one in days if "UTC" in str((property_at(collection, one.path) or {}).get("description"))
    ]


@with_spec
@each
def test_an_object_whose_fields_are_known_is_flattened(collection: Collection) -> None:
    """As README says of nested fields. Risk: an id inside a JSON object, which no check follows."""
    objects = [one for one in collection.columns if one.type is SqlType.JSONB]
    assert [one.name for one in objects if (property_at(collection, one.path) or {}).get("properties")] == []


@with_spec
def test_what_not_every_practice_system_tells_is_said_to_be_so() -> None:
    """Risk: nobody ever missed a visit, where that is not reported."""
    unsure = {
        f"{one.name}.{column.name}": column.doc
        for one in DECLARED
        for column in one.columns
        if "Not supported by all" in str((property_at(one, column.path) or {}).get("description"))
    }
    assert "appointments.patient_missed" in unsure
    assert not [name for name, doc in unsure.items() if "not every practice system tells" not in doc]


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("patient_recalls", "appointment_id", "perhaps cancelled, or to come"),
        ("patient_recalls", "", "stale where the practice system does not mark recalls as done"),
        ("locations", "insert_appt_client", "made through NexHealth are written into the practice system"),
        ("claim_payouts", "", "also of deleted claims and voided charges"),
        ("treatment_plan_procedures", "", "once for each plan it is in"),
    ],
)
def test_no_more_is_promised_than_the_api_says(name: str, column: str, words: str) -> None:
    """Risk: a recall counts as kept because it has a visit, or a payout as paid because it has a row."""
    collection = COLLECTIONS[name]
    assert words in next((one.doc for one in collection.columns if one.name == column), collection.doc)


@with_spec
@each
def test_every_property_is_declared_or_has_a_reason(collection: Collection) -> None:
    """Risk: a field of the API is left out without anybody having decided so."""
    declared = {column.path for column in collection.columns}
    exceptions = UNDECLARED.get(collection.name, {})
    met: set[str] = set()
    for path in _leaves(entity(collection), (), declared):
        name = ".".join(path)
        if path not in declared and path[:1] not in declared:
            assert name in exceptions, f"{collection.name}.{name} is in the schema and no column holds it"
            met.add(name)
    assert met == set(exceptions), "an exception that no longer is one"


def _leaves(node: dict[str, Any], path: tuple[str, ...], declared: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Paths of properties; inside an object only where its fields are declared one by one."""
    found: list[tuple[str, ...]] = []
    for name, inner in properties_of(node).items():
        below = (*path, name)
        flattened = any(other[: len(below)] == below and len(other) > len(below) for other in declared)
        found += _leaves(resolved(inner), below, declared) if flattened else [below]
    return found


@with_spec
@each_asked
def test_what_a_pass_asks_exists_and_what_is_required_is_asked(collection: Collection) -> None:
    """Risk: a parameter the API does not know is ignored in silence, and rows stay hidden."""
    known = parameters(collection)
    asked = {name for pass_ in collection.passes for name, _ in pass_.params}
    asked |= {name for name in (collection.increment, collection.patient_filter, collection.guarantor_filter) if name}
    asked |= {"sort"} if collection.sort else set()
    asked |= {collection.window.start, collection.window.end} if collection.window else set()
    assert asked <= set(known)
    required = {name for name, parameter in known.items() if parameter.get("required")}
    by_plan = {"subdomain"}
    if collection.scope in (Scope.LOCATION, Scope.LOCATION_MONTH) and not collection.per:
        by_plan.add("location_id")
    assert required <= by_plan | asked
    assert (collection.paging is Paging.CURSOR) == ("end_cursor" in known)
    media = next(iter(resolved(operation(collection)["responses"]["200"])["content"]))
    assert collection.legacy_accept == ("version=2" in media)
    for pass_ in collection.passes:
        for name, value in pass_.params:
            schema = known[name]["schema"]
            assert value in schema.get("items", schema).get("enum", ["true", "false"])


@each
def test_rows_hidden_by_default_are_asked_for(collection: Collection) -> None:
    """Promise 1: inactive, deleted and cancelled rows are part of the copy."""
    for name, needed in HIDDEN.get(collection.name, {}).items():
        assert {value for pass_ in collection.passes for key, value in pass_.params if key == name} == needed


@with_spec
@each_asked
def test_a_default_that_hides_rows_is_listed(collection: Collection) -> None:
    """A boolean parameter with a default filters; it has to be known above."""
    filters = {
        name
        for name, parameter in parameters(collection).items()
        if parameter["schema"].get("type") == "boolean" and "default" in parameter["schema"]
    }
    assert filters <= set(HIDDEN.get(collection.name, {}))


@with_spec
@each_asked
def test_a_list_that_can_be_asked_by_status_says_so(collection: Collection) -> None:
    """The help of `--status` says that it works for all of them; what a sync begins with is always read whole."""
    offered = parameters(collection).keys() & {"active", "inactive"}
    if collection.scope is not Scope.PRACTICE:
        assert {parameter for name, parameter in collection.filters if name == "status"} == offered


@with_spec
@pytest.mark.parametrize(
    "collection",
    [one for one in DECLARED if one.events and one.events.snapshots],
    ids=lambda collection: collection.name,
)
def test_what_only_the_single_read_has_is_declared(collection: Collection) -> None:
    """Risk: an event holds it as well, and the row of a visit then keeps its whole patient."""
    alone = replace(collection, path=f"{collection.path}/{{id}}")
    more = entity(alone)["properties"].keys() - entity(collection)["properties"].keys()
    assert more <= set(collection.single_only)


@each
def test_what_lists_lack_is_nothing_that_is_read_from_them(collection: Collection) -> None:
    """Risk: a column or a list inside the record is taken out before it is loaded."""
    kept = {column.path[0] for column in collection.columns}
    kept |= {one.records_at[0] for one in DECLARED if one.inside == collection.name}
    assert not kept & set(collection.single_only)


@each
def test_names_are_valid_and_nothing_is_declared_twice(collection: Collection) -> None:
    names = [column.name for column in (*collection.from_request, *collection.columns)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert all(re.fullmatch(r"[a-z][a-z0-9_]{0,57}", name) for name in [collection.name, *names])
    reserved = SYSTEM | (set() if collection.soft_delete else {"deleted_at"})
    assert not reserved & set(names)
    assert len(collection.table) <= 63


@each
def test_every_reference_points_to_something(collection: Collection) -> None:
    names = {column.name for column in (*collection.from_request, *collection.columns)} | {"institution_id"}
    assert set(collection.key) <= names
    assert collection.key[0] == "institution_id"
    assert {name for index in collection.indexes for name in index} <= names
    for name in (collection.version, None if collection.deleted_if else collection.soft_delete):
        assert name is None or name in names
    if collection.window is not None:
        assert {collection.window.column, "location_id"} <= names
    assert {*collection.after, *(target for _, target in collection.references)} <= set(COLLECTIONS)
    assert {column for column, _ in collection.references} <= names
    assert all(DECLARED.index(COLLECTIONS[name]) < DECLARED.index(collection) for name in collection.after)
    assert collection.scope is Scope.PRACTICE or collection.institution_at is None
    assert collection.scope is not Scope.PRACTICE or collection.institution_at
    assert ("{id}" in collection.path) == (collection.per is not None)
    assert collection.per is None or collection.per in collection.after
    assert collection.inside is None or len(collection.records_at) == 1
    assert not collection.needs_filter or collection.increment


SMALL = {"recall_types", "document_types", "payment_types", "adjustment_types", "fee_schedules"}
"""Lists of a few dozen rows a location."""


@each
def test_rows_of_a_location_are_found_by_an_index(collection: Collection) -> None:
    """Absences are judged for each EHR database: without one, each of a thousand looks at all of its institution's rows."""
    names = {column.name for column in (*collection.from_request, *collection.columns)}
    own_list = collection.per is None and collection.inside is None
    if own_list and collection.scope in (Scope.LOCATION, Scope.LOCATION_MONTH) and "location_id" in names:
        assert any(index[0] == "location_id" for index in collection.indexes) != (collection.name in SMALL)


@each
def test_index_names_stay_apart_when_they_are_cut(collection: Collection) -> None:
    names = [f"{collection.table}_{'_'.join(index)}_idx"[:63] for index in collection.indexes]
    assert len(set(names)) == len(names)


@each
def test_passes_have_names_and_only_one_says_who_is_listed(collection: Collection) -> None:
    assert len({pass_.name for pass_ in collection.passes}) == len(collection.passes)
    assert sum(pass_.membership for pass_ in collection.passes) <= 1
    assert all(not pass_.membership or pass_.reader is Reader.SHARED for pass_ in collection.passes)


@each
def test_rows_that_a_list_may_leave_out_say_so_and_can_be_asked_for(collection: Collection) -> None:
    """Without a single read nothing would ever tell that one of them is gone."""
    if collection.unlisted_if is not None:
        assert {one.name: one.type for one in collection.columns}[collection.unlisted_if] is SqlType.BOOLEAN
        assert collection.by_id is not None


@each
def test_everything_is_described(collection: Collection) -> None:
    """Comments, asset descriptions and README come from here."""
    texts = [collection.doc, *(column.doc for column in (*collection.from_request, *collection.columns))]
    assert all(re.fullmatch(r"[^\s].*[.]", text) for text in texts), [text for text in texts if not text.endswith(".")]
    assert collection.group in {"practice", "patients", "scheduling", "insurance", "ledger", "clinical"}


@pytest.mark.parametrize(
    "name", ["email", "phone", "address", "city", "zip", "birth", "first_name", "note", "filename"]
)
def test_a_patients_particulars_have_a_phi_class(name: str) -> None:
    """Risk: an analyst's role without PHI reads a column that was declared harmless."""
    personal = ["patients", "patient_addresses", "documents", "appointments", "insurance_coverages"]
    personal += ["alerts", "patient_recalls", "coverage_subscribers", "charges", "claims", "clinical_notes"]
    columns: list[Column] = [column for one in personal for column in COLLECTIONS[one].columns if name in column.name]
    assert all(column.phi is not Phi.NONE for column in columns), [column.name for column in columns]


HARMLESS = {
    *("foreign_id_type", "type", "provider_name", "timezone", "timezone_offset"),
    *("recall_type_name", "recall_type_description", "recall_type_interval_unit"),
}
"""Texts of rows about a patient that say nothing of the patient: of the office, its staff, or the kind of thing it is."""


@each
def test_what_may_say_anything_of_a_patient_has_a_phi_class(collection: Collection) -> None:
    """Risk: as above; a free text or object holds whatever somebody put there, and a user may be the patient."""
    columns = [*collection.columns, *collection.from_request]
    tables = (collection.name, *(target for _, target in collection.references))
    free = [SqlType.TEXT, SqlType.JSONB] if {"patients", "charges", "insurance_coverages"} & {*tables} else []
    loose = [one for one in columns if one.type in free and one.path[-1:] != ("currency",)]
    loose += [one for one in columns if one.name.endswith("user_id")]
    assert [one.name for one in loose if one.phi is Phi.NONE and one.name not in HARMLESS] == []


@each
def test_nothing_is_kept_that_is_too_sensitive(collection: Collection) -> None:
    kept = {column.path for column in collection.columns}
    assert not kept & set(collection.sensitive)
    assert not {path for path in kept if path[-1] in ("ssn", "tin", "social_security_number")}


def test_the_catalog_is_pure_data() -> None:
    """Adding a collection is adding a declaration: no branches, no loops, no imports of other rooms."""
    domains = [path for path in Path(package.__file__).parent.glob("*.py") if path.stem != "__init__"]
    assert domains
    for path in domains:
        _assert_pure(ast.parse(path.read_text(encoding="utf-8")))


def _assert_pure(tree: ast.Module) -> None:
    logic = (ast.If, ast.For, ast.While, ast.Try, ast.With, ast.ClassDef, ast.Lambda, ast.AsyncFunctionDef)
    assert not [type(node).__name__ for node in ast.walk(tree) if isinstance(node, logic)]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            assert isinstance(node.body[-1], ast.Return)
            assert len(node.body) <= 2
    sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert all(name == "dataclasses" or str(name).startswith("nexhealth_pipeline.catalog.") for name in sources)


def test_names_are_unique_and_every_declaration_is_listed() -> None:
    domains = [value for value in vars(package).values() if isinstance(value, ModuleType)]
    written = {
        id(one): one for domain in domains for one in vars(domain).values() if isinstance(one, Collection)
    }.values()
    assert sorted(one.name for one in written) == sorted(one.name for one in DECLARED) == sorted(COLLECTIONS)
