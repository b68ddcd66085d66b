"""Visits and their kinds (API.md E.1, E.3)."""

from nexhealth_pipeline.catalog.collection import (
    Collection,
    Current,
    Derived,
    Events,
    Pass,
    Scope,
    Shown,
    Window,
    column,
    flatten,
)
from nexhealth_pipeline.catalog.collections.words import (
    BIGINT,
    BOOL,
    CLINICAL,
    CONTACT,
    DEMOGRAPHIC,
    ID,
    IN_EHR,
    JSON,
    NONE,
    OFFICE,
    OFFICE_NAME,
    TEXT,
    TIME,
    foreign,
    identifier,
    last_sync,
    link,
    local_times,
    name_of,
    timestamps,
)
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["DECLARED"]

APPOINTMENT_TYPES = Collection(
    name="appointment_types",
    group="scheduling",
    doc="A kind of visit that can be booked.",
    path="/appointment_types",
    scope=Scope.INSTITUTION,
    paging=Paging.NONE,
    # Not with include[]=descriptors: they differ by location for one and the same type.
    per_location_if="appointment_types_location_scoped",
    place_if=("parent_id", "parent_type", "Location"),
    legacy_accept=True,
    after=("locations",),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the kind of visit."),
        column("parent_type", TEXT, NONE, "Institution or Location: whose type it is."),
        column("parent_id", BIGINT, NONE, "Id of that institution or location."),
        column("minutes", BIGINT, NONE, "Planned length in minutes."),
        column("bookable_online", BOOL, NONE, "Can be booked online."),
    ),
)


APPOINTMENT_DESCRIPTORS = Collection(
    name="appointment_descriptors",
    group="scheduling",
    doc="What the practice system calls a kind of visit: its codes, categories and reasons.",
    path="/locations/{location_id}/appointment_descriptors",
    scope=Scope.LOCATION,
    paging=Paging.NONE,
    legacy_accept=True,
    version="updated_at",
    references=(("location_id", "locations"),),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        column("descriptor_type", TEXT, NONE, "Kind of descriptor, for example Procedure Code(s)."),
        column("name", TEXT, NONE, "Name."),
        column("code", TEXT, NONE, "Code."),
        link("location_id", "Location."),
        foreign(NONE),
        column("data", JSON, NONE, "Configuration as the practice system has it."),
        column("active", BOOL, NONE, "In use."),
        last_sync(),
        timestamps(),
    ),
    indexes=(("location_id",),),
)


_PATIENT_NAME, _PATIENT = name_of("patients", "patient_id", name="patient_name", phi=DEMOGRAPHIC)
_KIND_NAME, _KIND = name_of("appointment_types", "appointment_type_id", name="appointment_type_name")
_ROOM_NAME, _ROOM = name_of("operatories", "operatory_id", name="operatory_name")
_IS_BLOCK = "coalesce(t.unavailable, t.patient_id IS NULL)"

APPOINTMENTS = Collection(
    name="appointments",
    group="scheduling",
    doc="A visit, or a block in the schedule that has no patient.",
    path="/appointments",
    scope=Scope.LOCATION_MONTH,
    passes=(
        Pass("kept", (("cancelled", "false"),)),
        Pass("cancelled", (("cancelled", "true"),)),
        # No third one for what is taken back between them: what no list holds is asked for by id, and each pass costs a
        # request a month at the tightest limit. The list without `cancelled` holds deleted ones as well, and nothing in
        # v3's records need say so (API.md H).
    ),
    window=Window("start", "end", "start_time"),
    patient_filter="patient_ids[]",
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    # Not in the vendor's specification, but v2's records had it (API.md H): believed wherever it comes.
    soft_delete="deleted_at",
    deleted_if="deleted",
    by_id="/appointments/{id}",
    by_id_legacy=True,
    references=(
        ("patient_id", "patients"),
        ("provider_id", "providers"),
        ("operatory_id", "operatories"),
        ("appointment_type_id", "appointment_types"),
        ("location_id", "locations"),
    ),
    filters=(("provider", "provider_ids[]"),),
    columns=flatten(
        identifier(),
        column("patient_id", BIGINT, ID, "Patient; null for a block."),
        column("provider_id", BIGINT, NONE, "Provider."),
        column("provider_name", TEXT, NONE, "Name of the provider."),
        column("start_time", TIME, NONE, "Start."),
        column("confirmed", BOOL, NONE, "Confirmed by the office."),
        column("patient_missed", BOOL, CLINICAL, "The patient did not come; not every practice system tells."),
        timestamps(),
        column("note", TEXT, CLINICAL, "Free text of the office."),
        column("end_time", TIME, NONE, "End."),
        column("unavailable", BOOL, NONE, "A block in the schedule, no visit."),
        column("cancelled", BOOL, NONE, "Cancelled."),
        column("timezone", TEXT, NONE, "IANA time zone of the office."),
        column("appointment_type_id", BIGINT, NONE, "Kind of visit; 0 = unset."),
        column("checkin_at", TIME, NONE, "When the patient checked in; not every practice system tells."),
        column("location_id", BIGINT, NONE, "Location of the visit."),
        foreign(),
        column("misc", JSON, CLINICAL, "Further flags of the API, whatever they are."),
        last_sync(),
        column("patient_confirmed", BOOL, NONE, "Confirmed by the patient."),
        column("created_by_user_id", BIGINT, ID, "User who made it; perhaps the patient."),
        column("is_guardian", BOOL, NONE, "Booked by a guardian."),
        column("patient_confirmed_at", TIME, NONE, "When the patient confirmed."),
        column("cancelled_at", TIME, NONE, "When it was cancelled; kept when it is taken back."),
        column("is_new_clients_patient", BOOL, NONE, "The patient was new when it was booked."),
        column("confirmed_at", TIME, NONE, "When the office confirmed."),
        column("sooner_if_possible", BOOL, NONE, "The patient would come sooner."),
        column("operatory_id", BIGINT, NONE, "Room."),
        column("checked_out", BOOL, NONE, "The visit is over; not every practice system tells."),
        column("checked_out_at", TIME, NONE, "When the visit was over; not every practice system tells."),
        column("referrer", TEXT, CONTACT, "Where the booking came from; a page's address, or free text."),
        column("is_past_patient", BOOL, NONE, "The patient had been here before."),
        column("timezone_offset", TEXT, NONE, "Offset of the office's time zone at the visit."),
    ),
    indexes=(
        ("location_id", "start_time"),
        ("start_time",),
        ("institution_id", "patient_id"),
        ("provider_id", "start_time"),
        ("updated_at",),
    ),
    current=Current(
        columns=(
            *local_times("start_time", "end_time", date="start_time"),
            OFFICE_NAME,
            _PATIENT_NAME,
            _KIND_NAME,
            _ROOM_NAME,
            IN_EHR,
            Derived("appointment_type_id", "nullif(t.appointment_type_id, 0)", NONE, "Kind of visit; null = unset."),
            Derived(
                "cancelled_at",
                "CASE WHEN t.cancelled THEN t.cancelled_at END",
                NONE,
                "When it was cancelled; null = it is not.",
            ),
        ),
        joins=(OFFICE, _PATIENT, _KIND, _ROOM),
        views=(
            Shown("appointments", "A visit, cancelled ones too.", f"NOT {_IS_BLOCK}"),
            Shown("schedule_blocks", "Time that is blocked in the schedule: no visit.", _IS_BLOCK),
        ),
    ),
    # API.md E.3.
    single_only=("patient", "operatory", "appointment_type", "procedures", "descriptors", "booking_details"),
    events=Events(
        "Appointment",
        snapshots=("appointment_created", "appointment_updated"),
        hints=("appointment_insertion",),
        keys=("appointment", "appointments", "appt"),
    ),
)

DECLARED: tuple[Collection, ...] = (APPOINTMENT_TYPES, APPOINTMENT_DESCRIPTORS, APPOINTMENTS)
"""In the order they are shown."""
