"""Every answer against the vendor's OpenAPI file. Its schemas require nothing, so keys and nulls are checked too."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from nexhealth_pipeline.sandbox import SandboxServer, World

from .asking import FINANCE_LISTS, INSTITUTION_LISTS, LOCATION_LISTS, PATHS, WHOLE_LISTS, bodies
from .calls import NORTH, WILLOW, Caller, HandClock
from .openapi import SPEC, entity, load, reference, strangers, validator

pytestmark = pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")

NEVER_SENT = {"/patients/{id}": {"appointments"}}
"""Keys of a schema that no include asks for."""

_PEOPLE = {"patient", "provider", "guarantor"}
SOMETIMES = {
    "/patients/{id}": {"last_visited_appointment", "provider"},
    "/appointments/{id}": {"patient", "operatory", "appointment_type", "booking_details"},
    "/insurance_coverages/{id}": {"subscriber"},
    "/patients/{id}/alerts": {"disabled_at"},
    "/patients/{id}/alerts/{alert_id}": {"disabled_at"},
    "/patient_recalls": {"recall_type"},
    "/patient_recalls/{id}": {"recall_type"},
    "/charges/{id}": _PEOPLE | {"procedure"},
    "/payments/{id}": _PEOPLE | {"claim", "charge", "payment_plan", "payment_type"},
    "/adjustments/{id}": _PEOPLE | {"claim", "charge", "adjustment_type"},
    "/claims/{id}": _PEOPLE,
    "/guarantor_balances/{id}": {"guarantor"},
}
"""Objects and times left out of a record where there is none (their schemas allow no null)."""


_ELSEWHERE = "a row of no location stands in no location's list, and the pipeline reads no other"
_NEITHER = "a row that is neither active nor inactive comes only where nothing is asked, which no first read does"
NEVER_NULL = {
    "/appointments": {"location_id": _ELSEWHERE},
    "/operatories": {"location_id": _ELSEWHERE},
    "/working_hours": {"location_id": _ELSEWHERE},
    "/insurance_coverages": {"active": _NEITHER},
    "/fee_schedules": {"active": _NEITHER},
}
"""What may be null by its schema, is not in any world, and why."""


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return load()


@pytest.fixture(scope="module")
def whole(default_world: World) -> Iterator[Caller]:
    """The default world in full."""
    with SandboxServer(world=default_world, limits=False, clock=HandClock()) as server:
        caller = Caller(server)
        yield caller
        caller.close()


@pytest.mark.parametrize("path", PATHS)
def test_answers_follow_the_schema_with_exactly_its_keys_each_filled_somewhere(
    path: str, whole: Caller, spec: dict[str, Any]
) -> None:
    """Risk: the pipeline is built against a sandbox that sends other names or types than the real API."""
    ref, known = reference(spec, path), set(entity(spec, path))
    checked, filled, records = validator(spec, ref), set[str](), 0
    for body in bodies(whole, path):
        found = body["data"] if isinstance(body["data"], list) else [body["data"]]
        for record in found:
            records += 1
            missing, extra = known - set(record), set(record) - known
            assert missing <= SOMETIMES.get(path, set()) | NEVER_SENT.get(path, set()), (path, missing)
            assert not extra, (path, extra)
            filled |= {name for name, value in record.items() if value is not None}
        sample = found[::30] if len(found) > 40 else found
        sampled = body | {"data": sample if isinstance(body["data"], list) else body["data"]}
        checked.validate(sampled)
        assert not set(strangers(spec, {"$ref": ref}, sampled)), path
    assert records
    assert filled == known - NEVER_SENT.get(path, set())


@pytest.mark.parametrize("path", [*INSTITUTION_LISTS, *LOCATION_LISTS, *FINANCE_LISTS])
def test_what_may_be_null_is_so_in_some_record(path: str, whole: Caller, spec: dict[str, Any]) -> None:
    """Risk: a practice whose record lacks what no synthetic one lacks is the first to show a mistake."""
    types = {name: schema.get("type") for name, schema in entity(spec, path).items()}
    records = [record for body in bodies(whole, path) for record in body["data"]]
    may = {name for name, kinds in types.items() if isinstance(kinds, list)}
    assert {name for name in may if all(record[name] is not None for record in records)} == {*NEVER_NULL.get(path, ())}


def test_the_locations_inside_their_institutions_have_exactly_the_schemas_keys(
    whole: Caller, spec: dict[str, Any]
) -> None:
    """Risk: records one level down (locations in GET /locations) are not looked at by the test above."""
    entity = set(spec["components"]["schemas"]["API_V2_Entities_Location"]["properties"])
    places = [place for home in whole.data("/locations") for place in home["locations"]]
    assert len(places) == 6
    assert all(set(place) == entity for place in places)
    assert {name for place in places for name, value in place.items() if value is not None} == entity


@pytest.mark.parametrize("path", [*INSTITUTION_LISTS, *LOCATION_LISTS, *FINANCE_LISTS, *WHOLE_LISTS, "/nex_staff"])
def test_a_wrong_type_in_any_field_fails_the_validation(path: str, whole: Caller, spec: dict[str, Any]) -> None:
    """Risk: a validator that accepts everything proves nothing."""
    checked, known = validator(spec, reference(spec, path)), entity(spec, path)
    body = next(bodies(whole, path))
    record = next(record for record in body["data"] if set(record) == set(known))
    checked.validate(body | {"data": [record]})
    for name, schema in known.items():
        nested = "$ref" in schema or schema["type"] in ("object", ["object", "null"], "array")
        spoilt = record | {name: 7 if nested else {"no": "such type"}}
        with pytest.raises(jsonschema.ValidationError):
            checked.validate(body | {"data": [spoilt]})
    with pytest.raises(jsonschema.ValidationError):
        checked.validate(body | {"data": [record | {"id": 2**70 if path == "/patients" else "7"}]})


def test_authentication_and_errors_follow_the_schema(whole: Caller, spec: dict[str, Any]) -> None:
    """Risk: a client that reads `error` or `token` the documented way finds something else."""
    token = whole.authenticate()
    validator(spec, reference(spec, "/authenticates", "201", "post")).validate(token.json())
    for status, params in ((400, {}), (403, {"subdomain": "nobody"}), (404, {"subdomain": WILLOW, "location_id": 1})):
        answer = whole.get("/patients", **({"location_id": NORTH} | params if status != 400 else params))
        assert answer.status_code == status
        body = answer.json()
        assert body.pop("data") is None  # seen in practice; the schema says object
        validator(spec, reference(spec, "/patients", str(status))).validate(body)
