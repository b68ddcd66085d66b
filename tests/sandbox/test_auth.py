"""Keys and tokens: lifetimes, refusals, restarts."""

import base64
import json
from typing import Any

from nexhealth_pipeline.sandbox import SANDBOX_API_KEY, SandboxServer

from .calls import BASE, WILLOW, Caller, HandClock


def test_a_key_buys_a_signed_token_that_says_when_it_ends(caller: Caller, clock: HandClock) -> None:
    """Risk: a client decodes `exp` to refresh in time."""
    answer = caller.authenticate()
    assert answer.status_code == 201
    assert answer.json()["description"] == "Authenticated"
    head, claims, seal = answer.json()["data"]["token"].split(".")
    decoded = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert set(decoded) == {"sub", "scp", "iat", "exp", "jti"}
    assert decoded["exp"] == int(clock.seconds) + 20
    assert json.loads(base64.urlsafe_b64decode(head + "=="))["alg"] == "HS256"
    assert len(seal) == 43


def test_a_wrong_or_missing_key_gets_an_envelope_with_401(caller: Caller) -> None:
    """Risk: `doctor` tells a refused key from an unreachable host."""
    answer = caller.authenticate("wrong")
    assert (answer.status_code, answer.json()["code"]) == (401, False)
    assert caller.session.post(caller.server.url + "/authenticates").status_code == 401


def test_no_token_a_bare_key_or_a_forged_token_is_unauthorized(caller: Caller) -> None:
    """Risk: only `Bearer <token>` counts."""
    caller.authenticate()
    token = str(caller.session.headers["Authorization"])
    for text in ("", SANDBOX_API_KEY, f"Bearer {SANDBOX_API_KEY}", token[:-2] + "xx", token.replace("Bearer", "Token")):
        answer = caller.get("/institutions", headers={"Authorization": text})
        assert (answer.status_code, answer.json()["data"]) == (401, None)
    assert caller.get("/institutions").status_code == 200


def test_a_token_ends_with_its_lifetime_and_a_new_one_works(caller: Caller, clock: HandClock) -> None:
    """Risk: a token that expires between two pages."""
    assert caller.get("/institutions").status_code == 200
    clock.forward(19.9)
    assert caller.get("/institutions").status_code == 200
    clock.forward(0.1)
    assert caller.errors("/institutions") == (401, ["Signature has expired"])
    caller.authenticate()
    assert caller.get("/institutions").status_code == 200


def test_revoking_ends_every_token_issued_so_far(caller: Caller) -> None:
    """Risk: tokens can end before their time."""
    caller.authenticate()
    caller.server.auth.revoke()
    assert caller.get("/institutions").status_code == 401
    assert caller.authenticate().status_code == 201
    assert caller.get("/institutions").status_code == 200


def test_a_token_survives_a_restart_of_the_server(clock: HandClock) -> None:
    """Risk: `demo` restarts the sandbox between runs."""
    sizes: dict[str, Any] = {"patients": 20, "appointments_per_patient": 1, "base": BASE}
    with SandboxServer(**sizes, clock=clock) as first:
        caller = Caller(first)
        caller.authenticate()
    with SandboxServer(**sizes, clock=clock) as second:
        caller.server = second
        assert caller.get("/insurance_plans", subdomain=WILLOW).status_code == 200
        clock.forward(90_000)
        assert caller.get("/insurance_plans", subdomain=WILLOW).status_code == 401
    caller.close()
