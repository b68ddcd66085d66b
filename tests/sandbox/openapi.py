"""The vendor's OpenAPI file as plain JSON schemas, and what a record has that its schema does not."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema

SPEC = Path(__file__).resolve().parents[3] / "shared" / "nexhealth" / "openapi-v3.0.0.json"

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


def load() -> dict[str, Any]:
    raw = json.loads(SPEC.read_text())
    return {"paths": raw["paths"], "components": _nullable(raw["components"])}


def reference(spec: dict[str, Any], path: str, status: str = "200", method: str = "get") -> str:
    content = spec["paths"][path][method]["responses"][status]["content"]
    (media,) = content.values()
    return str(media["schema"]["$ref"])


def validator(spec: dict[str, Any], ref: str) -> jsonschema.Draft4Validator:
    schema = {"$ref": ref, "components": spec["components"]}
    return jsonschema.Draft4Validator(schema, format_checker=formats)


def entity(spec: dict[str, Any], path: str) -> dict[str, Any]:
    """The properties of the record inside a path's 200 answer."""
    schemas = spec["components"]["schemas"]
    data = schemas[reference(spec, path).rpartition("/")[2]]["properties"]["data"]
    found: dict[str, Any] = schemas[(data.get("items") or data)["$ref"].rpartition("/")[2]]["properties"]
    return found


def strangers(spec: dict[str, Any], schema: dict[str, Any], value: Any, where: str = "") -> Iterator[str]:
    """Keys, however deep, that the schema does not name."""
    if "$ref" in schema:
        schema = spec["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for part in value:
            yield from strangers(spec, schema.get("items", {}), part, where)
    elif isinstance(value, dict) and "properties" in schema:
        for name, inner in value.items():
            if name not in schema["properties"]:
                yield f"{where}.{name}"
            else:
                yield from strangers(spec, schema["properties"][name], inner, f"{where}.{name}")
