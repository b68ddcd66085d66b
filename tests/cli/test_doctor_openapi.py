"""`nexhealth doctor --openapi FILE`: needs no key, no database, and no patience."""

import json
from pathlib import Path

import pytest

from nexhealth_pipeline.cli.doctor_openapi import difference_lines
from tests.cli.conftest import Run

SPEC = Path(__file__).resolve().parents[3] / "shared" / "nexhealth" / "openapi-v3.0.0.json"
with_spec = pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")


CIRCLE = json.dumps(
    {
        "paths": {"/new": {"get": {"responses": {"200": {"$ref": "#/answer"}}}}},
        "answer": {"allOf": [{"$ref": "#/other"}, {"$ref": "#/answer"}]},
        "other": {"allOf": [{"$ref": "#/answer"}]},
    }
)


@with_spec
def test_the_known_version_ends_with_0(nexhealth: Run) -> None:
    ended = nexhealth("doctor", "--openapi", str(SPEC))
    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "no difference: the catalog fits this version of the API\n"
    assert json.loads(nexhealth("doctor", "--openapi", str(SPEC), "--json").out) == {
        "differences": [],
        "exit_status": 0,
    }


@with_spec
def test_a_change_ends_with_1_and_says_what_it_means(nexhealth: Run, tmp_path: Path) -> None:
    """A script that watches the vendor's file needs the status; a person the line."""
    spec = json.loads(SPEC.read_text())
    del spec["paths"]["/nex_staff"]
    (tmp_path / "new.json").write_text(json.dumps(spec))
    ended = nexhealth("doctor", "--openapi", "new.json")
    assert ended.status == 1
    assert "endpoint missing: nex_staff /nex_staff: the collection cannot be read any more" in ended.out
    answer = json.loads(nexhealth("doctor", "--openapi", "new.json", "--json").out)
    assert (answer["exit_status"], answer["differences"][0]["where"]) == (1, "nex_staff")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "cannot be read"),
        ("openapi: 3.0.0", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no OpenAPI file"),
        ('{"paths": {"/patients": {"get": {"parameters": 5}}}}', "no OpenAPI file"),
        (CIRCLE, "part of itself"),
    ],
)
def test_a_file_that_is_none_is_wrong_use(nexhealth: Run, tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "x.json").write_text(content)
    ended = nexhealth("doctor", "--openapi", "x.json")
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("nexhealth: --openapi x.json: it ")
    assert why in ended.err


@pytest.mark.parametrize(
    ("words", "why"),
    [("~nosuchuser/x.json", "it cannot be read"), ("x.json --location acme.1", "leave out --location")],
)
def test_wrong_words_are_wrong_use(nexhealth: Run, words: str, why: str) -> None:
    """A location would be taken to have been checked."""
    ended = nexhealth("doctor", "--openapi", *words.split())
    assert (ended.status, ended.out) == (2, "")
    assert why in ended.err


def test_many_differences_are_counted() -> None:
    from nexhealth_pipeline.catalog.openapi import Difference

    lines = difference_lines([Difference("endpoint new", "/x", "/x", "a list that no collection reads")])
    assert lines[0] == "endpoint new: /x: a list that no collection reads"
    assert lines[-1].startswith("1 difference to")
