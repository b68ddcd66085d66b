"""Signatures: vectors made with openssl, and every tampering that must be refused.

The vectors are output of

    b64=$(printf '%s' "$body" | base64 -w0)                      # | tr '+/' '-_' for the urlsafe alphabet
    printf '%s.%s' "$timestamp" "$b64" | openssl dgst -sha256 -hmac "$secret"
"""

import hmac
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexhealth_pipeline.sandbox.posting import sign
from nexhealth_pipeline.webhooks.endpoints import LiveSecret
from nexhealth_pipeline.webhooks.receiving.signature import Verdict, Window, verify

NOW = datetime(2026, 11, 23, 10, 0, 30, tzinfo=UTC)
STAMP = b"2026-11-23T10:00:00.123Z"
BODY = b'{"event_name":"patient_created","data":{}}'
SECRETS = [LiveSecret(7, "whsec_1"), LiveSecret(8, "whsec_2"), LiveSecret(None, "schl\u00fcssel-\u00df")]

VECTORS = [
    ("whsec_1", STAMP, BODY, "9bc62e67ee1ed3b4c5f9d6934fdfcb54ef30ca12847f0d6ceb81914842c89954", None),
    (
        "whsec_1",
        b"1795428000",
        '{"note":"a>?~\u00ff\u00fe\u00bb\u00bf","x":"???>>>~~~"}'.encode(),
        "5e3fcc28157f6527c13e2e7f1334d1a2a74eafebee1a6f14284c39e1e1911fdc",
        "48ebf3b8ef3bbdff0cbb2b602dfbba024a9ce6945c20fe922f3aa3c200b12e3f",
    ),
    (
        "schl\u00fcssel-\u00df",
        b"2026-11-23 10:00:00 UTC",
        b"{}",
        "78f622b645ba51da57b18c517f6539043637e87e899d97d26d5985a5ecce9065",
        None,
    ),
    ("k", b"x", b"", "877393b31e6b798cda11627b2eb0c7bde1ca7817bd9ee4ca65f0fcad62bb1c20", None),
]


def headers(stamp: bytes = STAMP, signature: str | None = None, body: bytes = BODY) -> list[tuple[bytes, bytes]]:
    """Those of a valid request; a test breaks one thing."""
    given_signature = signature if signature is not None else sign("whsec_1", stamp.decode(), body)
    return [(b"host", b"x"), (b"timestamp", stamp), (b"signature", given_signature.encode("latin-1"))]


def verdict(given_headers: list[tuple[bytes, bytes]], body: bytes = BODY, now: datetime = NOW) -> Verdict:
    return verify(SECRETS, given_headers, body, now, Window())


@pytest.mark.parametrize(("secret", "stamp", "body", "standard", "urlsafe"), VECTORS)
def test_it_is_what_openssl_computes(
    secret: str, stamp: bytes, body: bytes, standard: str, urlsafe: str | None
) -> None:
    """One wrong byte here and every event of a real account is refused."""
    for signature in filter(None, (standard, urlsafe)):
        found = verify([LiveSecret(7, secret)], headers(stamp, signature), body, NOW, Window())
        assert found.endpoint_id == 7, "signed, whatever its time is"
    assert sign(secret, stamp.decode(), body) == standard, "so that the other tests can sign with it"
    assert sign(secret, stamp.decode(), body, urlsafe=True) == (urlsafe or standard)


def test_both_base64_alphabets_are_taken_and_told_apart() -> None:
    """Nobody knows for certain which one the vendor uses (API.md F.4)."""
    _, stamp, body, standard, urlsafe = VECTORS[1]
    moment = datetime.fromtimestamp(1795428000, UTC)
    assert urlsafe is not None
    assert verdict(headers(stamp, standard), body, moment) == Verdict("valid", 7)
    assert verdict(headers(stamp, urlsafe), body, moment) == Verdict("valid-urlsafe", 7)


@pytest.mark.parametrize("one", SECRETS, ids=lambda one: str(one.endpoint_id))
def test_each_live_secret_counts_and_tells_its_endpoint(one: LiveSecret) -> None:
    """While a secret is changed, both sign."""
    assert verdict(headers(signature=sign(one.secret, STAMP.decode(), BODY))) == Verdict("valid", one.endpoint_id)


GOOD = sign("whsec_1", STAMP.decode(), BODY).encode()
TAMPERED = {
    "another body": (headers(), BODY + b" ", "bad-signature"),
    "another timestamp": ([(b"timestamp", b"2026-11-23T10:00:01.123Z"), (b"signature", GOOD)], BODY, "bad-signature"),
    "reformatted timestamp": (
        [(b"timestamp", b"2026-11-23T10:00:00.123+00:00"), (b"signature", GOOD)],
        BODY,
        "bad-signature",
    ),
    "another secret": (headers(signature=sign("whsec_3", STAMP.decode(), BODY)), BODY, "bad-signature"),
    "an empty secret": (headers(signature=sign("", STAMP.decode(), BODY)), BODY, "bad-signature"),
    "upper case": (headers(signature=GOOD.decode().upper()), BODY, "bad-signature"),
    "prefixed": (headers(signature="sha256=" + GOOD.decode()), BODY, "bad-signature"),
    "cut short": (headers(signature=GOOD.decode()[:-1]), BODY, "bad-signature"),
    "not ASCII": (headers(signature="\u00ff" * 64), BODY, "bad-signature"),
    "no timestamp": ([(b"signature", GOOD)], BODY, "no-timestamp"),
    "empty timestamp": (headers(stamp=b""), BODY, "no-timestamp"),
    "no signature": ([(b"timestamp", STAMP)], BODY, "no-signature"),
    "empty signature": (headers(signature=""), BODY, "no-signature"),
    "doubled signature": ([*headers(), (b"signature", GOOD)], BODY, "doubled-header"),
    "doubled timestamp": ([*headers(), (b"timestamp", STAMP)], BODY, "doubled-header"),
    "no headers": ([], BODY, "no-timestamp"),
    "no moment": (headers(stamp=b"yesterday"), BODY, "bad-timestamp"),
    "not text": (
        headers(b"\xff\xfe", "0ff55f35aa3d4ab951e0a03ff87dc3221f2921bece1d5b59c8f99a5856ed9196"),
        BODY,
        "bad-timestamp",
    ),
}


@pytest.mark.parametrize(("given_headers", "body", "word"), TAMPERED.values(), ids=TAMPERED)
def test_whatever_is_tampered_with_is_refused(given_headers: list[tuple[bytes, bytes]], body: bytes, word: str) -> None:
    """Anybody on the internet can reach the receiver; what it stores goes into the warehouse."""
    found = verdict(given_headers, body)
    assert (found.word, found.valid) == (word, False)


def test_every_refusal_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the time of the answer tells which part was wrong, or which secret is the first."""
    counts: list[int] = []
    real = hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        counts[-1] += 1
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for given_headers, body, _ in [*TAMPERED.values(), (headers(), BODY, "valid")]:
        counts.append(0)
        verdict(given_headers, body)
    assert set(counts) == {2 * len(SECRETS)}


@pytest.mark.parametrize(
    ("age", "word"),
    [
        (timedelta(hours=48, minutes=59), "valid"),
        (timedelta(hours=49, seconds=1), "too-old"),
        (timedelta(minutes=-4, seconds=-59), "valid"),
        (timedelta(minutes=-5, seconds=-1), "too-new"),
    ],
)
def test_a_request_counts_within_its_window_only(age: timedelta, word: str) -> None:
    """The vendor repeats for 48 hours, perhaps with the first timestamp; an older one is a recording."""
    stamp = (NOW - age).isoformat().encode()
    assert verdict(headers(stamp=stamp)).word == word


def test_without_secrets_nothing_is_valid() -> None:
    assert not verify([], headers(), BODY, NOW, Window()).valid


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.text(min_size=1, max_size=40), st.booleans(), st.integers(0, 10_000))
def test_what_is_signed_is_valid_and_one_changed_bit_is_not(
    body: bytes, secret: str, urlsafe: bool, where: int
) -> None:
    secrets = [LiveSecret(None, secret)]
    signed = headers(signature=sign(secret, STAMP.decode(), body, urlsafe=urlsafe))
    assert verify(secrets, signed, body, NOW, Window()).valid
    changed = bytearray(body or b"x")
    changed[where % len(changed)] ^= 1
    assert not verify(secrets, signed, bytes(changed), NOW, Window()).valid
