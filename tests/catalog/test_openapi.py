"""A newer OpenAPI file: every change that touches the copy is told, and the version we know is silent."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from nexhealth_pipeline.catalog.collections import DECLARED
from nexhealth_pipeline.catalog.openapi import KNOWN_INCLUDES, NOT_ASKED, NOT_COPIED, NOT_HEARD, compare

from .conftest import Node, with_spec


def found(spec: Node) -> set[tuple[str, str, str]]:
    return {(one.kind, one.where, one.name) for one in compare(spec)}


def parameter(spec: Node, path: str, name: str) -> Node:
    return next(one for one in spec["paths"][path]["get"]["parameters"] if one.get("name") == name)


def entity(spec: Node, path: str) -> Node:
    """The object of one record in the answer of `path`, written in place of whatever it refers to."""
    media = next(iter(spec["paths"][path]["get"]["responses"]["200"]["content"].values()))

    def inlined(node: Any) -> Any:
        while "$ref" in node:
            target: Any = spec
            for part in node["$ref"].removeprefix("#/").split("/"):
                target = target[part]
            node = copy.deepcopy(target)
        merged: Node = {}
        for part in node.pop("allOf", []):
            merged |= inlined(part).get("properties", {})
        return {**node, "properties": merged | node.get("properties", {})} if merged else node

    media["schema"] = inlined(media["schema"])
    data = media["schema"]["properties"]["data"] = inlined(media["schema"]["properties"]["data"])
    if data.get("type") == "array":
        data["items"] = inlined(data["items"])
        return data["items"]
    return data


@with_spec
def test_the_version_that_was_declared_shows_no_difference(spec: Node) -> None:
    """Else nobody would read the answer to the next one."""
    assert compare(spec) == []
    bare = {path.replace("{id}", "{}") for path in spec["paths"]}
    assert set(NOT_COPIED) | set(KNOWN_INCLUDES) <= bare


@with_spec
def test_what_is_not_asked_for_is_offered(spec: Node) -> None:
    """README tells of it, and of nothing that could not be had."""
    for path, name in NOT_ASKED:
        whole = path.replace("{}", "{id}")
        assert name in parameter(spec, whole, "include[]")["schema"]["items"]["enum"]


@with_spec
def test_every_event_is_heard_or_has_a_reason(spec: Node) -> None:
    """README tells the reasons, and none for what is heard or could not be."""
    heard = {name for one in DECLARED if one.events for name in one.events.names}
    offered = parameter(spec, "/webhook_endpoints/{id}/webhook_subscriptions", "event")["schema"]["enum"]
    assert heard.isdisjoint(NOT_HEARD)
    assert {*offered} == heard | NOT_HEARD.keys()


def included() -> set[tuple[str, str]]:
    """What passes ask for by `include[]`, by path."""
    return {
        (re.sub(r"\{\w+\}", "{}", one.path), value)
        for one in DECLARED
        for each in one.passes
        for name, value in each.params
        if name == "include[]"
    }


def test_what_is_not_asked_for_no_declaration_asks_for() -> None:
    assert ("/charges", "claim_payouts") in included()
    assert not included() & NOT_ASKED.keys()


REPEATED = {("/providers", "locations"): "comes unasked", ("/providers", "availabilities"): "are the working hours"}
"""What lists can include that no sync asks for, as it has it already."""


def test_what_lists_can_include_is_asked_for_or_has_a_reason() -> None:
    """README tells the reasons: nobody else would tell what could be had."""
    lists = {re.sub(r"\{\w+\}", "{}", one.path) for one in DECLARED if one.is_asset and not one.per}
    offered = {(path, name) for path in lists for name in KNOWN_INCLUDES.get(path, ())}
    assert offered - included() - NOT_ASKED.keys() == REPEATED.keys()


def new_list(spec: Node) -> None:
    spec["paths"]["/referrals"] = copy.deepcopy(spec["paths"]["/operatories"])


def _gone(spec: Node) -> None:
    del spec["paths"]["/nex_staff"]


def _renamed_parameter(spec: Node) -> None:
    parameter(spec, "/providers", "inactive")["name"] = "include_inactive"


def _no_longer_sorted(spec: Node) -> None:
    parameter(spec, "/payments", "sort")["schema"]["enum"] = ["-updated_at"]


def _required(spec: Node) -> None:
    spec["paths"]["/treatment_plans"]["get"]["parameters"].append(
        {"name": "practice_id", "in": "query", "required": True, "schema": {"type": "integer"}}
    )


def _single_reads_gone(spec: Node) -> None:
    for path in ("/treatment_plans/{id}", "/appointments/{id}"):
        del spec["paths"][path]


def _required_of_single_reads(spec: Node) -> None:
    spec["paths"]["/insurance_plans/{id}"]["get"]["parameters"].append(
        {"name": "location_id", "in": "query", "required": True, "schema": {"type": "integer"}}
    )


def _hides_without_a_default(spec: Node) -> None:
    for name in ("include_archived", "show_blocked"):
        spec["paths"]["/operatories"]["get"]["parameters"].append(
            {"name": name, "in": "query", "schema": {"type": "boolean"}}
        )


def hides(spec: Node) -> None:
    spec["paths"]["/operatories"]["get"]["parameters"].append(
        {"name": "archived", "in": "query", "schema": {"type": "boolean", "default": False}}
    )


def _hides_by_a_word(spec: Node) -> None:
    status = {"type": "string", "enum": ["active", "all"], "default": "active"}
    spec["paths"]["/operatories"]["parameters"] = [{"name": "status", "in": "query", "schema": status}]


def _only_of_pages(spec: Node) -> None:
    for name in ("page", "start_cursor", "sort", "archived", "show_as"):
        schema = {"type": "string"} if name in ("archived", "show_as") else {"type": "string", "default": "1"}
        spec["paths"]["/operatories"]["get"]["parameters"].append({"name": name, "in": "query", "schema": schema})


def _new_include(spec: Node) -> None:
    parameter(spec, "/charges", "include[]")["schema"]["items"]["enum"].append("tax_lines")


def _new_include_of_single_reads(spec: Node) -> None:
    parameter(spec, "/appointments/{id}", "include[]")["schema"]["items"]["enum"].append("reminders")
    parameter(spec, "/claims/{id}", "include[]")["schema"]["items"]["enum"].append("attachments")
    spec["paths"]["/treatment_plans/{id}"]["get"]["parameters"].append(
        {"name": "include[]", "in": "query", "schema": {"type": "array", "items": {"enum": ["notes"]}}}
    )


def _new_field(spec: Node) -> None:
    entity(spec, "/charges")["properties"]["tax"] = {"type": "number"}


def _new_field_of_single_reads(spec: Node) -> None:
    """One that the list has as well is told of the list alone."""
    for path in ("/charges/{id}", "/locations/{id}", "/onboardings/{hashid}"):
        entity(spec, path)["properties"]["tax"] = {"type": "number"}
    for path in ("/procedures", "/procedures/{id}"):
        entity(spec, path)["properties"]["modifiers"] = {"type": "string"}


def _new_event(spec: Node) -> None:
    events = parameter(spec, "/webhook_endpoints/{id}/webhook_subscriptions", "event")["schema"]["enum"]
    events += ["provider_updated", "patient_deleted"]


def _event_gone(spec: Node) -> None:
    events = parameter(spec, "/webhook_endpoints/{id}/webhook_subscriptions", "event")["schema"]["enum"]
    events.remove("charge_deleted")


def _kind_of_event_gone(spec: Node) -> None:
    kinds = parameter(spec, "/webhook_endpoints/{id}/webhook_subscriptions", "resource_type")["schema"]["enum"]
    kinds.remove("Charge")


def _field_gone(spec: Node) -> None:
    del entity(spec, "/charges")["properties"]["procedure_code"]


def _retyped(spec: Node) -> None:
    entity(spec, "/charges")["properties"]["charged_at"] = {"type": "string", "format": "date-time"}
    entity(spec, "/charges")["properties"]["fee"] = {
        "type": "object",
        "properties": {"amount": {"type": "boolean"}, "currency": {"type": "string"}, "scale": {"type": "integer"}},
    }


def _payout(spec: Node) -> None:
    charge = entity(spec, "/charges")["properties"]
    charge["claim_payouts"] = {
        "type": "array",
        "items": {"type": "object", "properties": {"claim_id": {"type": "integer"}, "cob": {"type": "string"}}},
    }


def _bio(spec: Node) -> None:
    bio = {"type": "object", "example": {"city": "x", "nickname": "y"}}
    entity(spec, "/patients")["properties"]["bio"] = bio


@with_spec
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (new_list, {("endpoint new", "/referrals", "/referrals")}),
        (_gone, {("endpoint missing", "nex_staff", "/nex_staff")}),
        (_renamed_parameter, {("parameter missing", "providers", "inactive")}),
        (_no_longer_sorted, {("value missing", "payments", "sort=updated_at")}),
        (_required, {("parameter required", "treatment_plans", "practice_id")}),
        (
            _single_reads_gone,
            {
                ("endpoint missing", "treatment_plans", "/treatment_plans/{}"),
                ("endpoint missing", "appointments", "/appointments/{}"),
            },
        ),
        (_required_of_single_reads, {("parameter required", "/insurance_plans/{}", "location_id")}),
        (
            _hides_without_a_default,
            {
                ("parameter new", "operatories", "include_archived"),
                ("parameter new", "operatories", "show_blocked"),
            },
        ),
        (hides, {("parameter new", "operatories", "archived")}),
        (_hides_by_a_word, {("parameter new", "operatories", "status")}),
        (_only_of_pages, set()),
        (_new_include, {("include new", "charges", "tax_lines")}),
        (
            _new_include_of_single_reads,
            {
                ("include new", "/appointments/{}", "reminders"),
                ("include new", "/claims/{}", "attachments"),
                ("include new", "/treatment_plans/{}", "notes"),
            },
        ),
        (_new_field, {("field new", "charges", "tax")}),
        (
            _new_field_of_single_reads,
            {
                ("field new", "/charges/{}", "tax"),
                ("field new", "/locations/{}", "tax"),
                ("field new", "procedures", "modifiers"),
            },
        ),
        (
            _new_event,
            {
                ("event new", "provider_updated", "provider_updated"),
                ("event new", "patient_deleted", "patient_deleted"),
            },
        ),
        (_event_gone, {("event missing", "charges", "charge_deleted")}),
        (_kind_of_event_gone, {("value missing", "charges", "resource_type=Charge")}),
        (_field_gone, {("field missing", "charges", "procedure_code")}),
        (
            _retyped,
            {
                ("field retyped", "charges", "charged_at"),
                ("field retyped", "charges", "fee.amount"),
                ("field new", "charges", "fee.scale"),
            },
        ),
        (_payout, {("field new", "claim_payouts", "cob"), ("field missing", "claim_payouts", "write_off.amount")}),
        (_bio, {("field new", "patients", "bio.nickname"), ("field missing", "patients", "bio.zip_code")}),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_each_change_is_told_where_it_matters(
    spec: Node, change: Callable[[Node], None], told: set[tuple[str, str, str]]
) -> None:
    """Found from the path of the declaration; a table inside records is found inside its parent's."""
    change(spec)
    differences = found(spec)
    assert told <= differences
    assert {where for _, where, _ in differences} == {where for _, where, _ in told}


@with_spec
def test_a_thousand_fields_that_went_are_all_told(spec: Node) -> None:
    """A whole new version must not look like one small change."""
    for schema in spec["components"]["schemas"].values():
        schema.pop("properties", None)
        schema.pop("allOf", None)
    assert len([one for one in compare(spec) if one.kind == "field missing"]) > 300


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"paths": []}', '"x"'])
def test_what_is_no_openapi_file_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="paths"):
        compare(json.loads(text))


def test_an_empty_api_has_lost_every_collection() -> None:
    assert {one.where for one in compare({"paths": {}})} == {one.name for one in DECLARED}
