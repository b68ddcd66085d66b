"""GETs about a practice: institutions, locations, people who work there, rooms, hours, appointment types.

Source: API.md D and E.1. Reading this file should tell what the server does with a request.
"""

from .params import Filter, same, updated_since
from .route import BY_UPDATE, HIDES_INACTIVE, Route, Scope, anything, has_name, ints
from .rows import Row

__all__ = ["PRACTICE"]

_COLORS = ("green", "red")
_FEATURES = (
    *("messaging", "campaigns", "reviews", "recalls", "reminders", "online_booking", "waitlist", "forms", "payments"),
    *("ledger_sync", "enterprise", "insurance_verification"),
)
_RESOURCES = ("locations", "availabilities", "appointment_types")
_ROOM = ("appointment_types", "appt_categories")
_TYPED = {"descriptor_type": same("text", "descriptor_type")}


def _at_location(row: Row, wanted: int) -> bool:
    return wanted in row.facts["location_ids"]


def _has_label(row: Row, wanted: int) -> bool:
    return row.facts["location_id"] in (None, wanted)


_PROVIDER_FILTERS = {
    "location_id": Filter("int", _at_location),
    "foreign_id": same("text", "foreign_id"),
    "requestable": Filter("bool", lambda row, wanted: bool(row.facts.get("requestable")) == wanted),
    "inactive": same("bool", "inactive", default=False),
    "ids[]": same("ints", "id"),
    "updated_since": updated_since,
}

_HOUR_FILTERS = {
    **ints("provider_id", "operatory_id", "label_id"),
    "source": Filter("choice", lambda row, wanted: row.facts["source"] == wanted, choices=("manual", "synced")),
    **HIDES_INACTIVE,
    "ignore_past_dates": Filter("bool", anything, default=False),
}

_I, _L, _K = Scope.INSTITUTION, Scope.LOCATION, Scope.KEY

PRACTICE: tuple[Route, ...] = (
    Route("/institutions", "institutions", _K, legacy=True),
    Route("/institutions/{id}", "institutions", _K, single=True, legacy=True),
    Route(
        "/locations",
        "locations",
        _K,
        legacy=True,
        filters={
            "inactive": same("bool", "inactive"),
            "foreign_id": same("text", "foreign_id"),
            "filter_by_subscription_feature": Filter(
                "choice", lambda row, wanted: wanted in row.facts.get("features", ()), choices=_FEATURES
            ),
        },
    ),
    Route("/locations/{id}", "locations", _K, single=True, legacy=True),
    Route(
        "/sync_status",
        "sync_status",
        _K,
        legacy=True,
        filters={
            "read_status": Filter("choice", lambda row, wanted: row.value("read_status") == wanted, choices=_COLORS),
            "write_status": Filter("choice", lambda row, wanted: row.value("write_status") == wanted, choices=_COLORS),
            "location_ids[]": Filter("ints", lambda row, wanted: not wanted.isdisjoint(row.facts["location_ids"])),
        },
    ),
    Route(
        "/providers",
        "providers",
        _I,
        cursor=True,
        sorts=BY_UPDATE,
        filters=_PROVIDER_FILTERS,
        includes=_RESOURCES,
        default_includes=("locations",),
    ),
    Route(
        "/providers/{id}",
        "providers",
        _I,
        single=True,
        includes=_RESOURCES,
        default_includes=("locations",),
    ),
    Route(
        "/operatories",
        "operatories",
        _L,
        cursor=True,
        filters={
            "search_name": Filter("text", has_name),
            "foreign_id": same("text", "foreign_id"),
            "updated_since": updated_since,
        },
        includes=_ROOM,
    ),
    Route(
        "/operatories/{id}",
        "operatories",
        _I,
        single=True,
        includes=_ROOM,
        legacy=True,
    ),
    Route(
        "/appointment_types", "appointment_types", _I, params=("location_id",), includes=("descriptors",), legacy=True
    ),
    Route(
        "/appointment_types/{id}",
        "appointment_types",
        _I,
        single=True,
        params=("location_id",),
        includes=("descriptors",),
        legacy=True,
    ),
    Route(
        "/locations/{id}/appointment_descriptors",
        "appointment_descriptors",
        _K,
        under=("locations", "location_id"),
        filters=_TYPED,
        legacy=True,
    ),
    Route(
        "/appointment_types/{id}/appointment_descriptors",
        "appointment_descriptors",
        _I,
        under=("appointment_types", "appointment_type_id"),
        filters=_TYPED | {"location_id": same("int", "location_id")},
        legacy=True,
    ),
    Route(
        "/nex_staff",
        "nex_staff",
        _I,
        paged=300,
        filters={
            "inactive": same("bool", "inactive"),
            "location_ids[]": Filter("ints", lambda row, wanted: not wanted.isdisjoint(row.facts["location_ids"])),
        },
        legacy=True,
    ),
    Route("/working_hours", "working_hours", _L, cursor=True, filters=_HOUR_FILTERS, includes=("appointment_types",)),
    Route("/working_hours/{id}", "working_hours", _I, single=True, includes=("appointment_types",)),
    Route(
        "/working_hour_labels",
        "working_hour_labels",
        _I,
        cursor=True,
        filters={
            "location_id": Filter("int", _has_label),
            "search_name": Filter("text", has_name),
            "active": same("bool", "active"),
        },
    ),
)
"""Source: API.md D and E.1."""
