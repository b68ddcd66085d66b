"""What is too sensitive to keep is not stored with an event either, and the event is none the worse for it."""

import hashlib
import json

import psycopg
import pytest

from nexhealth_pipeline.webhooks.events import dedup_hash, parse
from nexhealth_pipeline.webhooks.withheld import without_sensitive

from .kit import apply_all, body, moment, patient, settings_for, updated
from .receiving import events, receiver

NUMBER = "078-05-1120"
PERSON = {"id": 5, "bio": {"ssn": NUMBER, "city": "Malmö"}}


def test_an_event_is_stored_without_it_and_applied_and_known_again(
    practice: psycopg.Connection, practice_url: str
) -> None:
    """Its hashes are those of what came: a repeated delivery is still the same event."""
    sent = updated(patient(1, 5, bio=PERSON["bio"]))
    with receiver(practice_url) as running:
        assert [running.ask(sent).word for _ in range(2)] == ["stored", "duplicate"]
    first, again = events(practice_url)
    assert NUMBER not in first["payload"]
    assert first["body_hash"] == hashlib.sha256(sent).digest()
    assert (first["dedup_hash"], again["duplicate_of"]) == (dedup_hash(parse(sent), sent), first["id"])
    _, total = apply_all(settings_for(practice_url))
    assert (total.applied, total.rows) == (1, 1)
    assert practice.execute("SELECT last_name, bio_city, raw -> 'bio' FROM nexhealth_patients").fetchall() == [
        ("v5", "Malmö", {"city": "Malmö"})
    ]


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
    ],
    ids=[
        *("a visit's patient", "relatives", "a provider", "an object", "an escaped name", "no event", "too deep"),
        *("half a character", "half of it"),
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
        b'{"id": 1',
        b"\xff",
        b"",
    ],
    ids=["an event", "a text that names it", "no JSON", "no text", "nothing"],
)
def test_a_body_without_it_stays_as_it_came(sent: bytes) -> None:
    assert without_sensitive(sent) == sent


def test_what_stays_is_spelt_as_it_was() -> None:
    """Numbers above all: 1.10 is no float, and 20 digits fit none."""
    sent = b'{"n": 12345678901234567890123, "bio": {"ssn": "1", "fee": 1.10, "t": "\\u003c"}, "l": [ 1e400 ]}'
    assert without_sensitive(sent) == (b'{"n":12345678901234567890123,"bio":{"fee":1.10,"t":"\\u003c"},"l":[ 1e400 ]}')
