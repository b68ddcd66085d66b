"""What arrived at an API, against the documented limits: how much of them was used, and whether one was ever passed."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from nexhealth_pipeline.catalog.limits import LIMITS, RateClass, rate_classes
from nexhealth_pipeline.sandbox.limits import peak

Arrival = tuple[float, str, int]
"""Seconds since 1970, path, status of the answer."""


def by_class(arrivals: Iterable[Arrival]) -> dict[RateClass, list[float]]:
    """Times of arrival in each rate class; a request counts in several."""
    times: dict[RateClass, list[float]] = {}
    for moment, path, _ in arrivals:
        for one in rate_classes(path):
            times.setdefault(one, []).append(moment)
    return times


def floor_seconds(counts: dict[RateClass, int], share: float) -> float:
    """Seconds that so many requests take at the even rate of `share` of the limits: the classes overlap, the slowest decides.

    Not quite the least: a sliding window gives its first window's worth at once, so up to a minute less is possible.
    """
    return max((count * LIMITS[one].window_seconds / (LIMITS[one].requests * share) for one, count in counts.items()),
               default=0.0)  # fmt: skip


def counts_of(arrivals: Iterable[Arrival]) -> dict[RateClass, int]:
    """Requests in each class."""
    return {one: len(times) for one, times in by_class(arrivals).items()}


def peaks(arrivals: Iterable[Arrival]) -> dict[RateClass, int]:
    """The most arrivals in any sliding window of each class."""
    return {one: peak(times, LIMITS[one].window_seconds) for one, times in by_class(arrivals).items()}


def use(times: Sequence[float], rate_class: RateClass, share: float, begin: float, end: float) -> float:
    """Part of the share that arrivals between two moments used (1 = all of it)."""
    limit = LIMITS[rate_class]
    return sum(begin <= one < end for one in times) / (limit.requests * share * (end - begin) / limit.window_seconds)


def fairness(counts: Sequence[int]) -> float:
    """The least that one of several senders got, as a part of what each would get of equal parts."""
    return min(counts) / statistics.mean(counts) if counts and sum(counts) else 0.0


def statuses(arrivals: Iterable[Arrival]) -> Counter[int]:
    """Answers by status."""
    return Counter(status for _, _, status in arrivals)
