"""How many requests a whole read is said to cost: by what the warehouse holds of the lists that are asked for."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import psycopg
import pytest

from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.sync.explain import explain
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.sync.plan import slices_of
from nexhealth_pipeline.sync.practice import load_practices

HELD = """
INSERT INTO nexhealth_institutions (institution_id, id, subdomain, raw, synced_at, source_read_at, row_hash)
SELECT id, id, 'i' || id, '{}', now(), now(), '' FROM generate_series(7, 8) AS id;
INSERT INTO nexhealth_locations (institution_id, id, inactive, synced_at, source_read_at, row_hash)
VALUES (7, 1, false, now(), now(), ''), (7, 9, true, now(), now(), '');
INSERT INTO nexhealth_locations (institution_id, id, inactive, synced_at, source_read_at, row_hash)
SELECT 8, id, false, now(), now(), '' FROM generate_series(2, 3) AS id;
INSERT INTO nexhealth_patients (institution_id, id, synced_at, source_read_at, row_hash)
SELECT i, id, now(), now(), '' FROM generate_series(7, 8) AS i, generate_series(1, 3000) AS id;
INSERT INTO nexhealth_providers (institution_id, id, synced_at, source_read_at, row_hash)
SELECT i, id, now(), now(), '' FROM generate_series(7, 8) AS i, generate_series(1, 3000) AS id;
INSERT INTO nexhealth_operatories (institution_id, id, location_id, synced_at, source_read_at, row_hash)
SELECT 8, id, 2 + (id > 500)::int, now(), now(), '' FROM generate_series(1, 6000) AS id;
"""


@pytest.fixture
def held(database_url: str) -> Iterator[psycopg.Connection]:
    """Two institutions, of one active location and of two, each with 3,000 patients and providers."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(HELD)
        yield connection


def requests(connection: psycopg.Connection, name: str, *locations: int) -> int:
    """Said of a full read of a collection at these locations, or of their institutions."""
    today, practices = datetime.now(UTC).date(), load_practices(connection)
    institutions = {one.institution.id for one in practices.locations if one.id in locations}
    pieces = [
        piece
        for piece in slices_of(COLLECTIONS[name], practices, today)
        if (piece.location_id in locations if piece.location else piece.institution_id in institutions)
    ]
    found = explain(connection, pieces, SyncOptions(mode=Mode.FULL), today)
    return next(one.requests for one in found if one.collection == name)


@pytest.mark.parametrize(
    ("name", "locations", "said"),
    [
        ("patients", [1], 3),
        ("patients", [2], 2),
        ("patients", [2, 3], 4),
        ("patients", [1, 2, 3], 7),
        ("providers", [1], 3),
        ("providers", [2], 3),
        ("providers", [1, 3], 6),
        ("operatories", [2], 1),
        ("operatories", [3], 6),
        ("operatories", [2, 3], 7),
    ],
)
def test_only_what_is_asked_for_is_counted(
    held: psycopg.Connection, name: str, locations: list[int], said: int
) -> None:
    """One location of a thousand was said to cost what all of them do."""
    assert requests(held, name, *locations) == said


def test_of_what_changed_one_page_is_about_right(held: psycopg.Connection) -> None:
    """Months that were read leave a change read beside them, which has no watermark before its first."""
    today, practices = datetime.now(UTC).date(), load_practices(held)
    month = next(slices_of(COLLECTIONS["appointments"], practices, today))
    found = explain(held, [month, replace(month, window_key=CHANGES)], SyncOptions(), today)
    assert [(one.slices, one.uncounted) for one in found if one.collection == "appointments"] == [(2, 1)]
