"""What is too sensitive to keep is not stored with an event either, and the event is none the worse for it."""

import hashlib
import json

import psycopg
import pytest

from nexhealth_pipeline.webhooks.events import dedup_hash, parse
from nexhealth_pipeline.webhooks.receiving.redaction import before_sensitive, without_sensitive
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from tests.waiting import until

from .kit import apply_all, body, moment, patient, settings_for, updated
from .receiving import events, receiver, signed

NUMBER = "078-05-1120"
PERSON = {"id": 5, "bio": {"ssn": NUMBER, "city": "Malmö"}}


def test_an_event_is_stored_without_it_and_applied_and_known_again(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """A repeated delivery is still the same event."""
    sent = updated(patient(1, 5, bio=PERSON["bio"]))
    with receiver(practice_url) as running:
        assert [running.ask(sent).word for _ in range(2)] == ["stored", "duplicate"]
    first, again = events(practice_url)
    assert NUMBER not in first["payload"]
    kept = first["payload"].encode()
    assert kept == without_sensitive(sent)
    assert first["body_hash"] == hashlib.sha256(kept).digest()
    assert (first["dedup_hash"], again["duplicate_of"]) == (dedup_hash(parse(kept), kept), first["id"])
    _, total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (1, 1)
    assert practice.execute("SELECT last_name, bio_city, raw -> 'bio' FROM nexhealth_patients").fetchall() == [
        ("v5", "Malmö", {"city": "Malmö"})
    ]


def with_number(number: str) -> bytes:
    return updated(patient(1, 5, bio={"ssn": number}))


def test_no_hash_gives_it_back(practice_url: str, practice: psycopg.Connection) -> None:
    """Beside all else of the body, a hash over nine digits more is nine digits to try."""
    one, other = with_number("078-05-1120"), with_number("219-09-9999")
    no_event = [json.dumps(["no event", {"tin": number}]).encode() for number in ("12-3456789", "98-7654321")]
    with receiver(practice_url, plan=Plan(audit_seconds=0.05)) as running:
        assert [running.ask(sent).word for sent in (one, other)] == ["stored", "duplicate"]
        assert [running.ask(sent).word for sent in no_event] == ["parked", "duplicate"]
        for sent in (one, other):
            assert running.ask(sent, signed(sent, secret="another")).status == 401
        until(lambda: len(events(practice_url)) == 6)
    for pair in ("event_name IS NOT NULL", "event_name IS NULL AND status <> 'rejected'", "status = 'rejected'"):
        first, second = events(practice_url, pair)
        assert (first["body_hash"], first["dedup_hash"]) == (second["body_hash"], second["dedup_hash"])
        assert first["body_hash"] is not None


@pytest.mark.parametrize(
    "sent",
    [
        body("appointment_created", {"appointment": {"id": 9, "updated_at": moment(5), "patient": PERSON}}),
        updated(patient(1, 5, guarantor=PERSON, children=[PERSON, PERSON])),
        updated(patient(1, 5, provider={"id": 3, "tin": NUMBER})),
        updated(patient(1, 5, bio={"ssn": {"text": [NUMBER]}})),
        updated(PERSON).replace(b'"ssn"', rb'"s\u0073\u006E"'),
        json.dumps({"a body": [PERSON], "of no": "event"}).encode(),
        b'{"event_name": "patient_updated", "data": ' + b"[" * 200 + json.dumps(PERSON).encode() + b"]" * 200 + b"}",
        updated(PERSON).replace(b"\\u00f6", b"\\ud83d"),
        updated(PERSON)[:-4],
        b"\xef\xbb\xbf" + json.dumps(PERSON).encode(),
        b"payload=" + json.dumps(PERSON).encode(),
        json.dumps({"data": json.dumps(PERSON)}).encode(),
        json.dumps(json.dumps([json.dumps(PERSON, indent=1)])).encode(),
        json.dumps({"data": json.dumps(PERSON)}).replace('\\"', "\\u0022").encode(),
        updated(patient(1, 5, note='his "ssn": ' + NUMBER)),
        b'"payload"=' + json.dumps(json.dumps(PERSON)).encode(),
    ],
    ids=[
        *("a visit's patient", "relatives", "a provider", "an object", "an escaped name", "no event", "too deep"),
        *("half a character", "half of it", "a byte order mark", "a form", "encoded twice", "encoded three times"),
        *("quotes by their number", "a text", "a form of encoded ones"),
    ],
)
def test_it_is_taken_out_wherever_it_stands(practice_url: str, practice: psycopg.Connection, sent: bytes) -> None:
    assert NUMBER.encode() in sent
    with receiver(practice_url) as running:
        assert running.ask(sent).status == 200
    (row,) = events(practice_url)
    assert NUMBER not in row["payload"]
    assert without_sensitive(row["payload"].encode()) == row["payload"].encode()


@pytest.mark.parametrize(
    "sent",
    [
        updated(patient(1, 5)),
        b' {"data": {"note": "his \\"ssn\\"", "kind": "x"}}\n',
        b'["ssn","tin"]',
        b'{"id": 1',
        b"\xff",
        b"",
    ],
    ids=["an event", "a text that names it", "a kind", "no JSON", "no text", "nothing"],
)
def test_a_body_without_it_stays_as_it_came(sent: bytes) -> None:
    assert without_sensitive(sent) == sent


@pytest.mark.timeout(30)
@pytest.mark.parametrize("piece", [b"\\", b'"', b'"\\', b"\\u0022", b'"s', b'"\\u0073', b'\\"ssn\\" ', b'"ssn\\n'])
def test_whatever_anybody_sends_is_looked_through_in_one_go(piece: bytes) -> None:
    """Risk: a megabyte of backslashes took the receiver's only thread for hours, and needed no signature."""
    assert before_sensitive(piece * 200_000) == piece * 200_000


def test_of_a_text_that_holds_json_the_rest_stays() -> None:
    sent = json.dumps({"data": json.dumps(PERSON), "n": 1}).encode()
    assert json.loads(json.loads(without_sensitive(sent))["data"]) == {"id": 5, "bio": {"city": "Malmö"}}


def test_what_stays_is_spelt_as_it_was() -> None:
    """Numbers above all: 1.10 is no float, and 20 digits fit none."""
    sent = b'{"n": 12345678901234567890123, "bio": {"ssn": "1", "fee": 1.10, "t": "\\u003c"}, "l": [ 1e400 ]}'
    assert without_sensitive(sent) == (b'{"n":12345678901234567890123,"bio":{"fee":1.10,"t":"\\u003c"},"l":[ 1e400 ]}')
