"""Where requests come from: whose word about the address is believed, who is let in, and how fast.

Behind a proxy the peer is the proxy; the sender is the rightmost address of X-Forwarded-For that is not a
proxy of ours. What stands left of it was written by the sender and proves nothing.
"""

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from nexhealth_pipeline.settings import Settings

__all__ = ["Address", "Buckets", "Sources", "neighbourhood"]

Address = IPv4Address | IPv6Address
"""A sender's."""

_WITH_PORT = re.compile(r"\[(?P<six>[^\]]+)\](:\d+)?|(?P<four>\d+\.\d+\.\d+\.\d+):\d+")
_HOPS = 20
"""Entries of X-Forwarded-For that are looked at, from the right."""


class Sources:
    """The networks that requests may come from, and the proxies whose X-Forwarded-For is believed."""

    def __init__(self, networks: Iterable[str] = (), proxies: Iterable[str] = ()) -> None:
        """`networks` empty = any."""
        self._networks = tuple(ip_network(one) for one in networks)
        self._proxies = tuple(ip_network(one) for one in proxies)

    @classmethod
    def of(cls, settings: Settings) -> "Sources":
        """As NEXHEALTH_WEBHOOK_NETWORKS and NEXHEALTH_WEBHOOK_PROXIES say."""
        return cls(settings.webhook_networks, settings.webhook_proxies)

    def address_of(self, peer: str | None, forwarded: Iterable[bytes]) -> Address | None:
        """Who sent a request that came from `peer` with these X-Forwarded-For headers, None where nobody can tell."""
        address = _address(peer or "")
        if not self._proxies or address is None or not _within(address, self._proxies):
            return address
        hops = b",".join(forwarded).decode("ascii", "replace").split(",")
        for hop in reversed(hops[-_HOPS:]):
            found = _address(hop.strip())
            if found is None:
                return address  # the proxy that wrote this is the last one that can be told
            address = found
            if not _within(address, self._proxies):
                return address
        return address

    def allows(self, address: Address | None) -> bool:
        """Whether requests from `address` are let in."""
        return not self._networks or (address is not None and _within(address, self._networks))


def neighbourhood(address: Address | None) -> str:
    """What a limit per address counts by: an IPv6 sender has a whole /64 of addresses, so it counts as one."""
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64))
    return str(address or "")


class Buckets:
    """A token bucket per sender: `rate` requests a second, `burst` at once. Remembers `most` senders at most."""

    def __init__(
        self, rate: float, burst: float, *, most: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._most, self._clock = rate, burst, most, clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, sender: str) -> bool:
        """Whether `sender` may make one more request now; counts it if so."""
        now = self._clock()
        level = self._level(sender, now)
        allowed = level >= 1
        self._levels[sender] = (level - 1 if allowed else level, now)
        self._levels.move_to_end(sender)
        if len(self._levels) > self._most:
            self._levels.popitem(last=False)  # silent for the longest time, so nearly full again
        return allowed

    def is_spent(self, sender: str) -> bool:
        """Whether `sender` may make no request now."""
        return self._level(sender, self._clock()) < 1

    def _level(self, sender: str, now: float) -> float:
        level, at = self._levels.get(sender, (self._burst, now))
        return min(self._burst, level + (now - at) * self._rate)


@lru_cache(maxsize=4096)
def _address(text: str) -> Address | None:
    """`text` as an address, without port, brackets and zone; an IPv4 address in IPv6 clothes as IPv4.

    A zone (`fe80::1%eth0`) has a meaning on the sender's link alone, and the warehouse's type has no room for it.
    """
    match = _WITH_PORT.fullmatch(text)
    host = (match["six"] or match["four"]) if match else text
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def _within(address: Address, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    return any(address in network for network in networks)
