"""Every GET of the sandbox, and finding the one that a path means."""

from typing import NamedTuple

from .route import Route
from .routes_ledger import LEDGER
from .routes_patients import PATIENTS
from .routes_practice import PRACTICE

__all__ = ["ROUTES", "Found", "find_route"]

ROUTES: tuple[Route, ...] = (*PRACTICE, *PATIENTS, *LEDGER)
"""Every GET that the sandbox answers, except the download of a document."""

_BY_PATH = {route.path: (route, route.known()) for route in ROUTES}


class Found(NamedTuple):
    """A route, its known parameters, and the numbers in the path: `{id}` and `{inner}`."""

    route: Route
    known: frozenset[str]
    number: int | None
    inner: int | None


def find_route(path: str) -> Found | None:
    """The route of a request path; None for an unknown path."""
    found = _BY_PATH.get(path)
    if found:
        return Found(*found, None, None)
    parts = path.split("/")
    numbers: list[int | None] = [None, None]
    for which, place, name in ((0, 2, "{id}"), (1, 4, "{inner}")):
        if len(parts) > place and parts[place].isdecimal():
            numbers[which], parts[place] = int(parts[place]), name
    found = _BY_PATH.get("/".join(parts))
    return Found(*found, *numbers) if found else None
