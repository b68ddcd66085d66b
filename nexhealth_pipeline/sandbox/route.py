"""What the sandbox has to know of one GET, in words that the tables of routes are written in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .params import Filter, same, updated_since
from .rows import Row

__all__ = ["BY_UPDATE", "HIDES_DELETED", "HIDES_INACTIVE", "SINCE", "Route", "Scope", "anything", "has_name", "ints"]


class Scope(Enum):
    """What a request must be addressed to."""

    KEY = "key"
    """Everything the key reaches; lists but that of institutions take a `subdomain`."""
    INSTITUTION = "institution"
    """`subdomain` required."""
    LOCATION = "location"
    """`subdomain` and `location_id` required."""


@dataclass(frozen=True, slots=True)
class Route:
    """One GET. `{id}` in `path` stands for a number; `single` answers one object by it.

    `under` is the collection that `{id}` names and the fact of the rows that holds its id (a patient's documents),
    `{inner}` then is the row's own number. `narrow` are filters with an index of their name. `paged` lists have
    page numbers and this many rows at most, `cursor` ones cursors, others come whole. `unknown` is the status of a
    single read that finds nothing (API.md C.2).
    """

    path: str
    collection: str
    scope: Scope
    single: bool = False
    cursor: bool = False
    sorts: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    filters: Mapping[str, Filter] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    default_includes: tuple[str, ...] = ()
    legacy: bool = False
    under: tuple[str, str] = ("", "")
    narrow: tuple[str, ...] = ()
    paged: int = 0
    unknown: int = 404

    @property
    def scoped(self) -> bool:
        """Whether `subdomain` is among its parameters."""
        return self.scope is not Scope.KEY or not (self.single or self.under[0] or self.collection == "institutions")

    def known(self) -> frozenset[str]:
        """Parameters that are honoured; any other is ignored and named in `description`."""
        names = {*self.required, *self.one_of, *self.filters, *self.params}
        if self.scoped:
            names.add("subdomain")
        if self.scope is Scope.LOCATION:
            names.add("location_id")
        if self.cursor:
            names |= {"per_page", "start_cursor", "end_cursor"}
        if self.paged:
            names |= {"page", "per_page"}
        if self.sorts:
            names.add("sort")
        if self.includes:
            names.add("include[]")
        return frozenset(names)


BY_UPDATE = ("updated_at", "-updated_at")
"""The `sort` values of most lists."""

SINCE = {"updated_since": updated_since}
"""The increment of most lists."""

HIDES_INACTIVE = {"active": same("bool", "active", default=True)}
"""Inactive rows are left out unless `active=false` asks for them, and then only they come."""

HIDES_DELETED = {
    "include_deleted": Filter("bool", lambda row, wanted: wanted or row.facts["deleted_at"] is None, default=False)
}
"""Deleted rows are left out unless asked for."""


def anything(_row: Row, _wanted: Any) -> bool:
    """Keeps every row: the server applies this filter, because it needs the request or the time."""
    return True


def has_name(row: Row, wanted: str) -> bool:
    """Whether the row's name has `wanted` in it, in capitals or not."""
    return wanted.casefold() in str(row.value("name") or "").casefold()


def ints(*names: str) -> dict[str, Filter]:
    """Filters that compare a number of that name."""
    return {name: same("int", name) for name in names}
