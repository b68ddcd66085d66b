"""The client against a real server on loopback; each test breaks one thing."""

import json
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest

from nexhealth_pipeline.catalog.limits import RateClass
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.errors import (
    BadRequest,
    Cancelled,
    CursorExpired,
    ProtocolBroken,
    ServerFailed,
)
from tests.client.stub import KEY, Reply, envelope, listing, refusal

LIST = ApiRequest("/patients", (("location_id", "12"),), "demo", Paging.CURSOR, per_page=2)
ONE = ApiRequest("/patients/7/documents", (), "demo")
SINGLE = ApiRequest("/patients/7", (), "demo", Paging.ONE)

GOOD = envelope([{"id": 1}])


def ids(pages):
    return [json.loads(record)["id"] for page in pages for record in page.records]


# ---- what is sent ----------------------------------------------------------------------------


def test_a_list_request_carries_version_token_subdomain_and_explicit_paging(client, stub):
    """per_page defaults to 5 on the server; a subdomain outside the query is ignored there."""
    stub.script(listing([1], None, more=False))
    list(client.pages(LIST))
    (seen,) = stub.data_requests
    assert seen.query == {"subdomain": "demo", "location_id": "12", "per_page": "2", "end_cursor": ""}
    assert seen.headers["Nex-Api-Version"] == "v3.0.0"
    assert seen.headers["Authorization"] == f"Bearer {stub.tokens[0]}"
    assert seen.headers["Accept"] == "application/json"
    assert seen.headers["User-Agent"].startswith("nexhealth-pipeline/")


def test_the_token_is_asked_with_the_bare_key_and_no_body(client, stub):
    stub.script(envelope([]))
    client.get(ONE)
    seen = stub.seen[0]
    assert (seen.method, seen.path, seen.query) == ("POST", "/authenticates", {})
    assert seen.headers["Authorization"] == KEY
    assert seen.headers["Content-Length"] == "0"


def test_shared_operations_get_the_v2_accept_header_as_well(client, stub):
    client.get(ApiRequest("/locations", legacy_accept=True))
    (seen,) = stub.data_requests
    assert seen.headers["Accept"] == "application/vnd.Nexhealth+json;version=2"
    assert seen.headers["Nex-Api-Version"] == "v3.0.0"


def test_a_plus_in_a_parameter_arrives_as_a_plus(client, stub):
    """API.md H: `+0000` unencoded becomes a blank."""
    client.get(ApiRequest("/patients", (("updated_since", "2024-01-01T00:00:00+0000"), ("ids[]", "4")), "demo"))
    assert stub.data_requests[0].query["updated_since"] == "2024-01-01T00:00:00+0000"
    assert stub.data_requests[0].query["ids[]"] == "4"


def test_every_request_is_granted_by_the_budget_first(client, stub, budget):
    stub.script(refusal(500), listing([1], None, more=False))
    list(client.pages(LIST))
    patients = (RateClass.GENERAL, RateClass.PATIENTS)
    assert budget.grants == [(RateClass.GENERAL, RateClass.OTHER), patients, patients]
    assert len(budget.grants) == len(stub.seen)


# ---- pages -----------------------------------------------------------------------------------


def test_pages_follow_the_cursor_to_the_end(client, stub):
    stub.script(listing([1, 2], "c2", more=True), listing([3, 4], "c4", more=True), listing([5], "c5", more=False))
    pages = list(client.pages(LIST))
    assert ids(pages) == [1, 2, 3, 4, 5]
    assert [page.number for page in pages] == [1, 2, 3]
    assert [seen.query["end_cursor"] for seen in stub.data_requests] == ["", "c2", "c4"]
    assert [page.has_next for page in pages] == [True, True, False]


def test_a_resumed_pass_goes_on_after_its_cursor_with_its_page_number(client, stub):
    stub.script(listing([5], "c5", more=False))
    (page,) = client.pages(LIST, cursor="c4", page=2)
    assert (page.number, stub.data_requests[0].query["end_cursor"]) == (3, "c4")


def test_records_are_the_bytes_received(client, stub):
    """Key order, blanks, big numbers and escapes survive for `raw jsonb`."""
    record = '{"b" : 1.50, "a":123456789012345678901234567890, "n":"O\\u0027Hara \\ud83d\\ude00"}'
    stub.script(Reply(body=f'{{"code":true,"data":[ {record} ,{{}}]}}'.encode()))
    assert client.get(ONE).records == [record.encode(), b"{}"]


@pytest.mark.parametrize(("data", "count"), [([], 0), ([{"id": 1}, {"id": 2}], 2)])
def test_an_unpaged_list_is_one_answer(client, stub, data, count):
    stub.script(envelope(data))
    assert len(client.get(ONE).records) == count


@pytest.mark.parametrize("asked", [ONE, replace(LIST, paging=Paging.PAGE)], ids=["unpaged", "numbered"])
def test_a_list_said_to_have_no_cursors_that_gives_one_is_read_to_its_end(client, stub, asked):
    """API.md D.2 is documentation, not a promise: taken for all, its first page would have all other rows marked as gone."""
    stub.script(listing([1, 2], "c2", more=True, count=3), listing([3], "c3", more=False, count=3))
    pages = list(client.pages(asked))
    assert (ids(pages), [page.has_next for page in pages]) == ([1, 2, 3], [True, False])
    first, second = [seen.query for seen in stub.data_requests]
    assert "end_cursor" not in first
    assert (second["end_cursor"], second["per_page"], second.get("page")) == ("c2", str(asked.per_page), None)


@pytest.mark.parametrize("asked", [ONE, replace(LIST, paging=Paging.PAGE)], ids=["unpaged", "numbered"])
def test_pages_of_a_list_said_to_have_no_cursors_hold_all_that_is_counted(client, stub, asked):
    stub.script(listing([1, 2], "c2", more=True, count=4), *[listing([3], "c3", more=False, count=4)] * 3)
    with pytest.raises(ProtocolBroken, match="counts 4 records, its pages held 3: rows are missing"):
        list(client.pages(asked))


def test_a_numbered_list_that_says_by_word_alone_that_more_follow_goes_on_by_numbers(client, stub):
    stub.script(listing([1], None, more=True, count=1), listing([], None, more=False, count=1))
    assert ids(client.pages(replace(LIST, paging=Paging.PAGE))) == [1]
    assert [seen.query["page"] for seen in stub.data_requests] == ["1", "2"]


@pytest.mark.parametrize(
    ("wrong", "asked", "words"),
    [
        (envelope(None), ONE, "null where a list belongs"),
        (envelope({"status": "ok"}), ONE, "an object where a list belongs"),
        (envelope({"status": "ok"}, page_info={"has_next_page": False}), LIST, "an object where a list belongs"),
        (envelope([], count=3), ONE, "an empty list of what the answer itself counts"),
        (envelope(None), SINGLE, "null where an object belongs"),
        (envelope([]), SINGLE, "a list where an object belongs"),
        (envelope({"status": "ok"}), SINGLE, "another object than asked for"),
        (envelope({"id": 8}), SINGLE, "another object than asked for"),
        (Reply(body=b'{"code":true,"data":[{"id":1},]}'), ONE, "no JSON"),
        (Reply(body=b'{"code":"yes","data":[]}'), ONE, "JSON that is no envelope"),
        (Reply(body=b'{"code":true}'), ONE, "an envelope without data"),
        (Reply(body=b'{"code":true,"data":7}'), ONE, "data that is neither a list nor an object"),
    ],
)
def test_what_was_not_asked_for_is_no_answer(client, stub, wrong, asked, words):
    """And the error says what it was. Taken for one, a list would have lost its rows, or a row its details, and nothing would ask for them again."""
    right = {SINGLE: envelope({"id": 7}), ONE: envelope([{"id": 7}]), LIST: listing([7], "", more=False)}[asked]
    stub.script(wrong, right)
    page = client.get(asked)
    assert (ids([page]), page.retries) == ([7], 1)
    stub.script(*[wrong] * 20)
    with pytest.raises(ServerFailed, match=f"the answer is no NexHealth answer: {words};"):
        client.get(asked)


@pytest.mark.parametrize("garble", [b'{"\xffd": 12}', b'{"id": 12, "name": "O\xff"}', b'{"id": NaN}'])
def test_a_garbled_page_is_asked_for_again(client, stub, garble):
    """A byte that was spoilt on its way is right the next time; a record that is so for ever is left to the loader."""
    body = b'{"code":true,"data":[{"id":11},' + garble + b"]}"
    stub.script(Reply(body=body), envelope([{"id": 11}, {"id": 12}]))
    page = client.get(ONE)
    assert (ids([page]), page.retries, page.garbled) == ([11, 12], 1, False)
    stub.script(*[Reply(body=body)] * 3)
    page = client.get(ONE)
    assert (page.records, page.retries, page.garbled) == ([b'{"id":11}', garble], 2, True)


def test_page_numbers_count_up_until_an_empty_page(client, stub):
    """Without a total a short page proves nothing: a server may give fewer than it was asked for."""
    request = ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=2)
    stub.script(envelope([{"id": 1}, {"id": 2}]), envelope([{"id": 3}]), envelope([]))
    assert ids(client.pages(request)) == [1, 2, 3]
    assert [seen.query["page"] for seen in stub.data_requests] == ["1", "2", "3"]


def test_page_numbers_stop_at_the_stated_total(client, stub):
    request = ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=2)
    stub.script(envelope([{"id": 1}, {"id": 2}], count=2))
    assert ids(client.pages(request)) == [1, 2]


def test_a_server_that_gives_fewer_a_page_than_asked_is_read_to_its_total(client, stub):
    """Risk: a quiet cap of the page size loses the rest of the list."""
    request = ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=300)
    stub.script(*[envelope([{"id": one}], count=3) for one in (1, 2, 3)])
    assert ids(client.pages(request)) == [1, 2, 3]


def test_a_numbered_list_that_ends_before_its_total_is_an_error(client, stub):
    request = ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=2)
    stub.script(envelope([{"id": 1}, {"id": 2}], count=3), envelope([], count=3))
    with pytest.raises(ProtocolBroken, match="empty page"):
        list(client.pages(request))


@pytest.mark.parametrize(("ends", "counts"), [(2, [3, 2, 2, 2]), (5, [3, 4, 4, 4])], ids=["gone", "new"])
def test_a_count_that_changes_while_numbered_pages_are_read_is_an_error(client, stub, ends, counts):
    """Risk: the row after one that went moves to the page that was read, and a reconcile takes it for deleted."""
    rows = [1, 2, 3]

    def answer(seen):
        first = 2 * (int(seen.query["page"]) - 1)
        reply = envelope([{"id": one} for one in rows[first : first + 2]], count=len(rows))
        asked.append(len(rows))
        if len(asked) == 1:
            rows[:] = rows[1:] if ends == 2 else [*rows, 4]
        return reply

    asked: list[int] = []
    stub.answer = answer
    with pytest.raises(ProtocolBroken, match=f"counts {counts[1]} records, and 3 a page before"):
        list(client.pages(ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=2)))
    assert asked == counts


def test_pages_that_are_not_counted_are_compared_with_none(client, stub):
    request = ApiRequest("/nex_staff", (), "demo", Paging.PAGE, per_page=1)
    stub.script(envelope([{"id": 1}]), envelope([{"id": 2}], count=3), envelope([{"id": 3}]), envelope([]))
    assert ids(client.pages(request)) == [1, 2, 3]


def test_a_warning_in_the_description_is_handed_on_without_values(client, stub):
    """API.md A.4: a 200 may say that a parameter was ignored; it must not leak what else it says."""
    stub.script(envelope([], description="the include parameter is ignored for Anna O'Neil 1990-01-02 a@b.c"))
    warning = client.get(ONE).warning
    assert warning.startswith("the include parameter is ignored for")
    assert not {"Anna", "Neil", "1990", "a@b.c"} & set(warning.replace(";", " ").split())


@pytest.mark.parametrize("ahead", [3600, 3 * 86_400, -3 * 86_400])
def test_requested_at_is_the_apis_time(client, stub, ahead):
    """A workstation that is an hour, or days, off must not move watermarks."""
    stub.authenticate = lambda seen: _dated(stub.issue(seen), ahead)
    stub.answer = lambda seen: _dated(envelope([]), ahead)
    page = client.get(ONE)
    assert abs(page.requested_at.timestamp() - time.time() - ahead) < 60
    assert abs(client.clock.skew - ahead) < 60


def test_a_proxys_clock_is_not_the_apis(client, stub):
    """Risk: its gateway's one error, hours ahead, moves every later watermark into the future."""
    stub.script(_dated(Reply(502, b"<html>Bad gateway</html>"), 7200), envelope([]))
    page = client.get(ONE)
    assert page.requests == 3
    assert abs(page.requested_at.timestamp() - time.time()) < 60


def _dated(reply: Reply, ahead: float) -> Reply:
    head = f"HTTP/1.1 {reply.status} OK\r\nDate: {formatdate(time.time() + ahead, usegmt=True)}\r\n"
    reply.raw = f"{head}Content-Length: {len(reply.body)}\r\nConnection: close\r\n\r\n".encode() + reply.body
    return reply


@pytest.mark.parametrize(
    "poison", ['{"id":2,"x":NaN}', '{"id":2,"x":"\\ud800"}', '{"id":2,"x":' + "[" * 3000 + "]" * 3000 + "}"]
)
def test_one_record_no_parser_takes_does_not_stop_its_page(client, stub, poison):
    """Promise 7: the loader puts that record into quarantine; the others load."""
    body = f'{{"code":true,"data":[{{"id":1}}, {poison},{{"id":3,"s":"a,]}}\\""}}],"count":3}}'.encode()
    stub.script(*[Reply(body=body)] * 3)
    page = client.get(ONE)
    assert page.records == [b'{"id":1}', poison.encode(), b'{"id":3,"s":"a,]}\\""}']
    assert (page.total, page.retries) == (3, 2)


# ---- the paging contract ---------------------------------------------------------------------

BROKEN_PASSES = {
    "the cursor does not move": [listing([1], "a", more=True), listing([2], "a", more=True)],
    "leads back": [listing([1], "a", more=True), listing([2], "b", more=True), listing([3], "a", more=True)],
    "repeats one": [listing([1], "a", more=True), listing([1], "b", more=True)],
    "an empty page": [listing([1], "a", more=True), listing([], "b", more=True)],
    "without a cursor": [listing([1], "a", more=True), listing([2], None, more=True)],
}


@pytest.mark.parametrize("paging", [Paging.CURSOR, Paging.NONE])
@pytest.mark.parametrize(("words", "replies"), BROKEN_PASSES.items(), ids=BROKEN_PASSES)
def test_pages_that_contradict_the_contract_for_ever_are_an_error(client, stub, words, replies, paging):
    """Promise 2: never a success, never an endless loop; nor of a list that is said to be unpaged."""
    stub.script(*replies)
    with pytest.raises(ProtocolBroken, match=words) as caught:
        list(client.pages(replace(LIST, paging=paging)))
    assert f"page {len(replies)}" in str(caught.value)
    assert caught.value.requests == 3


def test_the_last_page_repeating_the_one_before_is_an_error(client, stub):
    """Doubled rows would hide that the real last page is missing."""
    stub.script(listing([1], "a", more=True), listing([1], "a", more=False))
    with pytest.raises(ProtocolBroken, match="repeats"):
        list(client.pages(LIST))


def test_a_page_repeated_once_is_asked_for_again(client, stub):
    stub.script(listing([1], "a", more=True), listing([1], "a", more=True), listing([2], "b", more=False))
    pages = list(client.pages(LIST))
    assert ids(pages) == [1, 2]
    assert (pages[1].requests, pages[1].retries) == (2, 1)
    assert [seen.query["end_cursor"] for seen in stub.data_requests] == ["", "a", "a"]


@pytest.mark.parametrize(("rows", "count"), [(1, None), (1, 2), (1, -1), (2, 2)])
def test_a_list_answer_without_page_info_is_never_taken_as_the_last_page(client, stub, rows, count):
    """Nor is a full one whose count may be its own length: all rows after it would be taken for gone."""
    stub.script(envelope([{"id": one} for one in range(rows)], count=count))
    with pytest.raises(ServerFailed, match="a list without page_info"):
        list(client.pages(LIST))
    stub.script(listing([1], "a", more=True), envelope([{"id": 2}], count=1))
    with pytest.raises(ServerFailed, match=r"page 2.*a list without page_info"):
        list(client.pages(LIST))


@pytest.mark.parametrize("rows", [0, 1])
def test_a_first_page_without_page_info_that_holds_all_it_counts_is_whole(client, stub, rows):
    """A list of the old version may be answered so (API.md D.3): it would fail each night, with all its rows in hand."""
    stub.script(envelope([{"id": one} for one in range(rows)], count=rows))
    (page,) = client.pages(LIST)
    assert (ids([page]), page.has_next, len(stub.data_requests)) == ([*range(rows)], False, 1)


NULL_LIST = b'{"code":true,"description":"","error":[],"data":null,"page_info":{"has_next_page":false,"end_cursor":""}}'


@pytest.mark.parametrize(
    ("paging", "body"),
    [
        (Paging.CURSOR, NULL_LIST),
        (Paging.PAGE, b'{"code":true,"description":"","error":[],"data":null,"count":0}'),
        (Paging.NONE, b'{"code":true,"description":"","error":[],"data":null,"count":3}'),
        (Paging.NONE, b'{"code":true,"description":"","error":[],"data":[],"count":3}'),
        (Paging.NONE, b'{"code":true,"description":"","error":[],"data":[{"id":1},{"id":2}],"count":3}'),
    ],
)
def test_null_and_what_is_counted_but_not_there_are_no_empty_list(client, stub, paging, body):
    """A list that lost its records and said so nowhere would be complete without them, for ever."""
    stub.script(*[Reply(body=body)] * 20)
    with pytest.raises((ServerFailed, ProtocolBroken)):
        list(client.pages(replace(LIST, paging=paging)))


def test_an_answer_that_holds_all_that_is_counted_or_counts_something_else_is_whole(client, stub):
    """Of a wrapped list the API counts the wrappers, and the answer's records lie inside."""
    stub.script(Reply(body=b'{"code":true,"description":"","error":[],"data":[{"id":1},{"id":2}],"count":2}'))
    assert ids(client.pages(replace(LIST, paging=Paging.NONE))) == [1, 2]
    stub.script(Reply(body=b'{"code":true,"description":"","error":[],"data":[{"in":[{"id":1}]},{"in":[]}],"count":2}'))
    assert ids(client.pages(replace(LIST, paging=Paging.NONE, records_at=("in",)))) == [1]


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_proxys_refusal_is_no_expired_cursor(client, stub, status):
    """Else one answer of a firewall would begin a pass of thousands of pages anew."""
    stub.script(listing([1], "a", more=True), Reply(status, b"<html>Not here</html>"), listing([2], "b", more=False))
    assert ids(client.pages(LIST)) == [1, 2]


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_a_refused_cursor_has_an_error_of_its_own(client, stub, status):
    """Whatever it is refused with: a 404 taken for a list that the practice does not have would end in half of it."""
    stub.script(listing([1], "a", more=True), refusal(status, "Invalid cursor"))
    with pytest.raises(CursorExpired) as caught:
        list(client.pages(LIST))
    assert (caught.value.status, len(stub.data_requests)) == (status, 2)


def test_a_refused_first_request_is_no_expired_cursor(client, stub):
    stub.script(refusal(400, "Missing parameter start", "Missing parameter end"))
    with pytest.raises(BadRequest, match="Missing parameter start; Missing parameter end") as caught:
        list(client.pages(LIST))
    assert type(caught.value) is BadRequest
    assert len(stub.data_requests) == 1


# ---- secrets and patient data ----------------------------------------------------------------


def test_a_page_and_its_parts_do_not_print_records(client, stub):
    stub.script(envelope([{"name": "Canaryson"}]))
    assert "Canaryson" not in repr(client.get(ONE))


# ---- stopping --------------------------------------------------------------------------------


def test_stopping_ends_a_long_wait_at_once(make_client, stub, stop):
    client = make_client(stop=stop, retry={"sleep": None, "first_wait": 60.0, "longest_wait": 60.0})

    def refused(seen):
        threading.Timer(0.3, stop.set).start()
        return refusal(500)

    stub.answer = refused
    began = time.monotonic()
    with pytest.raises(Cancelled) as caught:
        client.get(ONE)
    assert time.monotonic() - began < 20
    assert caught.value.requests == 2


def test_nothing_is_sent_after_stopping(make_client, stub, stop):
    client = make_client(stop=stop)
    stop.set()
    with pytest.raises(Cancelled):
        client.get(ONE)
    assert stub.seen == []
