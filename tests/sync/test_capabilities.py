"""What a practice does not have is recorded as such, fails nothing, and is read in full once it has it."""

from collections.abc import Iterator
from datetime import timedelta

import psycopg
import pytest

from nexhealth_pipeline.client.retry import RetryPolicy
from nexhealth_pipeline.sandbox import SandboxServer
from nexhealth_pipeline.settings import Settings
from nexhealth_pipeline.sync.enabled import FILLED_AFTER
from nexhealth_pipeline.sync.filters import Filters
from nexhealth_pipeline.sync.options import Mode, SyncOptions
from nexhealth_pipeline.warehouse import child_reads
from tests.client.stub import Reply, Seen, Stub, envelope, refusal, running

from .kit import Rows, settings_of, sync_all
from .test_new_collection import cursor_page

REFUSED = Reply(403, b'{"code": false, "error": ["You don\'t have access to perform this action"], "data": null}')
UNKNOWN = Reply(404, b'{"code": false, "error": ["no such path"], "data": null, "description": ""}')
EVERYTHING = "1970-01-01T00:00:00+0000"
CAPABILITY = "SELECT status, enabled_at IS NOT NULL FROM nexhealth_capabilities WHERE collection = 'charges'"


def charge_of(number: int) -> dict[str, object]:
    return {"id": number, "location_id": 11, "updated_at": "2026-03-01T10:00:00Z", "claim_payouts": []}


class Office(Stub):
    """One office whose charges are not enabled at first."""

    def __init__(self) -> None:
        super().__init__()
        self.enabled = False
        self.alerts = 403
        self.closed: set[str] = set()
        """Patients whose alerts alone are refused."""
        self.gone: set[str] = set()
        self.long = False
        """Whether its charges come in two pages."""
        self.dead: int | None = None
        """What the cursor to the second one is refused with."""
        self.answer = self.serve

    def serve(self, seen: Seen) -> Reply:
        match seen.path.strip("/").split("/"):
            case ["institutions"]:
                return envelope([{"id": 1, "subdomain": "willow", "name": "Willow"}])
            case ["locations"]:
                return envelope([{"id": 1, "locations": [{"id": 11, "name": "N", "institution_id": 1}]}])
            case ["sync_status"]:
                return envelope([])
            case ["patients"]:
                ids = range(1, 31)
                return cursor_page([{"id": one, "updated_at": "2026-03-01T10:00:00Z"} for one in ids], "p")
            case ["patients", patient, "alerts"] if patient in self.gone:
                return UNKNOWN
            case ["patients", patient, "alerts"]:
                return REFUSED if self.alerts == 403 or patient in self.closed else envelope([])
            case ["charges"] if seen.query.get("provider_id", "7") != "7":
                return UNKNOWN
            case ["charges"] if self.long and seen.query["end_cursor"]:
                return refusal(self.dead) if self.dead else cursor_page([charge_of(6)], "d")
            case ["charges"] if self.long:
                return cursor_page([charge_of(5)], "c", more=True)
            case ["charges"]:
                charge = charge_of(5)
                known = str(charge["updated_at"]) < seen.query.get("updated_since", "")
                return cursor_page([] if known else [charge], "c") if self.enabled else REFUSED
        return UNKNOWN

    def asked(self, path: str) -> list[str | None]:
        """What the requests for `path` gave as updated_since."""
        found = [seen.query.get("updated_since") for seen in self.data_requests if seen.path == path]
        self.seen.clear()
        return found


def alerts_and_charges(settings: Settings, office: Office) -> tuple[list[str], int, list[str | None]]:
    """How a sync of them ended, how many lists of alerts it asked for, and since when for charges."""
    results = sync_all(settings, SyncOptions(overlap=timedelta(0)), only={"patients", "alerts", "charges"})
    read = [one.status.value for one in results if one.slice.collection.may_be_disabled]
    lists = sum(seen.path.endswith("/alerts") for seen in office.data_requests)
    return read, lists, office.asked("/charges")


def days_pass(connection: psycopg.Connection) -> None:
    """Three days in which nothing runs."""
    for table, moment in (("capabilities", "since"), ("sync_state", "last_full_at")):
        connection.execute(f"UPDATE nexhealth_{table} SET {moment} = {moment} - interval '3 days'")


@pytest.fixture
def office() -> Iterator[Office]:
    with running(Office()) as stub:
        assert isinstance(stub, Office)
        yield stub


def test_finance_that_is_enabled_later_is_read_in_full_and_again_a_day_later(
    office: Office, database_url: str, rows: Rows
) -> None:
    """The vendor fills it from the practice system for up to a day (API.md K)."""
    settings = settings_of(office, database_url)

    def charges() -> tuple[str, list[str | None]]:
        results = sync_all(settings, SyncOptions(overlap=timedelta(0)), only={"charges"})
        return results[-1].status.value, office.asked("/charges")

    assert charges() == ("skipped", [EVERYTHING])
    assert rows(CAPABILITY) == [("not_enabled", False)]
    assert charges() == ("skipped", [EVERYTHING]), "it is probed again"
    office.enabled = True
    assert charges() == ("succeeded", [EVERYTHING])
    assert rows(CAPABILITY) == [("supported", True)]
    assert charges()[1] != [EVERYTHING]
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_capabilities SET enabled_at = enabled_at - %s", (FILLED_AFTER,))
        connection.execute(
            "UPDATE nexhealth_sync_state SET last_full_at = last_full_at - %s", (FILLED_AFTER + timedelta(minutes=1),)
        )
    assert charges() == ("succeeded", [EVERYTHING]), "filled by now: all of it once more"
    assert charges()[1] != [EVERYTHING]


def test_an_institutions_list_that_is_enabled_later_is_read_in_full_and_again_a_day_later(
    box: SandboxServer, settings: Settings, database_url: str, rows: Rows
) -> None:
    """Insurance plans are closed with finance too, and belong to no location; the other practice has them meanwhile."""
    mine = "institution_id = 11202"
    places = [row.id for row in box.state.locations(11202)]

    def plans(mode: Mode = Mode.INCREMENTAL) -> tuple[str, set[str | None]]:
        box.requests.clear()
        results = sync_all(settings, SyncOptions(mode=mode, overlap=timedelta(0)), only={"insurance_plans"})
        asked = [one for one in box.requests.matching("/insurance_plans") if one.param("subdomain") == "harbor-smiles"]
        (status,) = {one.status.value for one in results if one.slice.institution_id == 11202}
        return status, {one.param("updated_since") for one in asked}

    def capability() -> list[tuple[object, ...]]:
        return rows(
            "SELECT location_id, status, enabled_at IS NOT NULL FROM nexhealth_capabilities"
            f" WHERE collection = 'insurance_plans' AND {mine}"
        )

    for place in places:
        box.state.enable(place, on=False)
    assert plans() == ("skipped", {None})
    assert capability() == [(0, "not_enabled", False)]
    assert rows(f"SELECT count(*) FROM nexhealth_insurance_plans WHERE {mine}") == [(0,)]
    assert rows("SELECT count(*) > 0 FROM nexhealth_insurance_plans") == [(True,)]
    assert plans(Mode.RECONCILE)[0] == "skipped"

    box.state.enable(places[-1])
    assert plans() == ("succeeded", {None})
    assert capability() == [(0, "supported", True)]
    there = sum(row.institution_id == 11202 for row in box.state.store("insurance_plans").rows.values())
    assert rows(f"SELECT count(*) FROM nexhealth_insurance_plans WHERE {mine}") == [(there,)]
    assert plans()[1] != {None}
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_capabilities SET enabled_at = enabled_at - %s", (FILLED_AFTER,))
        connection.execute(
            "UPDATE nexhealth_sync_state SET last_full_at = last_full_at - %s", (FILLED_AFTER + timedelta(minutes=1),)
        )
    assert plans() == ("succeeded", {None}), "filled by now: all of it once more"
    assert plans()[1] != {None}

    for place in places:
        box.state.enable(place, on=False)
    assert plans(Mode.RECONCILE)[0] == "skipped"
    assert rows(f"SELECT count(*) FROM nexhealth_insurance_plans WHERE deleted_by = 'absence' AND {mine}") == [(0,)]


def test_a_list_under_patients_that_is_not_offered_costs_a_few_requests(
    office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: thousands of refusals a night."""
    settings = settings_of(office, database_url)
    results = sync_all(settings, only={"patients", "alerts"})
    assert [result.status.value for result in results[-2:]] == ["succeeded", "skipped"]
    assert sum(seen.path.endswith("/alerts") for seen in office.data_requests) == 1 + 3
    assert rows("SELECT status FROM nexhealth_capabilities WHERE collection = 'alerts'") == [("not_enabled",)]
    office.alerts = 200
    sync_all(settings, only={"patients", "alerts"})
    assert rows("SELECT count(*) FROM nexhealth_child_reads WHERE collection = 'alerts'") == [(30,)]


def test_a_patient_who_is_gone_says_nothing_of_a_list_that_is_not_offered(
    office: Office, database_url: str, rows: Rows
) -> None:
    """The first one asked for: every patient's list would be refused, each night."""
    settings = settings_of(office, database_url)
    office.gone = {"1"}
    assert sync_all(settings, only={"patients", "alerts"})[-1].status.value == "skipped"
    assert sum(seen.path.endswith("/alerts") for seen in office.data_requests) < 30
    assert rows("SELECT status FROM nexhealth_capabilities WHERE collection = 'alerts'") == [("not_enabled",)]


def test_one_list_that_is_closed_keeps_no_other_from_being_read(
    office: Office, database_url: str, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Risk: in a shared database one patient's refusal hides all who come after, every night, as "not enabled"."""
    # By chance the first four could be closed ones, which is what a practice without such lists looks like.
    monkeypatch.setattr(child_reads, "_DUE", child_reads._DUE.replace("ORDER BY random()", "ORDER BY id"))
    settings = settings_of(office, database_url)
    office.alerts, office.closed = 200, {str(number) for number in range(7, 17)}
    # The third time whoever repeats a command of everything.
    for asked, mode in ((30, Mode.INCREMENTAL), (10 + 1, Mode.INCREMENTAL), (10 + 1, Mode.FULL)):
        office.seen.clear()
        *_, result = sync_all(settings, SyncOptions(mode=mode), only={"patients", "alerts"})
        assert (result.status.value, "10 single reads" in (result.reason or "")) == ("failed", True)
        assert sum(seen.path.endswith("/alerts") for seen in office.data_requests) == asked
        assert rows("SELECT count(*) FROM nexhealth_child_reads WHERE collection = 'alerts'") == [(20,)]
        assert rows("SELECT count(*) FROM nexhealth_capabilities WHERE status = 'not_enabled'") == [(0,)]
    office.closed = set()
    assert sync_all(settings, only={"patients", "alerts"})[-1].status.value == "succeeded"


@pytest.mark.parametrize("closed", [1, 3])
def test_the_first_list_that_is_closed_says_nothing_of_the_others(
    closed: int, office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: one patient keeps all from being read for ever, as nobody's list was ever answered before."""
    office.alerts, office.closed = 200, {str(number) for number in range(1, 1 + closed)}
    result = sync_all(settings_of(office, database_url), only={"patients", "alerts"})[-1]
    assert (result.status.value, f"{closed} single reads of 30" in (result.reason or "")) == ("failed", True)
    assert rows("SELECT count(*) FROM nexhealth_child_reads WHERE collection = 'alerts'") == [(30 - closed,)]
    assert rows("SELECT count(*) FROM nexhealth_capabilities WHERE status = 'not_enabled'") == [(0,)]


def test_a_list_that_is_closed_from_the_first_has_nobody_elses_read_again(
    office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: ten thousand requests every night, and no list is ever judged."""
    settings = settings_of(office, database_url)
    office.alerts, office.closed = 200, {"9"}
    sync_all(settings, only={"patients", "alerts"})
    office.seen.clear()
    with psycopg.connect(database_url, autocommit=True) as connection:
        ages = "pass_started_at = pass_started_at - '2 days'::interval, begun_at = begun_at - '2 days'::interval"
        connection.execute(f"UPDATE nexhealth_sync_state SET {ages} WHERE collection = 'alerts'")
        connection.execute("UPDATE nexhealth_child_reads SET judged_at = judged_at - '2 days'::interval")
        connection.execute("UPDATE nexhealth_capabilities SET enabled_at = enabled_at - '2 days'::interval")
    assert sync_all(settings, only={"patients", "alerts"})[-1].status.value == "failed"
    # Its own, one more to see whether the practice has them, and two nights' lots.
    assert sum(seen.path.endswith("/alerts") for seen in office.data_requests) <= 1 + 1 + 2
    assert rows("SELECT count(*) > 0 FROM nexhealth_child_reads WHERE judged_at > now() - interval '1 day'") == [
        (True,)
    ]


def test_a_practice_that_loses_a_list_is_told_so_after_a_few_requests(
    office: Office, database_url: str, rows: Rows
) -> None:
    settings = settings_of(office, database_url)
    office.alerts = 200
    sync_all(settings, only={"patients", "alerts"})
    office.alerts = 403
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_child_reads SET patient_version = NULL")
    office.seen.clear()
    assert sync_all(settings, only={"patients", "alerts"})[-1].status.value == "skipped"
    assert sum(seen.path.endswith("/alerts") for seen in office.data_requests) == 1 + 3
    assert rows("SELECT status FROM nexhealth_capabilities WHERE collection = 'alerts'") == [("not_enabled",)]


def test_minutes_of_refusals_have_nothing_read_again(office: Office, database_url: str, rows: Rows) -> None:
    """Risk: every list under every patient is asked for twice because four of them were refused one night."""
    settings = settings_of(office, database_url)
    office.alerts, office.enabled = 200, True

    def synced() -> tuple[list[str], int, list[str | None]]:
        return alerts_and_charges(settings, office)

    assert synced() == (["succeeded", "succeeded"], 30, [EVERYTHING])
    assert synced()[0] == ["succeeded", "succeeded"]  # of charges nothing has changed
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_child_reads SET patient_version = NULL WHERE patient_id <= 5")
        office.alerts, office.enabled = 403, False
        assert synced()[:2] == (["skipped", "skipped"], 1 + 3)
        office.alerts, office.enabled = 200, True
        status, lists, charges = synced()
        assert (status, 5 <= lists <= 5 + 2) == (["succeeded", "succeeded"], True), lists
        assert charges != [EVERYTHING]
        assert rows("SELECT status, enabled_at FROM nexhealth_capabilities WHERE collection = 'charges'") == [
            ("supported", None)
        ]
        # And where it lasts, as a practice's loss does:
        office.alerts, office.enabled = 403, False
        connection.execute("UPDATE nexhealth_child_reads SET patient_version = NULL")
        synced()
        connection.execute("UPDATE nexhealth_capabilities SET since = since - interval '3 days'")
        synced()
    office.alerts, office.enabled = 200, True
    assert synced() == (["succeeded", "succeeded"], 30, [EVERYTHING])


def test_what_was_refused_last_when_that_was_not_long_yet_is_read_in_full_all_the_same(
    office: Office, database_url: str
) -> None:
    """Refused once, and then nothing ran for a week: what came meanwhile is not all newer than the old watermark."""
    settings = settings_of(office, database_url)
    office.alerts, office.enabled = 200, True
    alerts_and_charges(settings, office)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_child_reads SET patient_version = NULL WHERE patient_id <= 5")
        office.alerts, office.enabled = 403, False
        assert alerts_and_charges(settings, office)[0] == ["skipped", "skipped"]
        days_pass(connection)
    office.alerts, office.enabled = 200, True
    assert alerts_and_charges(settings, office) == (["succeeded", "succeeded"], 30, [EVERYTHING])
    assert alerts_and_charges(settings, office)[2] != [EVERYTHING]


def test_one_list_that_fails_has_no_other_read_again_however_long_all_were_refused(
    office: Office, database_url: str
) -> None:
    """A request a patient each night, for as long as it fails: nothing says that they are offered until all are read."""
    settings = settings_of(office, database_url)
    office.alerts, office.enabled = 200, True
    alerts_and_charges(settings, office)
    office.alerts = 403
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("UPDATE nexhealth_child_reads SET patient_version = NULL WHERE patient_id <= 5")
        assert alerts_and_charges(settings, office)[0] == ["succeeded", "skipped"]
        days_pass(connection)
        office.alerts, office.closed = 200, {"3"}
        assert alerts_and_charges(settings, office)[:2] == (["succeeded", "failed"], 30)
        connection.execute("UPDATE nexhealth_sync_state SET pass_started_at = pass_started_at - interval '25 hours'")
        ended, lists, _ = alerts_and_charges(settings, office)
    assert (ended[1], lists < 10) == ("failed", True), lists


def test_a_filter_that_the_api_does_not_know_says_nothing_of_the_list(
    office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: a provider who left makes the practice look as if it had no charges, and its watermarks are gone."""
    settings = settings_of(office, database_url)
    office.enabled = True
    sync_all(settings, only={"charges"})
    state = rows("SELECT * FROM nexhealth_sync_state WHERE collection = 'charges'")
    known = rows("SELECT * FROM nexhealth_capabilities WHERE collection = 'charges'")
    gone = SyncOptions(filters=Filters(providers=(8,)))
    assert sync_all(settings, gone, only={"charges"})[-1].status.value == "failed"
    office.enabled = False
    there = SyncOptions(filters=Filters(providers=(7,)))
    assert sync_all(settings, there, only={"charges"})[-1].status.value == "skipped"
    assert rows("SELECT * FROM nexhealth_sync_state WHERE collection = 'charges'") == state
    assert rows("SELECT * FROM nexhealth_capabilities WHERE collection = 'charges'") == known


def test_what_a_practice_system_does_not_have_is_no_failure(office: Office, database_url: str, rows: Rows) -> None:
    """Working hours and recalls are answered 404 here; operatories, which every practice has, are a failure then."""
    settings = settings_of(office, database_url)
    results = sync_all(settings, only={"working_hours", "patient_recalls", "operatories"})
    assert {one.slice.collection.name: one.status.value for one in results[-3:]} == {
        "working_hours": "skipped",
        "patient_recalls": "skipped",
        "operatories": "failed",
    }
    assert rows("SELECT DISTINCT collection, status, evidence FROM nexhealth_capabilities ORDER BY 1") == [
        ("patient_recalls", "unsupported", "404"),
        ("working_hours", "unsupported", "404"),
    ]


@pytest.mark.parametrize("dead", [403, 404, 410])
def test_a_list_whose_pages_came_is_never_taken_for_one_that_is_not_there(
    dead: int, office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: half of the charges and exit 0, as nobody misses what a practice does not have.

    Neither when a later run goes on from the cursor that the first one stored. Each begins anew once at most.
    """
    settings = settings_of(office, database_url)
    office.long, office.dead = True, dead
    for _ in range(3):
        result = sync_all(settings, only={"charges"})[-1]
        assert (result.status.value, str(dead) in (result.reason or "")) == ("failed", True)
        assert len(office.asked("/charges")) <= 4
    assert rows("SELECT count(*) FROM nexhealth_capabilities WHERE collection = 'charges'") == [(0,)]
    office.dead = None
    assert sync_all(settings, only={"charges"})[-1].status.value == "succeeded"
    assert rows("SELECT id FROM nexhealth_charges ORDER BY 1") == [(5,), (6,)]


def test_a_list_that_is_closed_with_401_is_not_enabled(office: Office, database_url: str, rows: Rows) -> None:
    """As with 403, which its path is not declared to answer, where another list takes the same token."""
    settings = settings_of(office, database_url)
    sync_all(settings, only=set())
    serve = office.answer
    office.answer = lambda seen: refusal(401) if seen.path == "/charges" else serve(seen)
    result = sync_all(settings, only={"charges"}, retry=RetryPolicy(sleep=lambda _: None))[-1]
    assert (result.status.value, "accepted elsewhere" in (result.reason or "")) == ("skipped", True)
    assert rows(CAPABILITY) == [("not_enabled", False)]


@pytest.mark.parametrize("status", [404, 405, 415, 501])
def test_a_list_that_the_api_says_it_does_not_offer_is_unsupported(
    status: int, office: Office, database_url: str, rows: Rows
) -> None:
    """The same statuses, of NexHealth's own: some practice systems have none. Nor is that asked for again and again."""
    settings = settings_of(office, database_url)
    sync_all(settings, only=set())
    serve = office.answer
    office.answer = lambda seen: refusal(status) if seen.path == "/charges" else serve(seen)
    result = sync_all(settings, only={"charges"}, retry=RetryPolicy(sleep=lambda _: None))[-1]
    assert result.status.value == "skipped"
    assert rows(CAPABILITY) == [("unsupported", False)]
    assert len(office.asked("/charges")) == 1


@pytest.mark.parametrize("where", ["/authenticates", "/charges"])
@pytest.mark.parametrize("status", [401, 403, 404, 405, 415, 501])
def test_what_a_key_or_a_proxy_is_refused_with_says_nothing_of_the_list(
    where: str, status: int, office: Office, database_url: str, rows: Rows
) -> None:
    """Risk: a revoked key, or a firewall's page, makes every practice one without charges, and the night ends with 0."""
    settings = settings_of(office, database_url)
    sync_all(settings, only=set())
    serve = office.answer
    if where == "/authenticates":
        office.authenticate = lambda _: refusal(status)
    else:
        office.answer = lambda seen: Reply(status, b"<html>no</html>") if seen.path == where else serve(seen)
    result = sync_all(settings, only={"charges"}, retry=RetryPolicy(attempts=2, sleep=lambda _: None))[-1]
    assert (result.slice.collection.name, result.status.value) == ("charges", "failed")
    assert rows(CAPABILITY) == []
