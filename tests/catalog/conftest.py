"""The vendor's OpenAPI file, to be changed."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SPEC = Path(__file__).resolve().parents[3] / "shared" / "nexhealth" / "openapi-v3.0.0.json"
with_spec = pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")
Node = dict[str, Any]


@cache
def spec_text() -> str:
    return SPEC.read_text()


@pytest.fixture
def spec() -> Node:
    found: Node = json.loads(spec_text())
    return found
