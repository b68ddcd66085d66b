"""The guide's statements for one patient: everything of theirs is found, and erased, and nothing of anybody else's."""

from typing import Any

import psycopg
import pytest
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from tests.test_docs import INSTITUTION, OTHER, PATIENT, add, statements

ACCOUNT = 100
"""What makes of a patient's number that of a row that names them as the guarantor alone."""


def give(connection: psycopg.Connection, patient: int) -> None:
    """Let a patient have a row in every collection that knows patients, each with a superseded version, and all beside."""
    for collection in DECLARED:
        numbers = [one.name for one in (*collection.columns, *collection.from_request) if one.type is SqlType.BIGINT]
        row: dict[str, object] = {
            name: patient for name in collection.key if name != "institution_id" and name in numbers
        }
        row |= {name: patient for name in ("patient_id", "guarantor_id") if name in numbers}
        named = {"patient_id", "guarantor_id", "charge_id", "coverage_id"} & row.keys()
        if named or collection.name == "patients":
            add_with_a_past(connection, collection, row)
        if {"patient_id", "guarantor_id"} <= row.keys() or collection.name == "claim_payouts":
            # Of an account, which is whose guarantor they are, and of no patient.
            account = row | {next(iter(row)): ACCOUNT * patient}
            add_with_a_past(connection, collection, account | ({"patient_id": None} if "patient_id" in row else {}))
    connection.execute(
        "INSERT INTO nexhealth_patient_locations (institution_id, patient_id, location_id, first_seen)"
        " VALUES (%s, %s, 1, now())",
        (INSTITUTION, patient),
    )
    for collection in [one for one in DECLARED if one.per]:
        connection.execute(
            "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, rows)"
            " VALUES (%s, %s, %s, now(), 1)",
            (collection.name, INSTITUTION, patient),
        )
    notes = [
        ("charges", f"{patient}9", "{}", f'{{"patient_id":{patient},"x":1}}'),
        ("patients", str(patient), "{}", "\0"),
        ("documents", f"{patient}9", f'{{"patient_id": {patient}}}', "{}"),
        ("coverage_subscribers", "", f'{{"coverage_id": {patient}}}', "{}"),
        ("payments", f"{patient}8", "{}", f'{{"patient_id":null,"guarantor_id":{patient}}}'),
        ("claim_payouts", "", f'{{"charge_id": {patient}}}', "{}"),
        ("claim_payouts", "", f'{{"charge_id": {ACCOUNT * patient}}}', "{}"),
        ("treatment_plan_procedures", "", f'{{"treatment_plan_id": {patient}}}', "{}"),
    ]
    for name, record, request, raw in notes:
        note(connection, name, request, raw, record)
    events = [
        ("Patient", [patient], "{}"),
        ("Charge", [1], f'{{"patient_id": "{patient}"}}'),
        ("Document", [patient], '{"document": "of theirs"}'),
        ("Payment", [2], f'{{"guarantor_id": {patient}}}'),
    ]
    for kind, ids, payload in events:
        event(connection, kind, ids, payload)


def add_with_a_past(connection: psycopg.Connection, collection: Collection, row: dict[str, object]) -> None:
    """Insert a row, whose first column is of its key, and supersede it."""
    add(connection, collection, **row)
    name, value = next(iter(row.items()))
    connection.execute(
        sql.SQL("UPDATE {} SET deleted_at = now() WHERE {} = {}").format(
            sql.Identifier(collection.table), sql.Identifier(name), sql.Literal(value)
        )
    )


def note(connection: psycopg.Connection, collection: str, request: str, raw: str, record: str = "") -> None:
    """Quarantine what came of a request."""
    connection.execute(
        "INSERT INTO nexhealth_quarantine (collection, institution_id, location_id, record_id, field, rule, loaded,"
        " raw, fingerprint, run_id, request) VALUES (%s, %s, 0, %s, '', '', false, %s, %s, '', %s)",
        (collection, INSTITUTION, record, raw.encode(), f"{record} {request} {raw}".encode(), request),
    )


def event(connection: psycopg.Connection, kind: str, ids: list[int], payload: str) -> None:
    """Store an event that was applied."""
    connection.execute(
        "INSERT INTO nexhealth_webhook_events (resource_type, resource_ids, payload, institution_id, verdict, status)"
        " VALUES (%s, %s, %s, %s, 'valid', 'applied')",
        (kind, ids, payload, INSTITUTION),
    )


def test_a_patient_is_exported_and_erased_whole_and_nobody_else(database_url: str) -> None:
    _, collect, export, erase = statements("Exporting or erasing one patient")
    with psycopg.connect(database_url, autocommit=True) as connection:
        give(connection, PATIENT)
        give(connection, OTHER)
        before = held(connection)
        connection.execute(collect.encode())
        exported = {str(name).removeprefix("nexhealth_") for name, _ in connection.execute(export.encode()).fetchall()}
        assert {name for name in exported if name.startswith("history_")}
        assert {"quarantine", "webhook_events", "child_reads", "patient_locations"} <= exported
        theirs = {
            one.name
            for one in DECLARED
            if {"patient_id", "charge_id", "coverage_id"} & {each.name for each in (*one.columns, *one.from_request)}
        }
        assert theirs | {"patients", "guarantor_balances"} <= exported
        connection.execute(erase.encode())
        left = held(connection)
        assert left == {name: count / 2 for name, count in before.items()}
        connection.execute(collect.encode())
        assert connection.execute(export.encode()).fetchall() == []
        assert connection.execute("SELECT count(*) FROM nexhealth_webhook_events").fetchone() == (8,)


def test_what_is_another_patients_is_not_given_away_with_who_pays_for_them(database_url: str) -> None:
    """Risk: a grown child's records, as received, are exported to whoever pays for them, and erased."""
    _, collect, export, erase = statements("Exporting or erasing one patient")
    a_childs = {
        "payments": f'{{"patient_id":{OTHER},"payment_amount":{{"amount":1}},"guarantor_id":{PATIENT}}}',
        "patients": f'{{"id": {OTHER}, "guarantor_id": "{PATIENT}"}}',
    }
    person = f'{{"id": {PATIENT}, "name": "N"}}'
    both = f'[{a_childs["payments"]}, {{"patient_id": null, "guarantor_id": {PATIENT}}}]'
    with_name = f'{{"patient_id": {OTHER}, "guarantor_id": {PATIENT}, "guarantor": {person}}}'
    with psycopg.connect(database_url, autocommit=True) as connection:
        for collection, raw in a_childs.items():
            note(connection, collection, "{}", raw, str(OTHER))
        note(connection, "patient_addresses", f'{{"patient_id": {OTHER}}}', a_childs["patients"])
        for kind, payload in (("Payment", a_childs["payments"]), ("Patient", a_childs["patients"])):
            event(connection, kind, [OTHER], payload)
        kept = connection.execute(
            "SELECT (SELECT count(*) FROM nexhealth_quarantine), count(payload) FROM nexhealth_webhook_events"
        )
        before = kept.fetchall()
        # What is of both goes whole, and so does who they are.
        for payload in (both, with_name):
            note(connection, "payments", "{}", payload, str(OTHER))
            event(connection, "Payment", [OTHER], payload)
        connection.execute(collect.encode())
        assert len(connection.execute(export.encode()).fetchall()) == 4
        connection.execute(erase.encode())
        left = connection.execute(
            "SELECT (SELECT count(*) FROM nexhealth_quarantine), count(payload) FROM nexhealth_webhook_events"
        )
        assert left.fetchall() == before == [(3, 2)]


def test_who_holds_somebody_elses_coverage_is_erased_there_too(database_url: str) -> None:
    """Risk: a parent's name and birth date stay behind the coverage of a child, who is nobody to be erased."""
    _, collect, export, erase = statements("Exporting or erasing one patient")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for coverage, holders in ((7, (OTHER, PATIENT)), (8, (PATIENT, OTHER)), (9, (OTHER, OTHER))):
            add(connection, COLLECTIONS["insurance_coverages"], id=coverage, patient_id=OTHER)
            first, second = (
                f"id = {holder}, name = 'N', date_of_birth = '1980-02-0{coverage - 6}'" for holder in holders
            )
            add(connection, COLLECTIONS["coverage_subscribers"], coverage_id=coverage)
            for holder in (first, f"{second}, deleted_at = now()", second + ", deleted_at = NULL"):
                connection.execute(
                    f"UPDATE nexhealth_coverage_subscribers SET {holder} WHERE coverage_id = {coverage}".encode()
                )
            connection.execute(
                "INSERT INTO nexhealth_child_reads (collection, institution_id, patient_id, read_at, rows)"
                " VALUES ('coverage_subscribers', %s, %s, now(), 1)",
                (INSTITUTION, coverage),
            )
        for number, person in enumerate((PATIENT, OTHER)):
            note(connection, "coverage_subscribers", f'{{"coverage_id": 1{number}}}', f'{{"id":{person}, "name":"N"}}')
            body = f'{{"subscriber": {{"name": "N", "id": {person}}}, "patient_id": {OTHER}}}'
            event(connection, "PatientInsuranceCoverage", [10 + number], body)
        connection.execute(collect.encode())
        exported = [str(part) for part, _ in connection.execute(export.encode()).fetchall()]
        assert exported.count("nexhealth_coverage_subscribers") == 1
        connection.execute(erase.encode())
        # The list of the coverage that they hold was read, and has no row now: it must not be missed.
        assert rows_of(connection, "SELECT patient_id FROM nexhealth_child_reads ORDER BY 1") == [8, 9]
        assert rows_of(connection, "SELECT coverage_id FROM nexhealth_coverage_subscribers ORDER BY 1") == [8, 9]
        assert rows_of(connection, "SELECT DISTINCT id FROM nexhealth_history WHERE id IS NOT NULL") == [OTHER]
        assert rows_of(connection, "SELECT request ->> 'coverage_id' FROM nexhealth_quarantine") == ["11"]
        assert rows_of(
            connection, "SELECT resource_ids[1] FROM nexhealth_webhook_events WHERE payload IS NOT NULL"
        ) == [11]
        connection.execute(collect.encode())
        assert connection.execute(export.encode()).fetchall() == []


SUBSCRIBER = 515000190
"""Of the person as a holder of coverages, where that is another number than as a patient."""


@pytest.mark.parametrize(
    ("holders", "left"),
    [
        pytest.param("{}", [PATIENT, SUBSCRIBER], id="nobody's"),
        pytest.param(f"{{{SUBSCRIBER}}}", [PATIENT], id="under another id"),
        pytest.param(f"{{{SUBSCRIBER},{PATIENT}}}", [], id="under two"),
    ],
)
def test_a_holder_is_whoever_was_recognised_and_not_who_has_the_same_number(
    database_url: str, holders: str, left: list[int]
) -> None:
    """Risk: the subscriber with the patient's number is a stranger, whose name is given away or erased."""
    _, collect, export, erase = statements("Exporting or erasing one patient")
    assert collect.count(f"'{{{PATIENT}}}'") == 1
    collect = collect.replace(f"'{{{PATIENT}}}'", f"'{holders}'")
    with psycopg.connect(database_url, autocommit=True) as connection:
        for coverage, holder in enumerate((PATIENT, SUBSCRIBER, OTHER)):
            add(connection, COLLECTIONS["insurance_coverages"], id=coverage, patient_id=OTHER)
            add(connection, COLLECTIONS["coverage_subscribers"], coverage_id=coverage, id=holder)
            connection.execute("UPDATE nexhealth_coverage_subscribers SET deleted_at = now() WHERE id = %s", (holder,))
            note(connection, "coverage_subscribers", f'{{"coverage_id": 1{coverage}}}', f'{{"id":{holder}}}')
            event(connection, "PatientInsuranceCoverage", [holder], f'{{"subscriber": {{"id": {holder}}}}}')
        connection.execute(collect.encode())
        parts = [str(part) for part, _ in connection.execute(export.encode()).fetchall()]
        assert len(parts) == 4 * (2 - len(left))
        connection.execute(erase.encode())
        kept = sorted([*left, OTHER])
        for query in (
            "SELECT id FROM nexhealth_coverage_subscribers ORDER BY 1",
            "SELECT id FROM nexhealth_history ORDER BY 1",
            "SELECT (encode(raw, 'escape')::jsonb ->> 'id')::bigint FROM nexhealth_quarantine ORDER BY 1",
            "SELECT resource_ids[1] FROM nexhealth_webhook_events WHERE payload IS NOT NULL ORDER BY 1",
        ):
            assert rows_of(connection, query) == kept, query


def test_under_which_ids_somebody_may_hold_coverages_is_found_by_name_and_birth_date(database_url: str) -> None:
    """Those too who held one once, and the stranger with the patient's number, to be seen for one by the name."""
    look, *_ = statements("Exporting or erasing one patient")
    holder = COLLECTIONS["coverage_subscribers"]
    with psycopg.connect(database_url, autocommit=True) as connection:
        patient = {"last_name": "O'Hara", "bio_date_of_birth": "1980-02-01"}
        add(connection, COLLECTIONS["patients"], id=PATIENT, **patient)
        add(connection, holder, coverage_id=1, id=PATIENT, name="A Stranger", date_of_birth="1951-01-01")
        add(connection, holder, coverage_id=2, id=SUBSCRIBER, name="O'HARA, ANN", date_of_birth=None)
        add(connection, holder, coverage_id=3, id=1, name="Ann Maiden", date_of_birth="1980-02-01")
        add(connection, holder, coverage_id=4, id=2, name="Ann Once O'Hara", date_of_birth="1980-02-01")
        connection.execute(
            "UPDATE nexhealth_coverage_subscribers SET id = 3, name = 'B', date_of_birth = NULL WHERE id = 2"
        )
        add(connection, holder, coverage_id=5, id=4, name="Ann O'Hara", institution_id=INSTITUTION + 1)
        found = connection.execute(look.encode()).fetchall()
        assert {one[0] for one in found} == {PATIENT, SUBSCRIBER, 1, 2}
        assert {one[1] for one in found} == {"A Stranger", "O'HARA, ANN", "Ann Maiden", "Ann Once O'Hara"}


def rows_of(connection: psycopg.Connection, query: str) -> list[Any]:
    """The only column of each row."""
    return [value for (value,) in connection.execute(query.encode()).fetchall()]


def held(connection: psycopg.Connection) -> dict[str, float]:
    """Rows of every table that holds something of patients, by table."""
    beside = ("history", "quarantine", "child_reads", "patient_locations")
    counted = {one: f"SELECT count(*) FROM nexhealth_{one}" for one in (*COLLECTIONS, *beside)}
    counted["webhook_events"] = "SELECT count(payload) FROM nexhealth_webhook_events"
    rows = {name: connection.execute(query.encode()).fetchone() for name, query in counted.items()}
    return {name: row[0] for name, row in rows.items() if row and row[0]}
