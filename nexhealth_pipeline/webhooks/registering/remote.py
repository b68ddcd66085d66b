"""Endpoints and subscriptions as NexHealth has them (API.md F.1, F.2), for one API key.

Lists are not paginated. The secret that an endpoint signs with is in the answers about it, perhaps not in all
of them, and leaves this module only as a field that no repr shows.
"""

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from nexhealth_pipeline.client.client import NexHealthClient
from nexhealth_pipeline.client.request import ApiCall, ApiRequest
from nexhealth_pipeline.errors import NotFound, ServerFailed

__all__ = ["NOT_MADE", "DryRemote", "Remote", "RemoteEndpoint", "RemoteSubscription"]

T = TypeVar("T")

NOT_MADE = 0
"""Id of what a dry run would make."""
_PATH = "/webhook_endpoints"
_MASKED = re.compile(
    r"[^\x21-\x7e]|[*\[\]<>]|\.{2}|redacted|filtered|hidden|(?-i:^(x{4}|X{4})|(x{4}|X{4})$|x{6}|X{6})", re.IGNORECASE
)
"""What stands where a secret is not shown: taken for one, it would replace the right one. A few x in the midst may be
chance."""
_SHORTEST = 10
"""Characters of a secret: fewer are a part of one, its last four say. The API's description shows one of 14."""


@dataclass(frozen=True, slots=True)
class RemoteEndpoint:
    """An endpoint of the API key, ours or not."""

    id: int
    target_url: str
    active: bool
    secret: str | None = field(repr=False)
    """None where the answer does not show it."""


class RemoteSubscription(msgspec.Struct, frozen=True):
    """One event that an endpoint is told of."""

    id: int
    resource_type: str
    event: str
    active: bool = True
    institution_id: int | None = None
    """None for what belongs to no institution."""


class _Endpoint(msgspec.Struct):
    id: int
    target_url: str
    active: bool = True
    secret_key: str | None = None


class Remote:
    """What can be asked and changed with the key called `key_name`. Every method raises ApiError and Cancelled."""

    def __init__(self, client: NexHealthClient, key_name: str) -> None:
        self._client, self.key_name = client, key_name

    def endpoints(self) -> list[RemoteEndpoint]:
        """All of the key, by id."""
        records = self._listed(ApiRequest(_PATH, key_name=self.key_name, legacy_accept=True))
        return sorted(map(_endpoint, records), key=lambda one: one.id)

    def create(self, target_url: str) -> RemoteEndpoint:
        """Make an active endpoint. After TryLater it may be there all the same."""
        body = {"target_url": target_url, "active": True}
        return _endpoint(_only(self._do(ApiCall("POST", _PATH, None, body, self.key_name, legacy_accept=True))))

    def activate(self, endpoint_id: int) -> None:
        """Let NexHealth post events to it again."""
        path = f"{_PATH}/{endpoint_id}"
        self._do(ApiCall("PATCH", path, None, {"active": True}, self.key_name, legacy_accept=True))

    def delete(self, endpoint_id: int) -> None:
        """Delete it, and its subscriptions with it; one that is gone already is as good."""
        with suppress(NotFound):
            self._do(ApiCall("DELETE", f"{_PATH}/{endpoint_id}", key_name=self.key_name, legacy_accept=True))

    def subscriptions(self, endpoint_id: int, subdomain: str | None = None) -> list[RemoteSubscription]:
        """Those of one institution, or all, by id. Raises NoAccess where the key does not reach the institution."""
        records = self._listed(ApiRequest(_of(endpoint_id), subdomain=subdomain, key_name=self.key_name))
        return sorted((_decoded(record, RemoteSubscription) for record in records), key=lambda one: one.id)

    def subscribe(self, endpoint_id: int, subdomain: str, resource_type: str, event: str) -> RemoteSubscription:
        """Subscribe to one event of one institution. After TryLater it may be done all the same."""
        body = {"resource_type": resource_type, "event": event, "active": True}
        return _decoded(_only(self._do(ApiCall("POST", _of(endpoint_id), subdomain, body))), RemoteSubscription)

    def resume(self, endpoint_id: int, subscription_id: int, subdomain: str) -> None:
        """Activate a subscription."""
        self._do(ApiCall("PATCH", _of(endpoint_id, subscription_id), subdomain, {"active": True}))

    def move(self, endpoint_id: int, subscription_id: int, subdomain: str, *, to: int) -> None:
        """Let endpoint `to` be told instead."""
        body = {"new_endpoint_id": to, "active": True}
        self._do(ApiCall("PATCH", _of(endpoint_id, subscription_id), subdomain, body))

    def drop(self, endpoint_id: int, subscription_id: int, subdomain: str | None) -> None:
        """Delete a subscription; one that is gone already is as good."""
        with suppress(NotFound):
            path = _of(endpoint_id, subscription_id)
            self._do(ApiCall("DELETE", path, subdomain, key_name=self.key_name))

    def _listed(self, request: ApiRequest) -> list[bytes]:
        return [record for page in self._client.pages(request) for record in page.records]

    def _do(self, call: ApiCall) -> list[bytes]:
        return self._client.call(call)


class DryRemote(Remote):
    """Asks what there is and changes nothing: what it makes has the id :data:`NOT_MADE`."""

    def create(self, target_url: str) -> RemoteEndpoint:
        """What would be made."""
        return RemoteEndpoint(NOT_MADE, target_url, active=True, secret="")

    def subscriptions(self, endpoint_id: int, subdomain: str | None = None) -> list[RemoteSubscription]:
        """As there are; none of an endpoint that is not there."""
        return [] if endpoint_id == NOT_MADE else super().subscriptions(endpoint_id, subdomain)

    def subscribe(self, endpoint_id: int, subdomain: str, resource_type: str, event: str) -> RemoteSubscription:  # noqa: ARG002 - as the real one
        """What would be made."""
        return RemoteSubscription(NOT_MADE, resource_type, event)

    def _do(self, call: ApiCall) -> list[bytes]:  # noqa: ARG002 - as the real one
        return []


def _of(endpoint_id: int, subscription_id: int | None = None) -> str:
    return f"{_PATH}/{endpoint_id}/webhook_subscriptions" + ("" if subscription_id is None else f"/{subscription_id}")


def _only(answer: list[bytes]) -> bytes:
    """The one thing that was made: an object, or a list with it (API.md F.1)."""
    if not answer:
        raise ServerFailed(f"{_PATH}: the API does not say what it has made")
    return answer[0]


def _endpoint(record: bytes) -> RemoteEndpoint:
    found = _decoded(record, _Endpoint)
    told = found.secret_key or ""
    shown = told if len(told) >= _SHORTEST and not _MASKED.search(told) else None
    return RemoteEndpoint(found.id, found.target_url, found.active, shown)


def _decoded(record: bytes, kind: type[T]) -> T:
    """Ids may come as text (API.md H)."""
    try:
        return msgspec.json.decode(record, type=kind, strict=False)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise ServerFailed(f"{_PATH}: the API's answer cannot be understood") from None
