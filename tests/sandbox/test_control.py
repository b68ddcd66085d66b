"""The administrative routes: everything a test in another process needs."""

import json

from .calls import NORTH, WILLOW, Caller

WHERE = {"subdomain": WILLOW, "location_id": NORTH}


def test_changes_can_be_made_and_read_over_http(caller: Caller) -> None:
    """Risk: an end-to-end test runs the sandbox in another process."""
    visit, other = caller.server.state.ids("appointments")[:2]
    patient = caller.server.state.ids("patients")[0]
    wanted = [
        {"operation": "update", "collection": "patients", "id": patient, "fields": {"email": "new@example.com"}},
        {"operation": "cancel", "id": visit},
        {"operation": "move", "id": other, "days": 2},
        {"operation": "delete", "collection": "appointments", "id": other},
        {"operation": "create", "collection": "patients", "subdomain": WILLOW, "location_ids": [NORTH], "fields": {}},
    ]
    answer = caller.admin("POST", "/sandbox/changes", wanted)
    assert answer.status_code == 201
    made = answer.json()
    assert [change["operation"] for change in made] == ["update", "cancel", "move", "delete", "create"]
    assert made[0]["after"]["email"] == "new@example.com"
    assert made[3]["after"] is None
    assert caller.admin("GET", "/sandbox/changes").json() == made
    single = caller.admin("POST", "/sandbox/changes", {"collection": "patients", "id": patient, "drop": ["email"]})
    assert "email" not in single.json()[0]["after"]


def test_the_ledger_can_be_changed_and_rebalanced_over_http(caller: Caller) -> None:
    """Risk: as above, for figures that follow from others."""
    charge = next(
        row for row in caller.server.state.records("charges") if row["guarantor_id"] and not row["deleted_at"]
    )
    body = {"collection": "charges", "id": charge["id"], "fee": 1, "fields": {"fee": {"amount": "9999.00"}}}
    assert caller.admin("POST", "/sandbox/changes", body).status_code == 400
    body.pop("fee")
    assert caller.admin("POST", "/sandbox/changes", body).status_code == 201
    (made,) = caller.admin("POST", "/sandbox/rebalance").json()
    assert (made["collection"], made["after"]["guarantor_id"]) == ("guarantor_balances", charge["guarantor_id"])
    assert caller.admin("POST", "/sandbox/rebalance").json() == []


def test_wrong_changes_are_refused_with_the_reason(caller: Caller) -> None:
    """Risk: a test that believes it changed something."""
    for body, status, word in (
        ({"collection": "patients", "id": 1}, 404, "no patients with id 1"),
        ({"collection": "toys", "id": 1}, 404, "no collection toys"),
        ({"operation": "explode"}, 400, "explode"),
        ({"collection": "patients", "id": caller.server.state.ids("patients")[0], "colour": 1}, 400, "colour"),
    ):
        answer = caller.admin("POST", "/sandbox/changes", body)
        assert (answer.status_code, word in answer.json()["error"][0]) == (status, True), answer.text
    assert caller.session.post(caller.server.url + "/sandbox/changes", data="{").status_code == 400
    assert caller.admin("GET", "/sandbox/nothing").status_code == 404


def test_what_cannot_be_meant_is_refused_with_the_reason_and_changes_nothing(caller: Caller) -> None:
    """Risk: 500 and a traceback for a slip of the pen; or 200, and a fault that never comes."""
    visit = caller.server.state.ids("appointments")[0]
    for path, body, word in (
        ("changes", {"operation": "move", "id": visit, "days": 1e12}, "too great"),
        ("changes", {"collection": "appointments", "id": visit, "fields": "note"}, "fields is an object"),
        ("changes", {"collection": "appointments", "id": visit, "about": [1]}, "about is an object"),
        ("changes", 7, "an object, or a list of objects"),
        ("changes", [7], "an object, or a list of objects"),
        ("faults", {"kind": "status", "path": "["}, "path is no regular expression"),
        ("faults", [{"kind": "status"}, {"kind": "status", "nth": "2"}], "nth is a whole number"),
        ("faults", {"kind": "ignored_parameter"}, "parameter"),
        ("faults", "status", "an object, or a list of objects"),
        ("settings", [1], "an object"),
        ("settings", 1, "an object"),
        ("settings", {"limits": "false"}, "limits is true or false"),
        ("settings", {"token_seconds": "5"}, "token_seconds is a number above 0"),
        ("settings", {"retry_after": "soon"}, "retry_after is seconds, date or none"),
        ("settings", {"rain": True}, "no setting 'rain'"),
        ("webhooks/settings", [1], "an object"),
        ("webhooks/settings", {"stamp_offset": 1e12}, "ten years"),
        ("webhooks/send", 7, "an object, or a list of objects"),
    ):
        answer = caller.admin("POST", f"/sandbox/{path}", body)
        assert (answer.status_code, word in answer.json()["error"][0]) == (400, True), (path, body, answer.text)
    for path in ("requests?path=[", "deliveries?event=["):
        answer = caller.admin("GET", f"/sandbox/{path}")
        assert (path, answer.status_code) == (path, 400)
    assert "no regular expression" in caller.admin("GET", "/sandbox/requests?path=[").json()["error"][0]
    assert (caller.server.state.changes, caller.admin("GET", "/sandbox/faults").json()) == ([], [])
    assert not caller.server.limits.enabled


def test_faults_can_be_set_listed_and_taken_away_over_http(caller: Caller) -> None:
    """Risk: as above, for faults."""
    made = caller.admin("POST", "/sandbox/faults", [{"kind": "status", "path": "/patients"}, {"kind": "html"}])
    assert made.status_code == 201
    assert caller.get("/patients", **WHERE).status_code == 500
    rules = caller.admin("GET", "/sandbox/faults").json()
    assert [(rule["kind"], rule["fired"]) for rule in rules] == [("status", 1), ("html", 1)]
    caller.admin("DELETE", f"/sandbox/faults/{made.json()[0]['id']}")
    assert len(caller.admin("GET", "/sandbox/faults").json()) == 1
    caller.admin("DELETE", "/sandbox/faults")
    caller.authenticate()
    assert caller.get("/patients", **WHERE).status_code == 200
    assert caller.admin("POST", "/sandbox/faults", {"kind": "rain"}).status_code == 400


def test_the_request_log_can_be_read_filtered_and_cleared(caller: Caller) -> None:
    """Risk: "no committed page was asked for again" is judged by this log."""
    caller.get("/patients", **WHERE, per_page=3)
    caller.get("/nothing")
    (asked,) = caller.admin("GET", "/sandbox/requests?path=/patients").json()
    assert (asked["status"], asked["records"], asked["method"]) == (200, 3, "GET")
    assert "per_page=3" in asked["query"]
    assert "api_key" not in asked
    assert [row["path"] for row in caller.admin("GET", "/sandbox/requests?status=404").json()] == ["/nothing"]
    later = caller.admin("GET", f"/sandbox/requests?since={asked['number']}").json()
    assert [row["path"] for row in later] == ["/nothing"]
    caller.admin("DELETE", "/sandbox/requests")
    assert caller.admin("GET", "/sandbox/requests").json() == []


def test_stats_and_truth_describe_the_whole_world(caller: Caller) -> None:
    """Risk: comparison with the truth needs hidden rows and the institution of each."""
    caller.get("/institutions")
    stats = caller.admin("GET", "/sandbox/stats").json()
    assert stats["by_status"] == {"200": 1, "201": 1}
    lines = caller.admin("GET", "/sandbox/truth/insurance_coverages").text.splitlines()
    assert len(lines) == stats["world"]["rows"]["insurance_coverages"]
    assert {json.loads(line)["record"]["active"] for line in lines} == {True, False}
    assert caller.admin("GET", "/sandbox/truth/toys").status_code == 404


def test_settings_change_tokens_and_limits_while_running(caller: Caller) -> None:
    """Risk: a soak switches these in the middle."""
    caller.authenticate()
    answer = caller.admin("POST", "/sandbox/settings", {"token_seconds": 5, "limits": True, "revoke_tokens": True})
    assert answer.json() == {"limits": True, "token_seconds": 5.0}
    assert caller.get("/institutions").status_code == 401
    assert caller.server.limits.enabled
