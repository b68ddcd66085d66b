"""What to ask NexHealth for, without how: one list, or one thing."""

from dataclasses import dataclass

from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["ApiRequest"]


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One GET. Everything here may appear in logs: ids and filters, never a patient's name or date."""

    path: str
    """Path from the API's root, with its leading slash, ids filled in."""
    params: tuple[tuple[str, str], ...] = ()
    """Query parameters, without `subdomain`, `per_page` and cursors, which the client adds."""
    subdomain: str | None = None
    """The institution; None for requests about everything the key reaches."""
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
