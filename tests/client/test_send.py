"""The one request function: each kind of failure, repeated or final, and what it may say."""

import json
import logging
import time
from email.utils import formatdate

import pytest

from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import (
    ApiError,
    BadRequest,
    NoAccess,
    NotFound,
    RateLimited,
    ServerFailed,
    Unreachable,
)
from tests.client.stub import KEY, Reply, envelope, refusal

ONE = ApiRequest("/patients/7", (), "demo")


def ids(pages):
    return [json.loads(record)["id"] for page in pages for record in page.records]


GOOD = envelope([{"id": 1}])
PASSING = {
    "408": refusal(408),
    "429": refusal(429),
    "500": refusal(500),
    "502 html": Reply(502, b"<html>bad gateway</html>"),
    "503": refusal(503),
    "cut body": Reply(200, GOOD.body[:10], {"Content-Length": str(len(GOOD.body))}),
    "cut chunked body": Reply(raw=b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"cod'),
    "cut without a length": Reply(raw=b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD.body[:-2]),
    "no answer": Reply(raw=b""),
    "half a header": Reply(raw=b"HTTP/1.1 200 OK\r\nConten"),
    "malformed json": Reply(200, b'{"code":true,"data":[{"id":1},]}'),
    "html with 200": Reply(200, b"<html>please log in</html>"),
    "empty with 200": Reply(200, b""),
    "json that is no envelope": Reply(200, b"[]"),
    "envelope without data": Reply(200, b'{"code":true}'),
    "wrong types": Reply(200, b'{"code":"yes","data":[]}'),
    "code false with 200": Reply(200, b'{"code":false,"error":"try again","data":null}'),
    "bad gzip": Reply(200, b"no gzip", {"Content-Encoding": "gzip"}),
    "html 404 of a proxy": Reply(404, b"<html>nothing here</html>"),
    "html 400 of a proxy": Reply(400, b"<html>Bad Request</html>"),
    "html 405 of a proxy": Reply(405, b"<html>Not Allowed</html>"),
    "html 415 of a proxy": Reply(415, b"<html>Unsupported</html>"),
    "html 501 of a proxy": Reply(501, b"<html>Not Implemented</html>"),
}


@pytest.mark.parametrize("bad", PASSING.values(), ids=PASSING)
def test_failures_that_pass_are_repeated_and_counted(client, stub, bad):
    stub.script(bad, bad, GOOD)
    page = client.get(ONE)
    assert ids([page]) == [1]
    assert (page.requests, page.retries) == (4, 2)  # with /authenticates


@pytest.mark.parametrize("bad", [bad for bad in PASSING.values() if bad.status != 404])  # 404: a wrong address
def test_failures_of_the_token_request_are_repeated_by_the_same_table(client, stub, bad):
    replies = [bad, bad]
    stub.authenticate = lambda seen: replies.pop() if replies else stub.issue(seen)
    stub.script(GOOD)
    page = client.get(ONE)
    assert (page.requests, page.retries) == (4, 2)


@pytest.mark.parametrize(
    ("reply", "error", "attempts"),
    [
        (refusal(500), ServerFailed, 10),
        (refusal(429), RateLimited, 10),
        (PASSING["malformed json"], ServerFailed, 6),
        (PASSING["code false with 200"], ServerFailed, 6),
        (PASSING["no answer"], Unreachable, 7),
        (refusal(302, Location="http://127.0.0.1:9/"), ServerFailed, 2),
    ],
)
def test_failures_that_stay_end_as_a_typed_error_with_what_they_cost(client, stub, reply, error, attempts):
    stub.script(reply)
    with pytest.raises(error) as caught:
        client.get(ONE)
    assert len(stub.data_requests) == attempts
    assert (caught.value.requests, caught.value.retries) == (attempts + 1, attempts - 1)
    assert f"{attempts} attempts" in str(caught.value)
    assert "/patients/7 (subdomain demo)" in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refusal(400, "Missing parameter start"), BadRequest),
        (refusal(403, "You don't have access to perform this action"), NoAccess),
        (refusal(404, "Location with id 12 not found"), NotFound),
        (refusal(415), BadRequest),
        (refusal(422), BadRequest),
        (Reply(422, b""), BadRequest),
        (refusal(409), BadRequest),
        (Reply(200, b'{"code":false,"error":["You don\'t have access to perform this action"]}'), NoAccess),
    ],
)
def test_refusals_are_not_repeated(client, stub, reply, error):
    stub.script(reply)
    with pytest.raises(error) as caught:
        client.get(ONE)
    assert type(caught.value) is error
    assert caught.value.status == reply.status
    assert len(stub.data_requests) == 1


def test_a_404_without_an_envelope_never_says_that_a_record_is_gone(client, stub):
    """Absence is confirmed by 404 (DESIGN 3b); a proxy's 404 page must not delete anything."""
    stub.script(Reply(404, b"<html>no route</html>"))
    with pytest.raises(ServerFailed):
        client.get(ONE)


def test_backoff_doubles_up_to_its_bound(client, stub, naps):
    stub.script(refusal(500))
    with pytest.raises(ServerFailed):
        client.get(ONE)
    assert naps.slept == [0.25, 0.5, 1, 2, 4, 8, 15, 15, 15]


def test_patience_ends_the_tries_before_their_number_does(make_client, stub, naps):
    naps.stop_clock()
    stub.script(refusal(500))
    with pytest.raises(ServerFailed, match="3 attempts"):
        make_client(retry={"patience_seconds": 1.5}).get(ONE)
    assert sum(naps.slept) < 1.5


def test_waiting_for_the_budget_does_not_use_up_patience(make_client, stub, budget, naps):
    """A full minute's window may be used up by others; that is no failure of the API."""
    budget.on_acquire = lambda: naps.slept.append(budget.wait)
    budget.wait = 100.0
    stub.script(refusal(500), GOOD)
    page = make_client(retry={"patience_seconds": 50.0}).get(ONE)
    assert page.throttled_seconds == 300.0


def test_retry_after_in_seconds_is_respected_by_everybody(client, stub, naps, budget):
    stub.script(refusal(429, Retry_After="17"), GOOD)
    page = client.get(ONE)
    assert naps.slept == [17.0] == budget.throttled
    assert page.throttled_seconds == 17.0


def test_retry_after_as_a_date_is_read_against_the_apis_clock(client, stub, naps):
    stub.script(refusal(429, Retry_After=formatdate(time.time() + 40, usegmt=True)), GOOD)
    client.get(ONE)
    assert 20 < naps.slept[0] < 41  # less by what passes until it is asked


def test_retry_after_is_bounded(client, stub, naps):
    stub.script(refusal(503, Retry_After="86400"), GOOD)
    client.get(ONE)
    assert naps.slept == [120.0]


@pytest.mark.parametrize("header", ["240", None], ids=["seconds", "date"])
def test_a_throttle_of_minutes_is_kept_to_the_end_by_everybody(client, stub, naps, budget, header):
    """Risk: asked again after two minutes, by all processes, the API goes on refusing, and may refuse for longer."""
    naps.stop_clock()

    def refuse(_):
        stub.script(GOOD)
        return refusal(429, Retry_After=header or formatdate(time.time() + 241, usegmt=True))

    stub.answer = refuse
    began = naps.monotonic()
    client.get(ONE)
    assert 239 < naps.monotonic() - began < 242
    assert budget.throttled == naps.slept


def test_a_throttle_longer_than_anybody_waits_ends_the_page_and_holds_the_others(client, stub, naps, budget):
    """Whatever it asks for, all wait five minutes at a time; the next run finds it over."""
    stub.script(refusal(429, Retry_After="86400"))
    with pytest.raises(RateLimited, match="2 attempts"):
        client.get(ONE)
    assert (naps.slept, budget.throttled) == ([300.0], [300.0, 300.0])
    assert len(stub.data_requests) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_retry_after_does_not_use_up_all_tries_within_seconds(client, stub, naps, budget, status):
    """A minute's window that somebody else has used up: asked again each second, all tries would be gone before its end."""
    stub.script(refusal(status, Retry_After="1"))
    with pytest.raises(ServerFailed if status == 503 else RateLimited):
        client.get(ONE)
    assert sum(naps.slept) > 60
    assert min(naps.slept) >= 1
    assert budget.throttled[:9] == (naps.slept if status == 429 else [])


@pytest.mark.parametrize("header", ["0", "-5", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
def test_a_useless_retry_after_falls_back_to_backoff(client, stub, naps, header):
    stub.script(refusal(429, Retry_After=header), GOOD)
    client.get(ONE)
    assert naps.slept == [0.25]


@pytest.mark.parametrize("reply", [*PASSING.values(), refusal(400, "Canary Canaryson a@b.c 1990-01-02"), refusal(401)])
def test_no_error_log_or_repr_holds_key_token_or_body(make_client, stub, caplog, reply):
    """Dagster stores messages and tracebacks; exceptions of `requests` hold the request and its token."""
    caplog.set_level(logging.DEBUG, logger="nexhealth_pipeline")
    if reply.status == 200 and reply.raw is None:
        reply = Reply(200, b'{"code":true,"data":[{"name":"Canaryson"}', dict(reply.headers))
    stub.script(reply)
    client = make_client(retry={"attempts": 2})
    with pytest.raises(ApiError) as caught:
        client.get(ONE)
    texts = [caplog.text, *(str(vars(record)) for record in caplog.records), repr(client), *_chain(caught.value)]
    for secret in (KEY, *stub.tokens, "Canary", "1990-01-02", "a@b.c"):
        assert not [text for text in texts if secret in text]


def _chain(error):
    while error is not None:
        assert type(error).__module__.startswith("nexhealth_pipeline")
        yield repr(error)
        yield str(vars(error))
        error = error.__cause__ or error.__context__
