"""Every answer against the vendor's OpenAPI file. Its schemas require nothing, so keys and nulls are checked too."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from nexhealth_pipeline.sandbox import SandboxServer

from .calls import ALL_TIME, BASE, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, Caller

SPEC = Path(__file__).resolve().parents[3] / "shared" / "nexhealth" / "openapi-v3.0.0.json"

pytestmark = pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")

HOMES = ((WILLOW, NORTH), (WILLOW, SOUTH), (WILLOW, 348513), (HARBOR, PIER), (HARBOR, ISLAND))
PATIENT_INCLUDES = [
    "upcoming_appts",
    "last_visited_appointment",
    "children",
    "guarantor",
    "procedures",
    "insurance_coverages",
    "adjustments",
    "charges",
    "payments",
    "patient_alerts",
    "address",
    "provider",
]
APPOINTMENT_INCLUDES = [
    "patient",
    "guarantor",
    "descriptors",
    "booking_details",
    "procedures",
    "operatory",
    "appointment_type",
]

NEVER_SENT = {"/patients/{id}": {"appointments"}}
"""Keys of a schema that no include asks for."""

SOMETIMES = {
    "/patients/{id}": {"last_visited_appointment", "provider"},
    "/appointments/{id}": {"patient", "operatory", "appointment_type", "booking_details"},
    "/insurance_coverages/{id}": {"subscriber"},
}
"""Embedded objects left out of a record where there is none (their schemas allow no null)."""

formats = jsonschema.FormatChecker(formats=["date"])


@formats.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or (datetime.fromisoformat(value).tzinfo is not None and "T" in value)


@formats.checks("int32")
def _is_int32(value: object) -> bool:
    return not isinstance(value, int) or -(2**31) <= value < 2**31


def _nullable(node: Any) -> Any:
    """The OpenAPI 3.0 dialect as plain JSON schema: `nullable` becomes a type."""
    if isinstance(node, list):
        return [_nullable(part) for part in node]
    if not isinstance(node, dict):
        return node
    made = {name: _nullable(part) for name, part in node.items() if name not in ("nullable", "example")}
    if node.get("nullable") is True and "type" in made:
        made["type"] = [made["type"], "null"]
        if "enum" in made:
            made["enum"] = [*made["enum"], None]
    return made


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    raw = json.loads(SPEC.read_text())
    return {"paths": raw["paths"], "components": _nullable(raw["components"])}


@pytest.fixture(scope="module")
def whole() -> Iterator[Caller]:
    """The default world in full."""
    with SandboxServer(base=BASE, limits=False) as server:
        caller = Caller(server)
        yield caller
        caller.close()


def _reference(spec: dict[str, Any], path: str, status: str = "200", method: str = "get") -> str:
    content = spec["paths"][path][method]["responses"][status]["content"]
    (media,) = content.values()
    return str(media["schema"]["$ref"])


def _validator(spec: dict[str, Any], reference: str) -> jsonschema.Draft4Validator:
    schema = {"$ref": reference, "components": spec["components"]}
    return jsonschema.Draft4Validator(schema, format_checker=formats)


def _entity(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """The properties of the record inside a path's 200 answer."""
    schemas = spec["components"]["schemas"]
    data = schemas[_reference(spec, path).rpartition("/")[2]]["properties"]["data"]
    found: dict[str, Any] = schemas[(data.get("items") or data)["$ref"].rpartition("/")[2]]["properties"]
    return found


def _bodies(whole: Caller, path: str) -> Iterator[dict[str, Any]]:
    """Answers of a path that together hold every record there is to read with it."""
    state = whole.server.state
    match path:
        case "/institutions" | "/locations" | "/sync_status":
            yield whole.get(path).json()
        case "/institutions/{id}" | "/locations/{id}":
            for number in state.ids(path.split("/")[1]):
                yield whole.get(path.format(id=number)).json()
        case "/providers":
            for subdomain in (WILLOW, HARBOR):
                for inactive in ("true", "false"):
                    includes = ["locations", "availabilities", "appointment_types"]
                    yield from whole.pages(path, subdomain=subdomain, inactive=inactive, include__=includes)
        case "/insurance_plans":
            for subdomain in (WILLOW, HARBOR):
                yield from whole.pages(path, subdomain=subdomain, include_deleted="true", per_page=1000)
        case "/insurance_coverages":
            for subdomain in (WILLOW, HARBOR):
                for active in ("true", "false"):
                    yield from whole.pages(path, subdomain=subdomain, active=active, per_page=1000)
        case "/patients" | "/appointments" | "/operatories":
            extra = ALL_TIME if path == "/appointments" else {}
            extra = {"include__": "appointment_types"} if path == "/operatories" else extra
            for subdomain, place in HOMES:
                yield from whole.pages(path, subdomain=subdomain, location_id=place, per_page=1000, **extra)
        case "/appointment_types" | "/document_types":
            extra = {"include__": "descriptors"} if path == "/appointment_types" else {"active": "true"}
            for subdomain, place in HOMES:
                yield whole.get(path, subdomain=subdomain, location_id=place, **extra).json()
        case "/patients/{id}/documents":
            for number in state.ids("patients")[:300:3]:
                yield whole.get(path.format(id=number), subdomain=WILLOW).json()
        case _:
            yield from _singles(whole, path)


def _singles(whole: Caller, path: str) -> Iterator[dict[str, Any]]:
    collection = path.split("/")[1]
    includes = {
        "patients": PATIENT_INCLUDES,
        "appointments": APPOINTMENT_INCLUDES,
        "providers": ["locations", "availabilities", "appointment_types"],
        "operatories": ["appointment_types"],
        "appointment_types": ["descriptors"],
        "insurance_plans": ["patient_coverages", "subscribers", "fee_schedule"],
    }.get(collection, [])
    mine = [row for row in whole.server.state.store(collection).rows.values() if row.institution_id == 11201]
    for row in mine[:: max(1, len(mine) // 120)]:
        place = row.facts.get("parent_id") or row.facts.get("location_id") or NORTH
        located = {"location_id": place} if collection in ("appointment_types", "document_types") else {}
        yield whole.get(path.format(id=row.id), subdomain=WILLOW, include__=includes, **located).json()


PATHS = [
    *("/institutions", "/institutions/{id}", "/locations", "/locations/{id}", "/sync_status"),
    *("/providers", "/providers/{id}", "/operatories", "/operatories/{id}"),
    *("/appointment_types", "/appointment_types/{id}", "/document_types", "/document_types/{id}"),
    *("/patients", "/patients/{id}", "/patients/{id}/documents", "/appointments", "/appointments/{id}"),
    *("/insurance_plans", "/insurance_plans/{id}", "/insurance_coverages", "/insurance_coverages/{id}"),
]


@pytest.mark.parametrize("path", PATHS)
def test_answers_follow_the_schema_with_exactly_its_keys_each_filled_somewhere(
    path: str, whole: Caller, spec: dict[str, Any]
) -> None:
    """Risk: the pipeline is built against a sandbox that sends other names or types than the real API."""
    validator, entity = _validator(spec, _reference(spec, path)), _entity(spec, path)
    filled: set[str] = set()
    records = 0
    for body in _bodies(whole, path):
        found = body["data"] if isinstance(body["data"], list) else [body["data"]]
        for record in found:
            records += 1
            missing, extra = set(entity) - set(record), set(record) - set(entity)
            assert missing <= SOMETIMES.get(path, set()) | NEVER_SENT.get(path, set()), (path, missing)
            assert not extra, (path, extra)
            filled |= {name for name, value in record.items() if value is not None}
        sample = found[::20] if len(found) > 40 else found
        validator.validate(body | {"data": sample if isinstance(body["data"], list) else body["data"]})
    assert records
    assert filled == set(entity) - NEVER_SENT.get(path, set())


def test_the_locations_inside_their_institutions_have_exactly_the_schemas_keys(
    whole: Caller, spec: dict[str, Any]
) -> None:
    """Risk: records one level down (locations in GET /locations) are not looked at by the test above."""
    entity = set(spec["components"]["schemas"]["API_V2_Entities_Location"]["properties"])
    places = [place for home in whole.data("/locations") for place in home["locations"]]
    assert len(places) == 6
    assert all(set(place) == entity for place in places)
    assert {name for place in places for name, value in place.items() if value is not None} == entity


@pytest.mark.parametrize("path", ["/patients", "/appointments", "/insurance_coverages", "/providers"])
def test_a_wrong_type_in_any_field_fails_the_validation(path: str, whole: Caller, spec: dict[str, Any]) -> None:
    """Risk: a validator that accepts everything proves nothing."""
    validator = _validator(spec, _reference(spec, path))
    body = next(_bodies(whole, path))
    body["data"] = body["data"][:1]
    validator.validate(body)
    for name in body["data"][0]:
        spoilt = body | {"data": [body["data"][0] | {name: {"no": "such type"} if name not in _OBJECTS else 7}]}
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(body | {"data": [body["data"][0] | {"id": 2**70 if path == "/patients" else "7"}]})


_OBJECTS = {"bio", "hipaa", "misc"}


def test_authentication_and_errors_follow_the_schema(whole: Caller, spec: dict[str, Any]) -> None:
    """Risk: a client that reads `error` or `token` the documented way finds something else."""
    token = whole.authenticate()
    _validator(spec, _reference(spec, "/authenticates", "201", "post")).validate(token.json())
    for status, params in ((400, {}), (403, {"subdomain": "nobody"}), (404, {"subdomain": WILLOW, "location_id": 1})):
        answer = whole.get("/patients", **({"location_id": NORTH} | params if status != 400 else params))
        assert answer.status_code == status
        body = answer.json()
        assert body.pop("data") is None  # seen in practice; the schema says object
        _validator(spec, _reference(spec, "/patients", str(status))).validate(body)
