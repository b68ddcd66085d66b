"""Treatments and notes (API.md E.1, E.3)."""

from nexhealth_pipeline.catalog.collection import Collection, Column, Events, Scope, column, flatten, money, nested
from nexhealth_pipeline.catalog.collections.words import (
    BIGINT,
    BOOL,
    CLINICAL,
    DATE,
    JSON,
    NONE,
    TEXT,
    TIME,
    identifier,
    link,
    updated,
)

__all__ = ["DECLARED"]

_PROCEDURE = flatten(
    identifier("NexHealth's id of the procedure."),
    link("location_id", "Location."),
    link("patient_id", "Patient."),
    link("provider_id", "Provider."),
    link("appointment_id", "Visit it belongs to.", CLINICAL),
    column("code", TEXT, CLINICAL, "Procedure code."),
    column("name", TEXT, CLINICAL, "Name of the procedure."),
    column("status", TEXT, CLINICAL, "planned, scheduled, completed, inactive (taken off the plan) or referred."),
    updated(),
    nested(
        "body_site",
        column("tooth", JSON, CLINICAL, "Teeth; an array, or plain text in older records."),
        column("surface", TEXT, CLINICAL, "Surface of the tooth."),
    ),
    money("fee", "Price, in whole units of the currency."),
    column("start_date", DATE, CLINICAL, "First day."),
    column("end_date", DATE, CLINICAL, "Last day."),
)
_REFERENCES = (
    ("location_id", "locations"),
    ("patient_id", "patients"),
    ("provider_id", "providers"),
    ("appointment_id", "appointments"),
)

PROCEDURES = Collection(
    name="procedures",
    group="clinical",
    doc="A treatment, planned, done or dropped.",
    path="/procedures",
    scope=Scope.INSTITUTION,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=_REFERENCES,
    filters=(("provider", "provider_id"),),
    columns=_PROCEDURE,
    indexes=(
        ("institution_id", "patient_id"),
        ("institution_id", "appointment_id"),
        ("provider_id", "start_date"),
        ("code",),
    ),
    single_only=("treatment_plan_ids",),
    events=Events("Procedure", snapshots=("procedure_created", "procedure_updated"), keys=("procedure", "procedures")),
)

TREATMENT_PLANS = Collection(
    name="treatment_plans",
    group="clinical",
    doc="Treatments proposed to a patient together.",
    path="/treatment_plans",
    scope=Scope.INSTITUTION,
    increment="updated_since",
    version="updated_at",
    by_id="/treatment_plans/{id}",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(("patient_id", "patients"),),
    columns=flatten(
        identifier(),
        column("name", TEXT, CLINICAL, "Name of the plan."),
        link("patient_id", "Patient."),
        updated(),
        column("status", TEXT, CLINICAL, "not_applicable, proposed, accepted, rejected or completed."),
    ),
    indexes=(("institution_id", "patient_id"),),
    events=Events(
        "TreatmentPlan",
        snapshots=("treatment_plan_created", "treatment_plan_updated", "treatment_plan_deleted"),
        keys=("treatment_plan", "treatment_plans"),
    ),
)

TREATMENT_PLAN_PROCEDURES = Collection(
    name="treatment_plan_procedures",
    group="clinical",
    doc="A procedure in a treatment plan, as the plan lists it; once for each plan it is in.",
    path="/treatment_plans",
    scope=Scope.INSTITUTION,
    inside="treatment_plans",
    records_at=("procedures",),
    key=("institution_id", "treatment_plan_id", "id"),
    references=(("treatment_plan_id", "treatment_plans"), ("id", "procedures"), *_REFERENCES),
    from_request=(Column("treatment_plan_id", BIGINT, CLINICAL, "Treatment plan.", ("id",)),),
    columns=_PROCEDURE,
    indexes=(("institution_id", "id"), ("institution_id", "patient_id")),
)

CLINICAL_NOTES = Collection(
    name="clinical_notes",
    group="clinical",
    doc="What a clinician wrote about a patient.",
    path="/clinical_notes",
    scope=Scope.LOCATION,
    increment="updated_since",
    needs_filter=True,
    version="updated_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(("patient_id", "patients"), ("procedure_id", "procedures"), ("location_id", "locations")),
    from_request=(Column("location_id", BIGINT, NONE, "Location that lists the note.", ()),),
    columns=flatten(
        identifier(),
        link("patient_id", "Patient."),
        link("procedure_id", "Procedure it belongs to.", CLINICAL),
        column("entered_at", TIME, CLINICAL, "When it was written."),
        column("content", TEXT, CLINICAL, "The note."),
        column("signed", BOOL, NONE, "Signed by a provider; not every practice system can."),
        column("completed", BOOL, NONE, "Marked as complete."),
        updated(),
    ),
    indexes=(("institution_id", "patient_id"), ("location_id",), ("entered_at",)),
)

DECLARED: tuple[Collection, ...] = (PROCEDURES, TREATMENT_PLANS, TREATMENT_PLAN_PROCEDURES, CLINICAL_NOTES)
"""In the order they are shown."""
