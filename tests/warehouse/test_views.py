"""What analysts see: only what is there, in local time, with names, and patients and visits alone."""

import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from typing import Any

import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Collection, Current, Derived, Phi, Shown, SqlType, column, flatten
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.errors import WarehouseError
from nexhealth_pipeline.warehouse.tables import ensure_tables

from .conftest import Rows
from .kit import GADGETS, NOON, SOFT_DELETED, Table, gadget

WIDER = replace(GADGETS, columns=flatten(column("colour", SqlType.TEXT, Phi.NONE, "Colour."), GADGETS.columns))
NARROWER = replace(GADGETS, current=Current(columns=(Derived("note", "1", Phi.NONE, "Now a number."),)))
FLAGGED = replace(
    GADGETS,
    current=Current(
        columns=(Derived("is_heavy", "t.weight > 1", Phi.NONE, "More than a kilogram."),),
        views=(
            Shown("gadgets", "A gadget in use.", "t.active"),
            Shown("spares", "A gadget in the cellar.", "NOT t.active"),
        ),
    ),
)


@pytest.fixture
def add(connection: psycopg.Connection) -> Iterator[Any]:
    """Adds a row to a collection's table; what the test added is gone after it."""
    used: set[str] = set()

    def add(collection: str, /, **values: Any) -> None:
        used.add(collection)
        row = {"institution_id": 7, "raw": "{}", "synced_at": NOON, "source_read_at": NOON, "row_hash": b""} | values
        connection.execute(
            f"INSERT INTO nexhealth_{collection} ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
            list(row.values()),
        )

    yield add
    for name in used:
        connection.execute(f"DELETE FROM nexhealth_{name}")


def view_names(collection: Collection) -> list[str]:
    return [view.name for view in collection.current.views] or [collection.name]


def view_columns(connection: psycopg.Connection, name: str) -> dict[str, str | None]:
    """Columns of a view, in order, with their comments."""
    return dict(
        connection.execute(
            "SELECT attname::text, col_description(attrelid, attnum) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
            (f"nexhealth_current.{name}",),
        ).fetchall()
    )


def test_every_collection_has_a_view_that_answers_and_is_described(connection: psycopg.Connection) -> None:
    """An analyst's role is built from the classes in the comments."""
    ours = {"raw", "row_hash", "synced_at", "source_read_at", "deleted_at", "deleted_by", "first_seen_at"}
    for collection in DECLARED:
        for name in view_names(collection):
            connection.execute(f"SELECT * FROM nexhealth_current.{name}")
            found = view_columns(connection, name)
            assert not ours & set(found), name
            assert {*collection.key} <= set(found)
            for field, comment in found.items():
                assert comment, f"{name}.{field}"
                assert any(comment.endswith(f"PHI class: {phi.value}.") for phi in Phi), comment
                # Analysts have the views only: a table is no advice for them.
                assert "nexhealth_" not in comment or "whoever may read the tables" in comment, comment


@pytest.mark.parametrize("kind", [GADGETS, SOFT_DELETED], ids=["by absence", "by the source"])
def test_deleted_rows_are_not_shown(connection: psycopg.Connection, rows: Rows, kind: Collection) -> None:
    table = Table(connection, kind)
    deleted = {"deleted_at": "2026-01-01T00:00:00Z"} if kind.soft_delete else {}
    table.load(gadget(1), gadget(2, **deleted))
    if not kind.soft_delete:
        table.bury(2, NOON)
    assert rows("SELECT id FROM nexhealth_current.gadgets") == [(1,)]
    assert "deleted_at" not in view_columns(connection, "gadgets")


def test_visits_have_the_offices_time_and_names_and_no_blocks(
    connection: psycopg.Connection, rows: Rows, add: Any
) -> None:
    """Risk: a visit at 18:30 in New York counts for the next day, and a lunch break as a visit."""
    add("locations", id=3, name="Harbour", tz="America/New_York")
    add("locations", id=4, name="Hill", tz="Eastern Time (US & Canada)")
    add("patients", id=5, name="Ada Byron")
    add("appointment_types", id=6, name="Check-up")
    add("operatories", id=8, name="Room 1")
    visit = {"start_time": "2026-07-01T22:30Z", "end_time": "2026-07-02T04:30Z", "patient_id": 5, "cancelled": False}
    add("appointments", id=1, location_id=3, foreign_id="77", appointment_type_id=6, operatory_id=8, **visit)
    add("appointments", id=2, location_id=4, timezone="Asia/Tokyo", appointment_type_id=0, cancelled_at=NOON, **visit)
    add("appointments", id=9, location_id=4, timezone="Nowhere/At_All", **visit)
    add("appointments", id=10, location_id=3, unavailable=True, **visit)
    add("appointments", id=11, location_id=3, start_time="2026-07-01T22:30Z")
    add("appointments", id=12, location_id=3, deleted_at=NOON, **visit)
    query = (
        "SELECT id, local_start_time::text, local_end_time::text, local_date::text, location_name, patient_name, appointment_type_name,"
        " operatory_name, in_ehr, appointment_type_id, cancelled_at, local_zone FROM nexhealth_current.appointments ORDER BY id"
    )
    first, second, third = rows(query)
    assert first[:4] == (1, "2026-07-01 18:30:00", "2026-07-02 00:30:00", "2026-07-01")
    assert first[4:] == ("Harbour", "Ada Byron", "Check-up", "Room 1", True, 6, None, "America/New_York")
    assert second[:4] == (2, "2026-07-02 07:30:00", "2026-07-02 13:30:00", "2026-07-02")
    assert second[4:] == ("Hill", "Ada Byron", None, None, False, None, None, "Asia/Tokyo")
    assert (third[:4], third[-1]) == ((9, None, None, None), None)
    assert rows("SELECT id FROM nexhealth_current.schedule_blocks ORDER BY id") == [(10,), (11,)]


def test_patients_are_apart_from_those_who_only_pay(connection: psycopg.Connection, rows: Rows, add: Any) -> None:
    add("patients", id=1, name="Ada", guarantor_id=0, foreign_id="x")
    add("patients", id=2, name="Bea", guarantor_id=3, bio_non_patient=False)
    add("patients", id=3, name="Cy", guarantor_id=3, bio_non_patient=True)
    add("patient_addresses", patient_id=2, city="Malmö")
    add("patient_addresses", patient_id=1, city="Lund", deleted_at=NOON)
    for location, gone in ((20, None), (10, None), (30, NOON)):
        connection.execute("INSERT INTO nexhealth_patient_locations VALUES (7, 1, %s, %s, %s)", (location, NOON, gone))
    query = (
        "SELECT id, guarantor_id, pays_for_self, guarantor_name, in_ehr, location_ids, address_city"
        " FROM nexhealth_current.{} ORDER BY id"
    )
    assert rows(query.format("patients")) == [
        (1, 1, True, "Ada", True, [10, 20], None),
        (2, 3, False, "Cy", False, [], "Malmö"),
    ]
    assert rows(query.format("non_patients")) == [(3, 3, True, "Cy", False, [], None)]


def test_payments_of_insurers_are_told_apart_and_days_stay_days(rows: Rows, add: Any) -> None:
    """Risk: a ledger date that becomes a time moves to the day before in the west."""
    add("payment_types", id=1, name="Card")
    for number, plan in ((1, None), (2, 0), (3, 44)):
        add("payments", id=number, insurance_plan_id=plan, payment_type_id=1, paid_at="2026-03-01")
    add("payments", id=4, deleted_at=NOON)
    assert rows("SELECT id, is_insurance, payment_type_name, paid_at FROM nexhealth_current.payments ORDER BY id") == [
        (1, False, "Card", date(2026, 3, 1)),
        (2, False, "Card", date(2026, 3, 1)),
        (3, True, "Card", date(2026, 3, 1)),
    ]


def test_what_stands_in_a_deleted_record_is_not_shown(rows: Rows, add: Any) -> None:
    """Risk: the payouts of voided charges, which keep their lists, are added up with the others."""
    add("charges", id=1)
    add("charges", id=2, deleted_at=NOON)
    add("charges", id=2, institution_id=8)
    for charge, institution in ((1, 7), (2, 7), (2, 8), (3, 7)):
        add("claim_payouts", charge_id=charge, claim_id=9, institution_id=institution)
    shown = rows("SELECT institution_id, charge_id FROM nexhealth_current.claim_payouts ORDER BY 1, 2")
    assert shown == [(7, 1), (7, 3), (8, 2)]


def test_what_a_deleted_claim_was_to_bring_is_not_shown(connection: psycopg.Connection, rows: Rows, add: Any) -> None:
    """Risk: the claim is gone from claims, and what it brought is still added up, as the charge goes on listing it."""
    add("claims", id=1, status="received")
    add("claims", id=2, status="sent", deleted_at=NOON, deleted_by="source")
    add("claims", id=2, institution_id=8, status="canceled")
    for charge, claim, institution in ((1, 1, 7), (1, 2, 7), (2, 1, 7), (2, 2, 8), (3, 404, 7)):
        add("claim_payouts", charge_id=charge, claim_id=claim, institution_id=institution)
    query = (
        "SELECT institution_id, charge_id, claim_id, claim_status FROM nexhealth_current.claim_payouts ORDER BY 1, 2"
    )
    assert rows(query) == [(7, 1, 1, "received"), (7, 2, 1, "received"), (7, 3, 404, None), (8, 2, 2, "canceled")]
    told = "SELECT obj_description('nexhealth_current.claim_payouts'::regclass)"
    assert "a claim that is not deleted" in rows(told)[0][0]
    for name, paid in (("claim_payouts", "insurance_payment"), ("claims", "totals_insurance_payment")):
        assert "payments has it too" in str(view_columns(connection, name)[paid])
        written_off = view_columns(connection, name)[paid.replace("insurance_payment", "write_off")]
        assert "others are rows of adjustments" in str(written_off)


def test_how_fresh_it_is_and_what_is_not_to_be_had_is_shown(
    connection: psycopg.Connection, rows: Rows, add: Any
) -> None:
    """Risk: who has the views alone takes a list that was never read, or is not enabled, for an empty one."""
    add("locations", id=3, name="Harbour")
    with connection.transaction(force_rollback=True):
        connection.execute(
            "INSERT INTO nexhealth_freshness (institution_id, location_id, collection, complete_through,"
            " source_read_status) VALUES (7, 3, 'patients', %s, 'red'), (7, 0, 'providers', %s, NULL)",
            (NOON, NOON),
        )
        connection.execute(
            "INSERT INTO nexhealth_capabilities (institution_id, location_id, collection, status, evidence)"
            " VALUES (7, 3, 'patients', 'supported', ''), (7, 3, 'charges', 'not_enabled', '403')"
        )
        shown = rows(
            "SELECT institution_id, location_id, location_name, collection, complete_through IS NOT NULL,"
            " source_read_status, capability FROM nexhealth_current.freshness ORDER BY collection"
        )
    assert shown == [
        (7, 3, "Harbour", "charges", False, None, "not_enabled"),
        (7, 3, "Harbour", "patients", True, "red", "supported"),
        (7, 0, None, "providers", True, None, None),
    ]
    for field, comment in view_columns(connection, "freshness").items():
        assert str(comment).endswith(f"PHI class: {'id' if field == 'institution_id' else 'none'}."), field


def test_joins_keep_every_row_once(rows: Rows, add: Any) -> None:
    """Risk: a name that is found twice, in another institution, doubles a sum."""
    add("locations", id=3, name="Harbour", tz="UTC")
    add("locations", id=3, institution_id=8, name="Other", tz="UTC")
    add("patients", id=5, name="Ada")
    add("patients", id=5, institution_id=8, name="Other")
    add("patient_addresses", patient_id=5)
    add("appointments", id=1, location_id=3, patient_id=5, start_time=NOON)
    add("appointments", id=2, location_id=404, patient_id=404, start_time=NOON)
    query = "SELECT id, location_name, patient_name FROM nexhealth_current.appointments ORDER BY 1"
    assert rows(query) == [(1, "Harbour", "Ada"), (2, None, None)]
    assert rows("SELECT name FROM nexhealth_current.patients WHERE institution_id = 7") == [("Ada",)]


def test_one_patients_rows_are_found_by_index(connection: psycopg.Connection, rows: Rows) -> None:
    connection.execute("SET enable_seqscan = off")
    plan = rows(
        "EXPLAIN SELECT id, local_date FROM nexhealth_current.appointments WHERE institution_id = 7 AND patient_id = 5"
    )
    assert any("nexhealth_appointments_institution_id_patient_id_idx" in line for (line,) in plan)


def test_one_locations_patients_are_found_by_index(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: who has the views alone asks for one office's patients, and for each in the institution a list is made."""
    connection.execute(
        f"INSERT INTO nexhealth_patient_locations SELECT 7, n, n % 300, '{NOON}' FROM generate_series(1, 3000) n;"
        f" INSERT INTO nexhealth_patient_locations SELECT 7, n, 5, '{NOON}', now() FROM generate_series(1, 3) n;"
        " ANALYZE nexhealth_patient_locations"
    )
    query = "SELECT * FROM nexhealth_current.patient_locations WHERE institution_id = 7 AND location_id = 5"
    assert sorted(rows(query)) == [(7, number, 5, NOON) for number in range(5, 3000, 300)]
    plan = "\n".join(line for (line,) in rows(f"EXPLAIN {query}"))
    assert re.search(r"nexhealth_patient_locations_location .*\n *Index Cond: .*location_id = 5", plan), plan
    for name, comment in view_columns(connection, "patient_locations").items():
        assert str(comment).endswith(f"PHI class: {'id' if name in ('institution_id', 'patient_id') else 'none'}.")
    # By location_id alone PostgreSQL before 18 reads all of them.
    ((whole,),) = rows("SELECT obj_description('nexhealth_current.patient_locations'::regclass)")
    assert "by institution_id and location_id" in whole
    leads = str(view_columns(connection, "patients")["location_ids"])
    assert "patient_locations, by institution_id and location_id" in leads


def test_zones_are_tried_once_a_query_also_of_one_patient(connection: psycopg.Connection, rows: Rows) -> None:
    """A practice group of three hundred offices: their zones were all tried again for each visit that was found."""
    columns, values = "synced_at, source_read_at, row_hash", "now(), now(), ''"
    connection.execute(
        f"INSERT INTO nexhealth_locations (institution_id, id, name, tz, {columns})"
        f" SELECT n / 3, n, 'Office', 'America/New_York', {values} FROM generate_series(3, 302) n;"
        f" INSERT INTO nexhealth_appointments (institution_id, id, location_id, patient_id, start_time, {columns})"
        f" SELECT n / 30, n, n / 10, n / 30, now(), {values} FROM generate_series(30, 3029) n;"
        " ANALYZE nexhealth_locations, nexhealth_appointments"
    )
    try:
        ((plan,),) = rows(
            "EXPLAIN (ANALYZE, FORMAT JSON) SELECT local_date, location_name FROM nexhealth_current.appointments"
            " WHERE institution_id = 7 AND patient_id = 7"
        )
        assert plan[0]["Plan"]["Actual Rows"] == 30
        assert _times_read(plan[0]["Plan"], "nexhealth_locations") == [1]
    finally:
        connection.execute("DELETE FROM nexhealth_appointments; DELETE FROM nexhealth_locations")


def test_a_zone_is_tried_also_where_workers_help(connection: psycopg.Connection) -> None:
    the_latest_day_is_found_with_workers(connection)


def test_a_zone_is_tried_also_where_workers_help_on_the_oldest_postgresql(oldest_database_url: str) -> None:
    """Before 17 no zone can be tried while workers run, and a report of a large practice ended with an error."""
    with psycopg.connect(oldest_database_url, autocommit=True) as db:
        the_latest_day_is_found_with_workers(db)


def the_latest_day_is_found_with_workers(db: psycopg.Connection) -> None:
    """They are asked for at any price: a table of a few thousand visits does without them."""
    columns, values = "synced_at, source_read_at, row_hash", "now(), now(), ''"
    try:
        db.execute(
            f"INSERT INTO nexhealth_locations (institution_id, id, tz, {columns}) VALUES (7, 3, 'Asia/Tokyo', {values});"
            f" INSERT INTO nexhealth_appointments (institution_id, id, location_id, patient_id, start_time, {columns})"
            f" SELECT 7, n, 3, 5, '2026-07-01T22:30Z', {values} FROM generate_series(1, 2000) n;"
            " ANALYZE nexhealth_locations, nexhealth_appointments"
        )
        db.execute(
            "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;"
            " SET max_parallel_workers_per_gather = 2"
        )
        query = "SELECT count(*), max(local_date) FROM nexhealth_current.appointments"
        assert db.execute(query.encode()).fetchall() == [(2000, date(2026, 7, 2))]
        plan = db.execute(f"EXPLAIN {query}".encode()).fetchall()
        assert any("Gather" in line for (line,) in plan) == (db.info.server_version >= 170000)
    finally:
        db.execute("DELETE FROM nexhealth_appointments; DELETE FROM nexhealth_locations")


def _times_read(node: dict[str, Any], table: str) -> list[float]:
    """How often each part of a plan that reads a table was carried out."""
    own = [node["Actual Loops"]] if node.get("Relation Name") == table else []
    return own + [times for one in node.get("Plans", ()) for times in _times_read(one, table)]


def test_a_new_column_widens_the_view_under_grants_and_other_views(connection: psycopg.Connection, rows: Rows) -> None:
    """Risk: the first sync after an upgrade fails because an analyst built on a view, or takes the grants away."""
    table = Table(connection)
    table.load(gadget())
    connection.execute(
        "CREATE VIEW public.theirs AS SELECT id, note FROM nexhealth_current.gadgets;"
        " GRANT SELECT ON nexhealth_current.gadgets TO PUBLIC"
    )
    order = list(view_columns(connection, "gadgets"))
    ensure_tables(connection, [WIDER])
    assert list(view_columns(connection, "gadgets")) == [*order, "colour"]
    assert view_columns(connection, "gadgets")["colour"] == "Colour. PHI class: none."
    assert rows(
        "SELECT note, has_table_privilege('pg_monitor', 'nexhealth_current.gadgets', 'SELECT') FROM public.theirs"
    ) == [("first", True)]
    connection.execute("DROP VIEW public.theirs")


def test_a_column_of_another_type_makes_the_view_anew(connection: psycopg.Connection, rows: Rows) -> None:
    Table(connection).load(gadget())
    ensure_tables(connection, [NARROWER])
    assert rows("SELECT note FROM nexhealth_current.gadgets") == [(1,)]
    ensure_tables(connection, [GADGETS])
    assert rows("SELECT note FROM nexhealth_current.gadgets") == [("first",)]


def test_a_view_that_others_need_is_not_taken_from_them(connection: psycopg.Connection, rows: Rows) -> None:
    Table(connection)
    connection.execute("CREATE VIEW public.theirs AS SELECT note FROM nexhealth_current.gadgets")
    with pytest.raises(WarehouseError, match=r"nexhealth_current\.gadgets.*drop those, run `nexhealth db upgrade`"):
        ensure_tables(connection, [NARROWER])
    assert rows("SELECT count(note) FROM public.theirs") == [(0,)]
    connection.execute("DROP VIEW public.theirs")


def test_views_follow_their_declaration_and_are_left_alone_when_they_do(
    connection: psycopg.Connection, rows: Rows
) -> None:
    Table(connection).load(gadget(1), gadget(2, active=False))
    written = "SELECT relname::text, xmin::text FROM pg_class WHERE relnamespace = 'nexhealth_current'::regnamespace ORDER BY 1"
    before = rows(written)
    ensure_tables(connection, [*DECLARED, GADGETS])
    assert rows(written) == before
    ensure_tables(connection, [FLAGGED])
    assert rows("SELECT id, is_heavy FROM nexhealth_current.gadgets") == [(1, True)]
    assert rows("SELECT id FROM nexhealth_current.spares") == [(2,)]
    assert rows("SELECT obj_description('nexhealth_current.spares'::regclass)")[0][0].startswith(
        "A gadget in the cellar."
    )
    others = [row for row in rows(written) if row[0] not in ("gadgets", "spares")]
    assert others == [row for row in before if row[0] != "gadgets"]


def test_a_migration_can_drop_a_collections_views_and_gets_them_back(
    connection: psycopg.Connection, rows: Rows
) -> None:
    with connection.transaction(force_rollback=True):
        for name in view_names(COLLECTIONS["appointments"]):
            connection.execute(f"DROP VIEW nexhealth_current.{name}")
        connection.execute("ALTER TABLE nexhealth_appointments ALTER COLUMN note TYPE varchar")
        ensure_tables(connection)
        assert rows("SELECT count(note) FROM nexhealth_current.schedule_blocks") == [(0,)]


def test_no_two_collections_show_a_view_of_one_name() -> None:
    names = [name for collection in DECLARED for name in view_names(collection)]
    assert len(names) == len(set(names))
