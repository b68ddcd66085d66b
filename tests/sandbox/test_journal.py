"""A state folder serves the same data again, changes included."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import State, build_app, build_world, truth
from nexhealth_pipeline.sandbox.kinds import KINDS

from .calls import BASE, ISLAND, NORTH, WILLOW, HandClock

SIZES: dict[str, Any] = {"patients": 40, "appointments_per_patient": 2}


def _everything(state: State) -> dict[str, list[dict[str, object]]]:
    """All rows; whom no list shows is the clock's matter."""
    told = {name: truth(state, name) for name in KINDS}
    return told | {"patients": [{**line, "unlisted": None} for line in told["patients"]]}


def test_a_later_start_with_the_folder_serves_the_same_rows_and_changes(tmp_path: Path) -> None:
    """Risk: a second `make demo` must find nothing changed."""
    first = build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES, clock=HandClock()).state
    visits = first.ids("appointments")
    first.cancel(visits[0])
    first.move(visits[1], days=3)
    first.delete("appointments", visits[2])
    first.delete("insurance_plans", first.ids("insurance_plans")[0])
    patient = first.create("patients", {"last_name": "O'Néw 🌱"}, subdomain=WILLOW, location_ids=[NORTH]).id
    first.create("documents", subdomain=WILLOW, patient_id=patient)
    first.update("procedures", first.ids("procedures")[0], {"fee": {"amount": "1.00"}})
    first.delete("charges", first.ids("charges")[0])
    first.delete("treatment_plans", first.ids("treatment_plans")[-1])
    first.create("payment_plans", {"patient_id": patient, "guarantor_id": patient}, subdomain=WILLOW)
    first.update("claim_payouts", first.ids("claim_payouts")[0], {"claim_id": 0})
    first.enable(ISLAND)
    first.rebalance()
    later = HandClock(BASE.timestamp() + 90 * 86400)
    again = build_app(state_dir=tmp_path, clock=later).state
    assert _everything(again) == _everything(first)
    again.update("patients", patient, {"email": "later@example.com"})
    third = build_app(state_dir=tmp_path, seed=5, clock=later).state
    assert _everything(third) == _everything(again)


def test_a_later_start_gives_newer_times_than_all_before(tmp_path: Path) -> None:
    """Risk: a burst of changes runs ahead of the clock, and one made right after a start is older than those before it."""
    clock = HandClock()
    first = build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES, clock=clock).state
    patient, gone = first.ids("patients")[:2]
    times = [first.update("patients", patient, {"email": f"{number}@example.com"}).at for number in range(3)]
    times.append(first.delete("patients", gone, hard=True).at)
    again = build_app(state_dir=tmp_path, clock=clock).state
    times.append(again.update("patients", patient, {"email": "later@example.com"}).at)
    assert again.row("patients", patient).updated == times[-1]
    assert times == sorted(set(times))


def test_a_folder_of_an_older_sandbox_is_completed(tmp_path: Path) -> None:
    """Risk: a demo made before finance and treatment were served must go on, its own changes kept."""
    kept = {"format": 1, "seed": 5, "base": BASE.isoformat(), **SIZES}
    (tmp_path / "world.json").write_text(json.dumps(kept))
    fresh = build_app(seed=5, base=BASE, **SIZES).state
    place, descriptor = fresh.row("locations", ISLAND), fresh.ids("appointment_descriptors")[0]
    entry = {"op": "put", "collection": "locations", "id": ISLAND, "institution_id": 11202}
    lines = [
        entry | {"record": place.record() | {"name": "Moved"}, "about": {"database": 42, "features": ["forms"]}},
        {"op": "remove", "collection": "descriptors", "id": descriptor},
        {"op": "remove", "collection": "toys", "id": 1},
    ]
    (tmp_path / "changes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    state = build_app(state_dir=tmp_path).state
    assert state.row("locations", ISLAND).value("name") == "Moved"
    assert state.row("locations", ISLAND).facts["lacks"] == ["finance"]
    assert descriptor not in state.ids("appointment_descriptors")
    shown_with_locations = {"institutions", "locations", "providers", "sync_status"}
    for name in set(KINDS) - shown_with_locations - {"appointment_descriptors"}:
        assert truth(state, name) == truth(fresh, name), name
    assert state.counts()["charges"] > 0


@pytest.mark.parametrize("other", [{"seed": 6}, {"patients": 41}, {"appointments_per_patient": 9.0}])
def test_another_world_in_the_same_folder_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    """Risk: two worlds mixed in one warehouse."""
    build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES)
    with pytest.raises(ValueError, match="another"):
        build_app(state_dir=tmp_path, **other)


def test_a_change_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    """Risk: a half-written line must neither keep the sandbox from starting nor take what comes after it along."""
    first = build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES)
    visits = first.state.ids("appointments")
    first.state.cancel(visits[0])
    with (tmp_path / "changes.jsonl").open("ab") as file:
        file.write(b'{"op":"put","collec')
    again = build_app(state_dir=tmp_path)
    assert _everything(again.state) == _everything(first.state)
    again.state.cancel(visits[1])
    assert _everything(build_app(state_dir=tmp_path).state) == _everything(again.state)


def test_a_change_that_a_full_disk_takes_half_of_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Risk: the one after it, when there is room again, would be part of its line."""
    first = build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES)
    visits = first.state.ids("appointments")
    write = io.FileIO.write

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            return write(self, bytes(data)[:20])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode))
        with pytest.raises(OSError, match="No space left"):
            first.state.cancel(visits[0])
    first.state.cancel(visits[1])
    kept = (tmp_path / "changes.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in kept] == [visits[1]]


def test_a_kept_change_that_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    """Risk: an older sandbox joined a change to an unfinished line, and everything after it was lost."""
    first = build_app(state_dir=tmp_path, seed=5, base=BASE, **SIZES)
    visits = first.state.ids("appointments")
    with (tmp_path / "changes.jsonl").open("ab") as file:
        file.write(b'{"op":"put","collec{"op":"put"}\n')
    first.state.cancel(visits[1])
    assert _everything(build_app(state_dir=tmp_path).state) == _everything(first.state)


def test_a_folder_of_another_format_names_itself_and_the_fix(tmp_path: Path) -> None:
    """Risk: an upgrade that serves half-understood data."""
    (tmp_path / "world.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="delete that folder"):
        build_app(state_dir=tmp_path)


def test_a_ready_made_world_is_remembered_too(tmp_path: Path) -> None:
    """Risk: a folder without an origin would be filled with another world at the next start."""
    world = build_world(9, base=BASE, **SIZES)
    first = build_app(state_dir=tmp_path, world=world)
    assert _everything(build_app(state_dir=tmp_path).state) == _everything(first.state)
    with pytest.raises(ValueError, match="another seed"):
        build_app(state_dir=tmp_path, world=build_world(10, base=BASE, **SIZES))
