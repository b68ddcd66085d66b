"""The loop of continuous sync on this machine: the receiver beside other processes, and one change shown all the way.

A change at the local NexHealth is posted to the receiver, stored, applied by a Dagster run, and read back.
"""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexhealth_pipeline.cli.household import Household, nexhealth_command
from nexhealth_pipeline.cli.loading import loading
from nexhealth_pipeline.cli.realm import Realm
from nexhealth_pipeline.errors import Cancelled, PipelineError

if TYPE_CHECKING:
    import psycopg

__all__ = ["show_loop", "start_receiver"]

_START_SECONDS = 60.0
_ARRIVAL_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_CITIES = ("Sampleville", "New Sampleville")
_LAST_EVENT = "SELECT coalesce(max(id), 0) FROM nexhealth_webhook_events"
_ARRIVED = """
SELECT event_name, verdict FROM nexhealth_webhook_events
WHERE id > %s AND event_name = 'patient_updated' AND %s = ANY(resource_ids) AND status IN ('pending', 'applied')
"""


def start_receiver(
    household: Household, *, port: int = 0, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """Start the webhook receiver as a process of `household`; the URL that events are posted to.

    Raises PipelineError where it does not start.
    """
    from nexhealth_pipeline.webhooks.target import WEBHOOK_PATH

    command = nexhealth_command("serve", "--port", str(port))
    household.start("receiver", command, answers=True, environment=environment, folder=folder)
    return household.answer("receiver", _START_SECONDS) + WEBHOOK_PATH


def show_loop(household: Household, realm: Realm, say: Callable[[str], None]) -> None:
    """Register, change one synthetic patient at the local NexHealth, apply its event; `say` what happens.

    To be called while this process has no thread and no connection. Raises PipelineError.
    """
    from nexhealth_pipeline.orchestration.names import APPLY_JOB, SETUP_JOB

    say("\nContinuous sync: a change at the practice, and what becomes of it")
    url = start_receiver(household)
    done = _run(realm, SETUP_JOB, {"url": url, "prune": True})
    say(f"  registered   at the local NexHealth: {_subscriptions(done)} subscriptions, posted to {url}")
    with _warehouse(realm) as connection:
        patient, old = _patient(connection)
        last = _one(connection, _LAST_EVENT)[0]
        new = next(city for city in _CITIES if city != old)
        began = time.monotonic()
        _change(realm.settings.api_url, patient, new)
        say(f"  changed      patient {patient} there: city {old!r} becomes {new!r}")
        name, verdict = _await_event(connection, last, patient)
    say(f"  received     {name}, signature {verdict}, {time.monotonic() - began:.1f} s after the change")
    _run(realm, APPLY_JOB, {"due_only": True})
    with _warehouse(realm) as connection:
        city = _one(connection, "SELECT bio_city FROM nexhealth_patients WHERE id = %s", patient)[0]
    if city != new:
        raise PipelineError(f"the event of patient {patient} is not in the table: see `nexhealth status --demo`")
    say(f"  applied      city in nexhealth_patients is {city!r}, {time.monotonic() - began:.1f} s after the change")


def _run(realm: Realm, job: str, config: dict[str, Any]) -> dict[str, Any]:
    with loading():
        from nexhealth_pipeline.orchestration.webhook_launch import run_webhook_job

    done = run_webhook_job(
        realm.settings,
        job,
        config,
        kind=realm.kind,
        warehouse_database=realm.warehouse_database,
        dagster_database=realm.dagster_database,
    )
    if done.exit_status == Cancelled.exit_status:
        raise Cancelled("stopped; what was committed stays")
    if done.exit_status:
        raise PipelineError(f"run {done.run_id} of {job} failed: its log is in Dagster (`nexhealth dev --demo`)")
    return done.result


def _subscriptions(result: Mapping[str, Any]) -> int:
    return sum(int(key["subscriptions"]) for key in result["keys"])


@contextmanager
def _warehouse(realm: Realm) -> "Iterator[psycopg.Connection]":
    from nexhealth_pipeline.warehouse.connect import connect

    with connect(realm.warehouse_url(), autocommit=True) as connection:
        yield connection


def _one(connection: "psycopg.Connection", query: str, *values: object) -> tuple[Any, ...]:
    row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    if row is None:
        raise PipelineError("the demo's warehouse holds no patient to change")
    return row


def _patient(connection: "psycopg.Connection") -> tuple[int, str]:
    """A patient and where they live."""
    patient, city = _one(
        connection,
        "SELECT id, bio_city FROM nexhealth_patients WHERE deleted_at IS NULL AND NOT inactive ORDER BY id LIMIT 1",
    )
    return int(patient), str(city)


def _change(api_url: str, patient: int, city: str) -> None:
    change = {"operation": "update", "collection": "patients", "id": patient, "fields": {"bio": {"city": city}}}
    body = json.dumps(change).encode()
    request = urllib.request.Request(f"{api_url}/sandbox/changes", data=body, method="POST")  # noqa: S310 - loopback
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30).close()


def _await_event(connection: "psycopg.Connection", last: int, patient: int) -> tuple[str, str]:
    deadline = time.monotonic() + _ARRIVAL_SECONDS
    while time.monotonic() < deadline:
        row = connection.execute(_ARRIVED, (last, patient)).fetchone()
        if row is not None:
            return str(row[0]), str(row[1])
        time.sleep(_LOOK_SECONDS)
    raise PipelineError(f"no event of patient {patient} came within {_ARRIVAL_SECONDS:.0f} s")
