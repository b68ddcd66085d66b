"""A path that answers 401 to a good key, as some are declared to: told apart from a token or a key that is over."""

import threading

import pytest

from nexhealth_pipeline.client.request import ApiCall, ApiRequest
from nexhealth_pipeline.errors import ApiError, KeyRefused, NoAccess
from tests.client.stub import KEY, Stub, envelope, refusal

GOOD = envelope([{"id": 1}])
OTHER = ApiRequest("/providers", (), "demo")
CLOSED = [ApiRequest(f"/locations/{one}/appointment_descriptors") for one in (11, 12)]
FIRST, SECOND = (one.path for one in CLOSED)


def close(stub: Stub, *paths: str) -> None:
    """Let these refuse every token, and all others none."""
    stub.answer = lambda seen: refusal(401, "Unauthorized") if seen.path in paths else GOOD


def asked(stub: Stub) -> list[str]:
    """The paths asked for since the last call."""
    paths = [seen.path for seen in stub.seen]
    stub.seen.clear()
    return paths


def test_a_path_that_refuses_a_token_that_another_takes_is_closed_and_not_the_key(client, stub):
    """Called the key's fault, it has to be corrected every night. Nobody else asks meanwhile: no other thread has to."""
    close(stub, FIRST, SECOND)
    with pytest.raises(NoAccess, match="refused here with 401, while the key is accepted elsewhere") as caught:
        client.get(CLOSED[0])
    assert asked(stub) == ["/authenticates", FIRST, "/authenticates", *(FIRST, "/institutions") * 2]
    assert (caught.value.status, caught.value.requests) == (401, 7)

    with pytest.raises(NoAccess):
        client.get(CLOSED[1])
    assert asked(stub) == [SECOND, "/institutions"], "one of a thousand locations costs nobody a token"


def test_a_token_that_not_all_servers_know_at_once_closes_no_path(client, stub, naps):
    """Risk: a practice's ledger was not asked for until the next night, for one 401 too many within milliseconds."""
    refused = iter((FIRST, FIRST))
    stub.answer = lambda seen: refusal(401) if seen.path == FIRST and next(refused, None) else GOOD
    assert client.get(CLOSED[0]).records
    assert asked(stub) == ["/authenticates", FIRST, "/authenticates", FIRST, "/institutions", FIRST]
    assert naps.slept[-1] > 0, "it is asked again after a while"


@pytest.mark.parametrize(("path", "witness"), [("/institutions", "/locations"), ("/locations", "/institutions")])
def test_the_witness_is_another_path_than_the_refused_one(client, stub, path, witness):
    close(stub, path)
    with pytest.raises(NoAccess):
        client.get(ApiRequest(path))
    assert asked(stub)[-1] == witness


def test_what_must_not_be_done_twice_is_told_apart_as_well(client, stub):
    close(stub, "/webhook_endpoints")
    with pytest.raises(NoAccess):
        client.call(ApiCall("POST", "/webhook_endpoints", body={}))


def test_a_closed_path_that_opens_is_read_at_once(client, stub):
    close(stub, FIRST)
    with pytest.raises(NoAccess):
        client.get(CLOSED[0])
    close(stub)
    asked(stub)
    client.get(CLOSED[0])
    assert asked(stub) == [FIRST]
    close(stub, FIRST)
    with pytest.raises(NoAccess):
        client.get(CLOSED[0])
    assert asked(stub) == [FIRST, "/authenticates", *(FIRST, "/institutions") * 2], "one proof is no more enough"


def test_where_every_token_is_refused_a_path_that_was_closed_is_no_exception(client, stub):
    """Risk: in an outage that leaves only `/authenticates` whole, each practice becomes one without a ledger."""
    close(stub, FIRST, SECOND)
    with pytest.raises(NoAccess):
        client.get(CLOSED[0])
    stub.answer = lambda seen: refusal(401)
    for request in CLOSED:
        with pytest.raises(KeyRefused):
            client.get(request)


@pytest.mark.parametrize("status", [403, 429, 500])
def test_a_witness_that_does_not_answer_proves_nothing(client, stub, budget, status):
    stub.answer = lambda seen: refusal(status if seen.path == "/institutions" else 401)
    with pytest.raises(KeyRefused):
        client.get(CLOSED[0])
    assert bool(budget.throttled) == (status == 429)


def test_another_key_is_not_taken_for_one_to_which_the_path_is_closed(make_client, stub):
    """Its token was over, or it is revoked: neither is a verdict on what it may read."""
    client = make_client(api_keys={"": KEY, "demo": "sk-own"})
    close(stub, FIRST, SECOND)
    with pytest.raises(NoAccess):
        client.get(CLOSED[0])
    own = ApiRequest(SECOND, key_name="demo")
    stub.script(refusal(401), GOOD)
    assert client.get(own).records
    stub.script(refusal(401))
    with pytest.raises(KeyRefused):
        client.get(own)


def test_a_token_that_is_over_closes_no_path_that_was_closed_before(client, stub):
    close(stub, FIRST)
    with pytest.raises(NoAccess):
        client.get(CLOSED[0])
    over = f"Bearer {stub.tokens[-1]}"
    stub.answer = lambda seen: refusal(401) if seen.headers["Authorization"] == over else GOOD
    assert client.get(CLOSED[1]).records


def test_tokens_that_are_over_for_all_close_no_path(client, stub):
    """However often in a row: each was refused here first, and then by the witness as well."""
    over: set[str] = set()

    def answer(seen):
        token = seen.headers["Authorization"]
        if seen.path == OTHER.path and len(over) < 4:
            over.add(token)
        return refusal(401) if token in over else GOOD

    stub.answer = answer
    assert client.get(OTHER).records
    assert len(over) == 4


def test_threads_that_meet_a_token_that_is_over_all_go_on(client, stub):
    """Each of their requests is refused with the old one, and the answers come when there is a new one already."""
    client.get(OTHER)
    over = f"Bearer {stub.tokens[0]}"
    together = threading.Barrier(6)

    def answer(seen):
        if seen.headers["Authorization"] != over:
            return GOOD
        together.wait(20)
        return refusal(401)

    stub.answer = answer
    read: list[int] = []
    threads = [threading.Thread(target=lambda: read.append(len(client.get(OTHER).records))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [1] * 6
    assert len(stub.tokens) == 2
    assert "/institutions" not in asked(stub)


def test_threads_that_all_ask_a_closed_path_find_that_it_is_closed(client, stub):
    """All with the old token first, which one of them gives up, and then with the next one."""
    together = threading.Barrier(6)
    client.authenticate()
    first = f"Bearer {stub.tokens[0]}"

    def answer(seen):
        if seen.path == "/institutions":
            return GOOD
        if seen.headers["Authorization"] == first:
            together.wait(20)
        return refusal(401)

    stub.answer = answer
    failures: list[type[ApiError]] = []

    def ask() -> None:
        try:
            client.get(CLOSED[0])
        except ApiError as error:
            failures.append(type(error))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [NoAccess] * 6


def test_a_key_that_is_revoked_while_others_are_answered_is_refused_at_once(client, stub):
    stub.script(GOOD)
    client.get(OTHER)
    stub.answer = stub.authenticate = lambda seen: refusal(401)
    asked(stub)
    with pytest.raises(KeyRefused):
        client.get(OTHER)
    assert asked(stub) == [OTHER.path, "/authenticates"]
