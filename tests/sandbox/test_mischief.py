"""Deliveries that are wrong in all the ways asked for: twice, never, late, out of order, badly signed."""

import base64
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import SandboxServer, World, build_app

from .calls import HARBOR, WILLOW, Caller
from .posting import FAST, email, expected, hear, mine, secret_of, settled
from .receiving import Hooks, Receiver


def test_duplicates_drops_and_order_are_chosen_by_the_seed(
    server: SandboxServer, small_world: World, inbox: Receiver
) -> None:
    """Risk: a failure that cannot be repeated."""

    def names(**mischief: Any) -> list[str]:
        inbox.got.clear()
        server.replace(build_app(world=small_world, webhooks={"workers": 1} | mischief))
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
