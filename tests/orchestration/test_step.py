"""What a step makes of what its run was asked for, and that its events reach Dagster."""

from types import SimpleNamespace
from typing import Any, cast

import dagster as dg

from nexhealth_pipeline.orchestration.step import chosen_partitions


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
