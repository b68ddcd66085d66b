"""One and the same API, written as OpenAPI files may write it: all notations tell the same."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from nexhealth_pipeline.catalog.openapi import compare

from .conftest import Node, with_spec
from .test_openapi import entity, found, hides, new_list, parameter


@with_spec
def test_parameters_of_a_path_are_those_of_its_read(spec: Node) -> None:
    """Where a file declares them once for all operations; what the operation says goes before."""
    for item in spec["paths"].values():
        if "get" in item:
            item["parameters"] = item["get"].pop("parameters", [])
    assert compare(spec) == []
    payments = spec["paths"]["/payments"]
    (sort,) = [one for one in payments["parameters"] if one.get("name") == "sort"]
    payments["get"]["parameters"] = [sort | {"schema": {"type": "string", "enum": ["-updated_at"]}}]
    assert found(spec) == {("value missing", "payments", "sort=updated_at")}


def _parameters_of_null(spec: Node) -> None:
    """A generator writes null for none."""
    for path in ("/operatories", "/onboardings"):
        spec["paths"][path]["parameters"] = None
    spec["paths"]["/onboardings"]["get"]["parameters"] = None
    spec["paths"]["/referrals/{id}"] = {"get": {"parameters": None, "responses": {}}}


def _any(*choices: Node) -> Node:
    return {"anyOf": [*choices, {"type": "null"}]}


def _sorted_by_either(spec: Node) -> None:
    """As two enumerations, the second without what is sent."""
    parameter(spec, "/payments", "sort")["schema"] = _any(
        {"type": "string", "enum": ["updated_at", "id"]}, {"type": "string", "enum": ["-updated_at", "-id"]}
    )


def _sorted_by_any(spec: Node) -> None:
    parameter(spec, "/payments", "sort")["schema"] = _any(
        {"type": "string"}, {"type": "string", "enum": ["-updated_at"]}
    )


def _sorted_otherwise(spec: Node) -> None:
    parameter(spec, "/payments", "sort")["schema"] = _any(
        {"type": "string", "enum": ["id"]}, {"type": "string", "enum": ["-updated_at", "-id"]}
    )


def _includes_of_either(spec: Node) -> None:
    found = parameter(spec, "/charges", "include[]")["schema"]
    known, new = copy.deepcopy(found), copy.deepcopy(found)
    new["items"]["enum"] = ["tax_lines"]
    found.clear()
    found |= _any(new, known)


_STAMP = {"type": "string", "format": "date-time", "example": "2020-01-02T03:04:05Z"}


def _day_or_time(spec: Node) -> None:
    """Neither the first nor the last choice says what all of them are."""
    entity(spec, "/charges")["properties"]["updated_at"] = _any({"type": "string", "format": "date"}, _STAMP)


def _time_or_day(spec: Node) -> None:
    entity(spec, "/charges")["properties"]["updated_at"] = _any(_STAMP, {"type": "string", "format": "date"})


def _one_time_or_another(spec: Node) -> None:
    other = _STAMP | {"description": "another", "example": "2021-01-02T03:04:05Z"}
    entity(spec, "/charges")["properties"]["updated_at"] = _any(_STAMP, other)


_TO_TEXT = ("field retyped", "charges", "updated_at")


@with_spec
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_parameters_of_null, set()),
        (_sorted_by_either, set()),
        (_sorted_by_any, set()),
        (_sorted_otherwise, {("value missing", "payments", "sort=updated_at")}),
        (_includes_of_either, {("include new", "charges", "tax_lines")}),
        (_day_or_time, {_TO_TEXT}),
        (_time_or_day, {_TO_TEXT}),
        (_one_time_or_another, set()),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_no_choice_speaks_for_all(spec: Node, change: Callable[[Node], None], told: set[tuple[str, str, str]]) -> None:
    """Risk: what the last one leaves out counts as gone, and what only the last one says is expected of all."""
    change(spec)
    assert found(spec) == told


def _listed(node: Node) -> None:
    node["type"] = [node["type"], "null"]


def _chosen(node: Node, word: str = "anyOf") -> None:
    other = {name: node.pop(name) for name in [*node] if name not in ("description", "example")}
    node[word] = [other, {"type": "null"}]


def _chosen_as_one(node: Node) -> None:
    _chosen(node, "oneOf")


def _in_3_1(node: Any, nullable: Callable[[Node], None]) -> None:
    """Every type written as OpenAPI 3.1 writes one that may be null."""
    for inner in [*node.values()] if isinstance(node, dict) else node if isinstance(node, list) else ():
        _in_3_1(inner, nullable)
    if isinstance(node, dict) and isinstance(node.get("type"), str):
        nullable(node)


@with_spec
@pytest.mark.parametrize("nullable", [_listed, _chosen, _chosen_as_one], ids=lambda one: one.__name__.strip("_"))
def test_a_type_that_may_be_null_is_the_type_that_it_else_is(spec: Node, nullable: Callable[[Node], None]) -> None:
    """Risk: one such field of a newer file, and nothing of it is compared."""
    changed = copy.deepcopy(spec)
    _in_3_1(spec, nullable)
    assert compare(spec) == []
    new_list(changed)
    hides(changed)
    entity(changed, "/charges")["properties"]["procedure_code"] = {"type": "integer"}
    entity(changed, "/charges")["properties"]["charged_at"] = {"type": ["string", "integer"]}
    _in_3_1(changed, nullable)
    told = {one.name: one.message for one in compare(changed)}
    assert told.keys() == {"/referrals", "archived", "procedure_code", "charged_at"}
    assert told["procedure_code"] == "column procedure_code is text, the field is integer"
    assert told["charged_at"] == "column charged_at is date, the field is integer or string"


def test_a_circle_of_references_ends() -> None:
    circle = {"$ref": "#/components/schemas/A"}
    answer = {"content": {"application/json": {"schema": circle}}}
    spec = {
        "paths": {"/patients": {"get": {"responses": {"200": answer}}}},
        "components": {"schemas": {"A": {"$ref": "#/components/schemas/B"}, "B": circle}},
    }
    assert ("field missing", "patients", "id") in found(spec)
