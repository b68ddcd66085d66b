"""Columns and passes that many declarations share."""

from nexhealth_pipeline.catalog.collection import Column, Derived, Pass, Phi, SqlType, column, flatten, nested

__all__ = [
    "ACTIVE_PASSES",
    "BIGINT",
    "BIO",
    "BOOL",
    "CLINICAL",
    "CONTACT",
    "DATE",
    "DELETED_PASSES",
    "DEMOGRAPHIC",
    "FINANCIAL",
    "ID",
    "INACTIVE_PASSES",
    "INSURANCE",
    "IN_EHR",
    "JSON",
    "NONE",
    "OFFICE",
    "OFFICE_NAME",
    "TEXT",
    "TIME",
    "address",
    "deleted",
    "foreign",
    "identifier",
    "last_sync",
    "link",
    "local_times",
    "name_of",
    "timestamps",
    "updated",
]

BIGINT, TEXT, BOOL, TIME, DATE, JSON = (
    SqlType.BIGINT,
    SqlType.TEXT,
    SqlType.BOOLEAN,
    SqlType.TIMESTAMPTZ,
    SqlType.DATE,
    SqlType.JSONB,
)
NONE, ID, CONTACT, DEMOGRAPHIC, CLINICAL, FINANCIAL, INSURANCE = (
    Phi.NONE,
    Phi.ID,
    Phi.CONTACT,
    Phi.DEMOGRAPHIC,
    Phi.CLINICAL,
    Phi.FINANCIAL,
    Phi.INSURANCE,
)


def _by_activity(parameter: str, active: str, inactive: str) -> tuple[Pass, ...]:
    """Both halves of a list. A row that becomes active between them is in neither, and looks gone: once more, then."""
    return (
        Pass("active", ((parameter, active),)),
        Pass("inactive", ((parameter, inactive),)),
        Pass("active_again", ((parameter, active),), reconcile_only=True),
    )


INACTIVE_PASSES = _by_activity("inactive", "false", "true")
"""Of lists that show active rows unless told otherwise, by a parameter `inactive`."""
ACTIVE_PASSES = _by_activity("active", "true", "false")
"""Of lists that show active rows unless told otherwise, by a parameter `active`."""
DELETED_PASSES = (Pass("all", (("include_deleted", "true"),)),)
"""Of lists that hide deleted rows unless told otherwise."""

IN_EHR = Derived(
    "in_ehr",
    "coalesce(t.foreign_id, '') <> ''",
    NONE,
    "Is in the practice system; false = made through NexHealth and not (yet) written there.",
)
"""Shown by views of what can be made through NexHealth."""
OFFICE = (
    "LEFT JOIN (WITH office AS MATERIALIZED (SELECT institution_id, id, name, nexhealth_zone(tz) AS zone"
    " FROM nexhealth_locations) SELECT * FROM office) office"
    " ON office.institution_id = t.institution_id AND office.id = t.location_id"
)
"""Join of the row's office as `office`. Its zones are tried once a query: a subquery that is only kept apart (OFFSET 0)
is carried out once for each of a few rows."""
_ZONE = "coalesce(office.zone, nexhealth_zone(t.timezone))"
OFFICE_NAME = Derived("location_name", "office.name", NONE, "Name of the location.")
"""Wants `OFFICE` joined."""


def identifier(doc: str = "NexHealth's id, unique within the institution.") -> tuple[Column, ...]:
    """The column `id`."""
    return column("id", BIGINT, ID, doc)


def link(name: str, doc: str, phi: Phi = Phi.NONE) -> tuple[Column, ...]:
    """A column that holds the id of a row elsewhere; people's ids are PHI class `id`."""
    return column(name, BIGINT, ID if name in ("patient_id", "guarantor_id") else phi, doc)


def updated() -> tuple[Column, ...]:
    """The column that orders a record's versions."""
    return column("updated_at", TIME, NONE, "When NexHealth last wrote the record.")


def deleted() -> tuple[Column, ...]:
    """The API's own deletion time, or when a reconcile found the record missing."""
    return column(
        "deleted_at", TIME, NONE, "When it was deleted, or found missing (deleted_by = absence); null = present."
    )


def timestamps() -> tuple[Column, ...]:
    """When NexHealth made and last wrote the record."""
    return flatten(column("created_at", TIME, NONE, "When NexHealth first stored the record."), updated())


def foreign(phi: Phi = Phi.ID) -> tuple[Column, ...]:
    """The practice system's own key."""
    return flatten(
        column("foreign_id", TEXT, phi, "The practice system's own key; null until the record is in it."),
        column("foreign_id_type", TEXT, NONE, "Which source foreign_id belongs to."),
    )


def last_sync() -> tuple[Column, ...]:
    """When the source last refreshed the record."""
    return column("last_sync_time", TIME, NONE, "When the source was last refreshed (dropped in API v3.1).")


def address(phi: Phi) -> tuple[Column, ...]:
    """A postal address."""
    return flatten(
        column("street_address", TEXT, phi, "Street and number."),
        column("street_address_2", TEXT, phi, "Second address line."),
        column("city", TEXT, phi, "City."),
        column("state", TEXT, phi, "State, two letters."),
        column("zip_code", TEXT, phi, "Postal code."),
    )


BIO = nested(
    "bio",
    column("city", TEXT, CONTACT, "City."),
    column("state", TEXT, CONTACT, "State."),
    column("gender", TEXT, DEMOGRAPHIC, "Gender as the practice system has it."),
    column("zip_code", TEXT, CONTACT, "Postal code."),
    column("new_patient", BOOL, NONE, "Not yet seen by the practice."),
    column("non_patient", BOOL, NONE, "A guarantor who is no patient."),
    column("phone_number", TEXT, CONTACT, "Preferred phone number."),
    column("date_of_birth", DATE, DEMOGRAPHIC, "Date of birth."),
    column("address_line_1", TEXT, CONTACT, "First address line."),
    column("address_line_2", TEXT, CONTACT, "Second address line."),
    column("street_address", TEXT, CONTACT, "Street and number."),
    column("cell_phone_number", TEXT, CONTACT, "Mobile phone number."),
    column("home_phone_number", TEXT, CONTACT, "Home phone number."),
    column("work_phone_number", TEXT, CONTACT, "Work phone number."),
)
"""What a patient's `bio` is documented to hold; any key may be missing."""


def local_times(*names: str, date: str) -> tuple[Derived, ...]:
    """Times of the row `t` as its office's clock shows them, the day of `date`, and the zone; wants `OFFICE` joined."""
    return (
        *(
            Derived(f"local_{name}", f"t.{name} AT TIME ZONE {_ZONE}", NONE, f"{name} as the office's clock shows it.")
            for name in names
        ),
        Derived("local_date", f"(t.{date} AT TIME ZONE {_ZONE})::date", NONE, f"Day of {date} at the office."),
        Derived("local_zone", _ZONE, NONE, "Time zone of the office's clock; null = none that PostgreSQL knows."),
    )


def name_of(table: str, column: str, *, name: str, phi: Phi = Phi.NONE) -> tuple[Derived, str]:
    """The name behind an id of the row `t`, and the join that brings it; deleted rows keep their names."""
    return (
        Derived(name, f"of_{column}.name", phi, f"Name behind {column}."),
        (
            f"LEFT JOIN nexhealth_{table} of_{column}"
            f" ON of_{column}.institution_id = t.institution_id AND of_{column}.id = t.{column}"
        ),
    )
