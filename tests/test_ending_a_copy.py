"""The guide's statement for an institution that is to be copied no more: all of it goes, and nothing of any other."""

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collections import DECLARED
from tests.test_docs import INSTITUTION, statements
from tests.test_erasing import rows_of

_TENANTS = """
SELECT c.relname::text FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'institution_id'
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
ORDER BY c.relname = 'nexhealth_changes', 1
"""
_MADE_UP: dict[str, object] = {
    **dict.fromkeys(("bigint", "integer", "double precision", "numeric"), 1),
    **dict.fromkeys(("text", "bytea"), ""),
    **dict.fromkeys(("timestamp with time zone", "date"), "now"),
    "boolean": False,
    "jsonb": "{}",
    "ARRAY": "{}",
}
_ONE_OF: dict[tuple[str, str], object] = {
    ("nexhealth_capabilities", "status"): "supported",
    ("nexhealth_check_results", "severity"): "warning",
    ("nexhealth_schema_drift", "kind"): "missing",
    ("nexhealth_sync_logs", "status"): "succeeded",
    ("nexhealth_webhook_events", "verdict"): "valid",
    ("nexhealth_webhook_events", "status"): "applied",
}


def test_an_institution_that_is_to_be_copied_no_more_is_erased_whole_and_no_other(database_url: str) -> None:
    """Its patients, what was, what is kept beside them, and events from before anybody knew its id."""
    (erase,) = statements("An institution is to be copied no more")
    other = INSTITUTION + 1
    with psycopg.connect(database_url, autocommit=True) as connection:
        for institution, subdomain in ((INSTITUTION, "harbor-smiles"), (other, "willow-dental")):
            _fill_every_table(connection, institution, subdomain)
        connection.execute("UPDATE nexhealth_patients SET email = 'a'")
        before = _by_institution(connection)
        assert {one for one, *_ in before} >= {one.table for one in DECLARED} | {"nexhealth_history", "nexhealth_seen"}
        connection.execute(erase.encode())
        theirs = {row for row in before if row[1] == other}
        feed = ("nexhealth_changes", INSTITUTION, 2 * len(DECLARED) + 1)
        assert _by_institution(connection) == {feed, *theirs}
        told = connection.execute(
            "SELECT DISTINCT kind FROM nexhealth_changes WHERE institution_id = %s ORDER BY 1", (INSTITUTION,)
        )
        assert [kind for (kind,) in told] == ["deleted", "inserted", "updated"]
        connection.execute(erase.encode())


def _fill_every_table(connection: psycopg.Connection, institution: int, subdomain: str) -> None:
    """A row of the institution in every table that has some of one, and what belongs to those."""
    for table in rows_of(connection, _TENANTS):
        if table in {"nexhealth_history", "nexhealth_changes"}:
            continue  # what happens to the others fills them
        required = connection.execute(
            "SELECT column_name::text, data_type FROM information_schema.columns WHERE table_schema = 'public'"
            " AND table_name = %s AND is_nullable = 'NO' AND column_default IS NULL AND is_identity = 'NO'",
            (table,),
        )
        row: dict[str, object] = {name: _ONE_OF.get((table, name), _MADE_UP[kind]) for name, kind in required}
        row |= {"institution_id": institution}
        if table == "nexhealth_institutions":
            row |= {"id": institution, "subdomain": subdomain}
        connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(table),
                sql.SQL(", ").join(map(sql.Identifier, row)),
                sql.SQL(", ").join(map(sql.Literal, row.values())),
            )
        )
    connection.execute(
        "INSERT INTO nexhealth_seen (pass_id, key) SELECT id, 'x' FROM nexhealth_seen_passes WHERE institution_id = %s",
        (institution,),
    )
    connection.execute(
        "INSERT INTO nexhealth_webhook_events (subdomain, verdict, status, payload) VALUES (%s, 'valid', 'parked', '{}')",
        (subdomain,),
    )


def _by_institution(connection: psycopg.Connection) -> set[tuple[str, int, int]]:
    """How many rows of which institution are in which table."""
    found = set()
    queries = {one: f"SELECT institution_id, count(*) FROM {one} GROUP BY 1" for one in rows_of(connection, _TENANTS)}
    queries["nexhealth_seen"] = (
        "SELECT institution_id, count(*) FROM nexhealth_seen JOIN nexhealth_seen_passes ON id = pass_id GROUP BY 1"
    )
    queries["nexhealth_webhook_events"] = (
        "SELECT coalesce(e.institution_id, i.id), count(*) FROM nexhealth_webhook_events e"
        " LEFT JOIN nexhealth_institutions i USING (subdomain) GROUP BY 1"
    )
    for table, query in queries.items():
        found |= {(table, institution, count) for institution, count in connection.execute(query.encode())}
    return found
