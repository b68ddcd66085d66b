"""What a change announces: which events, about which records, to whom."""

from typing import Any

from nexhealth_pipeline.sandbox import SandboxServer

from .calls import NORTH, WILLOW, Caller
from .posting import email, expected, hear, mine, secret_of, settled
from .receiving import Receiver


def test_a_change_arrives_signed_as_the_vendor_signs(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: a receiver proved against another formula refuses every real delivery."""
    hear(server, inbox.url, "patient_updated")
    patient = email(server, "ümlaut?~>@example.com")
    (delivery,) = settled(server)
    (got,) = inbox.got
    assert got.path == "/api/nexhealth-webhook"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["signature"] == expected(secret_of(server), got)
    assert got.headers["timestamp"] == "2026-11-20T10:30:00.000Z"
    body = got.json
    assert list(body) == ["resource_type", "event_name", "event_time", "subdomain", "data", "delivery_errors"]
    change = server.state.changes[-1]
    assert (body["resource_type"], body["event_name"], body["event_time"]) == ("Patient", "patient_updated", change.at)
    assert (body["subdomain"], body["delivery_errors"]) == (WILLOW, [])
    assert body["data"] == {"patients": [server.state.row("patients", patient).record()]}
    assert "location_ids" not in body["data"]["patients"][0]
    assert [one.status for one in delivery.attempts] == [200]
    assert (delivery.outcome, delivery.announcement.ids) == ("delivered", (patient,))


def test_each_collection_is_told_by_its_own_events_and_key(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: an applier that looks for the record under the wrong key."""
    hear(server, inbox.url)
    state, patient = server.state, mine(server, "patients")
    told: dict[str, tuple[str, str]] = {
        "patients": ("patient", "patients"),
        "appointments": ("appointment", "appointment"),
        "procedures": ("procedure", "procedure"),
        "insurance_coverages": ("patient_insurance", "patient_insurance_coverage"),
        "charges": ("charge", "charge"),
        "payments": ("payment", "payment"),
        "adjustments": ("adjustment", "adjustment"),
        "claims": ("claim", "claim"),
        "payment_types": ("payment_type", "payment_type"),
        "adjustment_types": ("adjustment_type", "adjustment_type"),
        "fee_schedules": ("fee_schedule", "fee_schedule"),
        "treatment_plans": ("treatment_plan", "treatment_plan"),
    }
    for collection, (event, key) in told.items():
        number = mine(server, collection)
        state.update(collection, number, {}, parents=False)
        about: dict[str, Any] = {"location_ids": [NORTH]} if collection == "patients" else {}
        about |= {"procedure_ids": [mine(server, "procedures")]} if collection == "treatment_plans" else {}
        about |= {"database": 1} if collection.endswith("_types") else {}
        fields = {"location_id": NORTH, "patient_id": patient}
        made = state.create(collection, {} if "types" in collection else fields, subdomain=WILLOW, **about).id
        settled(server)
        updated, created = inbox.got[-2:]
        assert (updated.name, created.name) == (f"{event}_updated", f"{event}_created")
        many = collection in ("patients", "appointments")
        key_created = "appointments" if collection == "appointments" else key
        ((found, value),) = created.json["data"].items()
        assert (found, isinstance(value, list)) == (key_created, many), collection
        assert (value[0] if many else value)["id"] == made
        ((found, value),) = updated.json["data"].items()
        assert (found, isinstance(value, list)) == (key, collection == "patients"), collection
    assert len(inbox.got) == 2 * len(told)


def test_the_record_is_the_one_the_list_shows(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: `raw` of a row would flip between two shapes."""
    hear(server, inbox.url)
    caller = Caller(server)
    where = {"subdomain": WILLOW, "location_id": NORTH, "updated_since": "2000-01-01"}
    for collection, path in (("treatment_plans", "/treatment_plans"), ("charges", "/charges"), ("claims", "/claims")):
        listed = caller.walk(path, **where)[0]
        server.state.update(collection, listed["id"], {}, touch=False)
        settled(server)
        assert list(inbox.got[-1].json["data"].values()) == [listed]
    caller.close()


def test_a_deletion_is_told_where_an_event_exists(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: patients, appointments, procedures and coverages have none (API.md F.3): a copy must not wait for one."""
    hear(server, inbox.url)
    for collection in ("charges", "payments", "adjustments", "claims", "treatment_plans"):
        server.state.delete(collection, mine(server, collection, 3))
    gone = mine(server, "payments", 5)
    server.state.delete("payments", gone, hard=True)
    server.state.update("claims", mine(server, "claims", 4), {"deleted_at": "2026-11-20T00:00:00.000Z"})
    settled(server)
    names = [f"{name}_deleted" for name in ("charge", "payment", "adjustment", "claim", "treatment_plan")]
    assert inbox.names == [*names, "payment_deleted", "claim_deleted"]
    records = [next(iter(got.json["data"].values())) for got in inbox.got]
    assert [bool(one.get("deleted_at")) for one in records] == [True, True, True, True, False, False, True]
    assert records[5]["id"] == gone
    inbox.got.clear()
    for collection in ("patients", "appointments", "procedures", "insurance_coverages", "payment_types"):
        server.state.delete(collection, mine(server, collection, 1), hard=True)
    settled(server)
    assert "_deleted" not in " ".join(inbox.names)


def test_cancelling_and_moving_are_updates_of_the_appointment(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: there is no other word of a cancellation."""
    hear(server, inbox.url)
    server.state.cancel(mine(server, "appointments"))
    server.state.move(mine(server, "appointments", 1), days=2)
    settled(server)
    assert inbox.names == ["appointment_updated", "appointment_updated"]
    assert inbox.got[0].json["data"]["appointment"]["cancelled"] is True


def test_a_record_that_holds_a_changed_one_is_told_too(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: a treatment plan's procedures change without the plan being told."""
    hear(server, inbox.url, "treatment_plan_updated", "procedure_updated")
    plan = server.state.row("treatment_plans", mine(server, "treatment_plans"))
    server.state.update("procedures", plan.facts["procedure_ids"][0], {"name": "Renamed"})
    settled(server)
    assert sorted(inbox.names)[0] == "procedure_updated"
    inside = [got.json["data"]["treatment_plan"]["procedures"] for got in inbox.got if "plan" in got.name]
    assert "Renamed" in {procedure["name"] for procedure in inside[0]}


def test_documents_are_told_only_when_they_are_written(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: the only event of a document; whose it is stands in no list, so that it is told can be switched off."""
    hear(server, inbox.url)
    patient = mine(server, "patients")
    made = server.state.create("documents", subdomain=WILLOW, patient_id=patient).id
    server.state.update("documents", made, {"filename": "other.pdf"})
    server.webhooks.configure(document_owner=False)
    server.state.create("documents", subdomain=WILLOW, patient_id=patient)
    settled(server)
    assert inbox.names == ["document_insertion.complete"] * 2
    first, second = (got.json["data"]["document"] for got in inbox.got)
    assert (first["id"], first["patient_id"]) == (made, patient)
    assert "patient_id" not in second


def test_only_the_recovery_of_a_practice_system_is_told(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: an outage must be noticed by asking (API.md A.4)."""
    hear(server, inbox.url)
    number = mine(server, "sync_status")
    for fields in ({"read_status": "red"}, {"read_status": "green"}, {"write_status": "red", "read_status": "red"}):
        server.state.update("sync_status", number, fields)
    server.state.update("sync_status", number, {"write_status": "green", "read_status": "green"})
    settled(server)
    assert inbox.names == ["sync_status_read_change", "sync_status_read_change", "sync_status_write_change"]
    assert inbox.got[0].json["data"]["syncstatus"]["read_status"] == "green"


def test_nobody_hears_of_what_was_not_subscribed(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: a test that believes in a subscription which is not there."""
    endpoint = hear(server, inbox.url, "patient_updated", home=11202)
    hear(server, inbox.url, "appointment_updated")
    email(server)
    registry = server.webhooks.registry
    paused = registry.add_subscription(endpoint, 11201, "Patient", "patient_updated", active=False)
    email(server, "second@example.com")
    assert settled(server) == []
    registry.change_subscription(paused.id, active=True)
    registry.change_endpoint(endpoint, active=False)
    email(server, "third@example.com")
    assert settled(server) == []
    assert server.webhooks.describe()["counters"] == {"queue": 0, "unheard": 1}
    registry.change_endpoint(endpoint, active=True)
    server.webhooks.configure(enabled=False)
    email(server, "fourth@example.com")
    assert settled(server) == []


def test_two_identical_subscriptions_bring_every_event_twice(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: duplicates are real (API.md F.5)."""
    hear(server, inbox.url, "patient_updated")
    endpoint = server.webhooks.endpoints[0]
    server.webhooks.registry.add_subscription(endpoint.id, 11201, "Patient", "patient_updated")
    email(server)
    settled(server)
    assert len(inbox.got) == 2
    assert inbox.got[0].body == inbox.got[1].body
