"""The watchdog: an endpoint that NexHealth switched off is on again, what was missed is read, and somebody is told."""

from collections.abc import Mapping
from typing import Any

import dagster as dg
import psycopg
import pytest

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.definitions import defs
from nexhealth_pipeline.orchestration.housekeeping import dagster_database
from nexhealth_pipeline.orchestration.names import EVENTS_ASSET, SETUP_JOB, SETUP_OP, WATCHDOG_JOB
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.watchdog import watchdog_schedule
from nexhealth_pipeline.warehouse.check_results import failed_checks
from nexhealth_pipeline.webhooks import sealing
from tests.webhooks.kit import patient, store, updated

from .kit import WILLOW, House
from .webhook_kit import QUIET, Post, run_job

MATERIALIZED = dg.DagsterEventType.ASSET_MATERIALIZATION
URL = "http://127.0.0.1:9/api/nexhealth-webhook"
SERVED = (348511, 348512, 348513)
OFFLINE = {"source_online"}
"""One office of the sandbox is offline."""


def _watch(instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def(WATCHDOG_JOB).execute_in_process(
        instance=instance, run_config={"loggers": QUIET}, raise_on_error=False
    )


def _failed(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Metadata of the checks that did not pass, by name."""
    found = {one.check_name: one for one in result.get_asset_check_evaluations()}
    assert {one.asset_key for one in found.values()} == {dg.AssetKey(EVENTS_ASSET)}
    assert len(found) == 8
    return {name: one for name, one in found.items() if not one.passed}


def _tick(instance: dg.DagsterInstance) -> str | None:
    """Why the schedule asks for no run, or None."""
    context = dg.build_schedule_context(instance=instance, resources={"nexhealth": NexHealthResource()})
    data = watchdog_schedule.evaluate_tick(context)
    return data.skip_message if data.skip_message else None


@pytest.fixture
def registered(known: House) -> House:
    """A practice that is read, and an endpoint of ours with all its subscriptions; no event is ever sent."""
    known.box.webhooks.configure(enabled=False)
    done = run_job(known.instance, SETUP_JOB, SETUP_OP, url=URL)
    assert done.success
    keys = [f"{WILLOW}.{number}" for number in SERVED]
    assert known.run(Scope.LOCATION, keys, assets=["patients"]).success
    return known


def _switch_off(house: House) -> None:
    (endpoint,) = house.box.webhooks.endpoints
    house.box.webhooks.registry.change_endpoint(endpoint.id, active=False)


def _change_a_patient(house: House, fields: Mapping[str, Any]) -> int:
    (number,) = house.rows("SELECT min(id) FROM nexhealth_patients WHERE deleted_at IS NULL")[0]
    house.box.state.update("patients", number, fields)
    return int(number)


def test_what_was_missed_while_an_endpoint_was_off_is_read(registered: House) -> None:
    """After two days of errors NexHealth stops posting and tells nobody; the events of that time are lost."""
    _switch_off(registered)
    number = _change_a_patient(registered, {"first_name": "Changed", "last_name": "Unheard"})
    registered.box.faults.add("status", path="/webhook_endpoints/.*", method="PATCH", status=403)
    failed = _failed(_watch(registered.instance))
    assert set(failed) == OFFLINE | {"endpoint_active", "holes_filled"}  # it stays off: an error
    assert failed["endpoint_active"].severity is dg.AssetCheckSeverity.ERROR
    registered.box.faults.clear()
    registered.box.faults.add("status", path="/patients", location_id=SERVED[0], status=403)
    first = _watch(registered.instance)
    assert first.success  # warnings fail no run
    failed = _failed(first)
    assert registered.box.webhooks.endpoints[0].active
    assert set(failed) == OFFLINE | {"holes_filled"}  # a slice could not be read: tried again by the next tick
    assert failed["holes_filled"].severity is dg.AssetCheckSeverity.WARN
    assert failed["holes_filled"].metadata["sample_ids"].value == [str(registered.box.webhooks.endpoints[0].id)]
    kept = {one.check for one in failed_checks(registered.warehouse) if one.collection == "webhook_events"}
    assert kept == set(failed)
    registered.box.faults.clear()
    second = _watch(registered.instance)
    assert set(_failed(second)) == OFFLINE
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is None
    assert registered.one("SELECT last_name FROM nexhealth_patients WHERE id = %s", number) == "Unheard"
    # Collections that were never read are not begun by it, and what the first tick has read is not read again.
    assert {asset for asset, _ in registered.partitions(first, MATERIALIZED)} == {"patients", "sync_status"}
    assert registered.partitions(second, MATERIALIZED) == {("patients", f"{WILLOW}.{SERVED[0]}")}
    before = len(registered.box.requests.matching(path="/patients"))
    assert set(_failed(_watch(registered.instance))) == OFFLINE
    assert len(registered.box.requests.matching(path="/patients")) == before


def test_a_daemon_without_the_key_of_the_secrets_says_why_no_endpoint_is_asked_about(
    registered: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver had it, and all that was to be seen was that an endpoint had not been looked at for two hours."""
    monkeypatch.setattr(sealing, "_is_local", lambda *_: False)
    assert set(_failed(_watch(registered.instance))) == OFFLINE, "nobody minds for two hours"
    registered.warehouse.execute("UPDATE nexhealth_webhooks SET checked_at = now() - interval '3 hours'")
    failed = _failed(_watch(registered.instance))
    assert set(failed) == OFFLINE | {"endpoint_active"}
    assert "NEXHEALTH_WEBHOOK_KEY is not set" in str(failed["endpoint_active"].description)
    assert "NEXHEALTH_WEBHOOK_KEY" not in str(failed["source_online"].description)


def _read_by(house: House, result: dg.ExecuteInProcessResult) -> dict[str, str]:
    """How the slices that a run has read ended, by collection and partition."""
    rows = house.rows(
        "SELECT concat_ws(' ', collection, partition_key), status FROM nexhealth_sync_logs WHERE run_id = %s",
        result.run_id,
    )
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def test_a_slice_that_keeps_failing_has_nothing_else_read_again_until_the_next_outage(registered: House) -> None:
    """One list that answers 500 for a week had everything of all practices read 96 times a day."""
    broken = f"patients {WILLOW}.{SERVED[0]}"
    registered.box.faults.add("status", path="/patients", location_id=SERVED[0], status=403)
    _switch_off(registered)
    first = _read_by(registered, _watch(registered.instance))
    fine = dict.fromkeys([f"patients {WILLOW}.{number}" for number in SERVED[1:]] + ["sync_status"], "succeeded")
    assert first == fine | {broken: "failed"}
    for _ in range(2):
        assert _read_by(registered, _watch(registered.instance)) == {broken: "failed"}
    _switch_off(registered)  # what was read before this outage says nothing about it
    assert _read_by(registered, _watch(registered.instance)) == first
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is not None
    # Whoever reads it fills the hole: a nightly sync that began since is as good as the watchdog.
    registered.box.faults.clear()
    assert registered.run(Scope.LOCATION, [f"{WILLOW}.{SERVED[0]}"], assets=["patients"]).success
    assert _read_by(registered, _watch(registered.instance)) == {}
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is None


def test_a_hole_stays_open_while_it_is_not_noted_what_its_endpoint_was_subscribed_to(registered: House) -> None:
    """A set-up was killed, or goes on: nothing was read, and the hole passed for filled."""
    _switch_off(registered)
    registered.warehouse.execute("UPDATE nexhealth_webhooks SET subscriptions = '[]'")
    assert _read_by(registered, _watch(registered.instance)) == {}
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is not None
    assert run_job(registered.instance, SETUP_JOB, SETUP_OP, url=URL).success
    assert set(_read_by(registered, _watch(registered.instance)).values()) == {"succeeded"}
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is None


@pytest.mark.parametrize(
    ("renamed", "read"), [(WILLOW, {"sync_status"}), (f"{WILLOW}|harbor-smiles", set())], ids=["one", "all"]
)
def test_a_hole_stays_open_while_its_institution_is_noted_by_a_name_that_it_has_no_more(
    registered: House, renamed: str, read: set[str]
) -> None:
    """Risk: nothing is read of who was renamed while its endpoint was off, and the hole passes for filled."""
    _switch_off(registered)
    registered.warehouse.execute(
        "UPDATE nexhealth_webhooks SET subscriptions = regexp_replace(subscriptions::text, %s, %s, 'g')::jsonb",
        (f'"({renamed})"', r'"old-\1"'),
    )
    looked = _watch(registered.instance)
    assert set(_read_by(registered, looked)) == read
    assert set(_failed(looked)) == OFFLINE | {"holes_filled", "all_subscribed"}
    assert run_job(registered.instance, SETUP_JOB, SETUP_OP, url=URL).success
    assert f"patients {WILLOW}.{SERVED[0]}" in _read_by(registered, _watch(registered.instance))
    assert registered.one("SELECT hole_since FROM nexhealth_webhooks") is None


def test_what_the_warehouse_shows_is_told_with_ids_only(post: Post) -> None:
    """Who looks at a check must not see a patient."""
    ids = store(post.db, *(updated(patient(number, 5, last_name="canary-77")) for number in (1, 2, 3)))
    post.db.execute(
        "UPDATE nexhealth_webhook_events SET received_at = now() - interval '16 minutes', institution_id = 7;"
        " UPDATE nexhealth_webhook_events SET status = 'parked' WHERE id = (SELECT min(id) FROM nexhealth_webhook_events);"
        " INSERT INTO nexhealth_webhooks (key_hash, endpoint_id, target_url, active, secret, subscriptions, registered_at)"
        """ VALUES ('k', 12, 'https://a.example', true, '', '[{"subdomain": "smile", "active": true}]', '2026-01-01');"""
        " UPDATE nexhealth_webhook_events SET received_at = now() - interval '30 hours', subdomain = 'smile';"
        " INSERT INTO nexhealth_sync_status (institution_id, sync_source_type, sync_source_name, read_status, locations,"
        """ raw, synced_at, source_read_at, row_hash) VALUES (7, 'a', 'b', 'red', '[{"id": 70}]', '{}', now(), now(), '')"""
    )
    result = _watch(post.instance)
    failed = _failed(result)
    assert set(failed) == {"nothing_waits", "nothing_parked", "events_arrive", "source_online"}
    assert failed["nothing_waits"].metadata["sample_ids"].value == [str(one) for one in ids[1:]]
    assert failed["nothing_parked"].metadata["institutions"].value == {"7": 1}
    told = "".join(str(entry) for entry in post.instance.all_logs(result.run_id))
    assert "canary-77" not in told
    assert {one.check for one in failed_checks(post.db)} == set(failed)


def test_it_keeps_house(post: Post) -> None:
    """Payloads are records of patients, and a feed without end fills the disk."""
    store(post.db, updated(patient(1, 5)))
    post.db.execute("UPDATE nexhealth_webhook_events SET status = 'applied', received_at = now() - interval '31 days'")
    post.db.execute(
        "INSERT INTO nexhealth_runs (run_id, host, pid, status, finished_at)"
        " VALUES ('idle', 'h', 1, 'succeeded', now() - interval '8 days')"
    )
    dagster = dagster_database(post.instance)
    assert dagster is not None
    with psycopg.connect(dagster) as db:
        db.execute("INSERT INTO event_logs (run_id, event, timestamp) VALUES ('old', '', now() - interval '31 days')")
    assert _failed(_watch(post.instance)) == {}
    with psycopg.connect(dagster) as db:
        assert db.execute("SELECT count(*) FROM event_logs WHERE run_id = 'old'").fetchone() == (0,)
    assert post.rows("SELECT payload, expunged_at IS NULL FROM nexhealth_webhook_events") == [(None, False)]
    assert post.rows("SELECT count(*) FROM nexhealth_runs WHERE run_id = 'idle'") == [(0,)]


def test_the_schedule_asks_where_something_is_registered_and_else_once_a_day(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old changes must go where there are no webhooks, too; but a run every quarter of an hour would be for nothing."""
    assert "nothing was synced yet" in str(_tick(post.instance))
    post.db.execute("INSERT INTO nexhealth_runs (run_id, host, pid, status) VALUES ('r', 'h', 1, 'succeeded')")
    assert _tick(post.instance) is None
    run = post.instance.create_run_for_job(defs.resolve_job_def(WATCHDOG_JOB), status=dg.DagsterRunStatus.STARTING)
    assert run.run_id in str(_tick(post.instance))
    post.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_START", WATCHDOG_JOB, message=""), run.run_id)
    post.instance.report_dagster_event(dg.DagsterEvent("PIPELINE_SUCCESS", WATCHDOG_JOB, message=""), run.run_id)
    assert "nexhealth webhooks setup" in str(_tick(post.instance))
    dagster = dagster_database(post.instance)
    assert dagster is not None
    with psycopg.connect(dagster) as db:
        db.execute("UPDATE runs SET end_time = end_time + 60 * 86400")
    assert _tick(post.instance) is None, "a host's clock was two months ahead then"
    with psycopg.connect(dagster) as db:
        db.execute("UPDATE runs SET end_time = end_time - 60 * 86400")
    store(post.db, updated(patient(1, 5)))
    assert _tick(post.instance) is None
    monkeypatch.delenv("NEXHEALTH_API_KEY")
    assert "NEXHEALTH_API_KEY" in str(_tick(post.instance))
