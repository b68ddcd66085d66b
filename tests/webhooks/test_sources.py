"""Where requests come from."""

from ipaddress import ip_address

import pytest

from nexhealth_pipeline.settings import load_settings
from nexhealth_pipeline.webhooks.receiving.serving import Plan
from nexhealth_pipeline.webhooks.receiving.sources import Buckets, Sources, neighbourhood
from tests.waiting import until
from tests.webhooks.receiving import event, events, receiver, settings, signed

PROXIED = Sources(proxies=["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", [b"198.51.100.1"], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", [b"6.6.6.6", b"198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"198.51.100.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [b"\xff"], "10.0.0.1"),
        ("10.0.0.1", [b"198.51.100.1:4711"], "198.51.100.1"),
        ("fd00::1", [b"[2001:db8::1]:4711"], "2001:db8::1"),
        ("::ffff:10.0.0.1", [b"2001:db8::1"], "2001:db8::1"),
    ],
)
def test_only_a_trusted_proxys_word_is_believed(peer: str, forwarded: list[bytes], address: str) -> None:
    """Whoever may write X-Forwarded-For freely could pass any allow-list and any limit."""
    assert PROXIED.address_of(peer, forwarded) == ip_address(address)


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("10.0.0.1", "fe80::1%eth0", "fe80::1"),
        ("10.0.0.1", "[fe80::1%eth0]", "fe80::1"),
        ("10.0.0.1", "[fe80::1%eth0]:443", "fe80::1"),
        ("10.0.0.1", "[::1%25eth0]:443", "::1"),
        ("10.0.0.1", "[fe80::1%]", "fe80::1"),
        ("10.0.0.1", "[::ffff:198.51.100.1%eth0]:443", "198.51.100.1"),
        ("10.0.0.1", "::ffff:198.51.100.1%25eth0", "198.51.100.1"),
        ("fd00::1%eth0", "[2001:db8::1%a%b]", "2001:db8::1"),
        ("::ffff:10.0.0.1%2", "[%eth0]:443", "10.0.0.1"),
    ],
)
def test_an_address_has_no_zone_however_it_is_written(peer: str, forwarded: str, address: str) -> None:
    """The column has no room for one: such a sender's events were refused for ever, and nobody's refusals recorded."""
    found = PROXIED.address_of(peer, [forwarded.encode()])
    assert found == ip_address(address)
    assert "%" not in str(found)


def test_who_has_such_an_address_is_stored_like_any_other(no_events: str) -> None:
    """A proxy on the same link may write it so."""
    given = settings(NEXHEALTH_WEBHOOK_PROXIES="127.0.0.0/8")
    with receiver(no_events, given, Plan(audit_seconds=0.05)) as one:
        scoped = {"x-forwarded-for": "[fe80::1%eth0]:443"}
        assert one.ask(event(1), signed(event(1)) | scoped).status == 200
        assert one.ask(event(2), signed(event(3)) | scoped).status == 401
        assert one.ask(event(2), signed(event(3))).status == 401
        until(lambda: len(events(no_events)) == 3)
    found = {(str(row["source"]), row["verdict"]) for row in events(no_events)}
    assert found == {("fe80::1", "valid"), ("fe80::1", "bad-signature"), ("127.0.0.1", "bad-signature")}


def test_without_trusted_proxies_the_header_is_nothing() -> None:
    assert Sources().address_of("10.0.0.1", [b"198.51.100.1"]) == ip_address("10.0.0.1")
    assert Sources().address_of(None, [b"198.51.100.1"]) is None


def test_any_network_is_let_in_unless_some_are_named() -> None:
    """The vendor publishes none, so the list is off by default."""
    some = Sources.of(load_settings({"NEXHEALTH_WEBHOOK_NETWORKS": "203.0.113.0/24"}, environ={}, env_file=None))
    assert Sources().allows(ip_address("6.6.6.6"))
    assert Sources().allows(None)
    assert some.allows(ip_address("203.0.113.200"))
    assert not some.allows(ip_address("203.0.114.1"))
    assert not some.allows(ip_address("2001:db8::1"))
    assert not some.allows(None)


def test_a_bucket_gives_a_burst_then_a_rate() -> None:
    now = [0.0]
    buckets = Buckets(10, 20, clock=lambda: now[0])
    assert [buckets.take("a") for _ in range(21)] == [True] * 20 + [False]
    assert buckets.take("b")
    now[0] = 0.5
    assert sum(buckets.take("a") for _ in range(10)) == 5
    now[0] = 1000.0
    assert sum(buckets.take("a") for _ in range(100)) == 20


def test_to_ask_whether_a_bucket_is_spent_takes_nothing_from_it() -> None:
    buckets = Buckets(1, 1, clock=lambda: 0.0)
    assert [buckets.is_spent("a") for _ in range(3)] == [False] * 3
    assert len(buckets) == 0
    assert buckets.take("a")
    assert (buckets.is_spent("a"), buckets.is_spent("b")) == (True, False)


def test_many_senders_do_not_fill_the_memory() -> None:
    buckets = Buckets(1, 1, most=100, clock=lambda: 0.0)
    for k in range(1000):
        buckets.take(str(k))
    assert len(buckets) == 100
    assert not buckets.take("999")


def test_an_ipv6_senders_whole_network_is_one_sender() -> None:
    """It has 2^64 addresses to be somebody else with."""
    assert neighbourhood(ip_address("2001:db8:1:2::1")) == neighbourhood(ip_address("2001:db8:1:2:ffff::9"))
    assert neighbourhood(ip_address("203.0.113.1")) != neighbourhood(ip_address("203.0.113.2"))
    assert neighbourhood(None) == ""
