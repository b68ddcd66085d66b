"""What jobs and their ops are called in Dagster, and the tags by which runs get their place in the queue, and their end.

Renaming a job, the sensor or the schedule switches the old one off for everybody.
"""

from nexhealth_pipeline.catalog.collection import Scope

__all__ = [
    "APPLY_JOB",
    "APPLY_OP",
    "BULK_TAG",
    "BULK_TAGS",
    "CHANGES_JOB",
    "CHANGES_OP",
    "CHECKS_JOB",
    "EVENTS_ASSET",
    "MOST_TWO_DAYS",
    "NIGHT_TAGS",
    "PATIENT_JOB",
    "PATIENT_OP",
    "REPLAY_JOB",
    "REPLAY_OP",
    "SCOPE_JOBS",
    "SETUP_JOB",
    "SETUP_OP",
    "SHORT_TAGS",
    "TWO_DAYS_SECONDS",
    "WATCHDOG_JOB",
    "WATCHDOG_STEP",
    "WEBHOOK_JOBS",
    "WEBHOOK_SENSOR",
    "WEBHOOK_TAGS",
]

SCOPE_JOBS: dict[Scope, str] = {
    Scope.PRACTICE: "nexhealth_practice",
    Scope.INSTITUTION: "nexhealth_institutions",
    Scope.LOCATION: "nexhealth_locations",
    Scope.LOCATION_MONTH: "nexhealth_appointments",
}
"""Name of the asset job of each scope."""
CHANGES_JOB = "nexhealth_appointment_changes"
CHANGES_OP = "read_appointment_changes"
PATIENT_JOB = "nexhealth_patient"
PATIENT_OP = "read_patient"
CHECKS_JOB = "nexhealth_checks"

APPLY_JOB = "nexhealth_webhook_apply"
APPLY_OP = "apply_webhook_events"
REPLAY_JOB = "nexhealth_webhook_replay"
REPLAY_OP = "replay_webhook_events"
SETUP_JOB = "nexhealth_webhook_setup"
SETUP_OP = "set_up_webhooks"
WATCHDOG_JOB = "nexhealth_webhook_watchdog"
WATCHDOG_STEP = "check_webhooks"
WEBHOOK_JOBS = (APPLY_JOB, REPLAY_JOB, SETUP_JOB, WATCHDOG_JOB)
WEBHOOK_SENSOR = "nexhealth_webhook_events"
EVENTS_ASSET = "nexhealth_webhook_events"
"""The table of events: no run materializes it, the receiver fills it."""

BULK_TAG = "nexhealth/bulk"
"""On runs that read long: `dagster.yaml` lets only some of each value go on at once, so that webhook runs find room."""
BULK_TAGS = {BULK_TAG: "true"}
"""Of the jobs, and so on what somebody starts."""
NIGHT_TAGS = {BULK_TAG: "night"}
"""On runs of schedules instead: what somebody reads for days must not keep the night in the queue."""
TWO_DAYS_SECONDS = 48 * 3600
"""So long may a run go on that the next ones wait for; no repetition of it begins later."""
MOST_TWO_DAYS = {"dagster/max_runtime": str(TWO_DAYS_SECONDS)}
"""On runs that the next ones wait for, should they hang: those of schedules, and short ones. Any other, as a backfill, may
take as long as `dagster.yaml` says."""
SHORT_TAGS = {
    # Whoever asked for such a run (sensor, schedule, person) asks again; the daemon must not start a second one.
    "dagster/max_retries": "0",
    **MOST_TWO_DAYS,
}
WEBHOOK_TAGS = {
    **SHORT_TAGS,
    "dagster/priority": "10",
    # A run ends after its turn of ten minutes; one that hangs would hold all events up.
    "dagster/max_runtime": "3600",
}
"""On runs that apply events."""
