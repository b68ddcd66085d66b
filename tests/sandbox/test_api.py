"""Scope, required parameters, hidden rows, filters and includes, as API.md D and E.1 describe them."""

import pytest

from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, SandboxServer

from .calls import ALL_TIME, BASE, CLOSED, DESERT, HARBOR, ISLAND, NORTH, PIER, SOUTH, WILLOW, Caller


def test_each_missing_parameter_is_named_in_an_error_of_its_own(reader: Caller) -> None:
    """Risk: a client that reads only the first message never learns of the second."""
    status, errors = reader.errors("/appointments", subdomain=WILLOW, location_id=NORTH)
    assert (status, errors) == (400, ["Missing parameter start", "Missing parameter end"])
    assert reader.errors("/patients") == (400, ["Missing parameter subdomain", "Missing parameter location_id"])


def test_appointments_need_a_location_or_a_foreign_id(reader: Caller) -> None:
    """Risk: the real API refuses what the sandbox allowed."""
    status, errors = reader.errors("/appointments", subdomain=WILLOW, **ALL_TIME)
    assert status == 400
    assert "location_id, foreign_id" in errors[0]
    assert reader.get("/appointments", subdomain=WILLOW, foreign_id="1", **ALL_TIME).status_code == 200


@pytest.mark.parametrize("subdomain", ["Willow-dental", "WILLOW-DENTAL", "nobody"])
def test_a_subdomain_in_capitals_or_unknown_is_forbidden(reader: Caller, subdomain: str) -> None:
    """Risk: NexHealth compares subdomains by case; a tolerant sandbox hides the mistake."""
    for path in ("/patients", "/locations", "/insurance_plans"):
        status, errors = reader.errors(path, subdomain=subdomain, location_id=NORTH)
        assert (status, errors) == (403, ["You don't have access to perform this action"])


@pytest.mark.parametrize("place", [1, PIER, CLOSED, 11201])
def test_an_unknown_foreign_or_closed_location_is_not_found(reader: Caller, place: int) -> None:
    """Risk: an institution id sent as a location id must fail as loudly as the real API does."""
    assert reader.errors("/patients", subdomain=WILLOW, location_id=place) == (
        404,
        [f"Location with id {place} not found"],
    )


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/patients", {"per_page": "many"}),
        ("/patients", {"per_page": "0"}),
        ("/patients", {"location_id": "north"}),
        ("/patients", {"inactive": "perhaps"}),
        ("/patients", {"updated_since": "yesterday"}),
        ("/patients", {"updated_since": "2026-13-01"}),
        ("/patients", {"updated_since": "9999-12-31T23:59:59.9999Z"}),
        ("/patients", {"sort": "name"}),
        ("/patients", {"sort": "updated_at,name"}),
        ("/appointments", ALL_TIME | {"sort": "id"}),
        ("/patients", {"headers": {"Nex-Api-Version": "v9"}}),
        ("/appointments", {"start": "then", "end": "now"}),
        ("/appointments", {"start": "2026-02-01", "end": "2026-01-01"}),
        ("/appointments", ALL_TIME | {"timezone": "Mars/Olympus"}),
        ("/appointments", ALL_TIME | {"patient_ids__": list(range(26))}),
        ("/locations", {"filter_by_subscription_feature": "magic"}),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(reader: Caller, path: str, params: dict[str, object]) -> None:
    """Risk: a wrong value that is silently ignored returns everything."""
    status, errors = reader.errors(path, **({"subdomain": WILLOW, "location_id": NORTH} | params))
    assert status == 400
    assert errors


@pytest.mark.parametrize(
    "text", ["2026-01-05", "2026-01-05T00:00:00+0000", "2026-01-05T00:00:00Z", "2026-01-05T01:00:00+01:00"]
)
def test_a_time_may_be_a_date_or_have_an_offset_in_any_form(reader: Caller, text: str) -> None:
    """Risk: the forms the vendor documents and the one everybody uses (Z) must mean the same moment."""
    where = {"subdomain": WILLOW, "location_id": NORTH}
    expected = reader.walk("/patients", **where, updated_since="2026-01-05T00:00:00.000Z")
    assert reader.walk("/patients", **where, updated_since=text) == expected


def test_updated_since_includes_the_very_moment_and_nothing_before(reader: Caller) -> None:
    """Risk: an exclusive bound loses the record that carries the watermark."""
    where = {"subdomain": WILLOW, "location_id": NORTH}
    rows = reader.walk("/patients", **where, sort="updated_at")
    middle = rows[len(rows) // 2]["updated_at"]
    assert reader.walk("/patients", **where, sort="updated_at", updated_since=middle) == rows[len(rows) // 2 :]


def test_unknown_parameters_are_ignored_and_named_in_a_warning(reader: Caller) -> None:
    """Risk: a misspelt filter returns all rows with status 200; only `description` tells."""
    body = reader.get("/patients", subdomain=WILLOW, location_id=NORTH, updated_after="2026-01-01").json()
    assert "updated_after" in body["description"]
    assert reader.get("/patients", subdomain=WILLOW, location_id=NORTH).json()["description"] == ""


def test_the_list_of_institutions_takes_no_parameter(reader: Caller) -> None:
    """Risk: what asks for one institution there gets all, and only `description` tells."""
    body = reader.get("/institutions", subdomain=WILLOW).json()
    assert [row["subdomain"] for row in body["data"]] == [WILLOW, HARBOR]
    assert "subdomain" in body["description"]


def test_include_on_a_list_without_includes_is_a_warning_not_an_error(reader: Caller) -> None:
    """Risk: v2 code that includes patients in /appointments gets fewer fields without noticing."""
    body = reader.get("/appointments", subdomain=WILLOW, location_id=NORTH, include__="patient", **ALL_TIME).json()
    assert body["code"] is True
    assert "include" in body["description"]
    assert "patient" not in body["data"][0]


def test_inactive_providers_are_hidden_until_asked_for(reader: Caller) -> None:
    """Risk: a first load without the second pass misses rows for ever."""
    shown = reader.walk("/providers", subdomain=WILLOW)
    hidden = reader.walk("/providers", subdomain=WILLOW, inactive="true")
    assert {row["inactive"] for row in shown} == {False}
    assert {row["inactive"] for row in hidden} == {True}
    truth = [row for row in reader.server.state.records("providers") if row["institution_id"] == 11201]
    assert len(shown) + len(hidden) == len(truth)


def test_ended_coverages_deleted_plans_and_inactive_document_types_are_hidden(reader: Caller) -> None:
    """Risk: the defaults of `active` and `include_deleted` hide rows on three more lists."""
    counts = {
        (subdomain, active): len(reader.walk("/insurance_coverages", subdomain=subdomain, active=active))
        for subdomain in (WILLOW, HARBOR)
        for active in ("true", "false")
    }
    assert all(counts.values())
    assert sum(counts.values()) == len(reader.server.state.ids("insurance_coverages"))
    assert len(reader.walk("/insurance_coverages", subdomain=WILLOW)) == counts[WILLOW, "true"]
    plans = reader.walk("/insurance_plans", subdomain=WILLOW)
    everything = reader.walk("/insurance_plans", subdomain=WILLOW, include_deleted="true")
    assert len(plans) < len(everything)
    assert {row["deleted_at"] for row in plans} == {None}
    where = {"subdomain": WILLOW, "location_id": NORTH}
    assert [row["active"] for row in reader.data("/document_types", **where)] == [True] * 5
    assert [row["active"] for row in reader.data("/document_types", **where, active="false")] == [False]


def test_patients_of_all_kinds_come_without_asking(reader: Caller) -> None:
    """Risk: since June 2026 new ones with an appointment ahead do, as inactive and non-patients always did."""
    rows = reader.walk("/patients", subdomain=WILLOW, location_id=NORTH) + reader.walk(
        "/patients", subdomain=HARBOR, location_id=PIER
    )
    assert {row["inactive"] for row in rows} == {True, False}
    assert {row["bio"].get("non_patient") for row in rows} >= {True, False}
    assert {row["bio"].get("new_patient") for row in rows} >= {True, False}


def test_two_locations_of_one_database_list_the_same_patients_unless_strict(reader: Caller) -> None:
    """Risk: location_id alone only chooses the EHR database."""
    north, south, desert = (
        {row["id"] for row in reader.walk("/patients", subdomain=WILLOW, location_id=place)}
        for place in (NORTH, SOUTH, DESERT)
    )
    assert north == south
    assert not north & desert
    strict = {
        place: {
            row["id"] for row in reader.walk("/patients", subdomain=WILLOW, location_id=place, location_strict="true")
        }
        for place in (NORTH, SOUTH)
    }
    assert strict[NORTH] | strict[SOUTH] == north
    assert strict[NORTH] & strict[SOUTH], "some patients visit both"
    assert strict[NORTH] - strict[SOUTH]
    both = min(strict[NORTH] & strict[SOUTH])
    assert reader.data(f"/patients/{both}", subdomain=WILLOW)["location_ids"] == [NORTH, SOUTH]


def test_the_appointment_window_selects_by_start_and_keeps_cancelled_ones(reader: Caller) -> None:
    """Risk: rows that began before the window but end in it, and cancelled ones, are judged differently."""
    where = {"subdomain": WILLOW, "location_id": DESERT}
    every = reader.walk("/appointments", **where, **ALL_TIME)
    cut = sorted(row["start_time"] for row in every)[len(every) // 2]
    early = reader.walk("/appointments", **where, start="1900-01-01", end=cut)
    late = reader.walk("/appointments", **where, start=cut, end="2200-01-01")
    assert {row["start_time"] <= cut for row in early} == {True}
    assert {row["start_time"] >= cut for row in late} == {True}
    assert {row["id"] for row in early + late} == {row["id"] for row in every}
    parts = [reader.walk("/appointments", **where, **ALL_TIME, cancelled=flag) for flag in ("true", "false")]
    assert all(parts)
    assert len(parts[0]) + len(parts[1]) == len(every)


def test_a_window_without_offset_is_read_in_the_given_timezone(reader: Caller) -> None:
    """Risk: `timezone` shifts what a date without offset means."""
    where = {"subdomain": WILLOW, "location_id": DESERT, "end": "2200-01-01T00:00:00Z"}
    local = reader.walk("/appointments", **where, start="2026-01-05T00:00:00", timezone="America/Phoenix")
    assert local == reader.walk("/appointments", **where, start="2026-01-05T07:00:00Z")


@pytest.mark.parametrize(("path", "window"), [("/patients", {}), ("/appointments", ALL_TIME)])
def test_updated_since_is_utc_whatever_the_timezone(reader: Caller, path: str, window: dict[str, str]) -> None:
    """Risk: an increment that begins hours late loses what changed meanwhile."""
    where = {"subdomain": WILLOW, "location_id": DESERT, "sort": "updated_at"} | window
    rows = reader.walk(path, **where)
    since = rows[len(rows) // 2]["updated_at"]
    shifted = reader.walk(path, **where, updated_since=since.removesuffix("Z"), timezone="America/Phoenix")
    assert shifted == [row for row in rows if row["updated_at"] >= since]


def test_a_list_sorts_by_all_the_fields_that_are_named(caller: Caller) -> None:
    """Risk: of two rows changed in the same moment the second comes first, and a page between them skips one."""
    where = {"subdomain": WILLOW, "location_id": DESERT, "per_page": 3}
    state = caller.server.state
    for number, row in enumerate(caller.walk("/patients", subdomain=WILLOW, location_id=DESERT)):
        state.update("patients", row["id"], {"updated_at": f"2026-11-20T09:0{number % 2}:00.000Z"})
    rows = caller.walk("/patients", **where)
    for sort, order in {
        "updated_at": lambda row: (row["updated_at"], row["id"]),
        "updated_at,-id": lambda row: (row["updated_at"], -row["id"]),
        "id,-updated_at": lambda row: row["id"],
    }.items():
        assert caller.walk("/patients", **where, sort=sort) == sorted(rows, key=order), sort
        mirrored = ",".join(f"-{part}".replace("--", "") for part in sort.split(","))
        assert caller.walk("/patients", **where, sort=mirrored) == sorted(rows, key=order, reverse=True), mirrored


def test_appointments_can_be_asked_for_some_patients(reader: Caller) -> None:
    """Risk: the one-patient sync asks this way."""
    where = {"subdomain": WILLOW, "location_id": DESERT}
    every = reader.walk("/appointments", **where, **ALL_TIME)
    ids = sorted({row["patient_id"] for row in every if row["patient_id"]})[:3]
    some = reader.walk("/appointments", **where, **ALL_TIME, patient_ids__=ids)
    assert some == [row for row in every if row["patient_id"] in ids]
    blocks = reader.walk("/appointments", **where, **ALL_TIME, unavailable="true")
    assert {row["patient_id"] for row in blocks} <= {None}


def test_patient_filters_find_what_they_say(reader: Caller) -> None:
    """Risk: `doctor` and one-patient reads use filters that nothing else exercises."""
    where = {"subdomain": WILLOW, "location_id": DESERT}
    rows = reader.walk("/patients", **where)
    one = next(row for row in rows if row["email"] and row["bio"].get("date_of_birth") and not row["inactive"])
    for params in (
        {"email": one["email"].upper()},
        {"foreign_id": one["foreign_id"]},
        {"name": one["name"][:5].lower(), "date_of_birth": one["bio"]["date_of_birth"]},
        {"phone_number": one["bio"]["phone_number"], "inactive": "false", "non_patient": "false"},
    ):
        assert one in reader.walk("/patients", **where, **params), params
    assert {row["inactive"] for row in reader.walk("/patients", **where, inactive="true")} == {True}
    writable = reader.walk("/patients", **where, forms_syncable="true")
    assert writable == [row for row in rows if row["foreign_id"]] != rows
    assert reader.walk("/patients", **where, forms_syncable="false") == rows


def test_appointment_types_by_location_need_a_location(reader: Caller) -> None:
    """Risk: one institution's types belong to locations, the other's do not."""
    assert reader.errors("/appointment_types", subdomain=WILLOW) == (400, ["Missing parameter location_id"])
    north = reader.data("/appointment_types", subdomain=WILLOW, location_id=NORTH)
    south = reader.data("/appointment_types", subdomain=WILLOW, location_id=SOUTH)
    assert not {row["id"] for row in north} & {row["id"] for row in south}
    assert {row["parent_type"] for row in north} == {"Location"}
    assert {row["parent_type"] for row in reader.data("/appointment_types", subdomain=HARBOR)} == {"Institution"}
    status, _ = reader.errors("/appointment_types", subdomain=HARBOR, include__="descriptors")
    assert status == 400
    described = reader.data("/appointment_types", subdomain=HARBOR, location_id=PIER, include__="descriptors")
    assert all(row["descriptors"] for row in described)


def test_sync_status_groups_locations_by_database_and_one_reads_red(reader: Caller) -> None:
    """Risk: groups and freshness of a shared database come from here."""
    rows = reader.data("/sync_status")
    groups = {row["sync_source_name"]: [place["id"] for place in row["locations"]] for row in rows}
    assert [NORTH, SOUTH] in groups.values()
    red = [row for row in rows if row["read_status"] == "red"]
    assert [[place["id"] for place in row["locations"]] for row in red] == [[ISLAND]]
    assert reader.data("/sync_status", read_status="red") == red
    assert reader.data("/sync_status", subdomain=HARBOR, location_ids__=[ISLAND]) == red


def test_locations_come_nested_in_their_institutions_and_closed_ones_too(reader: Caller) -> None:
    """Risk: `data` is an array even for one subdomain, and unspecified `inactive` means both."""
    both = reader.data("/locations")
    assert [[place["id"] for place in home["locations"]] for home in both] == [
        [NORTH, SOUTH, DESERT, CLOSED],
        [PIER, ISLAND],
    ]
    (willow,) = reader.data("/locations", subdomain=WILLOW, inactive="false")
    assert CLOSED not in {place["id"] for place in willow["locations"]}
    ledger = reader.data("/locations", filter_by_subscription_feature="ledger_sync")
    assert [place["id"] for home in ledger for place in home["locations"]] == [NORTH, SOUTH, DESERT, PIER]


def test_coverages_and_documents_of_an_unknown_patient_are_not_found(reader: Caller) -> None:
    """Risk: an empty list and a missing patient are different things."""
    assert reader.errors("/insurance_coverages", subdomain=WILLOW, patient_id=1)[0] == 404
    assert reader.errors("/patients/1/documents", subdomain=WILLOW)[0] == 404
    patient = reader.walk("/patients", subdomain=HARBOR, location_id=PIER)[0]["id"]
    assert reader.errors(f"/patients/{patient}/documents", subdomain=WILLOW)[0] == 404
    assert reader.get(f"/patients/{patient}/documents", subdomain=HARBOR).status_code == 200


def test_a_document_has_a_relative_url_that_needs_the_token(reader: Caller) -> None:
    """Risk: the file's link must be resolved against the host and asked with the bearer token."""
    state = reader.server.state
    document = state.records("documents")[0]
    assert document["url"] == f"/documents/{document['id']}/download"
    assert reader.get(document["url"]).content.startswith(b"%PDF")
    refused = reader.get(document["url"], headers={"Authorization": "none"})
    assert refused.status_code == 401
    assert reader.get("/documents/1/download").status_code == 404


def test_single_reads_of_another_institutions_rows_are_not_found(reader: Caller) -> None:
    """Risk: ids are asked for under the wrong institution."""
    for collection in (
        "patients",
        "appointments",
        "providers",
        "insurance_plans",
        "insurance_coverages",
        "operatories",
    ):
        number = reader.server.state.ids(collection)[0]
        institution = reader.server.state.row(collection, number).institution_id
        owner, stranger = (WILLOW, HARBOR) if institution == 11201 else (HARBOR, WILLOW)
        assert reader.get(f"/{collection}/{number}", subdomain=owner).status_code == 200
        assert reader.errors(f"/{collection}/{number}", subdomain=stranger)[0] == 404
        assert reader.errors(f"/{collection}/1", subdomain=owner)[0] == 404


def test_unknown_paths_and_methods_are_refused_in_an_envelope(reader: Caller) -> None:
    """Risk: a client must be able to read every refusal the same way."""
    assert reader.errors("/nothing")[0] == 404
    assert reader.errors("/patients/abc", subdomain=WILLOW)[0] == 404
    answer = reader.session.delete(reader.server.url + "/patients")
    assert (answer.status_code, answer.json()["code"]) == (405, False)
    assert reader.session.get(reader.server.url + "/authenticates").status_code == 405


def test_either_version_header_or_none_is_accepted_everywhere(reader: Caller) -> None:
    """Risk: API.md D.3: the vendor's own samples differ in which header they send."""
    legacy = {"Accept": "application/vnd.Nexhealth+json;version=2"}
    for headers in ({"Nex-Api-Version": "v3.0.0"}, {"Nex-Api-Version": "v20240412"}, legacy, {}):
        assert reader.get("/locations", headers=headers).status_code == 200
        assert reader.get("/insurance_plans", subdomain=WILLOW, headers=headers).status_code == 200


def test_a_key_of_one_institution_sees_no_other() -> None:
    """Risk: institutions with keys of their own."""
    keys = {"willow-key": (WILLOW,), SANDBOX_API_KEY: None}
    with SandboxServer(patients=20, appointments_per_patient=1, base=BASE, api_keys=keys) as server:
        caller = Caller(server)
        assert [row["subdomain"] for row in caller.data("/institutions")] == [WILLOW]
        assert [row["id"] for row in caller.data("/locations")] == [11201]
        assert caller.errors("/insurance_plans", subdomain=HARBOR)[0] == 403
        assert caller.errors("/institutions/11202")[0] == 404
        assert caller.authenticate(SANDBOX_API_KEY).status_code == 201
        assert len(caller.data("/institutions")) == 2
        caller.close()


def test_every_answer_carries_the_servers_date(caller: Caller) -> None:
    """Risk: watermarks take the API's time from this header."""
    for path in ("/institutions", "/nothing", "/sandbox/stats"):
        assert caller.get(path).headers["Date"] == "Fri, 20 Nov 2026 10:30:00 GMT"
