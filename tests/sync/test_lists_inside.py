"""Lists inside records (a charge's payouts, a plan's procedures): what each mode promises of them."""

from typing import Any

import pytest

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions

from .kit import Rows, sync_all

FULL = SyncOptions(mode=Mode.FULL)


def payout(box: SandboxServer) -> tuple[int, dict[str, Any], str]:
    """One that a list shows: its number in the sandbox, a change of it, and how to find its row."""
    charges = box.state.store("charges").rows
    row = next(row for row in box.state.store("claim_payouts").rows.values() if row.facts["charge_id"] in charges)
    where = f"charge_id = {row.facts['charge_id']} AND claim_id = {row.value('claim_id')}"
    fields = {"write_off": {"amount": "987.65", "currency": "USD"}}
    return row.id, fields, f"SELECT count(*) FROM nexhealth_claim_payouts WHERE {where} AND write_off = 987.65"


def procedure(box: SandboxServer) -> tuple[int, dict[str, Any], str]:
    """The same of a procedure in a treatment plan."""
    plans = [row for row in box.state.store("treatment_plans").rows.values() if row.facts["procedure_ids"]]
    plan = next(row for row in plans if row.facts.get("deleted_at") is None)
    number = plan.facts["procedure_ids"][0]
    where = f"treatment_plan_id = {plan.id} AND id = {number}"
    found = f"SELECT count(*) FROM nexhealth_treatment_plan_procedures WHERE {where} AND name = 'Renamed'"
    return number, {"name": "Renamed"}, found


@pytest.mark.parametrize(
    ("collection", "inside", "choose"),
    [("charges", "claim_payouts", payout), ("treatment_plans", "procedures", procedure)],
)
def test_an_incremental_sync_brings_what_moved_its_record_and_a_full_one_the_rest(
    settings: Settings, box: SandboxServer, rows: Rows, collection: str, inside: str, choose: Any
) -> None:
    """Whether NexHealth moves the record's `updated_at` with what lies inside is not documented (API.md E.3).

    Where it does, the change comes the next night. Where it does not, nothing tells an incremental sync of it: it
    comes with the next read of the whole, which is the weekly reconcile's.
    """
    number, fields, changed = choose(box)
    sync_all(settings, FULL, only={collection})
    assert rows(changed) == [(0,)]

    box.state.update(inside, number, fields, parents=False)
    sync_all(settings, only={collection})
    assert rows(changed) == [(0,)], "nothing told of it"
    sync_all(settings, FULL, only={collection})
    assert rows(changed) == [(1,)]

    back = {
        name: {"amount": "1.00", "currency": "USD"} if isinstance(old, dict) else "x" for name, old in fields.items()
    }
    box.state.update(inside, number, back)
    sync_all(settings, only={collection})
    assert rows(changed) == [(0,)]
