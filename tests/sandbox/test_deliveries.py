"""What a change announces, and how it arrives: signed, again after errors, and wrong in all the ways asked for."""

import base64
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import EVENTS, RETRY_AFTER, Delivery, SandboxServer, World, build_app, build_world

from .calls import BASE, HARBOR, NORTH, WILLOW, Caller, HandClock
from .receiving import ENDPOINTS, Got, Hooks, Receiver, receiver

FAST = 1e-7
"""Two days in 17 ms."""


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(base=BASE, patients=40, appointments_per_patient=4)


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Receiver]:
    with receiver() as kept:
        yield kept


@pytest.fixture
def inbox(mailbox: Receiver) -> Receiver:
    mailbox.got.clear()
    mailbox.answer = lambda _number: 200
    return mailbox


@pytest.fixture
def server(changing_server: SandboxServer, world: World, clock: HandClock) -> Iterator[SandboxServer]:
    """A sandbox that delivers in order; it ends its workers when the next test begins."""
    changing_server.replace(build_app(world=world, limits=False, clock=clock, webhooks={"workers": 1}))
    yield changing_server
    changing_server.webhooks.stop()


def hear(server: SandboxServer, url: str, *events: str, home: int = 11201) -> int:
    """An endpoint that hears of these events, or of all."""
    registry = server.webhooks.registry
    endpoint = registry.add_endpoint("tests", url)
    for resource, names in EVENTS.items():
        for name in names:
            if not events or name in events:
                registry.add_subscription(endpoint.id, home, resource, name)
    return endpoint.id


def settled(server: SandboxServer) -> list[Delivery]:
    assert server.webhooks.wait_idle(5)
    return server.webhooks.log()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


def secret_of(server: SandboxServer) -> bytes:
    return server.webhooks.endpoints[0].secret_key.encode()


def expected(secret: bytes, got: Got, encode: Callable[[bytes], bytes] = base64.b64encode) -> str:
    """The vendor's formula (API.md F.4), written out once more."""
    message = got.headers["timestamp"].encode() + b"." + encode(got.body)
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def mine(server: SandboxServer, collection: str, number: int = 0) -> int:
    rows = server.state.store(collection).rows.values()
    return sorted(row.id for row in rows if row.institution_id == 11201 and not row.facts.get("deleted_at"))[number]


def email(server: SandboxServer, text: str = "new@example.com", number: int = 0) -> int:
    """Change one patient."""
    patient = mine(server, "patients", number)
    server.state.update("patients", patient, {"email": text})
    return patient


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


def test_errors_are_tried_again_and_told_in_the_next_body(
    server: SandboxServer, inbox: Receiver, clock: HandClock
) -> None:
    """Risk: a repeated delivery is not byte for byte the first, so its hash must leave `delivery_errors` out."""

    def answer(number: int) -> int:
        clock.forward(30)
        return {1: 503, 2: 302, 3: 404}.get(number, 204)

    inbox.answer = answer
    hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(time_scale=FAST)
    email(server)
    (delivery,) = settled(server)
    assert [one.status for one in delivery.attempts] == [503, 302, 404, 204]
    assert [len(got.json["delivery_errors"]) for got in inbox.got] == [0, 1, 2, 3]
    assert len({str(got.json["data"]) + got.json["event_time"] for got in inbox.got}) == 1
    assert all(got.headers["signature"] == expected(secret_of(server), got) for got in inbox.got)
    assert len({got.headers["timestamp"] for got in inbox.got}) == 4
    inbox.got.clear()
    server.webhooks.configure(restamp=False, stamp_offset=-3600)
    email(server, "again@example.com")
    settled(server)
    assert {got.headers["timestamp"] for got in inbox.got} == {"2026-11-20T09:32:00.000Z"}
    assert all(got.headers["signature"] == expected(secret_of(server), got) for got in inbox.got)


@pytest.mark.parametrize("failures", [1, 2, 6, 10])
def test_the_waits_are_the_vendors(failures: int, server: SandboxServer, inbox: Receiver) -> None:
    """Risk: how long a receiver may be away is decided by these (API.md F.5)."""

    def answer(number: int) -> int:
        if number == failures:
            server.webhooks.configure(time_scale=1.0)
        return 500

    inbox.answer = answer
    hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(time_scale=FAST)
    email(server)
    log = server.webhooks.log
    until(lambda: len(log()[0].attempts) == failures and server.webhooks.describe()["counters"]["queue"] == 1)
    (waiting,) = server.webhooks.describe()["queue"]
    assert RETRY_AFTER[failures - 1] - 3 < waiting["due_in"] <= RETRY_AFTER[failures - 1]
    assert not server.webhooks.wait_idle(0)


def test_after_the_last_failure_the_endpoint_is_off_and_its_events_are_lost(
    server: SandboxServer, inbox: Receiver
) -> None:
    """Risk: the hole that a watchdog has to find and to fill."""
    inbox.answer = lambda _number: 500
    number = hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(time_scale=1.0)
    email(server, "waits@example.com")
    until(lambda: bool(server.webhooks.log()[0].attempts))
    server.webhooks.configure(time_scale=FAST)
    email(server, "fails@example.com", 1)
    waits, fails = settled(server)
    assert (len(fails.attempts), fails.outcome) == (11, "lost")
    assert (len(waits.attempts), waits.outcome) == (1, "lost")
    endpoint = server.webhooks.registry.endpoint(number)
    assert endpoint is not None
    assert not endpoint.active
    inbox.answer = lambda _number: 200
    email(server, "missed@example.com")
    server.webhooks.registry.change_endpoint(number, active=True)
    email(server, "heard@example.com")
    assert settled(server)[-1].outcome == "delivered"
    counters = server.webhooks.describe()["counters"]
    assert {name: counters[name] for name in ("deactivated_endpoints", "lost", "unheard", "delivered")} == {
        "deactivated_endpoints": 1,
        "lost": 2,
        "unheard": 1,
        "delivered": 1,
    }


def test_an_event_that_never_gets_through_does_not_end_an_endpoint_that_answers_others(
    server: SandboxServer, inbox: Receiver
) -> None:
    """Risk: the vendor speaks of continuous errors; one poisoned event is not that."""
    inbox.answer = lambda number: 200 if inbox.got[number - 1].name == "appointment_updated" else 400
    hear(server, inbox.url, "patient_updated", "appointment_updated")
    server.webhooks.configure(time_scale=1e-6)
    email(server)
    until(lambda: len(inbox.got) >= 2)
    server.state.cancel(mine(server, "appointments"))
    assert [one.outcome for one in settled(server)] == ["lost", "delivered"]
    assert server.webhooks.endpoints[0].active


def test_no_answer_is_a_failure_too(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: a receiver that hangs, hangs up or is not there."""
    released = threading.Event()

    def answer(number: int) -> int:
        if number == 2:
            released.wait(0.15)
        return 0 if number == 1 else 200

    inbox.answer = answer
    hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(time_scale=FAST, timeout=0.03)
    email(server)
    until(lambda: len(server.webhooks.log()[0].attempts) >= 2)
    released.set()
    (delivery,) = settled(server)
    assert [one.error for one in delivery.attempts[:2]] == ["RemoteDisconnected", "timeout"]
    assert delivery.outcome == "delivered"
    hear(server, "http://127.0.0.1:1/", "appointment_updated")
    server.state.cancel(mine(server, "appointments"))
    assert {one.error for one in settled(server)[-1].attempts} == {"refused"}


def test_the_api_answers_while_a_receiver_hangs(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: an applier asks the API in the middle of deliveries; both waiting for each other would be the end."""
    released = threading.Event()
    inbox.answer = lambda _number: 200 if released.wait(3) else 500
    hear(server, inbox.url, "patient_updated")
    email(server)
    until(lambda: bool(inbox.got))
    caller, waiter = Caller(server), Caller(server)
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(waiter.admin("GET", "/sandbox/webhooks?wait=4").json()))
    thread.start()
    assert caller.get("/institutions").status_code == 200
    assert caller.admin("GET", "/sandbox/webhooks").json()["idle"] is False
    assert not answers
    released.set()
    thread.join()
    assert answers[0]["idle"] is True
    caller.close()
    waiter.close()


def test_duplicates_drops_and_order_are_chosen_by_the_seed(
    server: SandboxServer, world: World, inbox: Receiver
) -> None:
    """Risk: a failure that cannot be repeated."""

    def names(**mischief: Any) -> list[str]:
        inbox.got.clear()
        server.replace(build_app(world=world, webhooks={"workers": 1} | mischief))
        hear(server, inbox.url, "patient_updated")
        for number in range(12):
            email(server, f"{number}@example.com", number)
        settled(server)
        return [got.json["data"]["patients"][0]["email"].partition("@")[0] for got in inbox.got]

    plain = [str(number) for number in range(12)]
    assert names() == plain
    twice = names(duplicates=0.5)
    assert twice == names(duplicates=0.5)
    assert 12 < len(twice) < 24
    assert sorted(names(duplicates=1)) == sorted(plain * 2)
    some = names(drop=0.5)
    assert some == names(drop=0.5)
    assert 0 < len(some) < 12
    assert names(drop=1) == []
    mixed = names(reorder=0.5, reorder_seconds=0.06)
    assert mixed != plain
    assert sorted(mixed) == sorted(plain)


def test_an_older_version_can_come_after_the_newer_one(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: never backwards, on every path."""
    hear(server, inbox.url, "patient_updated", "charge_updated", "charge_deleted")
    old = server.state.row("patients", mine(server, "patients")).record()
    server.webhooks.configure(stale=1, stale_seconds=0.01)
    email(server)
    new, stale = settled(server)
    assert [one.kind for one in (new, stale)] == ["event", "stale"]
    assert inbox.got[1].json["data"]["patients"] == [old]
    assert inbox.got[0].json["data"]["patients"][0]["updated_at"] > old["updated_at"]
    assert inbox.got[1].json["event_time"] == old["updated_at"]
    server.state.delete("charges", mine(server, "charges"))
    settled(server)
    assert inbox.names[2:] == ["charge_deleted", "charge_updated"]
    assert inbox.got[3].json["data"]["charge"]["deleted_at"] is None


def test_signatures_can_be_urlsafe_or_wrong(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: it is not known which alphabet the vendor uses (API.md F.4); a forged body must not come in."""
    hear(server, inbox.url, "patient_updated")
    secret = secret_of(server)
    server.webhooks.configure(urlsafe=True)
    email(server, "ÿÿÿ>>>???~~~@example.com")
    settled(server)
    got = inbox.got[-1]
    assert got.headers["signature"] == expected(secret, got, base64.urlsafe_b64encode)
    assert got.headers["signature"] != expected(secret, got)
    server.webhooks.configure(urlsafe=0, wrong_signature=0.5, time_scale=FAST)

    def answer(number: int) -> int:
        one = inbox.got[number - 1]
        return 200 if one.headers["signature"] == expected(secret, one) else 401

    inbox.answer = answer
    for number in range(8):
        email(server, f"{number}@example.com", number)
    assert {one.outcome for one in settled(server)} == {"delivered"}
    assert server.webhooks.describe()["counters"]["failed_attempts"] > 0


def test_a_delay_holds_everything_back(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: events of data written through the API come up to ten minutes late (API.md A.4)."""
    hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(delay=60)
    email(server)
    (waiting,) = server.webhooks.describe()["queue"]
    assert 55 < waiting["due_in"] <= 60
    assert inbox.got == []


def test_what_is_queued_for_a_paused_or_deleted_listener_is_lost(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: "deliveries for it stop immediately" (API.md F.2)."""
    hooks = Hooks(Caller(server))
    first, second = hooks.endpoint(inbox.url), hooks.endpoint(inbox.url)
    path = f"{ENDPOINTS}/{{}}/webhook_subscriptions/{{}}"
    paused = hooks.subscribe(first["id"], "Patient", "patient_updated")
    deleted = hooks.subscribe(first["id"], "Patient", "patient_updated")
    hooks.subscribe(second["id"], "Patient", "patient_updated")
    moved = hooks.subscribe(second["id"], "Patient", "patient_updated")
    server.webhooks.configure(delay=60)
    email(server)
    hooks.ask("PATCH", path.format(first["id"], paused["id"]), {"active": False}, subdomain=WILLOW)
    hooks.ask("DELETE", path.format(first["id"], deleted["id"]), subdomain=WILLOW)
    assert [one.outcome for one in server.webhooks.log()] == ["lost", "lost", "queued", "queued"]
    hooks.ask("PATCH", path.format(second["id"], moved["id"]), {"new_endpoint_id": first["id"]}, subdomain=WILLOW)
    hooks.ask("PATCH", f"{ENDPOINTS}/{second['id']}", {"active": False})
    hooks.ask("DELETE", f"{ENDPOINTS}/{second['id']}")
    assert settled(server)[-1].outcome == "lost"
    hooks.caller.close()


def test_a_moved_subscription_delivers_to_its_new_endpoint(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: the signature is by the new endpoint's secret."""
    hear(server, "http://127.0.0.1:1/", "patient_updated")
    target = server.webhooks.registry.add_endpoint("tests", inbox.url)
    subscription = server.webhooks.subscriptions[0]
    server.webhooks.registry.change_subscription(subscription.id, webhook_endpoint_id=target.id)
    email(server)
    assert settled(server)[0].endpoint_id == target.id
    (got,) = inbox.got
    assert got.headers["signature"] == expected(target.secret_key.encode(), got)


def test_everything_can_be_done_over_http(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: an end-to-end test runs the sandbox in another process."""
    hooks = Hooks(Caller(server))
    admin, endpoint = hooks.caller.admin, hooks.endpoint(inbox.url)
    for resource, event in (
        ("Patient", "patient_updated"),
        ("Patient", "patient_created"),
        ("Appointment", "appointment_insertion"),
        ("Payment", "payment_insertion"),
    ):
        hooks.subscribe(endpoint["id"], resource, event)
        hooks.subscribe(endpoint["id"], resource, event, HARBOR)
    made = admin("POST", "/sandbox/webhooks/settings", {"delay": 0.01, "duplicates": 0})
    assert (made.status_code, made.json()["delay"]) == (200, 0.01)
    ids = server.state.ids("patients")
    wanted = {"collection": "patients", "ids": ids[:3], "event": "patient_updated"}
    sent = admin("POST", "/sandbox/webhooks/send", wanted).json()["deliveries"]
    assert admin("GET", "/sandbox/webhooks?wait=5").json()["idle"] is True
    assert [row["number"] for row in admin("GET", "/sandbox/deliveries").json()] == sent == [1, 2, 3]
    homes = {server.state.row("patients", number).institution_id for number in ids}
    together = wanted | {"ids": ids, "event": "patient_created", "together": True}
    assert len(admin("POST", "/sandbox/webhooks/send", together).json()["deliveries"]) == len(homes) == 2
    raw = {"event": "patient_updated", "subdomain": WILLOW, "data": {"user": {"id": None}}}
    admin("POST", "/sandbox/webhooks/send", [raw])
    visit = mine(server, "appointments")
    for insertion in ("complete", "timed_out"):
        admin("POST", "/sandbox/changes", {"operation": "cancel", "id": visit, "insertion": insertion})
    admin("GET", "/sandbox/webhooks?wait=5")
    assert len(inbox.got[3].json["data"]["patients"]) > 1
    assert inbox.got[5].json["data"] == {"user": {"id": None}}
    assert inbox.names[6:] == ["appointment_insertion.complete", "appointment_insertion.timed_out"]
    assert inbox.got[6].json["data"]["appointment"]["id"] == visit
    found = admin("GET", "/sandbox/deliveries?since=3&event=appointment.*&outcome=delivered").json()
    assert [row["ids"] for row in found] == [[visit], [visit]]
    assert found[0]["attempts"][0]["status"] == 200
    assert admin("GET", f"/sandbox/deliveries?endpoint={endpoint['id'] + 1}").json() == []
    admin("DELETE", "/sandbox/deliveries")
    assert admin("GET", "/sandbox/deliveries").json() == []
    hooks.caller.close()


def test_wrong_wishes_are_refused_with_the_reason(server: SandboxServer) -> None:
    """Risk: mischief that was never made proves nothing."""
    caller, visit = Caller(server), mine(server, "appointments")
    plan = {"operation": "delete", "collection": "treatment_plans", "id": mine(server, "treatment_plans")}
    for path, body, status, word in (
        ("webhooks/settings", {"rain": 1}, 400, "rain"),
        ("webhooks/settings", {"drop": 2}, 400, "share"),
        ("webhooks/settings", {"restamp": 1}, 400, "true or false"),
        ("webhooks/settings", {"delay": "x"}, 400, "number"),
        ("webhooks/settings", {"delay": -1}, 400, "negative"),
        ("webhooks/settings", {"workers": 0}, 400, "workers"),
        ("webhooks/toys", {}, 404, "settings"),
        ("webhooks/send", {"collection": "patients", "ids": [1], "event": "patient_updated"}, 404, "patients"),
        ("webhooks/send", {"collection": "patients", "ids": [1], "event": "patient_deleted"}, 400, "event"),
        ("webhooks/send", {"event": "patient_updated"}, 400, "collection"),
        ("webhooks/send", {"event": "patient_updated", "subdomain": "nobody", "data": {}}, 404, "nobody"),
        ("changes", {"operation": "cancel", "id": visit, "insertion": "perhaps"}, 400, "insertion"),
        ("changes", plan | {"insertion": "complete"}, 400, "insertion"),
    ):
        answer = caller.admin("POST", f"/sandbox/{path}", body)
        assert (answer.status_code, word in answer.json()["error"][0]) == (status, True), answer.text
    assert server.state.changes == []
    with pytest.raises(ValueError, match="drop"):
        build_app(webhooks={"drop": 2})
    caller.close()


def test_a_record_that_cannot_be_told_is_changed_all_the_same(
    server: SandboxServer, inbox: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: tests break records on purpose."""
    hear(server, inbox.url)
    plan = mine(server, "treatment_plans")
    server.state.update("treatment_plans", plan, {}, about={"procedure_ids": 7})
    assert "could not be announced" in caplog.text
    server.state.update("patients", mine(server, "patients"), {"updated_at": 7, "bio": None})
    assert [one.announcement.event for one in settled(server)] == ["patient_updated"]


def test_no_thread_runs_before_the_first_event_nor_after_the_end(world: World, inbox: Receiver) -> None:
    """Risk: threads left by hundreds of tests; work for a sandbox that nobody listens to."""

    def workers() -> int:
        return sum(thread.name == "sandbox-webhooks" for thread in threading.enumerate())

    with SandboxServer(world=world) as server:
        email(server)
        assert workers() == 0
        hear(server, inbox.url, "patient_updated")
        email(server, "second@example.com")
        settled(server)
        assert workers() == 4
        server.webhooks.configure(workers=2)
        email(server, "third@example.com")
        until(lambda: workers() == 2)
        inbox.answer = lambda _number: 500
        email(server, "fourth@example.com")
        until(lambda: bool(server.webhooks.log()[-1].attempts))
    assert workers() == 0
    email(server, "fifth@example.com")
    assert workers() == 0
    assert server.webhooks.log()[-1].outcome == "queued"


def test_stopping_does_not_wait_for_a_hanging_receiver(world: World, inbox: Receiver) -> None:
    """Risk: a test suite that waits for its own timeouts."""
    released = threading.Event()
    inbox.answer = lambda _number: 200 if released.wait(3) else 500
    with SandboxServer(world=world) as server:
        hear(server, inbox.url, "patient_updated")
        email(server)
        until(lambda: bool(inbox.got))
        began = time.monotonic()
    assert time.monotonic() - began < 1
    assert server.webhooks.log()[0].outcome == "queued"
    released.set()


def test_a_later_start_goes_on_delivering(tmp_path: Path, inbox: Receiver) -> None:
    """Risk: a demo stopped and started again hears nothing; what was queued is gone, which a full read repairs."""
    small = {"seed": 5, "base": BASE, "patients": 5, "appointments_per_patient": 0}
    with SandboxServer(state_dir=tmp_path, **small, webhooks={"delay": 60}) as server:
        hear(server, inbox.url, "patient_updated")
        secret = secret_of(server)
        email(server)
    with SandboxServer(state_dir=tmp_path, webhook_time_scale=0.5) as server:
        assert server.webhooks.settings.time_scale == 0.5
        email(server, "later@example.com")
        (delivery,) = settled(server)
    (got,) = inbox.got
    assert got.json["data"]["patients"][0]["email"] == "later@example.com"
    assert got.headers["signature"] == expected(secret, got)
    assert delivery.outcome == "delivered"
