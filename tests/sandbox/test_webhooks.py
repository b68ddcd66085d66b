"""Endpoints and subscriptions: the vendor's routes, who may use them, what a later start still has."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexhealth_pipeline.sandbox import EVENTS, SANDBOX_API_KEY, SandboxServer, World, build_app, build_world

from .calls import BASE, HARBOR, WILLOW, Caller, HandClock
from .openapi import SPEC, load, reference, strangers, validator
from .receiving import ENDPOINTS, Hooks

SUBSCRIPTIONS = "{}/{}/webhook_subscriptions"
PATIENT = {"resource_type": "Patient", "event": "patient_updated"}


@pytest.fixture(scope="module")
def world() -> World:
    """Hardly anybody: no test here looks at a patient."""
    return build_world(base=BASE, patients=1, appointments_per_patient=0)


@pytest.fixture
def caller(changing_server: SandboxServer, world: World, clock: HandClock) -> Iterator[Caller]:
    """A caller of a sandbox without endpoints."""
    changing_server.replace(build_app(world=world, limits=False, clock=clock))
    caller = Caller(changing_server)
    yield caller
    caller.close()


@pytest.fixture
def hooks(caller: Caller) -> Hooks:
    return Hooks(caller)


def _below(endpoint: dict[str, Any]) -> str:
    return SUBSCRIPTIONS.format(ENDPOINTS, endpoint["id"])


def test_an_endpoint_is_made_listed_changed_and_deleted(hooks: Hooks) -> None:
    """Risk: registration is built on exactly this life."""
    made = hooks.endpoint("https://hooks.example.com/in")
    assert made["active"] is True
    assert len(made["secret_key"]) >= 14
    listed = hooks.ask("GET", ENDPOINTS).json()
    assert (listed["data"], listed["count"]) == ([made], 1)
    changed = hooks.ask("PATCH", f"{ENDPOINTS}/{made['id']}", {"active": False}).json()["data"]
    assert (changed["active"], changed["secret_key"]) == (False, made["secret_key"])
    assert hooks.ask("GET", ENDPOINTS, active="true").json()["data"] == []
    assert hooks.ask("GET", ENDPOINTS, active="false").json()["count"] == 1
    moved = hooks.ask("PATCH", f"{ENDPOINTS}/{made['id']}", {"target_url": "https://b.example.com/"}).json()["data"]
    assert (moved["target_url"], moved["active"]) == ("https://b.example.com/", False)
    gone = hooks.ask("DELETE", f"{ENDPOINTS}/{made['id']}")
    assert (gone.status_code, gone.content, "content-length" in gone.headers) == (204, b"", False)
    assert hooks.ask("GET", ENDPOINTS).json()["data"] == []


def test_the_same_address_twice_makes_two_endpoints_with_secrets_of_their_own(hooks: Hooks) -> None:
    """Risk: duplicates pile up at the vendor (API.md F.1); a setup that does not look first must show it."""
    first, second = hooks.endpoint(), hooks.endpoint()
    assert first["id"] != second["id"]
    assert first["secret_key"] != second["secret_key"]
    assert len(hooks.ask("GET", ENDPOINTS).json()["data"]) == 2


def test_a_subdomain_at_an_endpoint_is_ignored_with_a_word(hooks: Hooks) -> None:
    """Risk: endpoints belong to the account; seen in a live run (API.md F.1)."""
    hooks.endpoint()
    answer = hooks.ask("GET", ENDPOINTS, subdomain=WILLOW).json()
    assert "subdomain" in answer["description"]
    assert len(answer["data"]) == 1


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("https://hooks.example.com/in", 201),
        ("http://127.0.0.1:8090/in", 201),
        ("http://localhost/in", 201),
        ("http://[::1]:1/in", 201),
        ("http://hooks.example.com/in", 400),
        ("http://127.0.0.1.example.com/", 400),
        ("ftp://hooks.example.com/", 400),
        ("https://", 400),
        ("https://host:port/", 400),
        ("", 400),
        (None, 400),
        (7, 400),
    ],
)
def test_http_is_taken_for_this_machine_only(url: Any, status: int, hooks: Hooks) -> None:
    """Risk: PHI over an open line; the vendor insists on https."""
    answer = hooks.ask("POST", ENDPOINTS, {"target_url": url})
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] is (status == 201)


def test_a_body_that_is_no_json_object_is_refused(hooks: Hooks) -> None:
    """Risk: a client's mistake answered with 500 would be retried for ever."""
    hooks.ask("GET", ENDPOINTS)
    for body in (b"{", b"[]", b""):
        answer = hooks.caller.session.post(hooks.caller.server.url + ENDPOINTS, data=body, timeout=5)
        assert (answer.status_code, answer.json()["code"]) == (400, False)


def test_subscriptions_are_made_listed_filtered_moved_paused_and_deleted(hooks: Hooks) -> None:
    """Risk: registration compares this list with what it wants, per institution."""
    endpoint, other = hooks.endpoint(), hooks.endpoint()
    first = hooks.subscribe(endpoint["id"], "Patient", "patient_updated")
    hooks.subscribe(endpoint["id"], "Patient", "patient_created", HARBOR)
    hooks.subscribe(endpoint["id"], "Appointment", "appointment_updated", HARBOR)
    assert (first["institution_id"], first["webhook_endpoint_id"], first["active"]) == (11201, endpoint["id"], True)
    for params, count in (
        ({}, 3),
        ({"subdomain": HARBOR}, 2),
        ({"resource_type": "Patient"}, 2),
        ({"event": "patient_created", "subdomain": WILLOW}, 0),
    ):
        listed = hooks.ask("GET", _below(endpoint), **params).json()
        assert (len(listed["data"]), listed["count"]) == (count, count), params
    path = f"{_below(endpoint)}/{first['id']}"
    paused = hooks.ask("PATCH", path, {"active": False}, subdomain=WILLOW).json()["data"]
    assert paused == first | {"active": False, "updated_at": paused["updated_at"]}
    moved = hooks.ask("PATCH", path, {"new_endpoint_id": other["id"]}, subdomain=WILLOW)
    assert moved.json()["data"]["webhook_endpoint_id"] == other["id"]
    assert hooks.ask("PATCH", path, {"active": True}, subdomain=WILLOW).status_code == 404
    moved_path = f"{_below(other)}/{first['id']}"
    assert hooks.ask("DELETE", moved_path, subdomain=WILLOW).status_code == 204
    assert hooks.ask("DELETE", moved_path, subdomain=WILLOW).status_code == 404
    hooks.ask("DELETE", f"{ENDPOINTS}/{endpoint['id']}")
    assert hooks.caller.server.webhooks.subscriptions == []


def test_an_identical_subscription_makes_a_second_row(hooks: Hooks) -> None:
    """Risk: a setup that is not idempotent gets every event twice [guess]; it must show here."""
    endpoint = hooks.endpoint()
    ids = {hooks.subscribe(endpoint["id"], "Patient", "patient_updated")["id"] for _ in range(2)}
    assert len(ids) == 2
    assert hooks.ask("GET", _below(endpoint)).json()["count"] == 2


@pytest.mark.parametrize(
    ("body", "params", "status", "word"),
    [
        (PATIENT, {}, 400, "subdomain"),
        (PATIENT, {"subdomain": "nobody"}, 403, "access"),
        ({"event": "patient_updated"}, {"subdomain": WILLOW}, 400, "resource_type"),
        ({"resource_type": "Patient"}, {"subdomain": WILLOW}, 400, "event"),
        (PATIENT | {"resource_type": "Toy"}, {"subdomain": WILLOW}, 400, "resource_type"),
        (PATIENT | {"event": "patient_deleted"}, {"subdomain": WILLOW}, 400, "event"),
        (PATIENT | {"event": "appointment_updated"}, {"subdomain": WILLOW}, 400, "Patient"),
        (PATIENT | {"active": "perhaps"}, {"subdomain": WILLOW}, 400, "active"),
        ({"resource_type": "Onboarding", "event": "onboarding_created"}, {"subdomain": WILLOW}, 400, "Onboarding"),
    ],
)
def test_a_wrong_subscription_is_refused_with_the_reason(
    body: dict[str, Any], params: dict[str, str], status: int, word: str, hooks: Hooks
) -> None:
    """Risk: an event that does not exist is silently never sent."""
    answer = hooks.ask("POST", _below(hooks.endpoint()), body, **params)
    assert answer.status_code == status
    assert word in " ".join(answer.json()["error"])
    assert hooks.caller.server.webhooks.subscriptions == []


def test_the_accounts_own_events_need_no_institution(hooks: Hooks) -> None:
    """Risk: `institution_id` null breaks a reader of the list; a list of one institution leaves them out."""
    endpoint = hooks.endpoint()
    body = {"resource_type": "Onboarding", "event": "onboarding_created"}
    assert hooks.ask("POST", _below(endpoint), body).json()["data"]["institution_id"] is None
    assert hooks.ask("GET", _below(endpoint)).json()["count"] == 1
    assert hooks.ask("GET", _below(endpoint), subdomain=WILLOW).json()["count"] == 0


def test_routes_that_do_not_exist_and_rows_that_are_not_there(hooks: Hooks) -> None:
    """Risk: a client that relies on a single read the vendor does not have."""
    endpoint = hooks.endpoint()
    assert hooks.ask("GET", f"{ENDPOINTS}/{endpoint['id']}").status_code == 405
    assert hooks.ask("GET", f"{ENDPOINTS}/{endpoint['id']}/toys").status_code == 404
    assert hooks.ask("GET", ENDPOINTS + "s").status_code == 404
    assert hooks.ask("PATCH", f"{ENDPOINTS}/1", {"active": True}).status_code == 404
    assert hooks.ask("DELETE", f"{ENDPOINTS}/1").status_code == 404
    assert hooks.ask("GET", f"{ENDPOINTS}/1/webhook_subscriptions").status_code == 404
    assert hooks.ask("POST", f"{ENDPOINTS}/1/webhook_subscriptions", PATIENT, subdomain=WILLOW).status_code == 404
    assert hooks.ask("DELETE", f"{_below(endpoint)}/1", subdomain=WILLOW).status_code == 404


def test_each_key_sees_its_own_endpoints_and_reaches_its_own_institutions(caller: Caller, world: World) -> None:
    """Risk: one customer's secret shown to another."""
    keys = {SANDBOX_API_KEY: None, "harbor": (HARBOR,)}
    caller.server.replace(build_app(world=world, limits=False, api_keys=keys))
    hooks = Hooks(caller)
    mine = hooks.endpoint()
    caller.authenticate("harbor")
    assert hooks.ask("GET", ENDPOINTS).json()["data"] == []
    assert hooks.ask("PATCH", f"{ENDPOINTS}/{mine['id']}", {"active": False}).status_code == 404
    theirs = hooks.endpoint()
    assert hooks.ask("POST", _below(theirs), PATIENT, subdomain=WILLOW).status_code == 403
    hooks.subscribe(theirs["id"], "Patient", "patient_updated", HARBOR)
    moved = {"new_endpoint_id": mine["id"]}
    path = f"{_below(theirs)}/{caller.server.webhooks.subscriptions[0].id}"
    assert hooks.ask("PATCH", path, moved, subdomain=HARBOR).status_code == 404


def test_these_requests_need_a_token_count_in_the_limits_and_stand_in_the_log(
    caller: Caller, world: World, clock: HandClock
) -> None:
    """Risk: a setup over a thousand institutions is judged by the same budget as a sync."""
    caller.server.replace(build_app(world=world, limit_scale=0.04, clock=clock))  # four a second
    assert caller.admin("GET", ENDPOINTS).status_code == 401
    hooks = Hooks(caller)
    endpoint = hooks.endpoint()
    hooks.subscribe(endpoint["id"], "Patient", "patient_updated")
    statuses = [hooks.ask("GET", ENDPOINTS).status_code for _ in range(2)]
    assert statuses == [200, 429]
    asked = [(one.method, one.path, one.status) for one in caller.server.requests][2:4]
    assert asked == [("POST", ENDPOINTS, 201), ("POST", _below(endpoint), 201)]


def test_a_fault_can_hide_an_endpoint_that_was_made(hooks: Hooks) -> None:
    """Risk: an answer lost after the write leaves an endpoint that the next setup must find."""
    hooks.ask("GET", ENDPOINTS)
    hooks.caller.server.faults.add("malformed", path=ENDPOINTS, method="POST", count=1)
    hooks.ask("POST", ENDPOINTS, {"target_url": "https://hooks.example.com/in"})
    assert len(hooks.ask("GET", ENDPOINTS).json()["data"]) == 1


def test_a_later_start_has_them_and_never_gives_an_id_again(tmp_path: Path) -> None:
    """Risk: a demo that is started again would lose its registration, or mix up two endpoints."""
    world: dict[str, Any] = {"seed": 5, "base": BASE, "patients": 5, "appointments_per_patient": 0}
    first = build_app(state_dir=tmp_path, **world).webhooks.registry
    kept, gone = (first.add_endpoint("me", f"https://{name}.example.com/") for name in ("a", "b"))
    subscription = first.add_subscription(kept.id, 11201, "Patient", "patient_updated")
    lost = first.add_subscription(gone.id, 11201, "Patient", "patient_updated")
    single = first.add_subscription(kept.id, 11201, "Claim", "claim_updated")
    paused = first.change_subscription(subscription.id, active=False)
    first.remove_endpoint(gone.id)
    first.remove_subscription(single.id)
    changed = first.change_endpoint(kept.id, active=False)
    app = build_app(state_dir=tmp_path)
    again = app.webhooks.registry
    assert again.endpoints == [changed]
    assert again.subscriptions == [paused]
    assert changed.secret_key == kept.secret_key
    assert again.add_endpoint("me", "https://c.example.com/").id > gone.id
    assert again.add_subscription(kept.id, 11201, "Patient", "patient_updated").id > single.id > lost.id
    app.state.update("patients", app.state.ids("patients")[0], {"email": "later@example.com"})
    assert len(build_app(state_dir=tmp_path).webhooks.endpoints) == 2


def test_a_kept_removal_of_what_is_not_there_keeps_no_start_from_succeeding(tmp_path: Path) -> None:
    """Risk: of a folder that two sandboxes have written to."""
    world: dict[str, Any] = {"seed": 5, "base": BASE, "patients": 5, "appointments_per_patient": 0}
    registry = build_app(state_dir=tmp_path, **world).webhooks.registry
    kept = registry.add_endpoint("me", "https://a.example.com/")
    subscription = registry.add_subscription(kept.id, 11201, "Patient", "patient_updated")
    registry.remove_subscription(subscription.id)
    changes = tmp_path / "changes.jsonl"
    changes.write_bytes(b"".join(line + b"\n" for line in changes.read_bytes().splitlines() for _ in range(2)))
    again = build_app(state_dir=tmp_path).webhooks.registry
    assert (again.endpoints, again.subscriptions) == ([kept], [])


def test_a_secret_stands_in_no_repr_and_no_description(hooks: Hooks) -> None:
    """Risk: a secret in a log."""
    secret = hooks.endpoint()["secret_key"]
    server = hooks.caller.server
    assert secret not in repr(server.webhooks.endpoints)
    assert secret not in hooks.caller.admin("GET", "/sandbox/webhooks").text


@pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")
def test_every_answer_follows_the_vendors_schema(hooks: Hooks) -> None:
    """Risk: registration is built against other names or types than the real API has."""
    spec = load()
    one, below = ENDPOINTS + "/{id}", ENDPOINTS + "/{id}/webhook_subscriptions"
    endpoint = hooks.endpoint()
    subscription = hooks.subscribe(endpoint["id"], "Patient", "patient_updated")
    path = f"{_below(endpoint)}/{subscription['id']}"
    for method, schema_path, answer in (
        ("post", ENDPOINTS, hooks.ask("POST", ENDPOINTS, {"target_url": "https://h.example.com/"})),
        ("get", ENDPOINTS, hooks.ask("GET", ENDPOINTS)),
        ("patch", one, hooks.ask("PATCH", f"{ENDPOINTS}/{endpoint['id']}", {"active": True})),
        ("patch", one, hooks.ask("PATCH", f"{ENDPOINTS}/7", {"active": True})),
        ("post", below, hooks.ask("POST", _below(endpoint), PATIENT, subdomain=WILLOW)),
        ("post", below, hooks.ask("POST", _below(endpoint), PATIENT)),
        ("post", below, hooks.ask("POST", _below(endpoint), PATIENT, subdomain="nobody")),
        ("get", below, hooks.ask("GET", _below(endpoint))),
        ("patch", below + "/{subscription_id}", hooks.ask("PATCH", path, {"active": False}, subdomain=WILLOW)),
    ):
        ref = reference(spec, schema_path, str(answer.status_code), method)
        (media,) = spec["paths"][schema_path][method]["responses"][str(answer.status_code)]["content"]
        body = answer.json()
        if body["data"] is None:
            body.pop("data")
        else:
            assert answer.headers["content-type"] == media
        validator(spec, ref).validate(body)
        assert not set(strangers(spec, {"$ref": ref}, body)), schema_path
    for name, record in (("Endpoint", endpoint), ("Subscription", subscription)):
        assert set(record) == set(spec["components"]["schemas"][f"API_V2_Entities_Webhook{name}"]["properties"])


@pytest.mark.skipif(not SPEC.exists(), reason="the vendor's OpenAPI file is not beside this checkout")
def test_the_events_are_those_of_the_vendors_file() -> None:
    """Risk: a subscription that the real API refuses."""
    body = load()["components"]["schemas"]["postWebhookEndpointsIdWebhookSubscriptions"]["properties"]
    assert set(EVENTS) == set(body["resource_type"]["enum"])
    assert sorted(event for events in EVENTS.values() for event in events) == sorted(body["event"]["enum"])
