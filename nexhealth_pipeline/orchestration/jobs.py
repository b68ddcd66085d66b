"""Jobs: one per partition scope, the nightly change read of appointments, and one patient on demand.

A webhook or change read sees parts of many slices, so it is an op job: it reports the partitions whose
rows changed and leaves how fresh the rest is to `nexhealth_freshness`.
"""

import threading
from collections.abc import Iterable
from dataclasses import replace

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from pydantic import Field

from nexhealth_pipeline.catalog.collection import Scope
from nexhealth_pipeline.orchestration.assets import ASSETS, collections_in, fresh_after, step_name
from nexhealth_pipeline.orchestration.config import SyncConfig
from nexhealth_pipeline.orchestration.metadata import result_metadata
from nexhealth_pipeline.orchestration.resource import NexHealthResource
from nexhealth_pipeline.orchestration.step import Event, listeners, one_line_failures, read_slices
from nexhealth_pipeline.sync.months import CHANGES
from nexhealth_pipeline.sync.patient import refresh_patient
from nexhealth_pipeline.sync.session import SyncSession
from nexhealth_pipeline.sync.slices import Slice, SliceResult
from nexhealth_pipeline.warehouse.state import load_states

__all__ = ["CHANGES_JOB", "CHANGES_OP", "JOBS", "PATIENT_JOB", "PATIENT_OP", "SCOPE_JOBS"]

CHANGES_JOB = "nexhealth_appointment_changes"
CHANGES_OP = "read_appointment_changes"
PATIENT_JOB = "nexhealth_patient"
PATIENT_OP = "read_patient"

SCOPE_JOBS: dict[Scope, str] = {
    Scope.PRACTICE: "nexhealth_practice",
    Scope.INSTITUTION: "nexhealth_institutions",
    Scope.LOCATION: "nexhealth_locations",
    Scope.LOCATION_MONTH: "nexhealth_appointments",
}
"""Name of the asset job of each scope."""


class PatientConfig(dg.Config):
    """Which patient to refresh."""

    patient_id: int = Field(description="NexHealth's id of the patient")


@dg.op(name=CHANGES_OP, description="Reads what changed since the last read, however old its date.")
def _read_changes(context: dg.OpExecutionContext, config: SyncConfig, nexhealth: NexHealthResource) -> None:
    with one_line_failures(), nexhealth.session(context.run.run_id, threading.Event()) as session:
        options = replace(config.options(session.settings, fresh_after(context, session)), start=None, end=None)
        wanted = set(config.partitions)
        slices = [
            Slice(collection, location.institution, location, CHANGES)
            for collection in collections_in(Scope.LOCATION_MONTH)
            for location in session.practices().active()
            if not wanted or location.key in wanted
        ]
        read_slices(context, session, slices, options, lambda result: _change_events(session, result))


def _change_events(session: SyncSession, result: SliceResult) -> Iterable[Event]:
    """The read itself as an observation; months with changed rows as materialized where they are complete."""
    asset = result.slice.collection.table
    yield dg.AssetObservation(asset, metadata=result_metadata(result))
    if not result.changes or not result.complete:
        return
    with session.pool.connection() as connection:
        states = load_states(connection, [result.slice.collection.name])
    unfinished = {(key.location_id, key.window_key) for key, state in states.items() if state.watermark is None}
    known = {(key.location_id, key.window_key) for key in states}
    keys = {location.id: location.key for location in session.practices().active()}
    for change in result.changes:
        place = (change.location_id, change.month)
        if place in known and place not in unfinished and change.location_id in keys:
            yield dg.AssetMaterialization(
                asset,
                partition=f"{keys[change.location_id]}|{change.month}",
                metadata={"rows_changed": change.rows, "as_of": dg.MetadataValue.timestamp(result.as_of)}
                if result.as_of
                else {"rows_changed": change.rows},
            )


@dg.op(name=PATIENT_OP, description="Reads everything about one patient, now.")
def _read_patient(context: dg.OpExecutionContext, config: PatientConfig, nexhealth: NexHealthResource) -> None:
    with one_line_failures(), nexhealth.session(context.run.run_id, threading.Event()) as session:
        results = refresh_patient(session, session.practices(), config.patient_id)
    for result in results:
        context.log_event(dg.AssetObservation(result.slice.collection.table, metadata=result_metadata(result)))
        for listener in listeners():
            listener(result)
    failed = [f"{result.slice.collection.name}: {result.reason}" for result in results if result.status == "failed"]
    if failed:
        raise dg.Failure(description="; ".join(failed), allow_retries=False)


@dg.job(name=CHANGES_JOB, description="Brings changed appointments of all locations, however old their date.")
def _changes_job() -> None:
    _read_changes()


@dg.job(name=PATIENT_JOB, description="Refreshes one patient with everything about it.")
def _patient_job() -> None:
    _read_patient()


def _scope_job(scope: Scope) -> UnresolvedAssetJobDefinition:
    assets = next(assets for assets in ASSETS if assets.op.name == step_name(scope))
    return dg.define_asset_job(
        SCOPE_JOBS[scope],
        selection=dg.AssetSelection.assets(*assets.keys),
        description=f"Reads all collections kept by {scope.value.replace('_', ' and ')}.",
    )


JOBS: list[dg.JobDefinition | UnresolvedAssetJobDefinition] = [
    *(_scope_job(scope) for scope in Scope),
    _changes_job,
    _patient_job,
]
"""All jobs of the code location."""
