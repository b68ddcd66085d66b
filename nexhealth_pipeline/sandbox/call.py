"""One request, as far as it is understood."""

from dataclasses import dataclass, field

from .params import Query
from .reply import ApiError
from .route import Route
from .rows import Row

__all__ = ["FORBIDDEN", "Call"]

FORBIDDEN = "You don't have access to perform this action"
"""What a 403 says, whatever its reason (API.md K)."""


@dataclass(slots=True)
class Call:
    """A GET: its route and parameters, and what the server has found out about them."""

    route: Route
    query: Query
    number: int | None
    inner: int | None
    allowed: frozenset[str] | None
    warnings: list[str] = field(default_factory=list)
    institution: Row | None = None
    location: Row | None = None
    includes: tuple[str, ...] = ()

    @property
    def scope_id(self) -> int:
        """The institution the request is scoped to."""
        if self.institution is None:
            raise ApiError(400, "Missing parameter subdomain")
        return self.institution.id

    @property
    def location_id(self) -> int | None:
        """The location the request names."""
        return self.location.id if self.location else None
