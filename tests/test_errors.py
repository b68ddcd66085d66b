"""The exception tree: what the module's drawing says is what there is."""

import inspect
import re

import pytest

from nexhealth_pipeline import errors
from nexhealth_pipeline.errors import ApiError, PipelineError, RecordRefused

CLASSES = {name: kind for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}


def drawn() -> dict[str, str]:
    """Class -> parent as the module's docstring draws them."""
    parents: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^( {4}[|` ]*-- |    )([A-Z]\w+)\b", line)
        if match is None:
            continue
        depth = len(match.group(1))
        while above and above[-1][0] >= depth:
            above.pop()
        if above:
            parents[match.group(2)] = above[-1][1]
        above.append((depth, match.group(2)))
    return parents


def test_the_drawing_is_the_tree() -> None:
    """The drawing is what a caller reads before writing `except`."""
    tree = {name: kind.__mro__[1].__name__ for name, kind in CLASSES.items() if kind is not PipelineError}
    assert drawn() == tree
    assert sorted(errors.__all__) == sorted(CLASSES)


@pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
def test_every_class_says_when_it_is_raised_and_how_a_command_ends(kind: type[PipelineError]) -> None:
    assert issubclass(kind, PipelineError)
    assert inspect.getdoc(kind)
    assert kind.exit_status in {1, 2, 3, 4, 130}


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("MissingSetting", 2),
        ("InvalidSetting", 2),
        ("KeyRefused", 2),
        ("NoAccess", 3),
        ("RateLimited", 3),
        ("ProtocolBroken", 3),
        ("WarehouseUnreachable", 4),
        ("ClocksDiffer", 4),
        ("MissingRights", 4),
        ("BudgetUnavailable", 4),
        ("Cancelled", 130),
        ("RecordRefused", 1),
    ],
)
def test_exit_statuses_are_the_documented_ones(name: str, status: int) -> None:
    kind = CLASSES[name]
    assert issubclass(kind, PipelineError)
    assert kind.exit_status == status


def test_an_api_error_knows_its_status_and_a_refused_record_its_field() -> None:
    assert ApiError("x", status=503).status == 503
    assert ApiError("x").status is None
    refused = RecordRefused("born", "no such day")
    assert (refused.field, refused.rule, str(refused)) == ("born", "no such day", "born: no such day")


def test_an_error_without_a_read_cost_nothing() -> None:
    error = PipelineError("x")
    assert (error.requests, error.retries, error.throttled_seconds, error.bytes) == (0, 0, 0.0, 0)
