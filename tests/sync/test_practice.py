"""Which locations share an EHR database, and who reads it."""

from typing import Any

import msgspec
import psycopg
import pytest

from nexhealth_pipeline.sync.practice import load_practices, practices_of_records


def records(*databases: list[int], repeated: bool = False) -> dict[str, list[bytes]]:
    """Institution 7 with active locations 1, 2 and 3, and these databases."""
    offices = [{"id": one, "name": f"Office {one}", "institution_id": 7} for one in (1, 2, 3)]
    found: dict[str, list[dict[str, Any]]] = {
        "institutions": [{"id": 7, "subdomain": "smile", "name": "Smile"}],
        "locations": offices * (2 if repeated else 1),
        "sync_status": [{"institution_id": 7, "locations": [{"id": one} for one in ids]} for ids in databases],
    }
    return {name: [msgspec.json.encode(one) for one in rows] for name, rows in found.items()}


@pytest.mark.parametrize(
    ("databases", "owners", "shared"),
    [
        # Nobody says who shares one: only their own lists tell whose a patient is.
        ([], [1, 2, 3], [1, 2, 3]),
        ([[1], [2]], [1, 2, 3], [3]),
        ([[1, 2], [3]], [1, 1, 3], [1, 2]),
        ([[2, 1, 9], [3]], [1, 1, 3], [1, 2]),
        # An office that changes to another practice system stands in two for a while.
        ([[1, 2, 3], [2]], [1, 2, 1], [1, 2, 3]),
        ([[1, 2], [2, 3]], [1, 1, 3], [1, 2, 3]),
        ([[1, 2], [1], [3]], [1, 2, 3], [1, 2]),
        # Its patients are in the database of one whom the key does not reach, or no more.
        ([[1, 9], [2], [3]], [1, 2, 3], [1]),
    ],
)
def test_every_database_is_read_by_one_of_its_locations(
    databases: list[list[int]], owners: list[int], shared: list[int]
) -> None:
    """Else its patients are in nobody's list, and nothing looks wrong."""
    found = practices_of_records(records(*databases)).locations
    assert [one.owner_id for one in found] == owners
    assert [one.id for one in found if one.shared] == shared
    read_for = {one: tuple(two.id for two in found if two.owner_id == one) for one in owners}
    assert [one.members for one in found] == [read_for[one.owner_id] for one in found]
    assert all(next(two for two in found if two.id == one.owner_id).is_owner for one in found)


def test_an_office_that_is_switched_off_still_shares_its_database() -> None:
    """Its patients are in every list of the whole database, and would be taken for those of the one that is left."""
    known = records([1, 2], [3])
    known["locations"][0] = msgspec.json.encode({"id": 1, "name": "Off", "institution_id": 7, "inactive": True})
    _, two, three = practices_of_records(known).locations
    assert (two.owner_id, two.members, two.shared) == (2, (2,), True)
    assert not three.shared


def test_the_only_office_of_an_institution_shares_its_database_with_nobody() -> None:
    """Whether a status names it or not: another list of the same patients each night would tell nothing new."""
    known = records()
    known["locations"] = known["locations"][:1] * 2
    (alone,) = practices_of_records(known).locations
    assert not alone.shared
    known["locations"].append(msgspec.json.encode({"id": 2, "name": "Off", "institution_id": 7, "inactive": True}))
    assert [one.shared for one in practices_of_records(known).locations] == [True, True]


def test_an_institution_that_two_keys_reach_has_its_locations_once() -> None:
    """A dry run would read them twice."""
    assert [one.id for one in practices_of_records(records(repeated=True)).locations] == [1, 2, 3]


UNREADABLE = [
    b'{"id": 9, "institution_id": null, "subdomain": null, "locations": [{"id": 1}]}',
    b'{"id": null, "institution_id": 7, "subdomain": "dale", "locations": [{"id": "abc"}, {}, "3", null, {"id": null}]}',
    b'{"id": "x", "institution_id": 7, "subdomain": "dale", "locations": {}}',
    b'{"id": 10000000000000000000, "institution_id": 7, "subdomain": "dale", "locations": "1"}',
    b'{"id": true, "institution_id": 7.5, "subdomain": "dale"}',
    b'{"id": 8, "institution_id": 7, "subdomain": "dale", "x": NaN}',
    b'{"id": 8, "institution_id": 7, "subdomain": "dale", "x": "\xff"}',
    b'{"id": 8, "institution_id": 7, "subdomain": "dale", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    b'[{"id": 8, "institution_id": 7}]',
    b"null",
    b"{}",
    b"",
]
"""Practice records of which none tells of an institution or a location."""


@pytest.mark.parametrize("bad", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_record_that_a_sync_would_put_into_quarantine_is_left_out(bad: bytes) -> None:
    """A dry run stores none: one odd record would end it, and with it all that it should tell of the others."""
    found = {name: [bad, *good, bad] for name, good in records([1, 2], [3]).items()}
    assert practices_of_records(found) == practices_of_records(records([1, 2], [3]))


def test_ids_and_flags_are_read_as_a_sync_reads_them() -> None:
    found = {
        "institutions": [b'{"id": "7", "subdomain": 77, "name": null}'],
        "locations": [
            b'{"id": "2", "institution_id": "7", "name": 12, "inactive": "true"}',
            b'{"id": 1, "institution_id": 7, "inactive": "perhaps"}',
        ],
    }
    read = practices_of_records(found)
    assert [(one.id, one.subdomain, one.name) for one in read.institutions] == [(7, "77", "77")]
    assert [(one.id, one.name, one.inactive) for one in read.locations] == [(1, "1", False), (2, "12", True)]


def test_an_entry_that_names_no_location_ends_nothing(database_url: str) -> None:
    """One office's odd status must not keep all the others from being read."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO nexhealth_institutions (institution_id, id, subdomain, raw, synced_at, source_read_at, row_hash)"
            " VALUES (7, 7, 'smile', '{}', now(), now(), '');"
            "INSERT INTO nexhealth_locations (institution_id, id, synced_at, source_read_at, row_hash)"
            " SELECT 7, id, now(), now(), '' FROM generate_series(1, 2) AS id;"
            "INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, locations, synced_at,"
            " source_read_at, row_hash)"
            """ VALUES (7, 'x', 'y', '[{"id": "1"}, {"id": "North"}, {"id": 2}, {}, "3"]', now(), now(), '')"""
        )
        assert [(one.id, one.owner_id) for one in load_practices(connection).locations] == [(1, 1), (2, 1)]
