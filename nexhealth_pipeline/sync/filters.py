"""Subsets of a collection: by status, provider and time of change, as the catalog says the API can give them.

NexHealth ignores a parameter that it does not know and answers with everything and a success (API.md C.1).
So a filter is sent only where the collection's declaration has it, and is refused everywhere else.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from nexhealth_pipeline.catalog.collection import Collection, Pass, Scope
from nexhealth_pipeline.errors import InvalidSetting
from nexhealth_pipeline.warehouse.values import YEARS

__all__ = ["NO_FILTERS", "STATUSES", "Filters", "Status", "choose", "filtered_passes", "moment_of", "narrowed_by"]

Status = Literal["active", "inactive"]
STATUSES: tuple[Status, ...] = ("active", "inactive")
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_STATUS, _PROVIDER, _UPDATED = "status", "provider", "updated_since"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which rows are wanted; nothing given = all. True where something is given."""

    status: Status | None = None
    providers: tuple[int, ...] = ()
    """Ids of providers; rows of any of them."""
    updated_since: datetime | None = None
    """Rows changed at this time (aware) or later."""

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the filters given, as the catalog and the command line have them."""
        given = ((_STATUS, self.status), (_PROVIDER, self.providers), (_UPDATED, self.updated_since))
        return tuple(name for name, value in given if value)

    def in_words(self) -> str:
        """What is asked for, for people: names and ids only."""
        return " and ".join(name.replace("_", " ") for name in self.names)


NO_FILTERS = Filters()
"""Everything is wanted."""


def narrowed_by(collection: Collection) -> frozenset[str]:
    """The filters that a collection's list has. Lists under a row and inside records have none."""
    if collection.per is not None or collection.inside is not None:
        return frozenset()
    names = {name for name, _ in collection.filters}
    return frozenset(names | {_UPDATED} if collection.increment else names)


def choose(
    collections: Iterable[Collection], filters: Filters, *, named: bool, known: Iterable[Collection]
) -> list[Collection]:
    """Those of `collections` that have all the filters; all of them without any filter.

    `named`: they were asked for by name, so that one without a filter is refused. `known` are all there
    are, to name those that do have it. Raises InvalidSetting also where none is left.
    """
    wanted = list(collections)
    lacking = [(one, name) for one in wanted for name in filters.names if name not in narrowed_by(one)]
    if named and lacking:
        raise InvalidSetting(_refusal(*lacking[0], known))
    without = {one.name for one, _ in lacking}
    left = [one for one in wanted if one.name not in without]
    if filters and not left:
        raise InvalidSetting(f"no collection can be filtered by {filters.in_words()}: use fewer filters at once")
    return left


def _refusal(collection: Collection, name: str, known: Iterable[Collection]) -> str:
    having = ", ".join(one.name for one in known if name in narrowed_by(one))
    why = "NexHealth would ignore the filter and answer with everything"
    if collection.scope is Scope.PRACTICE:
        why = "every sync begins by reading all of it"
    return (
        f"{collection.name} cannot be filtered by {name.replace('_', ' ')}: {why}"
        f"{f'; the collections that can: {having}' if having else ''}"
    )


def filtered_passes(collection: Collection, filters: Filters, *, owner: bool) -> list[Pass]:
    """The passes of a collection with the filters among their parameters; all that are made load rows.

    A pass that fixes a filter's parameter itself is made only where it fits. Of several providers each has a pass of
    its own: most lists know one at a time, and how the others take several is said one way and may be another. `owner`:
    the location reads for its whole EHR database; any other loads what it lists itself, by the pass that else only
    tells which rows those are. Raises InvalidSetting for a collection that lacks a filter.
    """
    choose([collection], filters, named=True, known=[])
    return [
        replace(fitting, membership=False)
        for one in collection.regular_passes
        if not (one.membership and owner)
        for params in _alternatives(collection, filters)
        if (fitting := _with(one, params)) is not None
    ]


def _with(one: Pass, params: tuple[tuple[str, str], ...]) -> Pass | None:
    """The pass with `params`; None where it fixes one of them to another value."""
    fixed = dict(one.params)
    if any(fixed.get(name, value) != value for name, value in params):
        return None
    return replace(one, params=(*one.params, *(pair for pair in params if pair[0] not in fixed)))


def _alternatives(collection: Collection, filters: Filters) -> list[tuple[tuple[str, str], ...]]:
    """Parameters to ask with, one set after the other. The time of change is the increment's, which the pass adds."""
    names = dict(collection.filters)
    status: tuple[tuple[str, str], ...] = ()
    if filters.status is not None:
        parameter = names[_STATUS]
        status = ((parameter, "true" if filters.status == parameter else "false"),)
    if not filters.providers:
        return [status]
    parameter = names[_PROVIDER]
    return [(*status, (parameter, str(number))) for number in dict.fromkeys(filters.providers)]


def moment_of(name: str, text: str) -> datetime:
    """An ISO 8601 time with a zone, or a day (its beginning in UTC), as UTC. Raises InvalidSetting naming `name`.

    Of years that no record can be of, as 0026 for 2026, none is taken: whoever reads it at the API may guess.
    """
    with suppress(ValueError, OverflowError):  # in UTC it may be before the first year, or after the last
        moment = datetime.fromisoformat(text)
        if _DAY.fullmatch(text):
            moment = moment.replace(tzinfo=UTC)
        if moment.tzinfo is not None and (utc := moment.astimezone(UTC)).year in YEARS:
            return utc
    raise InvalidSetting(
        f"{name} {text!r}: write a day (YYYY-MM-DD) or a time as ISO 8601 with a zone, "
        f"of the years {YEARS[0]} to {YEARS[-1]}"
    )
