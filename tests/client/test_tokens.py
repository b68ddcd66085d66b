"""Tokens and keys, against a real server on loopback: one token for all, renewed in time, each key its own."""

import json
import threading

import pytest

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.client import hash_of_key
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import (
    InvalidSetting,
    KeyRefused,
    MissingSetting,
    PipelineError,
    ServerFailed,
)
from tests.client.stub import KEY, Reply, envelope, listing, refusal

LIST = ApiRequest("/patients", (("location_id", "12"),), "demo", Paging.CURSOR, per_page=2)
ONE = ApiRequest("/patients/7/documents", (), "demo")

GOOD = envelope([{"id": 1}])


def ids(pages):
    return [json.loads(record)["id"] for page in pages for record in page.records]


def test_a_401_gets_one_new_token_and_the_same_page_again(client, stub):
    stub.script(listing([1], "a", more=True), refusal(401), listing([2], "b", more=False))
    pages = list(client.pages(LIST))
    assert ids(pages) == [1, 2]
    assert [seen.query["end_cursor"] for seen in stub.data_requests] == ["", "a", "a"]
    assert len(stub.tokens) == 2
    assert (pages[1].requests, pages[1].retries) == (3, 1)


def test_a_fifth_401_in_a_row_means_the_key_is_refused(client, stub):
    """Some may be a server's whim; a fifth is an answer, where no token was ever taken, nor by another path."""
    stub.script(refusal(401))
    with pytest.raises(KeyRefused) as caught:
        client.get(ONE)
    assert len(stub.tokens) == 5
    assert [seen.path for seen in stub.data_requests] == [ONE.path, *[ONE.path, "/institutions"] * 4]
    assert caught.value.requests == 14


def test_from_the_second_401_in_a_row_on_each_is_waited_for(client, stub, naps):
    """A path that refuses every token must not have all others' token thrown away at the speed of the network."""
    left = [refusal(401), refusal(401), refusal(401), refusal(500), refusal(401)]
    good = listing([1], "a", more=False)
    stub.answer = lambda seen: refusal(401) if seen.path != LIST.path else left.pop(0) if left else good
    assert ids(client.pages(LIST)) == [1]
    assert naps.slept == [0.5, 1.0, 2.0], "and the first one is met at once, each time"


def test_a_key_that_authenticates_refuses_is_named_as_such(client, stub):
    stub.authenticate = lambda seen: refusal(401, f"key {KEY} unknown")
    with pytest.raises(KeyRefused, match="NEXHEALTH_API_KEY") as caught:
        client.get(ONE)
    assert len(stub.seen) == 1
    assert "unknown" not in str(caught.value)


@pytest.mark.parametrize("path", ["/authenticates", "/patients/7/documents"])
def test_a_gateways_401_says_nothing_of_the_key(client, stub, path):
    """Its page is met as its 403 is: asked again, and the token renewed, for it may have been NexHealth after all."""
    strange = [Reply(401, b"<html>Authorization Required</html>")]
    stub.authenticate = lambda seen: strange.pop() if strange and seen.path == path else stub.issue(seen)
    stub.answer = lambda seen: strange.pop() if strange else GOOD
    assert ids([client.get(ONE)]) == [1]
    assert len([seen for seen in stub.seen if seen.path == "/authenticates"]) == 2

    stub.authenticate = stub.answer = lambda seen: Reply(401, b"<html>Authorization Required</html>")
    with pytest.raises(ServerFailed, match="something other than NexHealth"):
        client.get(ApiRequest("/patients/8/documents", (), "demo"))


@pytest.mark.parametrize("body", [b"", b'{"error":"expired"}'])
def test_a_401_of_nexhealths_own_needs_no_envelope(client, stub, body):
    stub.script(Reply(401, body))
    with pytest.raises(KeyRefused):
        client.get(ONE)


@pytest.mark.parametrize("status", [400, 404, 405, 415, 422, 501])
def test_other_refusals_of_authenticates_never_look_like_a_missing_record(client, stub, status):
    stub.authenticate = lambda seen: refusal(status)
    with pytest.raises(ServerFailed, match="NEXHEALTH_API_URL"):
        client.get(ONE)


def test_short_lived_tokens_are_renewed_before_they_expire(client, stub, naps):
    naps.stop_clock()
    stub.lifetime = 20.0
    stub.script(GOOD)
    for _ in range(4):
        client.get(ONE)
    assert len(stub.tokens) == 1
    naps.slept.append(15.9)
    client.get(ONE)
    assert len(stub.tokens) == 1
    naps.slept.append(0.5)
    client.get(ONE)
    assert len(stub.tokens) == 2


def test_a_token_that_expires_in_the_queue_for_the_budget_is_not_sent(client, stub, budget, naps):
    """A full window makes a request wait for up to a minute; tokens may live 20 s."""
    stub.lifetime = 20.0
    waits = [0.0, 30.0, 0.0, 0.0]
    budget.on_acquire = lambda: naps.slept.append(waits.pop(0) if waits else 0.0)
    stub.script(GOOD)
    client.get(ONE)
    assert len(stub.tokens) == 2
    assert [seen.headers["Authorization"] for seen in stub.data_requests] == [f"Bearer {stub.tokens[1]}"]


def test_threads_share_one_token(client, stub):
    gate = threading.Barrier(8)
    errors = []

    def read():
        gate.wait()
        try:
            client.get(ONE)
        except PipelineError as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(stub.tokens) == 1


def test_the_cost_of_a_token_lands_on_exactly_one_page(client, stub):
    """The log's sums must equal what the server counted."""
    stub.script(GOOD)
    pages = [client.get(ONE) for _ in range(3)]
    assert sum(page.requests for page in pages) == len(stub.seen) == 4


def test_an_institution_with_a_key_of_its_own_uses_it(make_client, stub):
    hashes = []
    client = make_client(
        api_keys={"": KEY, "demo": "sk-own", "twin": "sk-own"},
        budget_for=lambda key_hash: hashes.append(key_hash) or _Free(),
    )
    for subdomain in ("demo", "twin", "other"):
        client.get(ApiRequest("/providers", (), subdomain))
    keys = [seen.headers["Authorization"] for seen in stub.seen if seen.path == "/authenticates"]
    assert keys == ["sk-own", KEY]
    assert hashes == [hash_of_key("sk-own"), hash_of_key(KEY)]
    assert client.key_names() == ("", "demo")


class _Free:
    def acquire(self, classes):
        return 0.0

    def throttle(self, classes, seconds):
        pass


def test_a_request_without_a_key_for_it_names_the_setting(make_client):
    client = make_client(api_keys={"demo": "sk-own"})
    with pytest.raises(MissingSetting, match="other"):
        client.get(ApiRequest("/providers", (), "other"))
    assert client.get(ApiRequest("/institutions", key_name="demo")).records == []


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "naïve"])
def test_a_key_that_no_header_can_hold_is_refused_at_once(make_client, key):
    with pytest.raises(InvalidSetting, match="NEXHEALTH_API_KEY") as caught:
        make_client(api_keys={"": key})
    assert not key or key not in str(caught.value)


def test_a_token_that_no_header_can_hold_is_a_malformed_answer(client, stub):
    stub.authenticate = lambda seen: envelope({"token": "a\r\nX-Evil: 1"})
    with pytest.raises(ServerFailed, match="an answer without a token that can be sent"):
        client.get(ONE)
