"""The practice itself: organisations, offices, people, rooms, hours (API.md E.1, E.3)."""

from dataclasses import replace

from nexhealth_pipeline.catalog.collection import Collection, Events, Pass, Scope, SqlType, column, flatten, nested
from nexhealth_pipeline.catalog.collections.words import (
    ACTIVE_PASSES,
    BIGINT,
    BOOL,
    DATE,
    DEMOGRAPHIC,
    INACTIVE_PASSES,
    JSON,
    NONE,
    TEXT,
    TIME,
    address,
    foreign,
    identifier,
    last_sync,
    link,
    timestamps,
)
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["DECLARED"]

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
        identifier("NexHealth's id; equal to institution_id."),
        column("name", TEXT, NONE, "Name of the organisation."),
        timestamps(),
        column("subdomain", TEXT, NONE, "Name that scopes every request; case-sensitive."),
        column("phone_number", TEXT, NONE, "Phone number of the organisation."),
        column("emrs", JSON, NONE, "Practice systems in use."),
        column("country_code", TEXT, NONE, "ISO 3166 country."),
        column("appointment_types_location_scoped", BOOL, NONE, "Appointment types belong to locations."),
        column("is_sync_notifications", BOOL, NONE, "Sync notifications are on."),
        column("notify_insert_fails", BOOL, NONE, "Failed insertions are reported."),
        column("locations", JSON, NONE, "Locations in short form, as listed with the institution."),
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
    references=(("institution_id", "institutions"),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the office."),
        address(NONE),
        column("country_code", TEXT, NONE, "ISO 3166 country."),
        timestamps(),
        column("latitude", SqlType.DOUBLE, NONE, "Degrees north."),
        column("longitude", SqlType.DOUBLE, NONE, "Degrees east."),
        column("phone_number", TEXT, NONE, "Phone number of the office."),
        foreign(NONE),
        column("email", TEXT, NONE, "E-mail address of the office."),
        column("tz", TEXT, NONE, "IANA time zone of the office."),
        last_sync(),
        column(
            "insert_appt_client",
            BOOL,
            NONE,
            "Appointments made through NexHealth are written into the practice system.",
        ),
        column("map_by_operatory", BOOL, NONE, "Bookings are mapped by operatory."),
        column("set_availability_by_operatory", BOOL, NONE, "Availability is set by operatory."),
        column("inactive", BOOL, NONE, "The office is switched off in NexHealth."),
        nested(
            "specialty",
            column("id", BIGINT, NONE, "Id of the office's specialty."),
            column("name", TEXT, NONE, "Name of the office's specialty."),
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
    references=(("institution_id", "institutions"),),
    columns=flatten(
        column("sync_source_type", TEXT, NONE, "Kind of source."),
        column("sync_source_name", TEXT, NONE, "Name of the source."),
        nested(
            "emr",
            column("id", BIGINT, NONE, "Id of the practice system."),
            column("name", TEXT, NONE, "Name of the practice system."),
            column("display_name", TEXT, NONE, "Name of the practice system as shown to people."),
            column("type", TEXT, NONE, "cloud or onprem."),
        ),
        column("read_status", TEXT, NONE, "green, or red while the office cannot be read."),
        column("read_status_at", TIME, NONE, "When the office was last read."),
        column("write_status", TEXT, NONE, "green, or red while the office cannot be written."),
        column("write_status_at", TIME, NONE, "When the office was last written."),
        column("locations", JSON, NONE, "Locations that share this EHR database."),
    ),
    events=Events(
        "SyncStatus", hints=("sync_status_read_change", "sync_status_write_change"), keys=("syncstatus", "sync_status")
    ),
)


PROVIDERS = Collection(
    name="providers",
    group="practice",
    doc="A dentist, hygienist or other person or chair that appointments are made with.",
    path="/providers",
    scope=Scope.INSTITUTION,
    passes=INACTIVE_PASSES,
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    sensitive=(("tin",), ("bio", "ssn")),
    after=("locations",),
    filters=(("status", "inactive"),),
    columns=flatten(
        identifier(),
        column("email", TEXT, NONE, "E-mail address."),
        column("first_name", TEXT, NONE, "First name."),
        column("middle_name", TEXT, NONE, "Middle name."),
        column("last_name", TEXT, NONE, "Last name."),
        column("name", TEXT, NONE, "Full name."),
        timestamps(),
        foreign(NONE),
        column("bio", JSON, DEMOGRAPHIC, "Contact data of the provider, as delivered."),
        column("inactive", BOOL, NONE, "No longer works here."),
        last_sync(),
        column("display_name", TEXT, NONE, "Name as shown to patients."),
        column("npi", TEXT, NONE, "National provider identifier."),
        column("state_license", TEXT, NONE, "Licence number."),
        column("specialty_code", TEXT, NONE, "Taxonomy code."),
        column("locations", JSON, NONE, "Locations the provider works at."),
        column("provider_requestables", JSON, NONE, "Locations where the provider can be booked."),
    ),
    indexes=(("last_name",),),
)


OPERATORIES = Collection(
    name="operatories",
    group="practice",
    doc="A treatment room or chair.",
    path="/operatories",
    scope=Scope.LOCATION,
    passes=(Pass("all", (("include[]", "appointment_types"),), dispensable=("include[]",)),),
    increment="updated_since",
    version="updated_at",
    references=(("location_id", "locations"),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the room."),
        foreign(NONE),
        column("location_id", BIGINT, NONE, "Location of the room."),
        last_sync(),
        timestamps(),
        column("display_name", TEXT, NONE, "Name as shown to patients."),
        column("active", BOOL, NONE, "In use."),
        column("bookable_online", BOOL, NONE, "Can be booked online."),
        column("appointment_types", JSON, NONE, "Kinds of visit done here."),
    ),
    indexes=(("location_id",),),
)


NEX_STAFF = Collection(
    name="nex_staff",
    group="practice",
    doc="A person who works in NexHealth's own application at the practice.",
    path="/nex_staff",
    scope=Scope.INSTITUTION,
    paging=Paging.PAGE,
    # The API does not say whom it lists without the parameter.
    passes=INACTIVE_PASSES,
    legacy_accept=True,
    version="updated_at",
    after=("locations",),
    filters=(("status", "inactive"),),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        column("email", TEXT, NONE, "E-mail address."),
        column("first_name", TEXT, NONE, "First name."),
        column("last_name", TEXT, NONE, "Last name."),
        timestamps(),
        column("patientable", BOOL, NONE, "Can be treated as a patient too."),
        column("inst_ids", JSON, NONE, "Institutions the person works for."),
        column("unsubscribe_emails", BOOL, NONE, "Wants no e-mail."),
        column("unsubscribe_sms", BOOL, NONE, "Wants no text messages."),
        column("inactive", BOOL, NONE, "No longer works here."),
        column("location_ids", JSON, NONE, "Locations the person works at."),
    ),
)


_ALL_HOURS = (("ignore_past_dates", "false"), ("include[]", "appointment_types"))
_WORKING_HOURS_PASSES = tuple(
    replace(one, params=(*one.params, *_ALL_HOURS), dispensable=tuple(name for name, _ in _ALL_HOURS))
    for one in ACTIVE_PASSES
)

WORKING_HOURS = Collection(
    name="working_hours",
    group="practice",
    doc="When a provider or a room can be booked.",
    path="/working_hours",
    scope=Scope.LOCATION,
    passes=_WORKING_HOURS_PASSES,
    references=(
        ("location_id", "locations"),
        ("provider_id", "providers"),
        ("operatory_id", "operatories"),
        ("label_id", "working_hour_labels"),
    ),
    filters=(("provider", "provider_id"), ("status", "active")),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        link("provider_id", "Provider; null where the hours are a room's."),
        link("location_id", "Location."),
        link("operatory_id", "Room; null where the hours are a provider's."),
        column("begin_time", TEXT, NONE, "Start, HH:MM in the office's time."),
        column("end_time", TEXT, NONE, "End, HH:MM in the office's time."),
        column("days", JSON, NONE, "Names of weekdays; empty for a custom recurrence."),
        column("specific_date", DATE, NONE, "The one day they are for."),
        column("custom_recurrence", JSON, NONE, "Every `num` `unit`s from `ref` on."),
        column("tz_offset", TEXT, NONE, "Offset of the office's time from UTC."),
        column("active", BOOL, NONE, "In use."),
        column("source", TEXT, NONE, "manual, or synced from the practice system."),
        nested(
            "label",
            column("id", BIGINT, NONE, "Label."),
            column("location_id", BIGINT, NONE, "Location of the label."),
            column("name", TEXT, NONE, "Name of the label."),
        ),
        column("appointment_types", JSON, NONE, "Kinds of visit that can be booked then."),
    ),
    indexes=(("location_id",),),
)

WORKING_HOUR_LABELS = Collection(
    name="working_hour_labels",
    group="practice",
    doc="A name for kinds of working hours.",
    path="/working_hour_labels",
    scope=Scope.INSTITUTION,
    references=(("location_id", "locations"),),
    filters=(("status", "active"),),
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        link("location_id", "Location of the label."),
        column("name", TEXT, NONE, "Name of the label."),
    ),
)

DECLARED: tuple[Collection, ...] = (
    INSTITUTIONS,
    LOCATIONS,
    SYNC_STATUS,
    PROVIDERS,
    OPERATORIES,
    NEX_STAFF,
    WORKING_HOURS,
    WORKING_HOUR_LABELS,
)
"""In the order they are shown."""
