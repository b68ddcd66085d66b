"""NexHealth's API as pages of raw records, and the few changes that are made there.

    client = NexHealthClient(api_url=..., api_keys={"": key}, budget_for=lambda key_hash: LocalBudget(), timeout_seconds=60)
    for page in client.pages(ApiRequest("/patients", (("location_id", "12"),), "demo", Paging.CURSOR)):
        load(page.records)

Knows nothing of collections or tables. Retries, tokens and the rate budget happen inside; what
they cost is on each page, or on the error that ends a read.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime

import msgspec

from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.client.account import PageAccount, fingerprint, id_of
from nexhealth_pipeline.client.auth import FixedCredential, Token, TokenKeeper, token_lifetime, usable_header
from nexhealth_pipeline.client.budget import Budget
from nexhealth_pipeline.client.clock import ApiClock
from nexhealth_pipeline.client.cost import Cost
from nexhealth_pipeline.client.page import BodyMalformed, Envelope, Page, records_of
from nexhealth_pipeline.client.request import ApiCall, ApiRequest
from nexhealth_pipeline.client.retry import AUTH_STATUS, RetryPolicy
from nexhealth_pipeline.client.send import Exchange, Sender, Where
from nexhealth_pipeline.client.transport import BODY_LIMIT, Transport
from nexhealth_pipeline.client.words import ignored_parameters
from nexhealth_pipeline.errors import InvalidSetting, MissingSetting, ProtocolBroken

__all__ = ["NexHealthClient", "hash_of_key"]

_SECOND_LOOKS = 2
"""Times a page is asked for again that contradicts the paging contract, before that is an error, or that is garbled,
before it is taken as it is: then the loader finds the records that cannot be read."""


class NexHealthClient:
    """Asks NexHealth; one instance serves all threads of a process.

    `api_keys`: subdomain -> key, "" = the key of every other institution. `budget_for` gives the
    budget of one key by its hash. `timeout_seconds` is the longest silence within one answer.
    Setting `stop` ends every wait and read with Cancelled. Raises InvalidSetting for a key that
    cannot be sent.
    """

    def __init__(
        self,
        *,
        api_url: str,
        api_keys: Mapping[str, str],
        budget_for: Callable[[str], Budget],
        timeout_seconds: float,
        retry: RetryPolicy | None = None,
        stop: threading.Event | None = None,
        clock: ApiClock | None = None,
        answer_seconds: float | None = None,
        body_limit: int = BODY_LIMIT,
    ) -> None:
        self.clock = clock or ApiClock()
        self._policy = retry or RetryPolicy()
        self._stop = stop
        self._transport = Transport(
            api_url,
            timeout_seconds=timeout_seconds,
            clock=self.clock,
            answer_seconds=answer_seconds,
            body_limit=body_limit,
            stop=stop,
            monotonic=self._policy.monotonic,
        )
        self._sender = Sender(self._transport, clock=self.clock, policy=self._policy, stop=stop)
        self._names = _checked(api_keys)
        self._accounts = {
            key: _KeyAccount(key, budget_for, self._sender, self._policy) for key in set(self._names.values())
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(keys={len(self._accounts)})"

    def key_names(self) -> tuple[str, ...]:
        """One name per distinct key ("" first), for requests that are about everything a key reaches."""
        first_name = {key: name for name, key in sorted(self._names.items(), reverse=True)}
        return tuple(sorted(first_name.values()))

    def key_hash(self, name: str = "") -> str:
        """What stands for the key of an institution (by subdomain), or of a name, in the database.

        Raises MissingSetting where there is none.
        """
        return self._account(name).key_hash

    def names_by_hash(self) -> dict[str, str]:
        """The name of each distinct key, by what stands for the key in the database."""
        return {self.key_hash(name): name for name in self.key_names()}

    def get(self, request: ApiRequest) -> Page:
        """One answer: a single object, or the first page of a list. Raises ApiError, Cancelled."""
        return self._accounted(request, "", 1, PageAccount(request.paging, "", records_at=request.records_at))

    def pages(
        self, request: ApiRequest, *, cursor: str = "", page: int = 0, previous: Iterable[str] = ()
    ) -> Iterator[Page]:
        """The pages after `cursor` and after `page` pages already committed, whose fingerprints are `previous`.

        Raises ApiError: ProtocolBroken where pages contradict each other, CursorExpired where the
        API refuses to go on from a cursor; Cancelled.
        """
        account = PageAccount(request.paging, cursor, previous, records_at=request.records_at)
        while True:
            found = self._accounted(request, cursor, page + 1, account)
            account.accept(found)
            yield found
            if not found.has_next:
                return
            cursor, page = found.end_cursor, found.number

    def call(self, call: ApiCall) -> list[bytes]:
        """Do one thing; returns the JSON of what the API answers with, nothing where that is 204.

        What may be done twice is repeated like a read. A POST is not, unless the API said that it has done nothing:
        after TryLater look whether it was done. Raises ApiError, Cancelled.
        """
        cost = Cost()
        account = self._account(call.key_name if call.subdomain is None else call.subdomain)
        exchange = Exchange(
            where=Where(call.method, call.path, call.subdomain),
            params=[] if call.subdomain is None else [("subdomain", call.subdomain)],
            credential=account.tokens,
            budget=account.budget,
            read=lambda envelope, _: envelope.data,
            legacy_accept=call.legacy_accept,
            body=None if call.body is None else msgspec.json.encode(call.body),
            once=not call.repeatable,
            may_be_empty=True,
        )
        with cost.charged_to_failure():
            return self._sender.send(exchange, cost)

    def authenticate(self, key_name: str = "") -> None:
        """Get a token if there is none yet, to find out whether the key is accepted. Raises KeyRefused, ApiError."""
        cost = Cost()
        with cost.charged_to_failure():
            self._account(key_name).tokens.current(cost)

    def close(self) -> None:
        """Close idle connections; whoever asks from now on, as a fetch that was given up does, gets Cancelled."""
        self._transport.close()

    def _accounted(self, request: ApiRequest, cursor: str, number: int, account: PageAccount) -> Page:
        """The next page, looked at again where it contradicts the ones before (a stale cache passes) or is garbled."""
        cost = Cost()
        with cost.charged_to_failure():
            for look in range(_SECOND_LOOKS + 1):
                found = account.told(self._page(request, cursor, number, cost))
                problem = account.problem(found)
                if problem is None and (not found.garbled or look == _SECOND_LOOKS):
                    return found
                if look < _SECOND_LOOKS:
                    cost.retries += 1
                    self._policy.pause(self._policy.backoff(look + 1), self._stop)
            raise ProtocolBroken(f"{_where(request, number)}: {problem}; asked {_SECOND_LOOKS + 1} times")

    def _page(self, request: ApiRequest, cursor: str, number: int, cost: Cost) -> Page:
        key_account = self._account(request.key_name if request.subdomain is None else request.subdomain)
        return self._sender.send(
            Exchange(
                where=_where(request, number),
                params=_params(request, cursor, number),
                credential=key_account.tokens,
                budget=key_account.budget,
                read=lambda envelope, requested_at: _to_page(request, number, cost, envelope, requested_at),
                legacy_accept=request.legacy_accept,
                has_cursor=bool(cursor),
            ),
            cost,
        )

    def _account(self, name: str) -> "_KeyAccount":
        key = self._names.get(name) or self._names.get("")
        if key is None:
            whom = f"institution {name}" if name else "requests about all institutions"
            raise MissingSetting(
                f"no API key for {whom}: set NEXHEALTH_API_KEY, or add its line to NEXHEALTH_API_KEYS_FILE"
            )
        return self._accounts[key]


class _KeyAccount:
    """One API key: its token and its share of the limits."""

    def __init__(self, key: str, budget_for: Callable[[str], Budget], sender: Sender, policy: RetryPolicy) -> None:
        self._credential = FixedCredential(key)
        self.key_hash, self._budget_for = hash_of_key(key), budget_for
        self._budget: Budget | None = None
        self._lock = threading.Lock()
        self._sender = sender
        self.tokens = TokenKeeper(self._ask_token, monotonic=policy.monotonic)

    @property
    def budget(self) -> Budget:
        """Made at first use, so that a client may be built before a fork."""
        with self._lock:
            if self._budget is None:
                self._budget = self._budget_for(self.key_hash)
            return self._budget

    def _ask_token(self, cost: Cost) -> Token:
        return self._sender.send(
            Exchange(
                where=Where("POST", "/authenticates"),
                params=[],
                credential=self._credential,
                budget=self.budget,
                read=_to_token,
                special=AUTH_STATUS,
                legacy_accept=True,
                quotable=False,
            ),
            cost,
        )


def hash_of_key(key: str) -> str:
    """What stands for an API key in the database and in logs."""
    return hashlib.sha256(b"nexhealth rate budget\0" + key.encode()).hexdigest()[:32]


def _checked(api_keys: Mapping[str, str]) -> dict[str, str]:
    for name, key in api_keys.items():
        if not usable_header(key):
            whose = f"the API key of {name}" if name else "NEXHEALTH_API_KEY"
            raise InvalidSetting(f"{whose} holds a blank, a line break or another character no key has")
    return dict(api_keys)


def _where(request: ApiRequest, number: int) -> Where:
    page = number if request.paging in (Paging.CURSOR, Paging.PAGE) or number > 1 else None
    return Where("GET", request.path, request.subdomain, request.location_id, page)


def _params(request: ApiRequest, cursor: str, number: int) -> list[tuple[str, str]]:
    """All query parameters. The subdomain must be one: in a body it is ignored (API.md A.4).

    A list that is not known to have cursors, and gave one, is gone on with like those that have.
    """
    params = [("subdomain", request.subdomain)] if request.subdomain is not None else []
    params += request.params
    if request.paging is Paging.CURSOR or cursor:
        params += [("per_page", str(request.per_page)), ("end_cursor", cursor)]
    elif request.paging is Paging.PAGE:
        params += [("per_page", str(request.per_page)), ("page", str(number))]
    return params


def _to_page(request: ApiRequest, number: int, cost: Cost, envelope: Envelope, requested_at: datetime) -> Page:
    has_next = _has_next(request, number, envelope)  # first, as it says what is wrong with another answer
    records = records_of(envelope, request.records_at, of_list=request.paging is not Paging.ONE)
    return Page(
        number=number,
        records=records,
        end_cursor=envelope.end_cursor if request.paging is Paging.CURSOR or has_next else "",
        has_next=has_next,
        requested_at=requested_at,
        requests=cost.requests,
        retries=cost.retries,
        throttled_seconds=cost.throttled_seconds,
        bytes=cost.bytes,
        warning=envelope.words or None,
        total=envelope.total,
        fingerprint=fingerprint(records),
        garbled=envelope.garbled,
        ignored=ignored_parameters(envelope.description, (name for name, _ in _params(request, "", number))),
        whole=envelope.data[0] if request.paging is Paging.ONE else b"",
    )


def _has_next(request: ApiRequest, number: int, envelope: Envelope) -> bool:
    """What the answer itself says; of numbered pages see `PageAccount.told`. Raises BodyMalformed for another answer.

    Also of a list that NexHealth is said to give whole: should it come in pages one day, its first one must not be all.
    """
    if request.paging is Paging.ONE:
        _require_the_one(request, envelope)
        return False
    first, total, held = number == 1, envelope.total, len(envelope.data)
    if not envelope.is_list:
        raise BodyMalformed(f"{'an object' if held else 'null'} where a list belongs")
    if request.paging is Paging.NONE and first and total and not held:
        raise BodyMalformed("an empty list of what the answer itself counts")
    # Where nothing says whether more follow, the count of a list that begins here does; of a full page it may be its length.
    whole = first and total is not None and 0 <= total <= held < request.per_page
    if request.paging is Paging.CURSOR and envelope.has_next is None and not whole:
        raise BodyMalformed("a list without page_info")
    return bool(envelope.has_next)


def _require_the_one(request: ApiRequest, envelope: Envelope) -> None:
    """Raise BodyMalformed for anything but the object that the path names."""
    wanted = request.path.rpartition("/")[2]
    if len(envelope.data) != 1:
        raise BodyMalformed(f"{'a list' if envelope.is_list else 'null'} where an object belongs")
    if wanted.isdigit() and id_of(envelope.data[0]) != wanted:
        raise BodyMalformed("another object than asked for")


def _to_token(envelope: Envelope, requested_at: datetime) -> Token:
    with suppress(msgspec.DecodeError, UnicodeDecodeError, IndexError):
        token = msgspec.json.decode(envelope.data[0], type=dict[str, msgspec.Raw]).get("token", msgspec.Raw(b"null"))
        value = msgspec.json.decode(token)
        if isinstance(value, str) and usable_header(value):
            return Token(value, token_lifetime(value, api_now=requested_at.timestamp()))
    raise BodyMalformed("an answer without a token that can be sent")
