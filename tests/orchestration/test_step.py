"""What a step makes of what its run was asked for, and that its events reach Dagster."""

from types import SimpleNamespace
from typing import Any, cast

import dagster as dg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration import assets
from nexhealth_pipeline.orchestration.step import chosen_partitions, step

from .kit import PIER, House


class Key(str):
    """A partition key that counts how often it is looked up."""

    __slots__ = ()
    looked_up = 0

    def __hash__(self) -> int:
        Key.looked_up += 1
        return super().__hash__()


def test_a_partition_is_looked_up_a_few_times_however_many_there_are() -> None:
    """A first read of appointments at a thousand locations names 53,000 in its tags and in its config."""
    keys = [Key(f"acme.{number}|2026-01") for number in range(300)]
    tagged, named = keys[:200], keys[100:]
    context: Any = SimpleNamespace(
        partition_keys=tagged, get_step_execution_context=lambda: SimpleNamespace(has_partitions=True)
    )
    Key.looked_up = 0
    chosen = chosen_partitions(cast(dg.AssetExecutionContext, context), named, plan=False)
    assert [str(key) for key in chosen] == [str(key) for key in keys]
    assert Key.looked_up <= 10 * len(keys)


def test_of_a_bug_its_kind_and_its_way_are_told_and_not_what_it_quotes(
    known: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster stores the message of what a step raises, and of what that was raised from, for everybody in Dagit."""

    def crash(*_: object) -> None:
        try:
            int("Jane Doe")
        except ValueError as error:
            raise RuntimeError(f"no number: {error}") from error

    monkeypatch.setattr(assets, "run_slices", crash)
    result = known.run(Scope.LOCATION, [PIER], assets=["operatories"])
    assert known.failure(result).startswith(f"unexpected RuntimeError at {__file__}:")
    told = [str(entry) for entry in known.instance.all_logs(result.run_id)]
    assert [text for text in told if "Jane" in text] == []
    assert any("places" in text and "in crash" in text for text in told)


@pytest.mark.parametrize("told", [dg.RetryRequested(), dg.Failure("two of three failed")])
def test_what_a_step_tells_dagster_goes_through(told: Exception) -> None:
    context = cast(dg.OpExecutionContext, SimpleNamespace())
    with pytest.raises(type(told)) as caught, step(context):
        raise told
    assert caught.value is told
