"""Which institutions and locations there are, and which locations share an EHR database.

Read from the warehouse, where discovery (the practice collections) has put them.
"""

from collections.abc import Collection as AnyCollection
from dataclasses import dataclass

import psycopg

from nexhealth_pipeline.errors import InvalidSetting

__all__ = ["Institution", "Location", "Practices", "load_practices"]


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
    """Whether other active locations share the database."""

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

    def active(self, institution_id: int | None = None) -> tuple[Location, ...]:
        """Active locations, of one institution or of all, by id."""
        return tuple(
            location
            for location in self.locations
            if not location.inactive and institution_id in (None, location.institution.id)
        )

    def find(self, text: str) -> Location:
        """The location whose key, id or name is `text`. Raises InvalidSetting, naming the choices."""
        found = [
            location
            for location in self.locations
            if text in (location.key, str(location.id)) or text.casefold() == location.name.casefold()
        ]
        if len(found) == 1:
            return found[0]
        choices = ", ".join(f"{location.key} ({location.name})" for location in (found or self.locations))
        problem = "names several locations" if found else "is no location that the key reaches"
        raise InvalidSetting(f"location {text!r} {problem}; use one of: {choices or 'none is known, check the key'}")


def load_practices(connection: psycopg.Connection, subdomains: AnyCollection[str] = ()) -> Practices:
    """The institutions (those in `subdomains`, or all) and locations the warehouse knows."""
    institutions = {
        row[0]: Institution(row[0], row[1], row[2] or row[1], frozenset(row[3]))
        for row in connection.execute(
            "SELECT id, subdomain, name, ARRAY(SELECT f.key FROM jsonb_each(raw) f WHERE f.value = 'true'::jsonb)"
            " FROM nexhealth_institutions WHERE deleted_at IS NULL AND subdomain IS NOT NULL ORDER BY id"
        )
        if not subdomains or row[1] in subdomains
    }
    rows = [
        row
        for row in connection.execute(
            "SELECT id, coalesce(name, id::text), institution_id, coalesce(inactive, false) FROM nexhealth_locations"
            " WHERE deleted_at IS NULL ORDER BY id"
        )
        if row[2] in institutions
    ]
    active = {row[0] for row in rows if not row[3]}
    groups = _groups(connection)
    locations = []
    for location_id, name, institution_id, inactive in rows:
        siblings = sorted(groups.get((institution_id, location_id), frozenset({location_id})) & active)
        owner = siblings[0] if siblings else location_id
        locations.append(
            Location(location_id, name, institutions[institution_id], inactive, owner, shared=len(siblings) > 1)
        )
    return Practices(tuple(institutions.values()), tuple(locations))


def _groups(connection: psycopg.Connection) -> dict[tuple[int, int], frozenset[int]]:
    """Ids of the locations that share an EHR database, by institution and each of them."""
    groups: dict[tuple[int, int], frozenset[int]] = {}
    for institution_id, ids in connection.execute(
        "SELECT institution_id, ARRAY(SELECT (l->>'id')::bigint FROM jsonb_array_elements("
        " CASE jsonb_typeof(locations) WHEN 'array' THEN locations ELSE '[]' END) l)"
        " FROM nexhealth_sync_status WHERE deleted_at IS NULL"
    ):
        for location_id in ids:
            groups[institution_id, location_id] = groups.get((institution_id, location_id), frozenset()) | frozenset(
                ids
            )
    return groups
