"""What to ask NexHealth for, without how: one list, one thing, or one change."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["ApiCall", "ApiRequest"]


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One GET. Everything here may appear in logs: ids and filters, never a patient's name or date."""

    path: str
    """Path from the API's root, with its leading slash, ids filled in."""
    params: tuple[tuple[str, str], ...] = ()
    """Query parameters, without `subdomain`, `per_page` and cursors, which the client adds."""
    subdomain: str | None = None
    """The institution; None for requests about everything the key reaches, or about a location that the path names."""
    paging: Paging = Paging.NONE
    per_page: int = 1000
    """Records a page, at most 1000 (API.md D.1; nex_staff 300)."""
    legacy_accept: bool = False
    """Send the v2 Accept header as well (API.md D.3)."""
    records_at: tuple[str, ...] = ()
    """Nested lists to descend into: ("locations",) makes the /locations answer location records."""
    key_name: str = ""
    """Without a subdomain: the name of the key to use (`NexHealthClient.key_names`)."""

    @property
    def location_id(self) -> str | None:
        """The location that the request is limited to, for messages."""
        return dict(self.params).get("location_id")


@dataclass(frozen=True, slots=True)
class ApiCall:
    """One POST, PATCH or DELETE. Path and parameters may appear in logs; what is sent and answered never does."""

    method: str
    path: str
    """Path from the API's root, with its leading slash, ids filled in."""
    subdomain: str | None = None
    """The institution, for the query (in a body it is ignored, API.md A.4); None = everything the key reaches."""
    body: Mapping[str, object] | None = field(default=None, repr=False)
    """What is sent, as JSON."""
    key_name: str = ""
    """Without a subdomain: the name of the key to use (`NexHealthClient.key_names`)."""
    legacy_accept: bool = False
    """Send the v2 Accept header as well (API.md D.3)."""

    @property
    def repeatable(self) -> bool:
        """Whether doing it twice is the same as doing it once; a POST makes a second thing."""
        return self.method != "POST"
