"""Changes at NexHealth: what is sent, what may be sent twice, and that no secret shows anywhere."""

import json
import logging

import pytest

from nexhealth_pipeline.client.client import hash_of_key
from nexhealth_pipeline.client.request import ApiCall, ApiRequest
from nexhealth_pipeline.errors import (
    ApiError,
    BadRequest,
    MissingSetting,
    NotFound,
    RateLimited,
    ServerFailed,
    TryLater,
)
from tests.client.stub import KEY, Reply, envelope, refusal

SECRET = "Whsec7-canary-5550100"
BODY = {"target_url": "https://hooks.example.com/x", "active": True}
MAKE = ApiCall("POST", "/webhook_endpoints", None, BODY, legacy_accept=True)
CHANGE = ApiCall("PATCH", "/webhook_endpoints/7/webhook_subscriptions/9", "acme", {"active": True})
DELETE = ApiCall("DELETE", "/webhook_endpoints/7")
MADE = Reply(201, envelope({"id": 7, "secret_key": SECRET}).body)


def test_a_call_sends_json_and_returns_what_the_api_answers(client, stub):
    stub.script(MADE)
    answer = client.call(MAKE)
    assert [json.loads(one)["id"] for one in answer] == [7]
    [seen] = stub.data_requests
    assert (seen.method, seen.query, json.loads(seen.body)) == ("POST", {}, BODY)
    assert seen.headers["Content-Type"] == "application/json"
    assert (seen.headers["Accept"], seen.headers["Nex-Api-Version"]) == (
        "application/vnd.Nexhealth+json;version=2",
        "v3.0.0",
    )


def test_the_institution_stands_in_the_query(client, stub):
    """In a body it is ignored (API.md A.4)."""
    stub.script(envelope([{"id": 9}]))
    client.call(CHANGE)
    [seen] = stub.data_requests
    assert (seen.query, json.loads(seen.body)) == ({"subdomain": "acme"}, {"active": True})
    assert seen.headers["Accept"] == "application/json"


def test_no_content_is_a_success(client, stub):
    """A DELETE answers so."""
    stub.script(Reply(204))
    assert client.call(DELETE) == []
    [seen] = stub.data_requests
    assert (seen.method, seen.body, "Content-Type" in seen.headers) == ("DELETE", b"", False)


UNSURE = {
    "500": refusal(500),
    "408": refusal(408),
    "503 html": Reply(503, b"<html>"),
    "lost": Reply(raw=b""),
    "cut": Reply(201, MADE.body[:10], {"Content-Length": str(len(MADE.body))}),
    "unreadable": Reply(201, b'{"code":true,"data":{"secret_key":"' + SECRET.encode()),
    "a stranger's 404": Reply(404, b"<html>nothing here</html>"),
    "code false": Reply(200, json.dumps({"code": False, "error": SECRET, "data": {"secret_key": SECRET}}).encode()),
}


@pytest.mark.parametrize("bad", UNSURE.values(), ids=UNSURE)
def test_a_post_that_may_have_been_done_is_not_sent_again(client, stub, bad):
    """Twice would be two endpoints, and every event twice."""
    stub.script(bad, MADE)
    with pytest.raises(TryLater) as caught:
        client.call(MAKE)
    assert len(stub.data_requests) == 1
    assert "it may have been done all the same" in str(caught.value)


@pytest.mark.parametrize("bad", UNSURE.values(), ids=UNSURE)
def test_what_is_the_same_done_twice_is_repeated(client, stub, bad):
    stub.script(bad, envelope({"id": 9}))
    assert client.call(CHANGE) == [b'{"id": 9}']
    assert len(stub.data_requests) == 2


@pytest.mark.parametrize("bad", [refusal(401), refusal(429), refusal(425)])
def test_a_post_that_was_not_begun_is_sent_again(client, stub, bad):
    stub.script(bad, MADE)
    assert len(client.call(MAKE)) == 1
    assert len(stub.data_requests) == 2


def test_being_limited_for_long_leaves_no_doubt(client, stub):
    stub.script(refusal(429))
    with pytest.raises(RateLimited) as caught:
        client.call(MAKE)
    assert "may have been done" not in str(caught.value)


@pytest.mark.parametrize(("status", "error"), [(404, NotFound), (400, BadRequest), (422, BadRequest)])
def test_refusals_are_typed_and_name_the_call(client, stub, status, error):
    stub.script(refusal(status, "target_url is invalid"))
    with pytest.raises(error) as caught:
        client.call(CHANGE)
    assert str(caught.value).startswith("PATCH /webhook_endpoints/7/webhook_subscriptions/9 (subdomain acme): ")


@pytest.mark.parametrize("reply", [*UNSURE.values(), refusal(400, f"bad secret_key {SECRET}"), MADE])
def test_a_secret_shows_in_no_error_log_or_repr(make_client, stub, caplog, reply):
    """Whoever has it can sign events."""
    client = make_client()
    stub.script(reply)
    caplog.set_level(logging.DEBUG)
    texts = [repr(client), repr(MAKE), repr(ApiCall("PATCH", "/x", None, {"secret": SECRET}))]
    for call in (MAKE, CHANGE):
        try:
            client.call(call)
        except ApiError as error:
            texts += [str(error), repr(error), repr(error.__context__), repr(error.__cause__)]
    texts += [repr(record.__dict__) for record in caplog.records]
    assert not [text for text in texts if SECRET in text]


def test_every_call_takes_part_in_the_budget_and_names_its_key(make_client, stub, budget):
    client = make_client(api_keys={"": KEY, "acme": "another-key"})
    stub.script(Reply(204))
    client.call(DELETE)
    client.call(CHANGE)
    assert len(budget.grants) == 4  # with a token each
    keys = [seen.headers["Authorization"] for seen in stub.seen if seen.path == "/authenticates"]
    assert keys == [KEY, "another-key"]
    assert (client.key_hash(), client.key_hash("elsewhere"), client.key_hash("acme")) == (
        hash_of_key(KEY),
        hash_of_key(KEY),
        hash_of_key("another-key"),
    )
    with pytest.raises(MissingSetting):
        make_client(api_keys={"acme": "another-key"}).key_hash("elsewhere")


def test_an_answer_to_a_read_must_have_a_body(client, stub):
    """204 is for what was deleted; a list that is empty says so."""
    stub.script(Reply(204))
    with pytest.raises(ServerFailed):
        client.get(ApiRequest("/webhook_endpoints"))
