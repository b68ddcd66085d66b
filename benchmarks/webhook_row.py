"""From a posted webhook to the row: receiver, table of events, sensor, Dagster run, merge.

    python benchmarks/webhook_row.py                    20 events while a run lingers, 3 that must start one
    python benchmarks/webhook_row.py --warm 5 --cold 1

The real receiver, daemon and code server, on this machine; the events are signed as NexHealth signs them and tell of
patients with a newer version. Time counts from the moment before the post to the row in nexhealth_patients.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import psycopg
from api import patient, stamp
from nightly import Place, place, settings_of, sync
from practice_api import FIRST_INSTITUTION, FIRST_LOCATION, SPAN
from results import Part, Table, arguments, percentile, show, spread
from serving import daemon, environment

from nexhealth_pipeline.cli.household import Household
from nexhealth_pipeline.cli.loop import start_receiver
from nexhealth_pipeline.orchestration.names import APPLY_JOB
from nexhealth_pipeline.sandbox.posting import sign

SECRET = "benchmark-secret-of-no-endpoint"
PATIENTS = 100
WAIT_SECONDS = 300.0
QUIET_SECONDS = 1.0
"""Between events of a lingering run, so that each is met alone."""


@contextmanager
def receiver(where: Place) -> Iterator[str]:
    """The webhook receiver; where to post."""
    given = {**settings_of(where), "NEXHEALTH_WEBHOOK_SECRETS": SECRET}
    with Household(5.0) as household:
        yield start_receiver(household, environment=environment(where.home, **given), folder=where.home)


def post(url: str, index: int) -> tuple[int, datetime]:
    """Post that patient `index` has changed; its id and new version."""
    version = datetime.now(UTC)
    own = FIRST_LOCATION * SPAN + index
    record = json.loads(patient(own, index, version.microsecond, stamp(version), FIRST_INSTITUTION))
    moment = stamp(version)
    event = {"resource_type": "Patient", "event_name": "patient_updated", "event_time": moment,
             "subdomain": f"bench-{FIRST_INSTITUTION}", "data": {"patients": [record]}, "delivery_errors": []}  # fmt: skip
    body = json.dumps(event).encode()
    headers = {"content-type": "application/json", "timestamp": moment, "signature": sign(SECRET, moment, body)}
    urllib.request.urlopen(urllib.request.Request(url, body, headers)).close()
    return own, datetime.fromisoformat(moment)


def seconds_to_row(db: psycopg.Connection, url: str, index: int) -> tuple[float, float]:
    """Seconds to the answer, and to the row. Raises SystemExit where it does not come."""
    began = time.monotonic()
    own, version = post(url, index)
    answered = time.monotonic() - began
    while time.monotonic() - began < WAIT_SECONDS:
        if db.execute("SELECT 1 FROM nexhealth_patients WHERE id = %s AND updated_at >= %s", (own, version)).fetchone():
            return answered, time.monotonic() - began
        time.sleep(0.02)
    raise SystemExit(f"no row within {WAIT_SECONDS:g} s")


def until_no_run() -> None:
    """Wait until no run applies events any more."""
    import dagster as dg

    active = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
    with dg.DagsterInstance.get() as instance:
        while instance.get_runs(dg.RunsFilter(job_name=APPLY_JOB, statuses=active), limit=1):
            time.sleep(0.5)


def main() -> None:
    """Measure, print, keep."""
    parser = arguments(__doc__)
    parser.add_argument("--warm", type=int, default=20, help="events while a run lingers")
    parser.add_argument("--cold", type=int, default=3, help="events that must start a run")
    args = parser.parse_args()
    cold, warm, answers = [], [], []
    with place(1, PATIENTS, 0.05) as where:
        sync(where)
        with (
            receiver(where) as url,
            daemon(where.home, settings_of(where)),
            psycopg.connect(where.url, autocommit=True) as db,
        ):
            seconds_to_row(db, url, 0)  # waits for the daemon and its code server, too
            for number in range(args.warm):
                time.sleep(QUIET_SECONDS)
                answered, seconds = seconds_to_row(db, url, 1 + number % (PATIENTS - 1))
                answers.append(answered)
                warm.append(seconds)
            print("events that a lingering run takes up are measured", flush=True)
            for number in range(args.cold):
                until_no_run()
                cold.append(seconds_to_row(db, url, number)[1])
    rows = [
        [name, str(len(seconds)), spread(seconds, digits), f"{percentile(seconds, 0.95):.{digits}f}"]
        for name, seconds, digits in (
            ("answer of the receiver", answers, 3),
            ("row, a run lingers", warm, 2),
            ("row, a run must start", cold, 1),
        )
        if seconds
    ]
    text = (
        "An event about one patient, posted to the real receiver; the daemon's sensor asks for a run, which applies what waits "
        "and lingers 30 s for more. With every event goes what a real one causes: the patient's lists are read again."
    )
    table = Table(["from the post to", "events", "s", "95th percentile s"], rows)
    show(Part("webhook_row", "From a webhook to the row", text, [table]), args.json)


if __name__ == "__main__":
    main()
