"""The receiver over real HTTP with a real database: what it takes, what it refuses, and that it keeps its word."""

import hashlib
import http.client
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import psycopg
import pytest

from nexhealth_pipeline.webhooks.receiving import serving
from nexhealth_pipeline.webhooks.receiving.audit import Audit
from nexhealth_pipeline.webhooks.receiving.body import BodyLimits
from nexhealth_pipeline.webhooks.receiving.inbox import Inbox
from nexhealth_pipeline.webhooks.receiving.receiver import Limits, _tell_type
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from nexhealth_pipeline.webhooks.sealing import Sealer
from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH
from tests.conftest import _fresh
from tests.waiting import until
from tests.webhooks.receiving import SECRET, Detour, Running, event, events, receiver, settings, signed

SMALL = Plan(
    limits=Limits(BodyLimits(size=4096, all_sizes=16_384, drain_seconds=0.5), refusals=10_000), audit_seconds=0.05
)
"""Small bodies; all the time that a busy machine needs."""
HURRIED = Plan(
    limits=Limits(BodyLimits(seconds=0.3)),
    header_seconds=0.3,
    statement_seconds=0.4,
    answer_seconds=0.8,
    audit_seconds=0.05,
)
"""Short deadlines, which only tests of slowness can stand: what is answered 200 elsewhere may be 503 here."""


@pytest.fixture(scope="module")
def warehouse(server_url: str, template: str) -> Iterator[str]:
    """The database of the tests that share a receiver and only add events; others empty the one that they share."""
    yield from _fresh(server_url, template)


@pytest.fixture(scope="module")
def running(warehouse: str) -> Iterator[Running]:
    with receiver(warehouse, plan=SMALL) as one:
        yield one


def newest(url: str) -> int:
    return max((row["id"] for row in events(url)), default=0)


def since(url: str, mark: int) -> list[dict[str, object]]:
    return events(url, f"id > {mark}")


def test_an_event_is_in_the_table_when_its_sender_is_told_so(running: Running, warehouse: str) -> None:
    body = event(1)
    with psycopg.connect(warehouse, autocommit=True) as listening:
        listening.execute("LISTEN nexhealth_webhook_events")
        answer = running.ask(body)
        notified = list(listening.notifies(timeout=20, stop_after=1))
    assert (answer.status, answer.word) == (200, "stored")
    [row] = events(warehouse, "resource_ids = '{1}'")
    assert (row["status"], row["verdict"], row["payload"].encode()) == ("pending", "valid", body)
    assert (row["event_name"], row["resource_type"], row["subdomain"]) == ("patient_updated", "Patient", "practice")
    assert (str(row["source"]), row["body_hash"]) == ("127.0.0.1", hashlib.sha256(body).digest())
    assert row["event_time"].isoformat() == "2026-11-23T10:00:01+00:00"
    assert {"timestamp", "signature", "content-type"} <= set(row["header_names"])
    assert len(notified) == 1


def test_a_repeated_event_is_welcome_and_waits_only_once(running: Running, warehouse: str) -> None:
    """NexHealth repeats whatever it got no answer for; also several at once."""
    words = Counter(running.ask(event(2)).word for _ in range(3))
    assert words == {"stored": 1, "duplicate": 2}
    first, *repeats = events(warehouse, "resource_ids = '{2}'")
    assert [(row["status"], row["duplicate_of"], row["payload"]) for row in repeats] == [
        ("duplicate", first["id"], None)
    ] * 2


@pytest.mark.parametrize(
    ("body", "reason", "kept"),
    [
        (b"not json 1", "body: not a JSON object", True),
        (b"\xff\xfe not text", "body: not UTF-8", False),
        (b'{"event_name":"patient_updated","data":"\0"}', "body: not a JSON object", False),
        (
            event(3).replace(b"patient_updated", b"message_created"),
            "no collection is fed by event message_created",
            True,
        ),
        (event(3).replace(b'"practice"', b"null"), "subdomain: missing, or not a name", True),
    ],
)
def test_what_is_signed_but_no_event_we_use_is_parked(
    running: Running, warehouse: str, body: bytes, reason: str, kept: bool
) -> None:
    """To refuse it would make NexHealth repeat it for two days and then switch the endpoint off."""
    mark = newest(warehouse)
    assert [(running.ask(body).status, running.ask(body).word)] == [(200, "duplicate")]
    first, again = since(warehouse, mark)
    assert (first["status"], again["status"], again["duplicate_of"]) == ("parked", "duplicate", first["id"])
    assert str(first["error"]).startswith(reason)
    assert (first["payload"] is not None) == kept


def test_an_event_under_another_resource_type_waits_and_is_told_of_once(
    running: Running, warehouse: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Which type goes with which event is a guess of the catalog's, and nothing depends on it."""
    _tell_type.cache_clear()  # another test may have met the same types
    mark = newest(warehouse)
    for number in (41, 42):
        assert running.ask(event(number).replace(b'"Patient"', b'"Person"')).word == "stored"
    assert running.ask(event(43).replace(b'"Patient"', b'"Ada Lovelace, 1815"')).word == "stored"
    rows = since(warehouse, mark)
    assert {(row["status"], row["resource_type"]) for row in rows} == {("pending", "Patient")}
    told = [one.__dict__["nexhealth"] for one in caplog.records if "resource type" in one.message]
    assert told == [{"event": "patient_updated", "resource_type": one} for one in ("Person", "(no name)")]


def tamperings() -> dict[str, tuple[bytes, dict[str, str] | list[tuple[str, str]]]]:
    body, good = event(4), signed(event(4))
    old = signed(body, stamp="2020-01-01T00:00:00Z")
    return {
        "body": (body + b" ", good),
        "timestamp": (body, good | {"timestamp": str(time.time() + 1)}),
        "secret": (body, signed(body, secret="another")),
        "old": (body, old),
        "future": (body, signed(body, stamp=str(time.time() + 3600))),
        "no moment": (body, signed(body, stamp="whenever")),
        "no timestamp": (body, {name: value for name, value in good.items() if name != "timestamp"}),
        "no signature": (body, {name: value for name, value in good.items() if name != "signature"}),
        "empty signature": (body, good | {"signature": ""}),
        "doubled signature": (body, [*good.items(), ("Signature", good["signature"])]),
        "doubled timestamp": (body, [*good.items(), ("Timestamp", good["timestamp"])]),
        "nothing": (body, {"content-type": "application/json"}),
    }


def test_every_tampering_gets_the_same_answer_and_leaves_a_row_without_body(running: Running, warehouse: str) -> None:
    """An answer that differs tells an attacker which part to work on."""
    mark, answers = newest(warehouse), set()
    for body, headers in tamperings().values():
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        connection.putrequest("POST", WEBHOOK_PATH)
        for name, value in [
            *(headers.items() if isinstance(headers, dict) else headers),
            ("Content-Length", str(len(body))),
        ]:
            connection.putheader(name, value)
        connection.endheaders(body)
        response = connection.getresponse()
        answers.add((response.status, response.read(), tuple(sorted(response.getheaders()))))
        connection.close()
    assert [(status, word) for status, word, _ in answers] == [(401, b"refused")]
    rows = until(lambda: len(found := since(warehouse, mark)) == len(tamperings()) and found)
    assert {(row["status"], row["payload"], row["dedup_hash"]) for row in rows} == {("rejected", None, None)}
    assert {row["verdict"] for row in rows} == {
        "bad-signature", "too-old", "too-new", "bad-timestamp", "no-timestamp", "no-signature", "doubled-header",
    }  # fmt: skip
    assert all(row["body_hash"] and row["header_names"] and row["source"] for row in rows)


def test_other_refusals_have_their_own_status_and_one_word(running: Running, warehouse: str) -> None:
    mark, body = newest(warehouse), event(5)
    asked = [
        running.ask(method="GET", headers={}),
        running.ask(body, method="PUT"),
        running.ask(body, signed(body) | {"content-type": "text/plain"}),
        running.ask(body, {name: value for name, value in signed(body).items() if name != "content-type"}),
        running.ask(b"x" * 5000),
        running.ask(body, signed(body) | {"content-type": "Application/JSON ; charset=utf-8"}),
    ]
    assert [(one.status, one.word) for one in asked] == [
        (405, "method"), (405, "method"), (415, "type"), (415, "type"), (413, "large"), (200, "stored"),
    ]  # fmt: skip
    assert asked[0].headers["allow"] == "POST"
    rows = until(lambda: len(found := since(warehouse, mark)) == 6 and found)
    assert Counter(row["verdict"] for row in rows) == {"method": 2, "content-type": 2, "too-large": 1, "valid": 1}


def test_a_mistake_of_ours_is_answered_and_audited(
    running: Running, warehouse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NexHealth comes again after a 503; without a row nobody could tell what it came with, or that it came."""

    def fails(*_: object) -> None:
        raise RuntimeError("Jane Doe")

    mark = newest(warehouse)
    monkeypatch.setattr(Inbox, "store", fails)
    answer = running.ask(event(8))
    assert (answer.status, answer.word, "retry-after" in answer.headers) == (503, "unavailable", True)
    [row] = until(lambda: since(warehouse, mark))
    assert (row["status"], row["verdict"], str(row["source"])) == ("rejected", "failed", "127.0.0.1")
    assert (row["payload"], row["body_hash"], row["error"]) == (None, None, None)
    assert "signature" in str(row["header_names"])
    monkeypatch.setattr(Audit, "note", fails)
    assert running.ask(event(8)).status == 503


def test_a_chunked_body_without_end_is_cut_off(running: Running) -> None:
    """It has no length to check first, and would be collected for ever."""
    with running.connect() as line:
        head = f"POST {WEBHOOK_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        line.sendall(head.encode())
        assert _is_cut_off(line, b"400\r\n" + b"x" * 1024 + b"\r\n")
    assert running.lines("/metrics")["nexhealth_webhook_bytes_in_flight"] == 0


def test_a_large_body_gets_its_answer_although_it_is_not_read(running: Running) -> None:
    with running.connect() as line:
        head = f"POST {WEBHOOK_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000000\r\n\r\n"
        line.sendall(head.encode() + b"x" * 100_000)
        assert line.recv(100).startswith(b"HTTP/1.1 413 ")
        until(lambda: _ended(line))


def test_who_sends_too_slowly_is_let_go(warehouse: str) -> None:
    """A thousand such connections must not be a thousand that stay."""
    mark, body = newest(warehouse), event(6)
    with (
        receiver(warehouse, plan=replace(HURRIED, header_seconds=1.0)) as one,  # time to send the head of `bodyless`
        one.connect() as silent,
        one.connect() as slow,
    ):
        began = time.monotonic()
        slow.sendall(b"POST " + WEBHOOK_PATH.encode() + b" HTTP/1.1\r\nhost: x\r\nx-long: ")
        head = "".join(f"{name}: {value}\r\n" for name, value in signed(body).items())
        with one.connect() as bodyless:
            bodyless.sendall(
                f"POST {WEBHOOK_PATH} HTTP/1.1\r\nhost: x\r\n{head}content-length: {len(body)}\r\n\r\n{{".encode()
            )
            assert bodyless.recv(100).startswith(b"HTTP/1.1 503 ")
        for line in (silent, slow):
            assert _ended(line)
        assert time.monotonic() - began < 8
        assert until(lambda: since(warehouse, mark))[0]["verdict"] == "too-slow"


def test_headers_without_end_are_cut_off(running: Running) -> None:
    with running.connect() as line:
        line.sendall(b"POST / HTTP/1.1\r\n")
        assert _is_cut_off(line, b"x-y: " + b"z" * 1000 + b"\r\n")


def _is_cut_off(line: socket.socket, part: bytes) -> bool:
    """Whether sending `part` again and again comes to an end that is not ours."""
    end = time.monotonic() + 10
    try:
        while time.monotonic() < end:
            line.sendall(part)
    except OSError:
        return True
    return False


def test_a_trailer_is_no_header(running: Running) -> None:
    """It comes after the checks."""
    body, good = event(7), signed(event(7))
    head = f"content-type: application/json\r\ntimestamp: {good['timestamp']}\r\ntransfer-encoding: chunked\r\n"
    with running.connect() as line:
        line.sendall(f"POST {WEBHOOK_PATH} HTTP/1.1\r\nhost: x\r\n{head}\r\n{len(body):x}\r\n".encode() + body)
        line.sendall(f"\r\n0\r\nsignature: {good['signature']}\r\n\r\n".encode())
        assert line.recv(100).startswith(b"HTTP/1.1 401 ")


def _ended(line: socket.socket) -> bool:
    try:
        return line.recv(100) == b""
    except ConnectionResetError:
        return True


def test_nothing_of_a_request_is_logged(running: Running, caplog: pytest.LogCaptureFixture) -> None:
    """Bodies are patients, signatures and secrets are keys."""
    body = event(9, note="Lovelace")
    with caplog.at_level(logging.DEBUG):
        running.ask(body)
        running.ask(body + b" ", signed(body))
        until(lambda: "refused" in caplog.text)
    said = caplog.text + str([record.__dict__ for record in caplog.records])
    assert not [one for one in ("Lovelace", SECRET, signed(body)["signature"]) if one in said]


@pytest.mark.usefixtures("no_refill")
def test_a_flood_of_bad_signatures_does_not_hurt_good_requests_from_the_same_address(no_events: str) -> None:
    """Behind a proxy the attacker and NexHealth share an address."""
    limits = Limits(refusals=20)
    flood, bad = 300, signed(event(0), secret="guess")
    with receiver(no_events, settings(NEXHEALTH_WEBHOOK_RATE="50"), Plan(limits=limits)) as one:
        connection = http.client.HTTPConnection("127.0.0.1", one.port)
        statuses: Counter[int] = Counter()
        good = []
        for k in range(flood):
            connection.request("POST", WEBHOOK_PATH, event(0), bad)
            response = connection.getresponse()
            response.read()
            statuses[response.status] += 1
            if k % 10 == 0:
                good.append(one.ask(event(k)).status)
        connection.close()
        assert set(good) == {200}
        assert statuses == {401: 60, 429: flood - 60}
    rows = events(no_events, "status = 'rejected'")
    assert len(rows) == 61
    assert sum(row["repeats"] for row in rows) == flood
    assert max(row["repeats"] for row in rows) == flood - 60


@pytest.mark.usefixtures("no_refill")
def test_good_requests_have_a_limit_too(no_events: str) -> None:
    with receiver(no_events, settings(NEXHEALTH_WEBHOOK_RATE="1")) as one:
        answers = [one.ask(event(k)) for k in range(4)]
    assert [(answer.status, answer.word) for answer in answers] == [(200, "stored")] * 2 + [(429, "later")] * 2
    assert answers[-1].headers["retry-after"] == "1"
    assert len(events(no_events, "status = 'pending'")) == 2


def test_only_the_networks_that_are_named_are_let_in(no_events: str) -> None:
    given = settings(NEXHEALTH_WEBHOOK_NETWORKS="203.0.113.0/24", NEXHEALTH_WEBHOOK_PROXIES="127.0.0.0/8")
    with receiver(no_events, given) as one:
        inside, outside = signed(event(1)), signed(event(2))
        assert one.ask(event(1), inside | {"x-forwarded-for": "6.6.6.6, 203.0.113.9"}).status == 200
        assert one.ask(event(2), outside | {"x-forwarded-for": "203.0.113.9, 6.6.6.6"}).status == 403
        assert one.ask(event(2), outside).word == "forbidden"
    found = {(str(row["source"]), row["verdict"]) for row in events(no_events)}
    assert found == {("203.0.113.9", "valid"), ("6.6.6.6", "network"), ("127.0.0.1", "network")}


def test_a_large_event_is_checked_and_stored_as_any_other(no_events: str) -> None:
    body = event(1, note="x" * 900_000)
    with receiver(no_events) as one:
        assert one.ask(body, signed(body, secret="another")).status == 401
        assert one.ask(body).status == 200
        assert one.ask(body + b" " * 200_000).status == 413
    assert events(no_events, "status = 'pending'")[0]["payload"].encode() == body


def test_connections_have_a_limit(no_events: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a file and memory; one peer may have half of them."""
    monkeypatch.setattr(serving, "_most_connections", lambda: 6)
    with receiver(no_events) as one:
        lines = [one.connect() for _ in range(4)]
        assert _ended(lines[3])
        lines[0].close()
        until(lambda: one.ask(event(1)).status == 200)
        for line in lines:
            line.close()


def test_without_a_secret_nexhealth_is_asked_to_come_again_until_there_is_one(no_events: str) -> None:
    """401 would be read as an answer for good, and nobody would see that a secret is missing."""
    given = settings(NEXHEALTH_WEBHOOK_SECRETS="", NEXHEALTH_WEBHOOK_KEY="k" * 32)
    sealer = Sealer.of(given)
    with receiver(no_events, given, Plan(secrets_seconds=0.05), sealer) as one:
        answer = one.ask(event(1))
        assert (answer.status, answer.word) == (503, "unavailable")
        assert "retry-after" in answer.headers
        ready = one.ask(method="GET", path="/health/ready", headers={})
        assert (ready.status, json.loads(ready.word)["secrets"]) == (503, 0)
        _register(no_events, sealer)
        until(lambda: one.ask(event(1)).status == 200)
    [row] = events(no_events, "status = 'pending'")
    assert row["endpoint_id"] == 77


def _register(url: str, sealer: Sealer) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret)"
            " VALUES ('k', 77, 'https://x', true, %s)",
            (sealer.seal(SECRET),),
        )


def test_a_database_that_is_cut_off_or_frozen_means_503_until_it_is_back(no_events: str) -> None:
    """NexHealth repeats what got 503; a 2xx, or no answer at all, would lose it or hold its worker."""
    number = iter(range(1000))
    acknowledged = []
    with Detour(no_events) as detour, receiver(detour.way, plan=HURRIED) as one:

        def post() -> int:
            k = next(number)
            status = one.ask(event(k)).status
            if status == 200:
                acknowledged.append(k)
            return status

        until(lambda: post() == 200)
        with psycopg.connect(no_events, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'nexhealth-receiver'"
            )
        assert post() == 503
        until(lambda: post() == 200)
        for harm in ("frozen", "cut"):
            if harm == "frozen":
                detour.frozen = True
            else:
                detour.cut()
            began = time.monotonic()
            assert {post() for _ in range(20)} == {503}
            assert time.monotonic() - began < 20 * HURRIED.answer_seconds / 2, "only the first may wait for it"
            ready = one.ask(method="GET", path="/health/ready", headers={})
            assert (ready.status, json.loads(ready.word)["database"]) == (503, False)
            detour.mend()
            until(lambda: post() == 200)
    kept = {row["resource_ids"][0] for row in events(no_events, "status = 'pending'")}
    assert set(acknowledged) <= kept


def test_it_ends_after_answering_what_it_has_read(no_events: str) -> None:
    """A new version is rolled out while events come."""
    answers: list[int] = []
    with receiver(no_events) as one, psycopg.connect(no_events) as holding:
        holding.execute("LOCK TABLE nexhealth_webhook_events IN SHARE MODE")
        sender = threading.Thread(target=lambda: answers.append(one.ask(event(1)).status))
        sender.start()
        until(lambda: one.lines("/metrics")["nexhealth_webhook_batch_count"] == 1)
        assert one.server is not None
        one.server.should_exit = True
        until(lambda: not _connects(one))
        holding.rollback()
        sender.join()
    assert answers == [200]
    assert len(events(no_events)) == 1


def _connects(one: Running) -> bool:
    try:
        with one.connect():
            return True
    except OSError:
        return False
