"""Every kind of fault, and the rules that decide which request it befalls."""

import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests

from nexhealth_pipeline.sandbox import KINDS_OF_FAULT, FaultRule, Faults

from .calls import ISLAND, NORTH, PIER, SOUTH, WILLOW, Caller, HandClock

WHERE = {"subdomain": WILLOW, "location_id": NORTH}


@pytest.mark.parametrize("status", [500, 502, 503])
def test_an_error_status_comes_as_often_as_asked(caller: Caller, status: int) -> None:
    """Risk: a retry must succeed once the fault is used up."""
    caller.server.faults.add("status", path="/patients", status=status, count=2)
    assert [caller.get("/patients", **WHERE).status_code for _ in range(3)] == [status, status, 200]
    assert caller.get("/institutions").status_code == 200


def test_a_429_says_when_in_seconds_as_a_date_or_not_at_all(caller: Caller, clock: HandClock) -> None:
    """Risk: both forms of Retry-After occur."""
    for form in ("seconds", "date", "none"):
        caller.server.faults.add("throttle", path="/patients", retry_after=form, seconds=3, count=1)
    caller.authenticate()
    seconds, date, none = (caller.get("/patients", **WHERE) for _ in range(3))
    assert {seconds.status_code, date.status_code, none.status_code} == {429}
    assert seconds.headers["Retry-After"] == "3"
    assert parsedate_to_datetime(date.headers["Retry-After"]).timestamp() == clock.seconds + 3
    assert "Retry-After" not in none.headers


def test_a_hanging_answer_comes_late(caller: Caller) -> None:
    """Risk: a read timeout in the middle of a load."""
    caller.authenticate()
    caller.server.faults.add("hang", seconds=0.15, count=1)
    with pytest.raises(requests.Timeout):
        caller.session.get(caller.server.url + "/institutions", timeout=0.05)
    caller.server.faults.add("hang", seconds=0.1, count=1)
    began = time.monotonic()
    assert caller.get("/institutions").status_code == 200
    assert time.monotonic() - began >= 0.1


def test_a_cut_answer_promises_more_than_it_sends(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    """Risk: half a page that looks like a whole one."""
    caller.server.faults.add("cut", path="/patients", count=1)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        caller.get("/patients", **WHERE)
    assert not caplog.records, "the server did this on purpose and does not complain"
    assert len(caller.data("/patients", **WHERE)) == 5


def test_malformed_html_and_refusing_answers_all_say_200(caller: Caller) -> None:
    """Risk: status 200 proves nothing."""
    for kind in ("malformed", "html", "code_false"):
        caller.server.faults.add(kind, path="/patients", count=1)
    broken, page, refusal = (caller.get("/patients", **WHERE) for _ in range(3))
    assert {broken.status_code, page.status_code, refusal.status_code} == {200}
    for answer in (broken, page):
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
    assert page.headers["Content-Type"].startswith("text/html")
    assert (refusal.json()["code"], refusal.json()["data"]) == (False, None)


def test_a_garbled_answer_has_one_record_without_its_id_and_others_hold_what_nobody_asked_for(caller: Caller) -> None:
    """Risk: the rest of the answer looks well, so nobody asks again."""
    for kind in ("garbled", "wrong_object", "null_data"):
        caller.server.faults.add(kind, path="/patients", count=1)
    garbled, wrong, null = (caller.get("/patients", **WHERE) for _ in range(3))
    assert garbled.content.count(b'"\xffd"') == 1
    assert garbled.content.replace(b'"\xffd"', b'"id"') == caller.get("/patients", **WHERE).content
    assert (wrong.json()["data"], null.json()["data"]) == ({"status": "ok"}, None)
    assert wrong.json()["page_info"] == null.json()["page_info"] == caller.get("/patients", **WHERE).json()["page_info"]


def test_an_ignored_parameter_is_as_good_as_not_sent_and_the_answer_says_so(caller: Caller) -> None:
    """Risk: a success with other rows than were asked for."""
    whole = [row["id"] for row in caller.walk("/patients", **WHERE)]
    strict = [row["id"] for row in caller.walk("/patients", **WHERE, location_strict="true")]
    assert len(strict) < len(whole)
    caller.server.faults.add("ignored_parameter", path="/patients", parameter="location_strict")
    pages = list(caller.pages("/patients", **WHERE, location_strict="true", per_page=1000))
    assert [row["id"] for page in pages for row in page["data"]] == whole
    assert "location_strict parameter" in pages[0]["description"]
    assert "ignored" in pages[0]["description"]


def test_a_page_malformed_on_its_first_two_answers_is_good_on_the_third(caller: Caller) -> None:
    """Risk: each page of a list, not only the first, must survive this."""
    caller.server.faults.add("malformed", path="/patients", count=2, per_url=True)
    first = [caller.get("/patients", **WHERE) for _ in range(3)]
    assert [_readable(answer) for answer in first] == [False, False, True]
    cursor = first[2].json()["page_info"]["end_cursor"]
    second = [caller.get("/patients", **WHERE, end_cursor=cursor) for _ in range(3)]
    assert [_readable(answer) for answer in second] == [False, False, True]


def _readable(answer: requests.Response) -> bool:
    try:
        answer.json()
    except requests.JSONDecodeError:
        return False
    return True


def test_an_expired_token_stays_expired_until_a_new_one_is_asked_for(caller: Caller) -> None:
    """Risk: retrying with the old token must not help."""
    caller.server.faults.add("token_expired", path="/patients", count=1)
    assert [caller.get("/patients", **WHERE).status_code for _ in range(2)] == [401, 401]
    caller.authenticate()
    assert caller.get("/patients", **WHERE).status_code == 200


def test_a_redirect_points_to_another_host(caller: Caller) -> None:
    """Risk: a client that follows it hands its token to a stranger."""
    caller.server.faults.add("redirect", target="http://elsewhere.example.org/x", count=1, path="/patients")
    answer = caller.get("/patients", **WHERE)
    assert (answer.status_code, answer.headers["Location"]) == (302, "http://elsewhere.example.org/x")


def test_a_repeated_page_has_the_rows_before_and_its_own_cursors(caller: Caller) -> None:
    """Risk: cursors that move although the rows do not."""
    first, second = list(caller.pages("/patients", **WHERE, per_page=6))[:2]
    caller.server.faults.add("repeated_page", query="end_cursor=.+")
    again = caller.get("/patients", **WHERE, per_page=6, end_cursor=first["page_info"]["end_cursor"]).json()
    assert again["data"] == first["data"]
    assert again["page_info"] == second["page_info"]


def test_a_looping_cursor_stands_still_and_claims_more(caller: Caller) -> None:
    """Risk: an endless walk."""
    caller.server.faults.add("cursor_loop", path="/patients")
    first = caller.get("/patients", **WHERE).json()["page_info"]
    second = caller.get("/patients", **WHERE, end_cursor=first["end_cursor"]).json()["page_info"]
    assert first["end_cursor"] == second["end_cursor"] != ""
    assert first["has_next_page"] is second["has_next_page"] is True


def test_an_empty_page_claims_more(caller: Caller) -> None:
    """Risk: an empty page taken for the end."""
    caller.server.faults.add("empty_page", path="/patients")
    body = caller.get("/patients", **WHERE).json()
    assert (body["data"], body["page_info"]["has_next_page"]) == ([], True)


@pytest.mark.parametrize("kind", ["repeated_page", "cursor_loop"])
@pytest.mark.parametrize("more", [{"count": 1}, {"count": 1, "per_url": True}])
def test_a_page_that_cannot_be_spoilt_so_uses_no_fault_up(caller: Caller, kind: str, more: dict[str, Any]) -> None:
    """Risk: "once" is spent on the first page, where nothing happens, and the test proves nothing."""
    pages = list(caller.pages("/patients", **WHERE, per_page=6))
    patient = pages[0]["data"][0]["id"]
    rule = caller.server.faults.add(kind, path="/(patients|recall_types).*", **more)
    caller.server.requests.clear()
    assert caller.get("/patients", **WHERE, per_page=6).json() == pages[0]
    assert caller.data(f"/patients/{patient}", subdomain=WILLOW)["id"] == patient
    assert caller.data("/recall_types", **WHERE)
    assert caller.get("/patients", subdomain=WILLOW, location_id=1).status_code == 404
    assert rule.fired == 0
    second = {"per_page": 6, "end_cursor": pages[0]["page_info"]["end_cursor"]}
    assert caller.get("/patients", **WHERE, **second).json() != pages[1]
    assert caller.get("/patients", **WHERE, **second).json() == pages[1]
    assert rule.fired == 1
    assert [one.fault for one in caller.server.requests] == [*[None] * 4, kind, None]


@pytest.mark.parametrize(
    "kind",
    sorted(set(KINDS_OF_FAULT) - {"repeated_page", "cursor_loop", "empty_page", "garbled", "ignored_parameter"}),
)
def test_every_fault_can_befall_authentication(caller: Caller, kind: str) -> None:
    """Risk: the token request fails like any other."""
    rule = caller.server.faults.add(kind, path="/authenticates", count=1, seconds=0.01)
    try:
        spoilt = caller.authenticate().status_code
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, requests.JSONDecodeError):
        spoilt = None
    assert rule.fired == 1
    assert spoilt != 201 or kind == "hang"
    assert caller.authenticate().status_code == 201


def test_a_rule_can_choose_subdomain_location_query_and_the_nth_request(caller: Caller) -> None:
    """Risk: "one location of fifty fails" needs a fault that hits only that one."""
    faults = caller.server.faults
    faults.add("status", location_id=SOUTH)
    assert caller.get("/patients", subdomain=WILLOW, location_id=SOUTH).status_code == 500
    assert caller.get("/patients", **WHERE).status_code == 200
    faults.clear()
    faults.add("status", subdomain="harbor-smiles", path="/(patients|operatories)")
    assert caller.get("/operatories", subdomain="harbor-smiles", location_id=PIER).status_code == 500
    assert caller.get("/document_types", subdomain="harbor-smiles", location_id=ISLAND).status_code == 200
    faults.clear()
    faults.add("status", path="/patients", nth=2)
    assert [caller.get("/patients", **WHERE).status_code for _ in range(3)] == [200, 500, 200]
    faults.clear()
    faults.add("status", path="/patients", skip=1, count=1, method="GET")
    assert [caller.get("/patients", **WHERE).status_code for _ in range(3)] == [200, 500, 200]


def test_a_probability_is_kept_and_depends_only_on_seed_and_url() -> None:
    """Risk: a failing run must be repeatable whatever the order of concurrent requests."""

    def fired(order: list[int]) -> set[int]:
        faults = Faults(seed=7)
        faults.add("status", probability=0.05)
        return {number for number in order if faults.choose("GET", f"/patients/{number}", "")}

    numbers = list(range(4000))
    assert fired(numbers) == fired(numbers[::-1])
    assert 140 <= len(fired(numbers)) <= 260
    faults = Faults(seed=7)
    faults.add("status", probability=0.5)
    assert len({faults.choose("GET", "/patients", "") is None for _ in range(50)}) == 2, "a retry throws again"


def test_a_rule_that_cannot_be_meant_is_refused() -> None:
    """Risk: a misspelt fault that never fires makes a test prove nothing."""
    unmeant: list[dict[str, Any]] = [{"kind": "nonsense"}, {"kind": "throttle", "retry_after": "soon"}]
    for options in unmeant:
        with pytest.raises(ValueError, match=r"one of|is seconds"):
            FaultRule(**options)
    for name, wrong in (
        *(("nth", "2"), ("count", 1.5), ("skip", True), ("probability", "0.5"), ("per_url", 1), ("path", None)),
        *(("location_id", "348511"), ("subdomain", 7), ("seconds", "3")),
    ):
        with pytest.raises(TypeError, match=f"{name} is "):
            Faults().add("status", **{name: wrong})
    refused: list[tuple[dict[str, Any], str]] = [
        ({"kind": "status", "path": "["}, "path is no regular expression"),
        ({"kind": "status", "query": "*"}, "query is no regular expression"),
        ({"kind": "status", "probability": 5}, "0 to 1"),
        ({"kind": "ignored_parameter"}, "parameter"),
    ]
    for options, words in refused:
        with pytest.raises(ValueError, match=words):
            FaultRule(**options)
    with pytest.raises(TypeError):
        Faults().add("status", wrong=1)


def test_a_rule_used_on_two_servers_counts_for_each_alone() -> None:
    """Risk: a rule kept as a constant in a test module is used up by the first test."""
    rule = FaultRule("status", count=1)
    for _ in range(2):
        faults = Faults()
        faults.add(rule)
        assert [faults.choose("GET", "/x", "") is not None for _ in range(2)] == [True, False]


def test_the_log_tells_which_requests_were_spoilt(caller: Caller) -> None:
    """Risk: counts of retries are compared with what the server did."""
    caller.server.faults.add("status", path="/patients", count=1)
    caller.get("/patients", **WHERE)
    caller.get("/patients", **WHERE)
    asked = caller.server.requests.matching("/patients")
    assert [(one.status, one.fault) for one in asked] == [(500, "status"), (200, None)]
