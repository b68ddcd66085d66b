"""A pass without changes: it must have read everything."""

import json

import no_change
import pytest
from measure import Used


@pytest.mark.parametrize("read", [0, 999])
def test_a_pass_that_did_not_read_everything_tells_nothing_of_what_one_writes(
    monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """No row written is also what reading nothing gives."""
    monkeypatch.setattr(no_change, "accounted", lambda *_: ended(read))
    with pytest.raises(SystemExit, match=f"read {read} patients, not 1000"):
        no_change.sync({}, 1000)


def test_a_pass_that_read_everything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(no_change, "accounted", lambda *_: ended(1000))
    no_change.sync({}, 1000)


def ended(read: int) -> Used:
    """As `nexhealth sync --json` does."""
    assert "--json" in no_change.COMMAND
    practice = {"name": "institutions", "counts": {"records_read": 1}}
    patients = {"name": "patients", "counts": {"records_read": read}}
    return Used(1.0, 1.0, 100.0, 0, json.dumps({"collections": [practice, patients]}))
