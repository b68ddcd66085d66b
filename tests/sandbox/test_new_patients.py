"""New patients, whom the practice system does not have yet: lists show those with an appointment ahead, ids all."""

from nexhealth_pipeline.sandbox import World, truth

from .calls import HARBOR, WILLOW, Caller, HandClock

HOMES = {11201: WILLOW, 11202: HARBOR}


def _one(caller: Caller) -> tuple[int, dict[str, object], list[int]]:
    """A new patient, the list that may show it, and its appointments ahead."""
    state = caller.server.state
    patient = next(row for row in state.store("patients").rows.values() if row.facts["bio.new_patient"])
    ahead = [
        row.id
        for row in state.store("appointments").find("patient_id", patient.id)
        if row.facts["start_time"] > state.time and not row.facts["cancelled"]
    ]
    where = {"subdomain": HOMES[patient.institution_id], "location_id": patient.facts["location_ids"][0]}
    return patient.id, where, ahead


def _listed(caller: Caller, where: dict[str, object], **params: str) -> set[int]:
    return {row["id"] for row in caller.walk("/patients", **where, **params)}


def test_a_new_patient_whose_only_visit_is_cancelled_is_in_no_list_and_there_by_id(caller: Caller) -> None:
    """Risk: absent from a list without being gone, and with the `updated_at` it always had."""
    patient, where, visits = _one(caller)
    others = _listed(caller, where) - {patient}
    before = caller.data(f"/patients/{patient}", subdomain=where["subdomain"])
    assert patient in _listed(caller, where, new_patient="true")
    for visit in visits:
        assert patient in _listed(caller, where)
        caller.server.state.cancel(visit)
    assert _listed(caller, where) == others
    assert patient not in _listed(caller, where, new_patient="true") | _listed(caller, where, location_strict="true")
    assert caller.data(f"/patients/{patient}", subdomain=where["subdomain"]) == before
    caller.server.state.update("patients", patient, {"bio": {"new_patient": False}})
    assert _listed(caller, where) == others | {patient}


def test_the_time_of_the_visit_hides_a_new_patient_too_and_a_new_visit_shows_it_again(
    caller: Caller, clock: HandClock
) -> None:
    """Risk: a list that was sorted once is kept, and the clock changes who is in it."""
    patient, where, (*others, last) = _one(caller)
    state = caller.server.state
    for visit in others:
        state.delete("appointments", visit, flagged=True)  # still there, and no appointment any more
    state.move(last, start_time=state.time[:16] + ":00.000Z")
    state.move(last, days=1)
    assert patient in _listed(caller, where)
    clock.forward(86_400 - 120)
    caller.authenticate()
    assert patient in _listed(caller, where)
    clock.forward(180)
    caller.authenticate()
    assert patient not in _listed(caller, where)
    state.move(last, days=1)
    assert patient in _listed(caller, where)


def test_the_truth_says_who_is_in_no_list(caller: Caller) -> None:
    """Risk: a warehouse that was filled by lists alone looks incomplete."""
    state = caller.server.state
    patient, _, visits = _one(caller)
    assert not any("unlisted" in line for line in truth(state, "patients"))
    for visit in visits:
        state.cancel(visit)
    lines = {line["record"]["id"]: line for line in truth(state, "patients")}
    assert [number for number, line in lines.items() if "unlisted" in line] == [patient]
    assert lines[patient]["unlisted"] is True


def test_each_new_patient_of_a_world_has_booked(default_world: World) -> None:
    """Risk: at the first sync of a demo some are in no list, and what hangs on them belongs to nobody."""
    ahead = {
        row.facts["patient_id"]
        for row in default_world.rows["appointments"]
        if row.facts["start_time"] > default_world.base.isoformat() and not row.facts["cancelled"]
    }
    new = {row.id for row in default_world.rows["patients"] if row.facts["bio.new_patient"]}
    assert len(new) > 20
    assert new <= ahead
