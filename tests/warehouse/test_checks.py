"""The checks: each finds its fault, names no value, keeps tenants apart, and is silent over a sound copy."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.warehouse.check_results import acknowledge, failed_checks, keep, run_all
from nexhealth_pipeline.warehouse.check_rules import RULES, Severity
from nexhealth_pipeline.warehouse.checks import CHECKS, Check, CheckResult, run
from nexhealth_pipeline.warehouse.drift import Drift, record_drift
from nexhealth_pipeline.warehouse.knowledge import record_capability, record_freshness
from nexhealth_pipeline.warehouse.state import PassKey, PassState, save_state

CANARY = "canary-5550100"
NOW = datetime.now(UTC)
ACME, BOND = 10, 20


class Warehouse:
    """Rows put straight into their tables; everything is taken back at the end."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def add(self, collection: str, institution: int = ACME, /, **values: Any) -> None:
        row = {"institution_id": institution, "raw": {}, "synced_at": NOW, "source_read_at": NOW, "row_hash": b""}
        row |= values
        names = sql.SQL(", ").join(map(sql.Identifier, row))
        self.connection.execute(
            sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
                sql.Identifier(COLLECTIONS[collection].table), names, sql.SQL(", ").join([sql.Placeholder()] * len(row))
            ),
            [Jsonb(value) if isinstance(value, dict | list) else value for value in row.values()],
        )

    def office(self, institution: int, subdomain: str, *locations: int) -> None:
        if not self.connection.execute("SELECT FROM nexhealth_institutions WHERE id = %s", (institution,)).fetchone():
            self.add("institutions", institution, id=institution, subdomain=subdomain)
        for location in locations:
            self.add("locations", institution, id=location)

    def fresh(self, collection: str, location: int = 0, institution: int = ACME, **age: float) -> None:
        record_freshness(
            self.connection,
            institution_id=institution,
            location_id=location,
            collection=collection,
            complete_through=NOW - timedelta(**age),
            last_full_at=None,
            changed=False,
        )

    def note(self, collection: str, field: str, record_id: str = "1", institution: int = ACME) -> None:
        self.connection.execute(
            "INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded,"
            " raw, fingerprint, run_id) VALUES (%s, %s, 0, %s, %s, 'not a number', %s, %s, %s, 'r')",
            (collection, institution, record_id, field, field != "", CANARY.encode(), f"{field}{record_id}".encode()),
        )

    def missing(self, collection: str, *fields: str) -> None:
        for field in fields:
            self.connection.execute(
                "INSERT INTO nexhealth_schema_drift (collection, institution_id, field, kind) VALUES (%s, %s, %s, 'missing')",
                (collection, ACME, field),
            )

    def read(self, collection: str, location: int, total: int | None, pass_name: str = "all", **more: Any) -> None:
        key = PassKey(collection, ACME, location, "", pass_name)
        state = {"watermark": NOW, "pass_started_at": NOW, "complete_at": NOW, "total": total} | more
        save_state(self.connection, PassState(key, **state))

    def check(self, collection: str, rule: str) -> CheckResult:
        (found,) = [one for one in CHECKS if (one.collection.name, one.rule.name) == (collection, rule)]
        result = run(self.connection, found)
        assert CANARY not in repr(result) + result.description
        return result


@pytest.fixture
def house(shared_url: str) -> Iterator[Warehouse]:
    with psycopg.connect(shared_url, autocommit=True) as connection, connection.transaction(force_rollback=True):
        yield Warehouse(connection)


def test_every_check_runs_and_an_empty_warehouse_has_no_fault_but_that_nothing_was_read(house: Warehouse) -> None:
    """A query that PostgreSQL refuses would be found at night."""
    failed = {(one.check.collection.name, one.check.rule.name) for one in map_run(house) if not one.passed}
    assert failed == {(name, "fresh") for name in ("institutions", "locations", "sync_status")}


def map_run(house: Warehouse) -> list[CheckResult]:
    return [run(house.connection, check) for check in CHECKS]


def test_every_collection_is_checked_for_drift_quarantine_and_freshness() -> None:
    """Derived from the declarations: a new collection has its checks by itself."""
    for name in ("schema_as_declared", "quarantine_empty"):
        assert {one.collection.name for one in CHECKS if one.rule.name == name} == set(COLLECTIONS)
    assert {one.collection.name for one in CHECKS if one.rule.name == "fresh"} == {
        one.name for one in DECLARED if one.is_asset
    }
    assert {one.collection.name for one in CHECKS if one.rule.name == "no_orphans"} == {
        one.name for one in DECLARED if [name for name, _ in one.references if name != "institution_id"]
    }
    assert {one.collection.name for one in CHECKS if one.rule.name == "no_rows_lost"} == {
        one.name for one in DECLARED if one.paging is not Paging.CURSOR and one.is_asset and not one.per
    }
    assert {one.collection.name for one in CHECKS if one.rule.name == "lists_complete"} == {
        one.name for one in DECLARED if one.per
    }
    assert {"appointments", "procedures"} <= {
        one.collection.name for one in CHECKS if one.rule.name == "ends_after_start"
    }


def test_names_are_unique_within_an_asset_and_only_lost_rows_and_foreign_tenants_block() -> None:
    keys = [(one.asset, one.name) for one in CHECKS]
    assert len(set(keys)) == len(keys)
    assert {one.asset for one in CHECKS} == {one.table for one in DECLARED if one.is_asset}
    assert {one.name for one in RULES if one.severity is Severity.ERROR} == {"no_rows_lost", "own_institution"}
    assert all(one.doc.endswith(".") for one in RULES)


@pytest.mark.parametrize(
    ("rows", "totals", "lost", "left_over"),
    [
        (2, [(1, 2, "active"), (1, 1, "inactive")], 1, 0),
        (3, [(1, 2, "active"), (1, 1, "inactive")], 0, 0),
        (5, [(1, 2, "active"), (1, 1, "inactive")], 0, 2),
        (3, [(1, 2, "active"), (1, 1, "inactive"), (2, 1, "active"), (2, 2, "inactive")], 0, 0),
        (3, [(1, 2, "active"), (1, 1, "inactive"), (1, 2, "active_again")], 0, 0),
        (5, [(1, 2, "active"), (1, 1, "inactive"), (1, 2, "active_again")], 0, 2),
        (9, [(1, 2, "active"), (1, None, "inactive")], 0, 0),
        (9, [], 0, 0),
    ],
)
def test_rows_are_compared_with_what_the_api_counted_itself(
    house: Warehouse, rows: int, totals: list[tuple[int, int | None, str]], lost: int, left_over: int
) -> None:
    """Two locations may list the same rows; a pass without a count says nothing."""
    for number in range(rows):
        house.add("document_types", id=number, location_id=1)
    house.add("document_types", BOND, id=99, location_id=9)
    for location, total, pass_name in totals:
        house.read("document_types", location, total, pass_name)
    assert house.check("document_types", "no_rows_lost").institutions == ({ACME: lost} if lost else {})
    assert house.check("document_types", "no_rows_left_over").institutions == ({ACME: left_over} if left_over else {})


def test_a_row_in_quarantine_is_not_lost_and_one_that_is_known_gone_is_not_left_over(house: Warehouse) -> None:
    house.add("recall_types", id=1, location_id=1)
    house.add("recall_types", id=2, location_id=1, deleted_at=NOW, deleted_by="absence")
    house.add("recall_types", id=3, location_id=1, source_read_at=NOW + timedelta(hours=1))
    house.note("recall_types", "", "4")
    house.note("recall_types", "", "5")
    house.read("recall_types", 1, 3)
    assert house.check("recall_types", "no_rows_lost").passed
    assert house.check("recall_types", "no_rows_left_over").passed
    house.read("recall_types", 1, 6)
    assert house.check("recall_types", "no_rows_lost").count == 2


@pytest.mark.parametrize("name", ["documents", "alerts"])
def test_a_list_whose_rows_have_gone_is_named_by_its_patient(house: Warehouse, name: str) -> None:
    """Whether the request tells whose list it is, or each record in it."""
    for patient, listed in ((1, 1), (2, 2)):
        house.add(name, id=patient, patient_id=patient)
        house.connection.execute(
            "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, rows)"
            " VALUES (%s, %s, %s, now(), %s)",
            (name, ACME, patient, listed),
        )
    result = house.check(name, "lists_complete")
    assert (result.institutions, result.sample_ids) == ({ACME: 1}, {ACME: ("10/2",)})


def test_a_record_of_another_tenant_is_an_error(house: Warehouse) -> None:
    """The worst that can happen: one practice's patient in another's rows."""
    house.add("patients", id=1, raw={"institution_id": ACME})
    house.add("patients", BOND, id=1, raw={"institution_id": ACME})
    house.add("patients", BOND, id=2, raw={})
    result = house.check("patients", "own_institution")
    assert (result.institutions, result.sample_ids) == ({BOND: 1}, {BOND: ("20/1",)})


def test_an_id_that_points_nowhere_is_an_orphan_within_its_institution(house: Warehouse) -> None:
    """0 means none, deleted rows count as present, and nothing can be said of what was never read."""
    house.add("patients", id=1, deleted_at=NOW, deleted_by="source")
    house.add("patients", BOND, id=2)
    for number, patient in enumerate((1, 2, 0, None, 3), start=100):
        house.add("appointments", id=number, patient_id=patient, provider_id=77)
    assert house.check("appointments", "no_orphans").passed
    house.fresh("patients", location=1)
    result = house.check("appointments", "no_orphans")
    assert result.details == {"patient_id": 2}
    assert result.sample_ids == {ACME: ("10/101", "10/104")}
    assert result.description == "2 not so: patient_id (2)"


def test_nothing_is_an_orphan_while_some_location_is_still_to_be_read(house: Warehouse) -> None:
    """Risk: the first load of fifty locations reports each coverage of forty-nine until the last one is read."""
    house.office(ACME, "acme", 1, 2, 3)
    house.add("locations", id=4, inactive=True)
    house.office(BOND, "bond", 5)
    for institution in (ACME, BOND):
        house.add("insurance_coverages", institution, id=1, patient_id=9)
    house.fresh("patients", location=1)
    record_capability(
        house.connection,
        institution_id=ACME,
        location_id=3,
        collection="patients",
        status="unsupported",
        evidence="404",
        at=NOW,
    )
    assert house.check("insurance_coverages", "no_orphans").passed
    house.fresh("patients", location=2)
    assert house.check("insurance_coverages", "no_orphans").institutions == {ACME: 1}
    house.fresh("patients", location=5, institution=BOND)
    assert house.check("insurance_coverages", "no_orphans").institutions == {ACME: 1, BOND: 1}


def test_an_orphan_in_a_list_inside_records_has_the_whole_key_as_its_sample(house: Warehouse) -> None:
    """The price list entry is no reference: one that had left its list before the first sync would be an orphan for ever."""
    house.add("claim_payouts", charge_id=5, claim_id=6, fee_schedule_procedure_code_id=7)
    house.fresh("claims", location=1)
    house.fresh("fee_schedule_procedures", location=1)
    result = house.check("claim_payouts", "no_orphans")
    assert (result.check.asset, result.check.name) == ("nexhealth_charges", "claim_payouts_no_orphans")
    assert (result.details, result.sample_ids) == ({"claim_id": 1}, {ACME: ("10/5/6",)})


def test_a_visit_ends_after_its_start(house: Warehouse) -> None:
    for number, minutes in enumerate((30, 0, -30)):
        house.add("appointments", id=number, start_time=NOW, end_time=NOW + timedelta(minutes=minutes))
    house.add("appointments", id=9, start_time=NOW)
    house.add("appointments", id=8, start_time=NOW, end_time=NOW - timedelta(1), deleted_at=NOW)
    assert house.check("appointments", "ends_after_start").sample_ids == {ACME: ("10/1", "10/2")}
    house.add("procedures", id=1, start_date="2026-01-02", end_date="2026-01-02")
    house.add("procedures", id=2, start_date="2026-01-02", end_date="2026-01-01")
    assert house.check("procedures", "ends_after_start").sample_ids == {ACME: ("10/2",)}


def test_money_that_could_not_be_read_or_has_no_currency(house: Warehouse) -> None:
    house.add("charges", id=1, fee="1.00", fee_currency="USD")
    house.add("charges", id=2, fee="1.00")
    house.add("charges", id=3)
    house.note("charges", "fee", "4")
    house.note("charges", "description", "5")
    result = house.check("charges", "money_readable")
    assert result.details == {"fee": 1, "fee without a currency": 1}
    assert set(result.sample_ids[ACME]) == {"10/2", "10/4"}


def test_two_rows_with_one_key_of_the_practice_system(house: Warehouse) -> None:
    for number, foreign, source in ((1, CANARY, "a"), (2, CANARY, "a"), (3, CANARY, "b"), (4, "", "a"), (5, "", "a")):
        house.add("patients", id=number, foreign_id=foreign, foreign_id_type=source)
    house.add("patients", BOND, id=1, foreign_id=CANARY, foreign_id_type="a")
    for number, location in enumerate((1, 1, 2, None, None)):
        house.add("charges", id=number, foreign_id=CANARY, location_id=location)
    assert house.check("charges", "foreign_ids_unique").sample_ids == {ACME: ("10/0",)}
    assert house.check("patients", "foreign_ids_unique").sample_ids == {ACME: ("10/1",)}


def test_a_stale_copy_names_its_locations(house: Warehouse) -> None:
    """Inactive locations and what a practice never had are not late; what it had, and is refused now, is told.

    Risk: the vendor switches finance off, and a month later somebody finds that the ledger ends there.
    """
    house.office(ACME, "acme", 1, 2, 3, 4, 5, 7, 8)
    house.add("locations", id=6, inactive=True)
    house.fresh("operatories", 1, hours=1)
    house.fresh("operatories", 2, hours=30)
    house.add(
        "sync_status",
        sync_source_type="DataSource",
        sync_source_name="x",
        read_status="red",
        read_status_at=NOW,
        locations=[{"id": 3}],
    )
    house.fresh("operatories", 3, hours=1)
    house.add(
        "sync_status",
        sync_source_type="DataSource",
        sync_source_name="y",
        read_status="green",
        read_status_at=NOW - timedelta(days=2),
        locations=[{"id": 1}, {"id": 6}],
    )
    house.fresh("operatories", 7, hours=30)
    house.fresh("operatories", 8, hours=1)
    for location in (5, 7, 8):
        where = {"institution_id": ACME, "location_id": location, "collection": "operatories"}
        record_capability(house.connection, **where, status="not_enabled", evidence="403", at=NOW)  # type: ignore[arg-type]
    house.connection.execute("UPDATE nexhealth_capabilities SET since = '2026-03-01T23:00:00Z'")
    result = house.check("operatories", "fresh")
    assert result.details == {
        "acme.2 is stale": 1,
        "acme.4 was never read completely": 1,
        "acme.7 is no longer offered (403 since 2026-03-01)": 1,
    }
    assert result.institutions == {ACME: 3}
    result = house.check("sync_status", "offices_online")
    assert result.details == {"acme.1 was not read by NexHealth for long": 1, "acme.3 is offline": 1}
    assert [one.collection.name for one in CHECKS if one.rule.name == "offices_online"] == ["sync_status"]


def test_types_that_nobody_can_be_asked_for_are_not_stale(house: Warehouse) -> None:
    """Where they belong to locations and none is active, no sync reads them, and the check would fail for ever."""
    for institution, subdomain, scoped in ((ACME, "acme", True), (BOND, "bond", None)):
        house.add(
            "institutions",
            institution,
            id=institution,
            subdomain=subdomain,
            appointment_types_location_scoped=scoped,
        )
        house.add("locations", institution, id=institution + 1, inactive=True)
    assert house.check("appointment_types", "fresh").details == {"bond was never read completely": 1}
    house.add("locations", id=1)
    assert house.check("appointment_types", "fresh").institutions == {ACME: 1, BOND: 1}


def test_drift_fails_a_check_but_not_a_field_that_never_came(house: Warehouse) -> None:
    """Some fields come only where they are asked for; one that has values and stops coming has gone."""
    record_drift(house.connection, "patients", [Drift("new", ACME, "colour", 5), Drift("retyped", BOND, "email", None)])
    house.missing("patients", "chart_id", "bio.city")
    assert set(house.check("patients", "schema_as_declared").details) == {"new colour", "retyped email"}
    house.add("patients", BOND, id=1, bio_city=CANARY)
    assert house.check("patients", "schema_as_declared").count == 2
    house.add("patients", id=1, bio_city=CANARY)
    result = house.check("patients", "schema_as_declared")
    assert set(result.details) == {"new colour", "retyped email", "missing bio.city"}
    assert result.sample_ids == {ACME: ("10/5",), BOND: ()}


def test_a_field_that_a_later_release_declares_or_gives_up_is_no_longer_new_or_missing(house: Warehouse) -> None:
    """It was noted by what was declared then, and no read says of it that it is not so."""
    house.missing("patients", "given_up")
    new = [Drift("new", ACME, name, 5) for name in ("email", "bio", "bio.city", "bio.shoe_size", "city")]
    record_drift(house.connection, "patients", new)
    assert set(house.check("patients", "schema_as_declared").details) == {"new bio.shoe_size", "new city"}


def test_a_field_that_is_missing_everywhere_has_gone_where_any_institution_had_it(house: Warehouse) -> None:
    """Key-wide lists have no institution of their own."""
    house.connection.execute(
        "INSERT INTO nexhealth_schema_drift (collection, institution_id, field, kind)"
        " VALUES ('locations', 0, 'name', 'missing'), ('locations', 0, 'email', 'missing')"
    )
    house.add("locations", BOND, id=1, name=CANARY)
    assert house.check("locations", "schema_as_declared").details == {"missing name": 1}


def test_a_missing_field_is_looked_for_among_the_rows_of_its_institution(house: Warehouse) -> None:
    """One that never came is looked for in vain in each row, four times a day: millions of them are others'."""
    house.connection.execute(
        "INSERT INTO nexhealth_patients (institution_id, id, raw, synced_at, source_read_at, row_hash)"
        " SELECT %s + number / 50, number, jsonb_build_object('note', repeat('x', 1000)), now(), now(), ''"
        " FROM generate_series(1, 3000) number",
        (BOND,),
    )
    house.add("patients", id=1)
    house.missing("patients", "chart_id", "bio.city")
    house.connection.execute("ANALYZE nexhealth_patients, nexhealth_schema_drift")
    (check,) = [one for one in CHECKS if (one.collection.name, one.rule.name) == ("patients", "schema_as_declared")]
    row = house.connection.execute(sql.SQL("EXPLAIN (ANALYZE, FORMAT JSON) {}").format(check.faults)).fetchone()
    assert row is not None
    assert 0 < _visited(row[0][0]["Plan"], "nexhealth_patients") <= 2


def _visited(node: dict[str, Any], table: str) -> int:
    """Rows of a table that a query looked at."""
    dropped = sum(node.get(f"Rows Removed by {how}", 0) for how in ("Filter", "Index Recheck"))
    own = round((node["Actual Rows"] + dropped) * node["Actual Loops"]) if node.get("Relation Name") == table else 0
    return own + sum(_visited(one, table) for one in node.get("Plans", ()))


def test_what_waits_in_quarantine_is_counted_by_rule_and_odd_ids_are_not_shown(house: Warehouse) -> None:
    house.note("patients", "bio_date_of_birth", "7")
    house.note("patients", "", CANARY)
    result = house.check("patients", "quarantine_empty")
    assert result.details == {"bio_date_of_birth: not a number": 1, "not a number": 1}
    assert result.sample_ids == {ACME: ("10/7",)}


def test_every_result_says_whose_faults_they_are_and_what_was_seen_is_not_new_again(house: Warehouse) -> None:
    """One tenant's fault must not hide another's; and an old one must not wake anybody every morning."""
    chosen: list[Check] = [one for one in CHECKS if one.rule.name == "quarantine_empty"][:3]
    name = chosen[0].collection.name
    house.note(name, "", "1", BOND)
    run_all(house.connection, [ACME, BOND], chosen)
    kept = house.connection.execute(
        "SELECT institution_id, sum(faults)::int FROM nexhealth_check_results GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert kept == [(0, 0), (ACME, 0), (BOND, 1)]
    (failed,) = failed_checks(house.connection)
    assert (failed.institution_id, failed.faults, failed.sample_ids, failed.is_new) == (BOND, 1, ["20/1"], True)
    assert acknowledge(house.connection, [failed]) == 1
    run_all(house.connection, [ACME, BOND], chosen)
    assert [one.is_new for one in failed_checks(house.connection)] == [False]
    house.note(name, "", "2", BOND)
    run_all(house.connection, [ACME, BOND], chosen)
    assert [(one.is_new, one.failing_since == failed.failing_since) for one in failed_checks(house.connection)] == [
        (True, True)
    ]
    acknowledge(house.connection, failed_checks(house.connection))
    house.connection.execute("UPDATE nexhealth_quarantine SET resolved_at = now()")
    run_all(house.connection, [ACME, BOND], chosen)
    assert failed_checks(house.connection) == []
    house.connection.execute("UPDATE nexhealth_quarantine SET resolved_at = NULL WHERE record_id = '1'")
    run_all(house.connection, [ACME, BOND], chosen)
    assert [one.is_new for one in failed_checks(house.connection)] == [True]


def test_what_was_found_after_it_was_shown_is_not_taken_for_seen(house: Warehouse) -> None:
    """The checks may end while somebody's report is being put together: nobody would ever be told."""
    keep(house.connection, [("patients", "no_orphans", ACME, "warning", 1, [], 1)])
    shown = failed_checks(house.connection)
    keep(
        house.connection,
        [
            ("patients", "no_orphans", ACME, "warning", 3, [], 3),
            ("patients", "own_institution", BOND, "error", 1, [], 1),
        ],
    )
    assert acknowledge(house.connection, shown) == 1
    found = [(one.check, one.faults, one.acknowledged, one.is_new) for one in failed_checks(house.connection)]
    assert found == [("own_institution", 1, 0, True), ("no_orphans", 3, 1, True)]
    assert acknowledge(house.connection, shown) == 0
    assert acknowledge(house.connection, []) == 0


def test_institutions_that_are_not_synced_are_left_out(house: Warehouse) -> None:
    """The key may reach practices that NEXHEALTH_SUBDOMAINS leaves out."""
    house.office(ACME, "acme", 1)
    house.office(BOND, "bond", 2)
    (check,) = [one for one in CHECKS if (one.collection.name, one.rule.name) == ("operatories", "fresh")]
    assert run(house.connection, check, [BOND]).institutions == {BOND: 1}
    assert run(house.connection, check).institutions == {ACME: 1, BOND: 1}
