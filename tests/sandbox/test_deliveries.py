"""How an event arrives: in time, again after errors, and no more once its listener is gone."""

import threading
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import RETRY_AFTER, SandboxServer, World, deliveries

from .calls import BASE, WILLOW, Caller, HandClock
from .posting import FAST, email, expected, hear, mine, secret_of, settled, until
from .receiving import ENDPOINTS, Hooks, Receiver


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
    others_came = threading.Event()

    def answer(number: int) -> int:
        if inbox.got[number - 1].name == "appointment_updated":
            return 200
        if number > 1:  # else all its tries may be over before the other event comes, to the second worker
            others_came.wait(30)
        return 400

    inbox.answer = answer
    hear(server, inbox.url, "patient_updated", "appointment_updated")
    server.webhooks.configure(time_scale=FAST, workers=2)
    email(server)
    until(lambda: len(inbox.got) >= 2)
    server.state.cancel(mine(server, "appointments"))
    until(lambda: server.webhooks.log()[-1].outcome == "delivered")
    others_came.set()
    assert [one.outcome for one in settled(server)] == ["lost", "delivered"]
    assert server.webhooks.endpoints[0].active


def test_no_answer_is_a_failure_too(server: SandboxServer, inbox: Receiver) -> None:
    """Risk: a receiver that hangs, hangs up or is not there."""
    released = threading.Event()

    def answer(number: int) -> int:
        if number == 1:
            server.webhooks.configure(timeout=0.5)  # for the next: a busy machine would be too slow for the first
            return 0
        if number == 2:
            released.wait(30)
        return 200

    inbox.answer = answer
    hear(server, inbox.url, "patient_updated")
    server.webhooks.configure(time_scale=FAST)
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


def test_a_delivery_that_cannot_be_made_is_lost_and_the_next_one_goes_out(
    server: SandboxServer, inbox: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: the worker ends, nobody replaces it, and whoever waits for the queue waits for ever."""
    hear(server, inbox.url, "patient_updated")

    def fail(*_: object) -> bytes:
        raise OverflowError("date value out of range")

    with monkeypatch.context() as patch:
        patch.setattr(deliveries, "body_of", fail)
        email(server)
        assert [one.outcome for one in settled(server)] == ["lost"]
    assert "a delivery failed" in caplog.text
    email(server, "second@example.com")
    assert [one.outcome for one in settled(server)] == ["lost", "delivered"]


def test_an_endpoint_deleted_while_its_last_try_fails_ends_no_worker(
    server: SandboxServer, inbox: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Risk: between looking for it and switching it off it goes."""
    number = hear(server, inbox.url, "patient_updated")
    registry, change = server.webhooks.registry, server.webhooks.registry.change_endpoint

    def gone(endpoint_id: int, **fields: Any) -> Any:
        registry.remove_endpoint(endpoint_id)
        return change(endpoint_id, **fields)

    monkeypatch.setattr(registry, "change_endpoint", gone)
    inbox.answer = lambda _number: 500
    server.webhooks.configure(time_scale=FAST)
    email(server)
    assert [one.outcome for one in settled(server)] == ["lost"]
    assert registry.endpoint(number) is None
    assert not caplog.records
    monkeypatch.undo()
    inbox.answer = lambda _number: 200
    hear(server, inbox.url, "patient_updated")
    email(server, "second@example.com")
    assert settled(server)[-1].outcome == "delivered"


def test_the_queue_is_not_idle_while_what_an_endpoint_leaves_behind_is_still_to_be_lost(
    server: SandboxServer, inbox: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: whoever waited for the end counts what was lost before the last of it is."""
    hear(server, inbox.url, "patient_updated")
    registry, change, seen = server.webhooks.registry, server.webhooks.registry.change_endpoint, list[bool]()

    def slowly(endpoint_id: int, **fields: Any) -> Any:
        seen.append(server.webhooks.idle)
        return change(endpoint_id, **fields)

    monkeypatch.setattr(registry, "change_endpoint", slowly)
    inbox.answer = lambda _number: 500
    server.webhooks.configure(time_scale=FAST)
    email(server)
    settled(server)
    assert seen == [False]
    assert not server.webhooks.endpoints[0].active


def workers() -> int:
    """Threads that deliver."""
    return sum(thread.name == "sandbox-webhooks" for thread in threading.enumerate())


def test_no_thread_runs_before_the_first_event_nor_after_the_end(small_world: World, inbox: Receiver) -> None:
    """Risk: threads left by hundreds of tests; work for a sandbox that nobody listens to."""
    with SandboxServer(world=small_world) as server:
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


def test_stopping_does_not_wait_for_a_hanging_receiver(small_world: World, inbox: Receiver) -> None:
    """Risk: a test suite that waits for its own timeouts."""
    released, answered = threading.Event(), threading.Event()

    def hang(_number: int) -> int:
        released.wait(30)
        answered.set()
        return 200

    inbox.answer = hang
    with SandboxServer(world=small_world) as server:
        hear(server, inbox.url, "patient_updated")
        email(server)
        until(lambda: bool(inbox.got))
    assert workers() == 0, "one still waits for an answer"
    assert not answered.is_set()
    assert server.webhooks.log()[0].outcome == "queued"
    released.set()


def test_a_later_start_goes_on_delivering(tmp_path: Path, inbox: Receiver) -> None:
    """Risk: a demo stopped and started again hears nothing; what was queued is gone, which a full read repairs."""
    small: dict[str, Any] = {"seed": 5, "base": BASE, "patients": 5, "appointments_per_patient": 0}
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
