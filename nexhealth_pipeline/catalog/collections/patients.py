"""People and what hangs on them: contact, address, alerts, recalls, documents (API.md E.1, E.3)."""

from nexhealth_pipeline.catalog.collection import (
    Collection,
    Column,
    Current,
    Derived,
    Events,
    Pass,
    Reader,
    Scope,
    Shown,
    column,
    flatten,
    nested,
)
from nexhealth_pipeline.catalog.collections.words import (
    ACTIVE_PASSES,
    BIGINT,
    BIO,
    BOOL,
    CLINICAL,
    CONTACT,
    DATE,
    DEMOGRAPHIC,
    ID,
    IN_EHR,
    INSURANCE,
    NONE,
    TEXT,
    TIME,
    foreign,
    identifier,
    last_sync,
    link,
    timestamps,
)
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["DECLARED"]

_PAYER = "CASE WHEN t.guarantor_id = 0 THEN t.id ELSE t.guarantor_id END"
_LISTED_AT = (
    "ARRAY(SELECT m.location_id FROM nexhealth_patient_locations m WHERE m.institution_id = t.institution_id"
    " AND m.patient_id = t.id AND m.gone_at IS NULL ORDER BY m.location_id)"
)
_ADDRESS = (
    "LEFT JOIN nexhealth_patient_addresses address ON address.institution_id = t.institution_id"
    " AND address.patient_id = t.id AND address.deleted_at IS NULL"
)
_PATIENTS_SHOWN = Current(
    columns=(
        IN_EHR,
        Derived(
            "guarantor_id",
            _PAYER,
            ID,
            "Who pays; the own id = pays for themself, null = not known. No index leads to it; whoever may read the"
            " tables asks nexhealth_patients by institution_id and guarantor_id.",
        ),
        Derived("pays_for_self", f"{_PAYER} = t.id", NONE, "Is their own guarantor."),
        Derived("guarantor_name", "payer.name", DEMOGRAPHIC, "Name of who pays."),
        Derived(
            "location_ids",
            _LISTED_AT,
            NONE,
            "Locations that list the person. No index leads to them: a location's persons are found in patient_locations, by"
            " institution_id and location_id.",
        ),
        *(
            Derived(f"address_{name}", f"address.{name}", CONTACT, f"Of the postal address: {words}.")
            for name, words in (
                ("line_1", "first line"),
                ("line_2", "second line"),
                ("postal_code", "postal code"),
                ("city", "city"),
                ("region", "state or region"),
            )
        ),
    ),
    joins=(
        f"LEFT JOIN nexhealth_patients payer ON payer.institution_id = t.institution_id AND payer.id = {_PAYER}",
        _ADDRESS,
    ),
    views=(
        Shown("patients", "A patient, active or inactive.", "NOT coalesce(t.bio_non_patient, false)"),
        Shown("non_patients", "A guarantor who is no patient.", "coalesce(t.bio_non_patient, false)"),
    ),
)

PATIENTS = Collection(
    name="patients",
    group="patients",
    doc="A person known to the practice: patient, inactive patient, or guarantor who is no patient.",
    path="/patients",
    scope=Scope.LOCATION,
    passes=(
        Pass("all", (("location_strict", "false"),), dispensable=("location_strict",), reader=Reader.OWNER),
        Pass("members", (("location_strict", "true"),), reader=Reader.SHARED, membership=True),
    ),
    increment="updated_since",
    sort="id",
    version="updated_at",
    sensitive=(("bio", "ssn"),),
    by_id="/patients/{id}",
    # The vendor's text of `new_patient`: lists hold new patients only while they have an appointment ahead.
    unlisted_if="bio_new_patient",
    after=("locations",),
    references=(("guarantor_id", "patients"), ("provider_id", "providers")),
    filters=(("status", "inactive"),),
    columns=flatten(
        identifier(),
        column("email", TEXT, CONTACT, "E-mail address."),
        column("first_name", TEXT, DEMOGRAPHIC, "First name."),
        column("middle_name", TEXT, DEMOGRAPHIC, "Middle name."),
        column("last_name", TEXT, DEMOGRAPHIC, "Last name."),
        column("name", TEXT, DEMOGRAPHIC, "Full name."),
        timestamps(),
        foreign(),
        BIO,
        column("inactive", BOOL, NONE, "Archived or deleted in the practice system."),
        last_sync(),
        column("guarantor_id", BIGINT, ID, "Patient who pays; 0 or the own id = pays for themself."),
        column("billing_type", TEXT, INSURANCE, "Billing type of the practice system."),
        column("chart_id", TEXT, ID, "Chart number."),
        column("preferred_language", TEXT, DEMOGRAPHIC, "ISO 639-1 language."),
        column("provider_id", BIGINT, NONE, "Primary provider."),
        nested(
            "hipaa",
            column("authorization", BOOL, NONE, "HIPAA authorization given."),
            column("authorization_date", DATE, NONE, "When the authorization was given."),
            column("privacy", BOOL, NONE, "Privacy notice acknowledged."),
            column("privacy_date", DATE, NONE, "When the notice was acknowledged."),
            column("consent", BOOL, NONE, "Consent given."),
            column("consent_date", DATE, NONE, "When the consent was given."),
        ),
    ),
    indexes=(
        ("last_name", "first_name"),
        ("bio_date_of_birth",),
        ("institution_id", "guarantor_id"),
        ("foreign_id",),
        ("updated_at",),
    ),
    current=_PATIENTS_SHOWN,
    # API.md E.2, E.3.
    single_only=(
        "location_ids",
        "address",
        "children",
        "guarantor",
        "last_visited_appointment",
        "upcoming_appts",
        "appointments",
        "procedures",
        "insurance_coverages",
        "adjustments",
        "charges",
        "payments",
        "patient_alerts",
        "provider",
    ),
    events=Events("Patient", snapshots=("patient_created", "patient_updated"), keys=("patients", "patient", "user")),
)


PATIENT_ADDRESSES = Collection(
    name="patient_addresses",
    group="patients",
    doc="A patient's postal address, which only the single-patient read gives.",
    path="/patients/{id}",
    scope=Scope.LOCATION,
    key=("institution_id", "patient_id"),
    paging=Paging.ONE,
    passes=(Pass("all", (("include[]", "address"),)),),
    per="patients",
    records_at=("address",),
    after=("patients",),
    references=(("patient_id", "patients"),),
    from_request=(Column("patient_id", BIGINT, ID, "Patient whose address it is.", ()),),
    columns=flatten(
        column("line_1", TEXT, CONTACT, "First address line."),
        column("line_2", TEXT, CONTACT, "Second address line."),
        column("postal_code", TEXT, CONTACT, "Postal code."),
        column("city", TEXT, CONTACT, "City."),
        column("region", TEXT, CONTACT, "State or region."),
    ),
)


ALERTS = Collection(
    name="alerts",
    group="patients",
    doc="A note that pops up when a patient's record is opened.",
    path="/patients/{id}/alerts",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    passes=(Pass("all", (("include_disabled", "true"),)),),
    per="patients",
    legacy_accept=True,
    version="updated_at",
    may_be_disabled=True,
    after=("patients",),
    references=(("patient_id", "patients"),),
    columns=flatten(
        identifier(),
        link("patient_id", "Patient the alert is about."),
        column("note", TEXT, CLINICAL, "Free text."),
        column("disabled_at", TIME, NONE, "When it was switched off; null = still shown."),
        timestamps(),
    ),
    indexes=(("institution_id", "patient_id"),),
)

RECALL_TYPES = Collection(
    name="recall_types",
    group="patients",
    doc="A kind of regular visit that patients are called back for.",
    path="/recall_types",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    legacy_accept=True,
    increment="updated_since",
    version="updated_at",
    references=(("location_id", "locations"),),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the recall."),
        column("description", TEXT, NONE, "What it is for."),
        foreign(NONE),
        column("interval_num", BIGINT, NONE, "Length of the interval, in interval_unit."),
        column("interval_unit", TEXT, NONE, "Unit of the interval."),
        link("location_id", "Location of the type."),
        timestamps(),
    ),
)

PATIENT_RECALLS = Collection(
    name="patient_recalls",
    group="patients",
    doc="A patient's next regular visit that is due; stale where the practice system does not mark recalls as done.",
    path="/patient_recalls",
    scope=Scope.LOCATION,
    increment="updated_since",
    version="updated_at",
    patient_filter="patient_id",
    references=(("patient_id", "patients"), ("recall_id", "recall_types"), ("appointment_id", "appointments")),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        link("appointment_id", "Appointment associated with it; perhaps cancelled, or to come."),
        column("date_due", DATE, CLINICAL, "Day the patient is due."),
        foreign(),
        link("recall_id", "Kind of recall."),
        nested(
            "recall_type",
            column("id", BIGINT, NONE, "Kind of recall."),
            column("name", TEXT, NONE, "Name of the recall."),
            column("description", TEXT, NONE, "What it is for."),
            column("interval_num", BIGINT, NONE, "Length of the interval, in interval_unit."),
            column("interval_unit", TEXT, NONE, "Unit of the interval."),
        ),
        link("patient_id", "Patient who is due."),
        timestamps(),
    ),
    indexes=(("institution_id", "patient_id"), ("date_due",)),
)


DOCUMENT_TYPES = Collection(
    name="document_types",
    group="patients",
    doc="A kind of document that can be attached to a patient.",
    path="/document_types",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    passes=ACTIVE_PASSES,
    legacy_accept=True,
    references=(("location_id", "locations"),),
    filters=(("status", "active"),),
    from_request=(Column("location_id", BIGINT, NONE, "Location that lists the type.", ()),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the kind of document."),
        column("active", BOOL, NONE, "Can be used."),
    ),
)


DOCUMENTS = Collection(
    name="documents",
    group="patients",
    doc="A file attached to a patient: what it is, not its bytes.",
    path="/patients/{id}/documents",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    per="patients",
    legacy_accept=True,
    after=("patients",),
    references=(("patient_id", "patients"), ("document_type_id", "document_types")),
    from_request=(Column("patient_id", BIGINT, ID, "Patient the document belongs to.", ()),),
    columns=flatten(
        identifier(),
        column("filename", TEXT, CLINICAL, "Name of the file."),
        column("type", TEXT, NONE, "MIME type."),
        column("url", TEXT, CLINICAL, "Where the API serves the bytes; may expire."),
        column("created_at", TIME, NONE, "First upload."),
        column("document_type_id", BIGINT, NONE, "Kind of document."),
    ),
    indexes=(("institution_id", "patient_id"),),
    events=Events("Document", hints=("document_insertion",), keys=("document", "documents")),
)

DECLARED: tuple[Collection, ...] = (
    PATIENTS,
    PATIENT_ADDRESSES,
    ALERTS,
    RECALL_TYPES,
    PATIENT_RECALLS,
    DOCUMENT_TYPES,
    DOCUMENTS,
)
"""In the order they are shown."""
