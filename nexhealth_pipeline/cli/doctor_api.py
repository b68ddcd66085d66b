"""Doctor's questions to NexHealth: key, reach, institutions, locations, their offices, the clock."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import msgspec

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.cli.findings import Finding, Group, Level
from nexhealth_pipeline.cli.realm import is_sandbox_key
from nexhealth_pipeline.client.budget import LocalBudget
from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.loopback import is_loopback
from nexhealth_pipeline.client.request import ApiRequest
from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.errors import ApiError, ConfigurationError, KeyRefused, MissingSetting, RateLimited, Unreachable
from nexhealth_pipeline.log import printable
from nexhealth_pipeline.settings import Settings

__all__ = ["CLOCK_SECONDS", "STALE", "api_findings", "doctors_client"]

CLOCK_SECONDS = 30.0
"""A clock that is farther off is reported. Syncs correct for it (client/clock.py); crons and logs do not."""
STALE = timedelta(hours=24)
"""NexHealth reads an office every few minutes while its server runs; a day without is worth a look (API.md A.5)."""

_TIMEOUT_SECONDS = 10.0
_POLICY = RetryPolicy(attempts=2, patience_seconds=20.0, longest_retry_after=5.0, longest_block=5.0)
"""Gives up soon: whoever calls the doctor waits."""

_Record = dict[str, Any]


def api_findings(settings: Settings, locations: tuple[str, ...]) -> Iterator[Finding]:
    """Findings about the key and what it reaches."""
    try:
        client = doctors_client(settings)
    except ConfigurationError as error:
        yield _failed("key", Group.SETTINGS, str(error), _key_fix(error))
        return
    try:
        yield from _on_the_way(settings)
        yield from _with_client(client, settings, locations)
    finally:
        client.close()


def _on_the_way(settings: Settings) -> Iterator[Finding]:
    """Whether the key, and patients' data, can be read on their way. The key that every sandbox takes is no secret."""
    if settings.data_kind == "sandbox" or is_sandbox_key(settings):
        return
    try:
        address = urlsplit(settings.api_url)
    except ValueError:
        return  # whoever asks there will say so
    if address.scheme == "http" and not is_loopback(address.hostname or ""):
        yield Finding(
            "encryption",
            Level.WARNING,
            Group.SETTINGS,
            f"the connection to the API at {address.hostname} is not encrypted: the key and patients' data can be read "
            "on their way",
            "Let NEXHEALTH_API_URL begin with https://, or unset it: NexHealth's own address is the default.",
        )


def _key_fix(error: ConfigurationError) -> str:
    if isinstance(error, MissingSetting):
        return "Set NEXHEALTH_API_KEY (in the environment or in .env)."
    return "Correct the API key, or the file of keys, that it names."


def doctors_client(settings: Settings) -> NexHealthClient:
    """A client that gives up soon. Raises ConfigurationError without a usable key."""
    keys, budget = settings.api_keys(), LocalBudget(settings.rate_share)
    return NexHealthClient(
        api_url=settings.api_url,
        api_keys=keys,
        budget_for=lambda key_hash: budget,  # noqa: ARG005 - a handful of requests in all
        timeout_seconds=min(_TIMEOUT_SECONDS, settings.timeout_seconds),
        retry=_POLICY,
    )


def _with_client(client: NexHealthClient, settings: Settings, locations: tuple[str, ...]) -> Iterator[Finding]:
    accepted: list[str] = []
    refusals = list(_refusals(client, settings, accepted))
    yield from _clock(client)
    yield from refusals
    if not accepted:
        return
    yield _ok("key", Group.SETTINGS, f"{settings.api_url} accepts {', '.join(_key(client, one) for one in accepted)}")
    try:
        yield from _reached(client, settings, accepted, locations)
    except ApiError as error:
        yield _failed("reach", Group.API, str(error), "Try again; if it stays, ask NexHealth's support.")


def _refusals(client: NexHealthClient, settings: Settings, accepted: list[str]) -> Iterator[Finding]:
    """Why no token could be had, of each key by itself; the names of the others are `accepted`."""
    for name in client.key_names():
        key = _key(client, name)
        try:
            client.authenticate(name)
        except KeyRefused:
            yield _failed(
                "key",
                Group.SETTINGS,
                f"{settings.api_url} refuses {key}",
                "Copy it again from NexHealth's developer portal, and see that it is the key of this environment.",
            )
        except RateLimited:
            yield _failed(
                "limit",
                Group.API,
                f"{settings.api_url} refuses requests for now: the rate limit of {key} is used up",
                "Wait a minute; if other programs use the same key, lower NEXHEALTH_RATE_SHARE.",
            )
        except ApiError as error:
            yield _no_answer(settings, error)
            return  # nor would it to another key
        except ConfigurationError as error:  # the environment's proxy or certificates
            yield _failed("reach", Group.SETTINGS, str(error), "Correct the variable that it names, or unset it.")
            return
        else:
            accepted.append(name)


def _no_answer(settings: Settings, error: ApiError) -> Finding:
    if isinstance(error, Unreachable):
        return _failed(
            "reach",
            Group.API,
            f"{settings.api_url} cannot be asked: {error}",
            "Check NEXHEALTH_API_URL, this machine's network, and a proxy or firewall between.",
        )
    return _failed(
        "reach",
        Group.API,
        f"{settings.api_url} answers, but not as NexHealth does: {error}",
        "Check NEXHEALTH_API_URL; if it is right, NexHealth has a problem: try again later.",
    )


def _key(client: NexHealthClient, name: str) -> str:
    """A key in words: by its institution where there are several, never itself."""
    if len(client.key_names()) == 1:
        return "the API key"
    return f"the key of {name}" if name else "NEXHEALTH_API_KEY"


def _clock(client: NexHealthClient) -> Iterator[Finding]:
    skew = client.clock.skew
    if skew is None:
        return
    if abs(skew) <= CLOCK_SECONDS:
        yield _ok("clock", Group.SETTINGS, "this machine's clock agrees with NexHealth's")
        return
    side = "behind" if skew > 0 else "ahead of"
    yield Finding(
        "clock",
        Level.WARNING,
        Group.SETTINGS,
        f"this machine's clock is {abs(skew):,.0f} s {side} NexHealth's",
        "Turn on time synchronisation (NTP): syncs correct for it, schedules and logs do not.",
    )


def _reached(
    client: NexHealthClient, settings: Settings, keys: list[str], wanted: tuple[str, ...]
) -> Iterator[Finding]:
    """Institutions, locations and offices that the `keys` reach. Raises ApiError."""
    institutions = {one.get("id"): str(one.get("subdomain")) for one in _records(client, keys, "/institutions")}
    yield _subdomains(list(institutions.values()), _named(settings, keys))
    yield from _without_key(client, [name for name in institutions.values() if _chosen(name, settings)])
    # By their keys: of two API keys both may list one.
    places = {
        f"{institutions[place.get('institution_id')]}.{place.get('id')}": place
        for place in _records(client, keys, "/locations", ("locations",))
        if _chosen(institutions.get(place.get("institution_id")), settings)
    }
    active = {key: place for key, place in places.items() if not place.get("inactive")}
    yield _active(list(active))
    for text in wanted:
        yield _location(client, text, places)
    sources = {_source(one): one for one in _records(client, keys, "/sync_status")}
    yield from _offices(list(sources.values()), active, client.clock.now())


def _chosen(subdomain: str | None, settings: Settings) -> bool:
    return subdomain is not None and (not settings.subdomains or subdomain in settings.subdomains)


def _active(keys: list[str]) -> Finding:
    if keys:
        return _ok("locations", Group.API, f"active locations: {', '.join(keys)}")
    fix = "Ask NexHealth to enable locations for this key, or correct NEXHEALTH_SUBDOMAINS."
    return _failed("locations", Group.API, "no active location is reachable", fix)


def _named(settings: Settings, keys: list[str]) -> list[str]:
    """The institutions that the settings name, less those whose key is not among `keys`: that has been told."""
    own = settings.api_keys()
    refused = set(own.values()) - {own[name] for name in keys}
    named = dict.fromkeys([*settings.subdomains, *filter(None, own)])
    return [name for name in named if own.get(name, own.get("")) not in refused]


def _subdomains(names: list[str], named: list[str]) -> Finding:
    """Whether every institution that was named is reached."""
    unknown = [name for name in named if name not in names]
    if unknown:
        return _failed(
            "subdomain",
            Group.SETTINGS,
            f"the key reaches no institution {', '.join(unknown)}",
            f"Correct NEXHEALTH_SUBDOMAINS (or the keys file; capitals count): {', '.join(names) or 'none is reached'}.",
        )
    return _ok("subdomain", Group.SETTINGS, f"institutions reached: {', '.join(names)}")


def _without_key(client: NexHealthClient, subdomains: list[str]) -> Iterator[Finding]:
    """Institutions that another's key lists, while none of the keys is for them: no slice of theirs can be read."""
    for subdomain in subdomains:
        try:
            client.key_hash(subdomain)
        except MissingSetting as missing:
            fix = "If it is not to be copied, name the others in NEXHEALTH_SUBDOMAINS: until then its slices fail."
            yield _failed("key", Group.SETTINGS, str(missing), fix)


def _location(client: NexHealthClient, text: str, places: dict[str, _Record]) -> Finding:
    """Whether one location can be read: found in the list, active, and answering."""
    found = [
        (key, place)
        for key, place in places.items()
        if text in (key, str(place.get("id"))) or text.casefold() == str(place.get("name")).casefold()
    ]
    if len(found) != 1:
        problem = "names several locations" if found else "is not reachable with this key"
        choices = ", ".join(f"{key} ({_name(place)})" for key, place in found or places.items())
        return _failed("location", Group.SETTINGS, f"location {text!r} {problem}", f"Use one of: {choices}.")
    key, place = found[0]
    if place.get("inactive"):
        fix = "Ask the practice or NexHealth to switch it on; syncs leave it out until then."
        return _failed("location", Group.SETTINGS, f"location {key} is switched off in NexHealth", fix)
    try:
        params = (("location_id", str(place["id"])),)
        client.get(ApiRequest("/operatories", params, key.rpartition(".")[0], Paging.CURSOR, per_page=1))
    except ApiError as error:
        fix = "Ask NexHealth to give this key access to the location."
        return _failed("location", Group.API, f"location {key} is listed but cannot be read: {error}", fix)
    except ConfigurationError as error:
        problem = f"location {key} is listed but cannot be read: {error}"
        fix = _key_fix(error) if isinstance(error, MissingSetting) else "Correct the variable that it names."
        return _failed("location", Group.SETTINGS, problem, fix)
    return _ok("location", Group.API, f"location {key} can be read")


def _name(place: _Record) -> str:
    return printable(str(place.get("name")))


def _offices(sources: list[_Record], places: dict[str, _Record], now: datetime) -> Iterator[Finding]:
    """Offices that NexHealth itself cannot read, or has not read for long."""
    names = {place.get("id"): f"{key} ({_name(place)})" for key, place in places.items()}
    silent = False
    for source in sources:
        offices = [names[place.get("id")] for place in source.get("locations") or () if place.get("id") in names]
        trouble = _office_trouble(source, now)
        if offices and trouble:
            silent = True
            yield Finding(
                "office",
                Level.WARNING,
                Group.API,
                f"{', '.join(offices)}: {trouble}, so the copy cannot be newer than that",
                "See that the office's server and NexHealth's synchronizer on it run.",
            )
    if not silent:
        yield _ok("office", Group.API, "NexHealth's connection to every office is up")


def _source(record: _Record) -> tuple[str, ...]:
    """What tells one source from the others: it has no id."""
    return tuple(str(record.get(name)) for name in ("institution_id", "sync_source_type", "sync_source_name"))


def _office_trouble(source: _Record, now: datetime) -> str | None:
    """What is wrong with one source, or None."""
    at = _time(source.get("read_status_at"))
    since = f"since {at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else "for an unknown time"
    if source.get("read_status") != "green":
        return f"offline: NexHealth has not read the office {since}"
    if at is not None and now - at > STALE:
        return f"said to be online, but NexHealth has not read the office {since}"
    return None


def _time(text: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _records(client: NexHealthClient, keys: list[str], path: str, records_at: tuple[str, ...] = ()) -> list[_Record]:
    """All records of a list of what a key reaches, of each of `keys`. Raises ApiError."""
    found: list[_Record] = []
    for name in keys:
        request = ApiRequest(path, legacy_accept=True, records_at=records_at, key_name=name)
        found += [msgspec.json.decode(record) for page in client.pages(request) for record in page.records]
    return [record for record in found if isinstance(record, dict)]


def _ok(check: str, group: Group, message: str) -> Finding:
    return Finding(check, Level.OK, group, message)


def _failed(check: str, group: Group, message: str, fix: str) -> Finding:
    return Finding(check, Level.FAILED, group, message, fix)
