"""Every collection the sandbox keeps: what filters look at, how rows are found, what a new row starts with."""

from collections.abc import Mapping

from .money import money
from .rows import Kind, Record

__all__ = ["KINDS"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _nulls(text: str) -> Record:
    return dict.fromkeys(_words(text))


def _zeros(text: str) -> Record:
    return {name: money(0) for name in _words(text)}


_PERSON = _nulls("email middle_name foreign_id last_sync_time") | {
    "first_name": "New",
    "last_name": "Person",
    "name": "New Person",
    "foreign_id_type": "none",
    "bio": {},
    "inactive": False,
}
_APPOINTMENT = (
    _nulls("patient_id provider_id provider_name confirmed patient_missed note appointment_type_id checkin_at")
    | _nulls("location_id foreign_id misc last_sync_time patient_confirmed created_by_user_id is_guardian")
    | _nulls("patient_confirmed_at cancelled_at is_new_clients_patient confirmed_at sooner_if_possible")
    | _nulls("operatory_id checked_out checked_out_at referrer is_past_patient")
    | {"unavailable": False, "cancelled": False, "timezone": "UTC", "foreign_id_type": "none"}
    | {"timezone_offset": "+0:00"}
)
_PLAN = _nulls("payer_id name address address2 city state zip_code country_code group_num employer_name foreign_id")
_NUMBERED = {"foreign_id": "new", "foreign_id_type": "none"}
_INTERVAL = {"name": "New", "description": "New", "interval_num": 6, "interval_unit": "M"}

_PRACTICE = (
    Kind("institutions", facts=("subdomain",), blank={"name": "New", "emrs": []}),
    Kind("locations", facts=("inactive", "foreign_id"), about=("database",), blank={"name": "New", "inactive": False}),
    Kind("providers", facts=("inactive",), about=("location_ids",), blank=_PERSON | _nulls("display_name npi")),
    Kind("operatories", indexes=("location_id",), facts=("location_id",), blank={"name": "New", "active": True}),
    Kind("sync_status", ("read_status", "write_status"), about=("location_ids",), updated=False, created=False),
    Kind(
        "nex_staff",
        facts=("inactive", "location_ids", "inst_ids"),
        blank={"first_name": "New", "last_name": "Person", "email": "new@example.com", "patientable": False}
        | {"unsubscribe_emails": False, "unsubscribe_sms": False, "inactive": False, "location_ids": []},
    ),
    Kind(
        "working_hours",
        facts=_words("provider_id location_id operatory_id active source specific_date"),
        indexes=("location_id", "provider_id"),
        about=("label_id", "type_ids"),
        blank=_nulls("provider_id location_id operatory_id specific_date custom_recurrence")
        | {"begin_time": "08:00", "end_time": "12:00", "days": ["Monday"], "tz_offset": "-0800"}
        | {"active": True, "source": "manual"},
        updated=False,
        created=False,
    ),
    Kind(
        "working_hour_labels",
        facts=("location_id",),
        indexes=("location_id",),
        about=("active",),
        blank={"location_id": None, "name": "New"},
        updated=False,
        created=False,
    ),
)

_SCHEDULING = (
    Kind(
        "appointment_types",
        facts=("parent_type", "parent_id"),
        blank={"name": "New", "minutes": 30, "bookable_online": False, "parent_type": "Institution"},
        updated=False,
        created=False,
    ),
    Kind(
        "appointment_descriptors",
        facts=("location_id", "active", "descriptor_type"),
        indexes=("appointment_type_id", "location_id"),
        about=("appointment_type_id",),
        blank=_NUMBERED
        | {"descriptor_type": "Procedure Code(s)", "name": "New", "code": "D0000", "data": {}}
        | {"active": True, "last_sync_time": "2026-01-01T00:00:00.000Z"},
    ),
    Kind(
        "appointments",
        facts=_words("location_id patient_id provider_id start_time cancelled unavailable checked_out deleted"),
        indexes=("location_id", "patient_id"),
        blank=_APPOINTMENT,
        flagged_delete=True,
    ),
)

_PATIENTS = (
    Kind(
        "patients",
        facts=("inactive", "bio.new_patient", "bio.non_patient", "guarantor_id"),
        indexes=("database", "guarantor_id"),
        about=("location_ids", "database"),
        blank=_PERSON | _nulls("guarantor_id billing_type chart_id preferred_language provider_id") | {"hipaa": {}},
    ),
    Kind(
        "document_types",
        facts=("active",),
        indexes=("location_id",),
        about=("location_id",),
        blank={"name": "New", "active": True},
        updated=False,
        created=False,
    ),
    Kind(
        "documents",
        indexes=("patient_id",),
        about=("patient_id",),
        blank={"filename": "new.pdf", "type": "application/pdf", "document_type_id": 0},
        updated=False,
    ),
    Kind(
        "alerts", facts=("patient_id", "disabled_at"), indexes=("patient_id",), blank={"patient_id": 0, "note": "New"}
    ),
    Kind("recall_types", facts=("location_id", "foreign_id"), indexes=("location_id",), blank=_NUMBERED | _INTERVAL),
    Kind(
        "patient_recalls",
        facts=("patient_id", "recall_id", "date_due", "foreign_id"),
        indexes=("patient_id", "location_id"),
        about=("database",),
        blank=_nulls("appointment_id date_due recall_id patient_id") | _NUMBERED,
    ),
)

_INSURANCE = (
    Kind(
        "insurance_plans",
        blank=_PLAN | {"deleted_at": None},
        facts=("deleted_at",),
        created=False,
        soft_delete=True,
        finance=True,
    ),
    Kind(
        "insurance_coverages",
        facts=("patient_id", "plan_id", "active"),
        indexes=("patient_id", "plan_id"),
        blank=_nulls("patient_id priority plan_id subscriber_num effective_date expiration_date")
        | {"subscription_relation": "self", "insurance_type": "dental", "active": True},
        created=False,
    ),
)

_OWNERS = _nulls("location_id patient_id guarantor_id provider_id")
_ENTRY = {"foreign_id": "new"} | _OWNERS | _nulls("description deleted_at")
_ENTRY_FACTS = ("location_id", "patient_id", "guarantor_id", "provider_id", "deleted_at")
_ENTRY_INDEXES = ("location_id", "patient_id", "guarantor_id")
_TOTALS = _words("amount_billed_to_insurance estimated_insurance_payment insurance_payment write_off")
_AGES = ("under_30", "31_60", "61_90", "over_90")


def _ledger(name: str, facts: str, indexes: str, blank: Record) -> Kind:
    """Charges, payments, adjustments or claims: rows of a location that are marked when deleted."""
    return Kind(
        name,
        facts=(*_ENTRY_FACTS, *_words(facts)),
        indexes=(*_ENTRY_INDEXES, *_words(indexes)),
        about=("database",),
        blank=blank,
        created=False,
        soft_delete=True,
        finance=True,
    )


def _list(name: str, facts: str, indexes: str, blank: Record, *, hidden_update: bool = False) -> Kind:
    """A financial collection whose rows vanish when they are deleted."""
    return Kind(
        name,
        facts=_words(facts),
        indexes=_words(indexes),
        about=("database",),
        blank=blank,
        created=False,
        updated=not hidden_update,
        hidden_update=hidden_update,
        finance=True,
    )


_LEDGER = (
    _ledger(
        "charges",
        "procedure_id",
        "procedure_id",
        _ENTRY | _nulls("procedure_id procedure_code charged_at") | _zeros("fee"),
    ),
    _ledger(
        "payments",
        "charge_id claim_id transaction_id",
        "charge_id claim_id",
        _ENTRY
        | _nulls("paid_at transaction_id charge_id claim_id payment_plan_id insurance_plan_id payment_type_id")
        | _zeros("payment_amount"),
    ),
    _ledger(
        "adjustments",
        "charge_id claim_id",
        "charge_id claim_id",
        _ENTRY
        | _nulls("adjusted_at transaction_id charge_id claim_id adjustment_type_id")
        | _zeros("adjustment_amount"),
    ),
    _ledger(
        "claims",
        "date_of_service status",
        "",
        _OWNERS
        | _nulls("received_at sent_at note primary_insurance_plan_id secondary_insurance_plan_id date_of_service")
        | {"status": "draft", "totals": {name: money(0) for name in _TOTALS}, "deleted_at": None},
    ),
    Kind(
        "claim_payouts",
        facts=("claim_id",),
        indexes=("claim_id", "charge_id"),
        about=("charge_id", "fee_id"),
        blank={name: money(0) for name in (*_TOTALS, "allowed_amount")} | {"claim_id": 0},
        updated=False,
        created=False,
        keyless=True,
        finance=True,
    ),
    _list(
        "guarantor_balances",
        "location_id guarantor_id total_balance.amount",
        "location_id guarantor_id",
        {"foreign_id": "new", "guarantor_id": None, "location_id": None}
        | _zeros("write_off_estimate total_balance insurance_estimate guarantor_portion")
        | {f"total_balance_{age}": money(0) for age in _AGES},
    ),
    _list(
        "insurance_balances",
        "location_id patient_id guarantor_id",
        "location_id patient_id guarantor_id",
        _nulls("patient_id guarantor_id location_id")
        | {f"{kind}_amount_{age}": money(0) for kind in ("estimated", "billed") for age in _AGES},
    ),
    _list(
        "payment_plans",
        "patient_id guarantor_id",
        "patient_id guarantor_id location_id",
        {"patient_id": 0, "guarantor_id": 0, "active": True}
        | {"first_payment_due_date": "2026-01-01", "created_date": "2026-01-01"},
        hidden_update=True,
    ),
    _list("payment_types", "active", "location_id", {"name": "New", "active": True}),
    _list("adjustment_types", "active", "location_id", {"name": "New", "active": True, "action": "unknown"}),
    _list("fee_schedules", "location_id active", "location_id", {"name": "New", "active": True, "location_id": None}),
    _list(
        "fee_schedule_procedures",
        "location_id fee_schedule_id",
        "location_id fee_schedule_id",
        _nulls("procedure_code_id code location_id fee_schedule_id") | _zeros("fee"),
    ),
)

_CLINICAL = (
    Kind(
        "procedures",
        facts=_words("location_id patient_id provider_id appointment_id start_date end_date"),
        indexes=("location_id", "patient_id", "appointment_id"),
        blank=_nulls("location_id patient_id provider_id appointment_id code name start_date end_date")
        | {"status": "planned", "body_site": {"tooth": [], "surface": ""}}
        | _zeros("fee"),
        created=False,
    ),
    Kind(
        "treatment_plans",
        facts=("patient_id", "status"),
        indexes=("patient_id",),
        about=("procedure_ids",),
        blank={"name": "New", "patient_id": None, "status": "proposed"},
        created=False,
        hidden_delete=True,
    ),
    Kind(
        "clinical_notes",
        facts=("patient_id", "procedure_id", "entered_at"),
        indexes=("patient_id", "procedure_id", "location_id"),
        about=("database",),
        blank=_nulls("patient_id procedure_id entered_at signed completed") | {"content": "New"},
        created=False,
    ),
)

KINDS: Mapping[str, Kind] = {
    kind.name: kind for kind in (*_PRACTICE, *_SCHEDULING, *_PATIENTS, *_INSURANCE, *_LEDGER, *_CLINICAL)
}
"""Every collection of the sandbox by name."""
