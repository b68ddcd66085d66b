"""Which institutions and locations there are, and which locations share an EHR database.

Read from the warehouse, where discovery (the practice collections) has put them.
"""

from collections import Counter
from collections.abc import Collection as AnyCollection
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import msgspec
import psycopg

from nexhealth_pipeline.catalog.collection import SqlType
from nexhealth_pipeline.errors import InvalidSetting, RecordRefused
from nexhealth_pipeline.log import printable
from nexhealth_pipeline.warehouse.values import CONVERTERS

__all__ = ["Institution", "Location", "Practices", "load_practices", "practices_of_records"]


@dataclass(frozen=True, slots=True)
class Institution:
    """A parent organisation."""

    id: int
    subdomain: str
    name: str
    flags: frozenset[str]
    """Names of its boolean fields that are true."""


@dataclass(frozen=True, slots=True)
class Location:
    """An office, and its place among those that share its EHR database."""

    id: int
    name: str
    institution: Institution
    inactive: bool
    owner_id: int
    """Lowest-id active location of the same EHR database: reads for all of them."""
    shared: bool
    """Whether other locations share the database, those that nobody reads any more as well: it still has their patients,
    and a list of the whole of it does not say whose one is. They may as well where no status names the location; one that
    a status names is taken at its word, whoever is named nowhere."""
    members: tuple[int, ...] = ()
    """Active locations that the owner reads for, itself included."""

    @property
    def key(self) -> str:
        """Partition key `<subdomain>.<location_id>`."""
        return f"{self.institution.subdomain}.{self.id}"

    @property
    def is_owner(self) -> bool:
        """Whether this location reads for its database."""
        return self.owner_id == self.id


@dataclass(frozen=True, slots=True)
class Practices:
    """Everything the key reaches, inactive locations included."""

    institutions: tuple[Institution, ...]
    locations: tuple[Location, ...]
    left_out: frozenset[str] = frozenset()
    """Subdomains of other institutions that are known, and not wanted."""

    def active(self, institution_id: int | None = None) -> tuple[Location, ...]:
        """Active locations, of one institution or of all, by id."""
        return tuple(
            location
            for location in self.locations
            if not location.inactive and institution_id in (None, location.institution.id)
        )

    def part(self, institutions: Container[int], locations: Container[int]) -> "Practices":
        """These institutions with all of their locations, and of others these locations alone; by their ids."""
        kept = tuple(one for one in self.locations if one.institution.id in institutions or one.id in locations)
        theirs = {one.institution.id for one in kept}
        return Practices(tuple(one for one in self.institutions if one.id in institutions or one.id in theirs), kept)

    def chosen(self, texts: Iterable[str]) -> list[Location]:
        """The locations to be read that `texts` name, as :meth:`find`. Raises InvalidSetting for an inactive one as well."""
        found = [self.find(text) for text in texts]
        inactive = [location.key for location in found if location.inactive]
        if inactive:
            raise InvalidSetting(f"location {inactive[0]} is inactive: NexHealth no longer reads its practice system")
        return found

    def named(self, text: str) -> list[Location]:
        """Locations whose key, id or name is `text`."""
        return [
            location
            for location in self.locations
            if text in (location.key, str(location.id)) or text.casefold() == location.name.casefold()
        ]

    def find(self, text: str) -> Location:
        """The location whose key, id or name is `text`. Raises InvalidSetting, naming the choices."""
        found = self.named(text)
        if len(found) == 1:
            return found[0]
        choices = ", ".join(f"{location.key} ({printable(location.name)})" for location in (found or self.locations))
        problem = "names several locations" if found else "is no location that the key reaches"
        raise InvalidSetting(f"location {text!r} {problem}; use one of: {choices or 'none is known, check the key'}")


def load_practices(connection: psycopg.Connection, subdomains: AnyCollection[str] = ()) -> Practices:
    """The institutions (those in `subdomains`, or all) and locations the warehouse knows."""
    institutions = connection.execute(
        "SELECT id, subdomain, name, ARRAY(SELECT f.key FROM jsonb_each(raw) f WHERE f.value = 'true'::jsonb)"
        " FROM nexhealth_institutions WHERE deleted_at IS NULL AND subdomain IS NOT NULL ORDER BY id"
    ).fetchall()
    locations = connection.execute(
        "SELECT id, coalesce(name, id::text), institution_id, coalesce(inactive, false) FROM nexhealth_locations"
        " WHERE deleted_at IS NULL ORDER BY id"
    ).fetchall()
    return _practices(institutions, locations, _groups(connection), subdomains)


def practices_of_records(records: Mapping[str, list[bytes]], subdomains: AnyCollection[str] = ()) -> Practices:
    """The institutions (those in `subdomains`, or all) and locations in the records of the practice collections.

    For a dry run, which stores none; `records` by collection. What a sync would put into quarantine is left out.
    """
    institutions, locations, statuses = (
        [one for record in records.get(name, ()) if (one := _read(record)) is not None]
        for name in ("institutions", "locations", "sync_status")
    )
    return _practices(
        sorted(filter(None, map(_institution_row, institutions)), key=itemgetter(0)),
        sorted(filter(None, map(_location_row, locations)), key=itemgetter(0)),
        _grouped(
            (institution_id, [*_named_in(one.get("locations"))])
            for one in statuses
            if (institution_id := _id(one, "institution_id")) is not None
        ),
        subdomains,
    )


def _read(record: bytes) -> dict[str, Any] | None:
    """The record as an object; None where it is none, or no JSON."""
    try:
        return msgspec.json.decode(record, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _institution_row(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    id_, subdomain = _id(record, "id"), _stored(SqlType.TEXT, record.get("subdomain"))
    flags = [name for name, value in record.items() if value is True]
    return (id_, subdomain, _stored(SqlType.TEXT, record.get("name")), flags) if id_ is not None and subdomain else None


def _location_row(record: Mapping[str, Any]) -> tuple[Any, ...] | None:
    id_, institution_id = _id(record, "id"), _id(record, "institution_id")
    if id_ is None or institution_id is None:
        return None
    inactive = _stored(SqlType.BOOLEAN, record.get("inactive")) == "True"
    return id_, _stored(SqlType.TEXT, record.get("name")) or str(id_), institution_id, inactive


def _named_in(locations: object) -> Iterator[int]:
    """Ids in a status's list of locations, whatever else may stand there."""
    for one in locations if isinstance(locations, list) else ():
        if isinstance(one, dict) and (id_ := _id(one, "id")) is not None:
            yield id_


def _id(record: Mapping[str, Any], name: str) -> int | None:
    text = _stored(SqlType.BIGINT, record.get(name))
    return None if text is None else int(text)


def _stored(kind: SqlType, value: object) -> str | None:
    """What a sync would store of a value, as text; None where that is nothing."""
    try:
        return CONVERTERS[kind](value)
    except RecordRefused:
        return None


def _practices(
    institution_rows: Iterable[tuple[Any, ...]],
    location_rows: Iterable[tuple[Any, ...]],
    groups: Mapping[tuple[int, int], list[frozenset[int]]],
    subdomains: AnyCollection[str],
) -> Practices:
    known = [Institution(row[0], row[1], row[2] or row[1], frozenset(row[3])) for row in institution_rows]
    institutions = {one.id: one for one in known if not subdomains or one.subdomain in subdomains}
    # Two keys may reach the same institution.
    rows = [*{(row[2], row[0]): row for row in location_rows if row[2] in institutions}.values()]
    active = {row[0] for row in rows if not row[3]}
    offices = Counter(row[2] for row in rows)
    locations = []
    for location_id, name, institution_id, inactive in rows:
        named = groups.get((institution_id, location_id), ())
        databases = [one & active for one in named if one & active]
        # One of two databases answers of either, so whoever is of this one alone comes first.
        first = {min(one, key=lambda id_: (len(groups[institution_id, id_]), id_)) for one in databases}
        owner = location_id if location_id in first or not first else min(first)
        # Whom no status names may be in any other's database. Taken for alone, all who are in it would be noted as its own;
        # taken for one that shares, its own list is asked for once more. Those whom a status names are trusted to be with
        # whom it says: else one location that none names would cost all others of the institution a list more.
        shared = any(len(one) > 1 for one in named) if named else offices[institution_id] > 1
        locations.append(Location(location_id, name, institutions[institution_id], inactive, owner, shared=shared))
    left_out = frozenset(one.subdomain for one in known if one.id not in institutions)
    return Practices(tuple(institutions.values()), tuple(_with_members(locations)), left_out)


def _with_members(locations: Iterable[Location]) -> Iterator[Location]:
    """One tuple for all of a database."""
    locations = list(locations)
    members: dict[tuple[int, int], tuple[int, ...]] = {}
    for one in locations:
        if not one.inactive:
            members[one.institution.id, one.owner_id] = (*members.get((one.institution.id, one.owner_id), ()), one.id)
    for one in locations:
        yield one if one.inactive else replace(one, members=members[one.institution.id, one.owner_id])


def _groups(connection: psycopg.Connection) -> dict[tuple[int, int], list[frozenset[int]]]:
    rows = connection.execute(
        "SELECT institution_id, ARRAY(SELECT (l->>'id')::bigint FROM jsonb_array_elements("
        " CASE jsonb_typeof(locations) WHEN 'array' THEN locations ELSE '[]' END) l WHERE l->>'id' ~ '^[0-9]{1,18}$')"
        " FROM nexhealth_sync_status WHERE deleted_at IS NULL"
    )
    return _grouped((institution_id, ids) for institution_id, ids in rows)


def _grouped(databases: Iterable[tuple[int, list[int]]]) -> dict[tuple[int, int], list[frozenset[int]]]:
    """Ids of the locations that share an EHR database, by institution and each of them: mostly one database a location.

    Of two while an office changes to another practice system.
    """
    groups: dict[tuple[int, int], list[frozenset[int]]] = {}
    for institution_id, ids in databases:
        for location_id in ids:
            groups.setdefault((institution_id, location_id), []).append(frozenset(ids))
    return groups
