"""Reconciles of the sandbox's practices: who they are, and what became of their rows."""

from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings, load_settings
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.slices import Absence, SliceResult
from tests.conftest import _fresh

from .kit import Rows, sync_all, use_few_months

FULL, RECONCILE = SyncOptions(mode=Mode.FULL), SyncOptions(mode=Mode.RECONCILE)
NORTH, SOUTH, DESERT = 348511, 348512, 348513
"""Of willow-dental; the first two share EHR database 35."""
PIER, OFFLINE = 348621, 348622
"""Of harbor-smiles, with a database each."""


def practice(box: SandboxServer, database_url: str, subdomain: str) -> Settings:
    given = {"NEXHEALTH_API_URL": box.url, "NEXHEALTH_API_KEY": box.api_key, "DATABASE_URL": database_url}
    return load_settings(given | {"NEXHEALTH_SUBDOMAINS": subdomain}, environ={}, env_file=None)


def having_read(box: SandboxServer, subdomain: str, names: set[str], server_url: str, template: str) -> Iterator[str]:
    """Name of a warehouse that has read these collections of a practice of `box`: each test's own is a copy of it."""
    for url in _fresh(server_url, template):
        with box, pytest.MonkeyPatch.context() as patch:
            use_few_months(patch)
            sync_all(practice(box, url, subdomain), FULL, only=names)
        yield str(conninfo_to_dict(url)["dbname"])


def gone(rows: Rows, name: str) -> set[object]:
    """Ids of the rows that are marked as absent."""
    where = "deleted_by = 'absence' AND deleted_at IS NOT NULL"
    return {row[0] for row in rows(f"SELECT id FROM nexhealth_{name} WHERE {where}")}


def at(rows: Rows, name: str, location: int, most: int = 99) -> list[int]:
    """Ids of the rows of a location."""
    found = rows(f"SELECT id FROM nexhealth_{name} WHERE location_id = {location} ORDER BY id LIMIT {most}")
    return [int(str(row[0])) for row in found]


def told(results: list[SliceResult], name: str) -> dict[str, tuple[str, str | None]]:
    """How the judgements of a collection ended, by label without its name; quiet ones left out."""
    return {
        one.slice.label.removeprefix(name).strip(): (one.status.value, one.reason)
        for one in results
        if one.absence is not None and one.slice.collection.name == name and (one.reason or not one.absence.quiet)
    }


def figures(results: list[SliceResult], name: str) -> list[Absence]:
    found = [one for one in results if one.absence is not None and one.slice.collection.name == name]
    return [one.absence for one in found if one.absence is not None and not one.absence.quiet]


def at_patient(rows: Rows, location: int) -> int:
    query = f"SELECT min(patient_id) FROM nexhealth_patient_locations WHERE location_id = {location}"
    return int(str(rows(query)[0][0]))
