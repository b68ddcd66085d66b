"""Every NexHealth collection this release reads, one declaration each (facts: API.md E.1-E.3).

To add one, write its declaration here and list it in :data:`DECLARED`. The table, its comments, the
asset, freshness, `--resource` and README's row follow from it.
"""

from nexhealth_pipeline.catalog.collection import (
    Collection,
    Column,
    Pass,
    Phi,
    Reader,
    Scope,
    SqlType,
    Window,
    column,
    flatten,
    nested,
)
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["COLLECTIONS", "DECLARED"]

_BIGINT, _TEXT, _BOOL, _TIME, _DATE, _JSON = (
    SqlType.BIGINT,
    SqlType.TEXT,
    SqlType.BOOLEAN,
    SqlType.TIMESTAMPTZ,
    SqlType.DATE,
    SqlType.JSONB,
)
_NONE, _ID, _CONTACT, _DEMOGRAPHIC, _CLINICAL, _INSURANCE = (
    Phi.NONE,
    Phi.ID,
    Phi.CONTACT,
    Phi.DEMOGRAPHIC,
    Phi.CLINICAL,
    Phi.INSURANCE,
)


def _id(doc: str = "NexHealth's id, unique within the institution.") -> tuple[Column, ...]:
    return column("id", _BIGINT, _ID, doc)


def _timestamps() -> tuple[Column, ...]:
    return flatten(
        column("created_at", _TIME, _NONE, "When NexHealth first stored the record."),
        column("updated_at", _TIME, _NONE, "When NexHealth last wrote the record."),
    )


def _foreign(phi: Phi = _ID) -> tuple[Column, ...]:
    return flatten(
        column("foreign_id", _TEXT, phi, "The practice system's own key; null until the record is in it."),
        column("foreign_id_type", _TEXT, _NONE, "Which source foreign_id belongs to."),
    )


def _last_sync() -> tuple[Column, ...]:
    return column("last_sync_time", _TIME, _NONE, "When the source was last refreshed (dropped in API v3.1).")


def _address(phi: Phi) -> tuple[Column, ...]:
    return flatten(
        column("street_address", _TEXT, phi, "Street and number."),
        column("street_address_2", _TEXT, phi, "Second address line."),
        column("city", _TEXT, phi, "City."),
        column("state", _TEXT, phi, "State, two letters."),
        column("zip_code", _TEXT, phi, "Postal code."),
    )


_BIO = nested(
    "bio",
    column("city", _TEXT, _CONTACT, "City."),
    column("state", _TEXT, _CONTACT, "State."),
    column("gender", _TEXT, _DEMOGRAPHIC, "Gender as the practice system has it."),
    column("zip_code", _TEXT, _CONTACT, "Postal code."),
    column("new_patient", _BOOL, _NONE, "Not yet seen by the practice."),
    column("non_patient", _BOOL, _NONE, "A guarantor who is no patient."),
    column("phone_number", _TEXT, _CONTACT, "Preferred phone number."),
    column("date_of_birth", _DATE, _DEMOGRAPHIC, "Date of birth."),
    column("address_line_1", _TEXT, _CONTACT, "First address line."),
    column("address_line_2", _TEXT, _CONTACT, "Second address line."),
    column("street_address", _TEXT, _CONTACT, "Street and number."),
    column("cell_phone_number", _TEXT, _CONTACT, "Mobile phone number."),
    column("home_phone_number", _TEXT, _CONTACT, "Home phone number."),
    column("work_phone_number", _TEXT, _CONTACT, "Work phone number."),
)

_INACTIVE_PASSES = (Pass("active", (("inactive", "false"),)), Pass("inactive", (("inactive", "true"),)))
_ACTIVE_PASSES = (Pass("active", (("active", "true"),)), Pass("inactive", (("active", "false"),)))

INSTITUTIONS = Collection(
    name="institutions",
    group="practice",
    doc="A parent organisation (one subdomain) that the key reaches.",
    path="/institutions",
    scope=Scope.PRACTICE,
    paging=Paging.NONE,
    legacy_accept=True,
    institution_at=("id",),
    version="updated_at",
    columns=flatten(
        _id("NexHealth's id; equal to institution_id."),
        column("name", _TEXT, _NONE, "Name of the organisation."),
        _timestamps(),
        column("subdomain", _TEXT, _NONE, "Name that scopes every request; case-sensitive."),
        column("phone_number", _TEXT, _NONE, "Phone number of the organisation."),
        column("emrs", _JSON, _NONE, "Practice systems in use."),
        column("country_code", _TEXT, _NONE, "ISO 3166 country."),
        column("appointment_types_location_scoped", _BOOL, _NONE, "Appointment types belong to locations."),
        column("is_sync_notifications", _BOOL, _NONE, "Sync notifications are on."),
        column("notify_insert_fails", _BOOL, _NONE, "Failed insertions are reported."),
        column("locations", _JSON, _NONE, "Locations in short form, as listed with the institution."),
    ),
    indexes=(("subdomain",),),
)

LOCATIONS = Collection(
    name="locations",
    group="practice",
    doc="A physical office of an institution.",
    path="/locations",
    scope=Scope.PRACTICE,
    paging=Paging.NONE,
    legacy_accept=True,
    records_at=("locations",),
    institution_at=("institution_id",),
    version="updated_at",
    soft_after=("institutions",),
    columns=flatten(
        _id(),
        column("name", _TEXT, _NONE, "Name of the office."),
        _address(_NONE),
        column("country_code", _TEXT, _NONE, "ISO 3166 country."),
        _timestamps(),
        column("latitude", SqlType.DOUBLE, _NONE, "Degrees north."),
        column("longitude", SqlType.DOUBLE, _NONE, "Degrees east."),
        column("phone_number", _TEXT, _NONE, "Phone number of the office."),
        _foreign(_NONE),
        column("email", _TEXT, _NONE, "E-mail address of the office."),
        column("tz", _TEXT, _NONE, "IANA time zone of the office."),
        _last_sync(),
        column("insert_appt_client", _BOOL, _NONE, "Appointments are inserted by a client in the office."),
        column("map_by_operatory", _BOOL, _NONE, "Bookings are mapped by operatory."),
        column("set_availability_by_operatory", _BOOL, _NONE, "Availability is set by operatory."),
        column("inactive", _BOOL, _NONE, "The office is switched off in NexHealth."),
        nested(
            "specialty",
            column("id", _BIGINT, _NONE, "Id of the office's specialty."),
            column("name", _TEXT, _NONE, "Name of the office's specialty."),
        ),
    ),
)

SYNC_STATUS = Collection(
    name="sync_status",
    group="practice",
    doc="One synchronised EHR database: how fresh NexHealth's own copy is, and which locations share it.",
    path="/sync_status",
    scope=Scope.PRACTICE,
    key=("institution_id", "sync_source_type", "sync_source_name"),
    paging=Paging.NONE,
    legacy_accept=True,
    institution_at=("institution_id",),
    soft_after=("institutions",),
    columns=flatten(
        column("sync_source_type", _TEXT, _NONE, "Kind of source."),
        column("sync_source_name", _TEXT, _NONE, "Name of the source."),
        nested(
            "emr",
            column("id", _BIGINT, _NONE, "Id of the practice system."),
            column("name", _TEXT, _NONE, "Name of the practice system."),
            column("display_name", _TEXT, _NONE, "Name of the practice system as shown to people."),
            column("type", _TEXT, _NONE, "cloud or onprem."),
        ),
        column("read_status", _TEXT, _NONE, "green, or red while the office cannot be read."),
        column("read_status_at", _TIME, _NONE, "When the office was last read."),
        column("write_status", _TEXT, _NONE, "green, or red while the office cannot be written."),
        column("write_status_at", _TIME, _NONE, "When the office was last written."),
        column("locations", _JSON, _NONE, "Locations that share this EHR database."),
    ),
)

PROVIDERS = Collection(
    name="providers",
    group="practice",
    doc="A dentist, hygienist or other person or chair that appointments are made with.",
    path="/providers",
    scope=Scope.INSTITUTION,
    passes=_INACTIVE_PASSES,
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    sensitive=(("tin",), ("bio", "ssn")),
    soft_after=("locations",),
    columns=flatten(
        _id(),
        column("email", _TEXT, _NONE, "E-mail address."),
        column("first_name", _TEXT, _NONE, "First name."),
        column("middle_name", _TEXT, _NONE, "Middle name."),
        column("last_name", _TEXT, _NONE, "Last name."),
        column("name", _TEXT, _NONE, "Full name."),
        _timestamps(),
        _foreign(_NONE),
        column("bio", _JSON, _DEMOGRAPHIC, "Contact data of the provider, as delivered."),
        column("inactive", _BOOL, _NONE, "No longer works here."),
        _last_sync(),
        column("display_name", _TEXT, _NONE, "Name as shown to patients."),
        column("npi", _TEXT, _NONE, "National provider identifier."),
        column("state_license", _TEXT, _NONE, "Licence number."),
        column("specialty_code", _TEXT, _NONE, "Taxonomy code."),
        column("locations", _JSON, _NONE, "Locations the provider works at."),
        column("provider_requestables", _JSON, _NONE, "Locations where the provider can be booked."),
        column("availabilities", _JSON, _NONE, "Working hours, where included."),
    ),
    indexes=(("last_name",),),
)

OPERATORIES = Collection(
    name="operatories",
    group="practice",
    doc="A treatment room or chair.",
    path="/operatories",
    scope=Scope.LOCATION,
    increment="updated_since",
    version="updated_at",
    soft_after=("locations",),
    columns=flatten(
        _id(),
        column("name", _TEXT, _NONE, "Name of the room."),
        _foreign(_NONE),
        column("location_id", _BIGINT, _NONE, "Location of the room."),
        _last_sync(),
        _timestamps(),
        column("display_name", _TEXT, _NONE, "Name as shown to patients."),
        column("active", _BOOL, _NONE, "In use."),
        column("bookable_online", _BOOL, _NONE, "Can be booked online."),
        column("appointment_types", _JSON, _NONE, "Appointment types done here, where included."),
    ),
    indexes=(("location_id",),),
)

APPOINTMENT_TYPES = Collection(
    name="appointment_types",
    group="scheduling",
    doc="A kind of visit that can be booked.",
    path="/appointment_types",
    scope=Scope.INSTITUTION,
    paging=Paging.NONE,
    # Not with include[]=descriptors: they differ by location for one and the same type.
    per_location_if="appointment_types_location_scoped",
    legacy_accept=True,
    soft_after=("locations",),
    columns=flatten(
        _id(),
        column("name", _TEXT, _NONE, "Name of the kind of visit."),
        column("parent_type", _TEXT, _NONE, "Institution or Location: whose type it is."),
        column("parent_id", _BIGINT, _NONE, "Id of that institution or location."),
        column("minutes", _BIGINT, _NONE, "Planned length in minutes."),
        column("bookable_online", _BOOL, _NONE, "Can be booked online."),
        column("descriptors", _JSON, _NONE, "What the type is called in the practice system, where delivered."),
    ),
)

PATIENTS = Collection(
    name="patients",
    group="patients",
    doc="A person known to the practice: patient, inactive patient, or guarantor who is no patient.",
    path="/patients",
    scope=Scope.LOCATION,
    passes=(
        Pass("all", (("location_strict", "false"),), reader=Reader.OWNER),
        Pass("members", (("location_strict", "true"),), reader=Reader.SHARED, membership=True),
    ),
    increment="updated_since",
    sort="id",
    version="updated_at",
    sensitive=(("bio", "ssn"),),
    soft_after=("locations", "providers"),
    columns=flatten(
        _id(),
        column("email", _TEXT, _CONTACT, "E-mail address."),
        column("first_name", _TEXT, _DEMOGRAPHIC, "First name."),
        column("middle_name", _TEXT, _DEMOGRAPHIC, "Middle name."),
        column("last_name", _TEXT, _DEMOGRAPHIC, "Last name."),
        column("name", _TEXT, _DEMOGRAPHIC, "Full name."),
        _timestamps(),
        _foreign(),
        _BIO,
        column("inactive", _BOOL, _NONE, "Archived or deleted in the practice system."),
        _last_sync(),
        column("guarantor_id", _BIGINT, _ID, "Patient who pays; 0 or the own id = pays for themself."),
        column("billing_type", _TEXT, _INSURANCE, "Billing type of the practice system."),
        column("chart_id", _TEXT, _ID, "Chart number."),
        column("preferred_language", _TEXT, _DEMOGRAPHIC, "ISO 639-1 language."),
        column("provider_id", _BIGINT, _NONE, "Primary provider."),
        nested(
            "hipaa",
            column("authorization", _BOOL, _NONE, "HIPAA authorization given."),
            column("authorization_date", _DATE, _NONE, "When the authorization was given."),
            column("privacy", _BOOL, _NONE, "Privacy notice acknowledged."),
            column("privacy_date", _DATE, _NONE, "When the notice was acknowledged."),
            column("consent", _BOOL, _NONE, "Consent given."),
            column("consent_date", _DATE, _NONE, "When the consent was given."),
        ),
    ),
    indexes=(
        ("last_name", "first_name"),
        ("bio_date_of_birth",),
        ("institution_id", "guarantor_id"),
        ("foreign_id",),
        ("updated_at",),
    ),
)

PATIENT_ADDRESSES = Collection(
    name="patient_addresses",
    group="patients",
    doc="A patient's postal address, which only the single-patient read gives.",
    path="/patients/{patient_id}",
    scope=Scope.LOCATION,
    key=("institution_id", "patient_id"),
    paging=Paging.NONE,
    passes=(Pass("all", (("include[]", "address"),)),),
    per_patient=True,
    on_demand=True,
    records_at=("address",),
    after=("patients",),
    from_request=(Column("patient_id", _BIGINT, _ID, "Patient whose address it is.", ()),),
    columns=flatten(
        column("line_1", _TEXT, _CONTACT, "First address line."),
        column("line_2", _TEXT, _CONTACT, "Second address line."),
        column("postal_code", _TEXT, _CONTACT, "Postal code."),
        column("city", _TEXT, _CONTACT, "City."),
        column("region", _TEXT, _CONTACT, "State or region."),
    ),
)

DOCUMENT_TYPES = Collection(
    name="document_types",
    group="patients",
    doc="A kind of document that can be attached to a patient.",
    path="/document_types",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    passes=_ACTIVE_PASSES,
    legacy_accept=True,
    soft_after=("locations",),
    from_request=(Column("location_id", _BIGINT, _NONE, "Location that lists the type.", ()),),
    columns=flatten(
        _id(),
        column("name", _TEXT, _NONE, "Name of the kind of document."),
        column("active", _BOOL, _NONE, "Can be used."),
    ),
)

DOCUMENTS = Collection(
    name="documents",
    group="patients",
    doc="A file attached to a patient: what it is, not its bytes.",
    path="/patients/{patient_id}/documents",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    per_patient=True,
    legacy_accept=True,
    after=("patients",),
    soft_after=("document_types",),
    from_request=(Column("patient_id", _BIGINT, _ID, "Patient the document belongs to.", ()),),
    columns=flatten(
        _id(),
        column("filename", _TEXT, _CLINICAL, "Name of the file."),
        column("type", _TEXT, _NONE, "MIME type."),
        column("url", _TEXT, _CLINICAL, "Where the API serves the bytes; may expire."),
        column("created_at", _TIME, _NONE, "First upload."),
        column("document_type_id", _BIGINT, _NONE, "Kind of document."),
    ),
    indexes=(("institution_id", "patient_id"),),
)

APPOINTMENTS = Collection(
    name="appointments",
    group="scheduling",
    doc="A visit, or a block in the schedule that has no patient.",
    path="/appointments",
    scope=Scope.LOCATION_MONTH,
    passes=(Pass("kept", (("cancelled", "false"),)), Pass("cancelled", (("cancelled", "true"),))),
    window=Window("start", "end", "start_time"),
    patient_filter="patient_ids[]",
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    soft_after=("patients", "providers", "operatories", "appointment_types"),
    columns=flatten(
        _id(),
        column("patient_id", _BIGINT, _ID, "Patient; null for a block."),
        column("provider_id", _BIGINT, _NONE, "Provider."),
        column("provider_name", _TEXT, _NONE, "Name of the provider."),
        column("start_time", _TIME, _NONE, "Start."),
        column("confirmed", _BOOL, _NONE, "Confirmed by the office."),
        column("patient_missed", _BOOL, _CLINICAL, "The patient did not come."),
        _timestamps(),
        column("note", _TEXT, _CLINICAL, "Free text of the office."),
        column("end_time", _TIME, _NONE, "End."),
        column("unavailable", _BOOL, _NONE, "A block in the schedule, no visit."),
        column("cancelled", _BOOL, _NONE, "Cancelled."),
        column("timezone", _TEXT, _NONE, "IANA time zone of the office."),
        column("appointment_type_id", _BIGINT, _NONE, "Kind of visit; 0 = unset."),
        column("checkin_at", _TIME, _NONE, "When the patient checked in."),
        column("location_id", _BIGINT, _NONE, "Location of the visit."),
        _foreign(),
        column("misc", _JSON, _NONE, "Further flags of the API."),
        _last_sync(),
        column("patient_confirmed", _BOOL, _NONE, "Confirmed by the patient."),
        column("created_by_user_id", _BIGINT, _NONE, "User who made it."),
        column("is_guardian", _BOOL, _NONE, "Booked by a guardian."),
        column("patient_confirmed_at", _TIME, _NONE, "When the patient confirmed."),
        column("cancelled_at", _TIME, _NONE, "When it was cancelled; kept when it is taken back."),
        column("is_new_clients_patient", _BOOL, _NONE, "The patient was new when it was booked."),
        column("confirmed_at", _TIME, _NONE, "When the office confirmed."),
        column("sooner_if_possible", _BOOL, _NONE, "The patient would come sooner."),
        column("operatory_id", _BIGINT, _NONE, "Room."),
        column("checked_out", _BOOL, _NONE, "The visit is over."),
        column("checked_out_at", _TIME, _NONE, "When the visit was over."),
        column("referrer", _TEXT, _NONE, "Where the booking came from."),
        column("is_past_patient", _BOOL, _NONE, "The patient had been here before."),
        column("timezone_offset", _TEXT, _NONE, "Offset of the office's time zone at the visit."),
    ),
    indexes=(
        ("location_id", "start_time"),
        ("start_time",),
        ("institution_id", "patient_id"),
        ("provider_id", "start_time"),
        ("updated_at",),
    ),
)

INSURANCE_PLANS = Collection(
    name="insurance_plans",
    group="insurance",
    doc="An insurer's plan as the practice system knows it.",
    path="/insurance_plans",
    scope=Scope.INSTITUTION,
    passes=(Pass("all", (("include_deleted", "true"),)),),
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    may_be_disabled=True,
    columns=flatten(
        _id(),
        column("payer_id", _TEXT, _NONE, "Electronic payer id."),
        column("name", _TEXT, _NONE, "Name of the plan or insurer."),
        column("address", _TEXT, _NONE, "Street and number of the insurer."),
        column("address2", _TEXT, _NONE, "Second address line."),
        column("city", _TEXT, _NONE, "City."),
        column("state", _TEXT, _NONE, "State."),
        column("zip_code", _TEXT, _NONE, "Postal code."),
        column("country_code", _TEXT, _NONE, "ISO 3166 country."),
        column("group_num", _TEXT, _NONE, "Group number."),
        column("employer_name", _TEXT, _NONE, "Employer."),
        column("foreign_id", _TEXT, _NONE, "The practice system's own key."),
        column("updated_at", _TIME, _NONE, "When NexHealth last wrote the record."),
        column("deleted_at", _TIME, _NONE, "When the plan was deleted, by the API; null = present."),
    ),
)

INSURANCE_COVERAGES = Collection(
    name="insurance_coverages",
    group="insurance",
    doc="A patient's cover under a plan, current or ended.",
    path="/insurance_coverages",
    scope=Scope.INSTITUTION,
    passes=_ACTIVE_PASSES,
    increment="updated_since",
    version="updated_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    soft_after=("patients", "insurance_plans"),
    columns=flatten(
        _id(),
        column("subscription_relation", _TEXT, _INSURANCE, "Patient's relation to the subscriber."),
        column("patient_id", _BIGINT, _ID, "Covered patient."),
        column("priority", _BIGINT, _INSURANCE, "Lowest = primary."),
        column("plan_id", _BIGINT, _INSURANCE, "Plan."),
        column("subscriber_num", _TEXT, _INSURANCE, "Subscriber's number at the insurer."),
        column("effective_date", _DATE, _INSURANCE, "First day of cover."),
        column("expiration_date", _DATE, _INSURANCE, "Last day of cover."),
        column("insurance_type", _TEXT, _INSURANCE, "dental, medical or vision."),
        column("updated_at", _TIME, _NONE, "Newest of coverage and subscription."),
        column("active", _BOOL, _INSURANCE, "In force."),
    ),
    indexes=(("institution_id", "patient_id"), ("institution_id", "plan_id")),
)

DECLARED: tuple[Collection, ...] = (
    INSTITUTIONS,
    LOCATIONS,
    SYNC_STATUS,
    PROVIDERS,
    OPERATORIES,
    APPOINTMENT_TYPES,
    PATIENTS,
    PATIENT_ADDRESSES,
    DOCUMENT_TYPES,
    DOCUMENTS,
    APPOINTMENTS,
    INSURANCE_PLANS,
    INSURANCE_COVERAGES,
)
"""All declarations, in the order they are shown."""

COLLECTIONS: dict[str, Collection] = {collection.name: collection for collection in DECLARED}
"""Declarations by name."""
