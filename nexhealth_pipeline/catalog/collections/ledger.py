"""Charges, payments and what is owed (API.md A.6, E.1, E.3, K)."""

from nexhealth_pipeline.catalog.collection import (
    Collection,
    Column,
    Current,
    Derived,
    Events,
    Pass,
    Scope,
    Shown,
    column,
    flatten,
    money,
    nested,
)
from nexhealth_pipeline.catalog.collections.words import (
    BIGINT,
    BOOL,
    CLINICAL,
    DATE,
    DELETED_PASSES,
    FINANCIAL,
    ID,
    IN_EHR,
    INSURANCE,
    NONE,
    TEXT,
    TIME,
    deleted,
    identifier,
    link,
    name_of,
    updated,
)

__all__ = ["DECLARED"]

_PEOPLE = flatten(
    link("location_id", "Location; null where it belongs to none."),
    link("patient_id", "Patient; null where it belongs to none."),
    link("guarantor_id", "Who pays."),
    link("provider_id", "Provider."),
)
_REFERENCES = (
    ("location_id", "locations"),
    ("patient_id", "patients"),
    ("guarantor_id", "patients"),
    ("provider_id", "providers"),
)
_INDEXES = (("institution_id", "patient_id"), ("institution_id", "guarantor_id"), ("location_id",))
_PERSONS = ("patient", "guarantor", "provider")
"""Of `single_only` (API.md E.3): people with all their particulars, beside their ids."""
_ZERO_TOO = (Pass("all", (("show_zero_balances", "true"),)),)
"""A balance paid down to zero would else vanish from the list and keep its old amount here (API.md E.1)."""

_TOTALS = flatten(
    money("amount_billed_to_insurance", "Billed to the insurer."),
    money("estimated_insurance_payment", "What the insurer is expected to pay."),
    money(
        "insurance_payment", "What the insurer paid; payments has it too, in rows with claim_id and insurance_plan_id."
    ),
    money(
        "write_off",
        "Written off by way of the claim; others are rows of adjustments (adjustment_type_name says which).",
    ),
)

_PAYMENT_TYPE_NAME, _PAYMENT_TYPE = name_of("payment_types", "payment_type_id", name="payment_type_name")
_ADJUSTMENT_TYPE_NAME, _ADJUSTMENT_TYPE = name_of("adjustment_types", "adjustment_type_id", name="adjustment_type_name")
_IS_INSURANCE = Derived(
    "is_insurance", "coalesce(t.insurance_plan_id, 0) <> 0", FINANCIAL, "Paid by an insurer, not by a person."
)

CHARGES = Collection(
    name="charges",
    group="ledger",
    doc="What a completed procedure costs; positive.",
    path="/charges",
    scope=Scope.LOCATION,
    passes=(Pass("all", (("include_deleted", "true"), ("include[]", "claim_payouts"))),),
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(*_REFERENCES, ("procedure_id", "procedures")),
    filters=(("provider", "provider_id"),),
    columns=flatten(
        identifier(),
        column("foreign_id", TEXT, ID, "The practice system's own key."),
        _PEOPLE,
        link("procedure_id", "Procedure it is for.", CLINICAL),
        column("procedure_code", TEXT, CLINICAL, "Code of the procedure."),
        updated(),
        column("description", TEXT, CLINICAL, "Free text."),
        money("fee", "Amount, in whole units of the currency."),
        column("charged_at", DATE, FINANCIAL, "Day of the charge (UTC).", utc=True),
        deleted(),
    ),
    indexes=(*_INDEXES, ("charged_at",), ("institution_id", "procedure_id")),
    single_only=(*_PERSONS, "procedure", "claims", "totals"),
    events=Events(
        "Charge", snapshots=("charge_created", "charge_updated", "charge_deleted"), keys=("charge", "charges")
    ),
)

CLAIM_PAYOUTS = Collection(
    name="claim_payouts",
    group="ledger",
    doc="What a claim brings for one charge, also of deleted claims and voided charges: the link between claims and charges.",
    path="/charges",
    scope=Scope.LOCATION,
    inside="charges",
    records_at=("claim_payouts",),
    key=("institution_id", "charge_id", "claim_id"),
    # The price list entry itself is none: it may have left its list before that was ever read, and the payout names it on.
    references=(
        ("charge_id", "charges"),
        ("claim_id", "claims"),
        ("fee_schedule_procedure_code_fee_schedule_id", "fee_schedules"),
        ("fee_schedule_procedure_code_location_id", "locations"),
    ),
    from_request=(Column("charge_id", BIGINT, FINANCIAL, "Charge.", ("id",)),),
    columns=flatten(
        link("claim_id", "Claim.", FINANCIAL),
        _TOTALS,
        money("allowed_amount", "What the plan allows for it."),
        nested(
            "fee_schedule_procedure_code",
            column("id", BIGINT, FINANCIAL, "Price list entry that applies."),
            link("fee_schedule_id", "Price list of the entry.", FINANCIAL),
            column("procedure_code_id", TEXT, CLINICAL, "The procedure code's own id, a UUID."),
            column("code", TEXT, CLINICAL, "Procedure code of the entry."),
            money("fee", "Price of the entry when the charge was read, in whole units of the currency."),
            link("location_id", "Location of the entry; null where it is everybody's."),
            column("updated_at", TIME, FINANCIAL, "When NexHealth last wrote the entry."),
        ),
    ),
    indexes=(("institution_id", "claim_id"),),
    current=Current(
        columns=(
            Derived("claim_status", "claim.status", INSURANCE, "Status of the claim; canceled ones are shown too."),
        ),
        joins=(
            "LEFT JOIN nexhealth_claims claim ON claim.institution_id = t.institution_id AND claim.id = t.claim_id",
        ),
        # A charge goes on listing what a deleted claim was to bring.
        views=(
            Shown(
                "claim_payouts",
                "What a claim that is not deleted brings for one charge: the link between claims and charges.",
                "claim.deleted_at IS NULL",
            ),
        ),
    ),
)

PAYMENTS = Collection(
    name="payments",
    group="ledger",
    doc="Money received (negative) or refunded (positive); an insurer's exactly when insurance_plan_id is set.",
    path="/payments",
    scope=Scope.LOCATION,
    passes=DELETED_PASSES,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(
        *_REFERENCES,
        ("charge_id", "charges"),
        ("claim_id", "claims"),
        ("payment_plan_id", "payment_plans"),
        ("insurance_plan_id", "insurance_plans"),
        ("payment_type_id", "payment_types"),
    ),
    filters=(("provider", "provider_id"),),
    columns=flatten(
        identifier(),
        column("foreign_id", TEXT, ID, "The practice system's own key."),
        _PEOPLE,
        updated(),
        column("description", TEXT, FINANCIAL, "Free text."),
        deleted(),
        money("payment_amount", "Amount, in whole units of the currency; negative reduces the balance."),
        column("paid_at", DATE, FINANCIAL, "Day of the payment (UTC).", utc=True),
        column("transaction_id", TEXT, FINANCIAL, "Reference of the transaction."),
        link("charge_id", "Charge it pays.", FINANCIAL),
        link("claim_id", "Claim it pays.", FINANCIAL),
        link("payment_plan_id", "Payment plan it belongs to.", FINANCIAL),
        link("insurance_plan_id", "Plan that paid; null = not an insurer's payment.", FINANCIAL),
        link("payment_type_id", "Kind of payment.", FINANCIAL),
    ),
    indexes=(*_INDEXES, ("paid_at",)),
    current=Current(columns=(IN_EHR, _IS_INSURANCE, _PAYMENT_TYPE_NAME), joins=(_PAYMENT_TYPE,)),
    single_only=(*_PERSONS, "claim", "charge", "payment_plan", "payment_type"),
    events=Events(
        "Payment",
        snapshots=("payment_created", "payment_updated", "payment_deleted"),
        hints=("payment_insertion",),
        keys=("payment", "payments"),
    ),
)

ADJUSTMENTS = Collection(
    name="adjustments",
    group="ledger",
    doc="A correction of a balance, such as a write-off; the sign is in the amount.",
    path="/adjustments",
    scope=Scope.LOCATION,
    passes=DELETED_PASSES,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(
        *_REFERENCES,
        ("charge_id", "charges"),
        ("claim_id", "claims"),
        ("adjustment_type_id", "adjustment_types"),
    ),
    filters=(("provider", "provider_id"),),
    columns=flatten(
        identifier(),
        column("foreign_id", TEXT, ID, "The practice system's own key."),
        _PEOPLE,
        updated(),
        column("description", TEXT, FINANCIAL, "Free text."),
        deleted(),
        money("adjustment_amount", "Amount, in whole units of the currency; negative reduces the balance."),
        column("adjusted_at", DATE, FINANCIAL, "Day of the adjustment (UTC).", utc=True),
        column("transaction_id", TEXT, FINANCIAL, "Reference of the transaction."),
        link("charge_id", "Charge it corrects.", FINANCIAL),
        link("claim_id", "Claim it belongs to.", FINANCIAL),
        link("adjustment_type_id", "Kind of adjustment.", FINANCIAL),
    ),
    indexes=(*_INDEXES, ("adjusted_at",)),
    current=Current(columns=(IN_EHR, _ADJUSTMENT_TYPE_NAME), joins=(_ADJUSTMENT_TYPE,)),
    single_only=(*_PERSONS, "claim", "charge", "adjustment_type"),
    events=Events(
        "Adjustment",
        snapshots=("adjustment_created", "adjustment_updated", "adjustment_deleted"),
        hints=("adjustment_insertion",),
        keys=("adjustment", "adjustments"),
    ),
)

CLAIMS = Collection(
    name="claims",
    group="ledger",
    doc="What was asked of an insurer for one day of service.",
    path="/claims",
    scope=Scope.LOCATION,
    passes=DELETED_PASSES,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(
        *_REFERENCES,
        ("primary_insurance_plan_id", "insurance_plans"),
        ("secondary_insurance_plan_id", "insurance_plans"),
    ),
    filters=(("provider", "provider_id"),),
    columns=flatten(
        identifier(),
        _PEOPLE,
        column("status", TEXT, INSURANCE, "draft, sent, received, canceled, and whatever else the API sends."),
        column("received_at", TIME, INSURANCE, "When the insurer's answer came."),
        column("sent_at", TIME, INSURANCE, "When it was sent to the insurer."),
        column("note", TEXT, CLINICAL, "Free text."),
        link("primary_insurance_plan_id", "First plan asked.", INSURANCE),
        link("secondary_insurance_plan_id", "Second plan asked.", INSURANCE),
        column("date_of_service", DATE, CLINICAL, "Day of the procedures (UTC).", utc=True),
        nested("totals", _TOTALS),
        updated(),
        deleted(),
    ),
    indexes=(*_INDEXES, ("date_of_service",)),
    single_only=(*_PERSONS, "charges", "charge_payouts"),
    events=Events("Claim", snapshots=("claim_created", "claim_updated", "claim_deleted"), keys=("claim", "claims")),
)

GUARANTOR_BALANCES = Collection(
    name="guarantor_balances",
    group="ledger",
    doc="What a guarantor owes, for all the patients they pay for.",
    path="/guarantor_balances",
    scope=Scope.LOCATION,
    passes=_ZERO_TOO,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    may_be_disabled=True,
    guarantor_filter="guarantor_id",
    references=(("guarantor_id", "patients"), ("location_id", "locations")),
    columns=flatten(
        identifier(),
        column("foreign_id", TEXT, ID, "The practice system's own key."),
        link("guarantor_id", "Who pays."),
        link("location_id", "Location of the accounts receivable."),
        updated(),
        money("write_off_estimate", "Expected write-off."),
        money("total_balance", "All that is owed."),
        money("insurance_estimate", "Expected of insurers."),
        money("guarantor_portion", "What is left to the guarantor."),
        money("total_balance_under_30", "Owed for under 30 days."),
        money("total_balance_31_60", "Owed for 31 to 60 days."),
        money("total_balance_61_90", "Owed for 61 to 90 days."),
        money("total_balance_over_90", "Owed for over 90 days."),
    ),
    indexes=(("institution_id", "guarantor_id"), ("location_id",)),
)

INSURANCE_BALANCES = Collection(
    name="insurance_balances",
    group="ledger",
    doc="What insurers owe for a patient, by age of the claim.",
    path="/insurance_balances",
    scope=Scope.LOCATION,
    increment="updated_since",
    needs_filter=True,
    sort="updated_at",
    version="updated_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(("patient_id", "patients"), ("guarantor_id", "patients"), ("location_id", "locations")),
    columns=flatten(
        identifier(),
        link("patient_id", "Patient."),
        link("guarantor_id", "Who pays."),
        link("location_id", "Location."),
        updated(),
        money("estimated_amount_under_30", "Expected for claims under 30 days old."),
        money("estimated_amount_31_60", "Expected for claims 31 to 60 days old."),
        money("estimated_amount_61_90", "Expected for claims 61 to 90 days old."),
        money("estimated_amount_over_90", "Expected for claims over 90 days old."),
        money("billed_amount_under_30", "Billed in claims under 30 days old."),
        money("billed_amount_31_60", "Billed in claims 31 to 60 days old."),
        money("billed_amount_61_90", "Billed in claims 61 to 90 days old."),
        money("billed_amount_over_90", "Billed in claims over 90 days old."),
    ),
    indexes=(("institution_id", "patient_id"), ("institution_id", "guarantor_id"), ("location_id",)),
)

PAYMENT_PLANS = Collection(
    name="payment_plans",
    group="ledger",
    doc="An agreement to pay in instalments.",
    path="/payment_plans",
    scope=Scope.LOCATION,
    legacy_accept=True,
    increment="updated_since",
    sort="updated_at",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(("patient_id", "patients"), ("guarantor_id", "patients"), ("location_id", "locations")),
    from_request=(Column("location_id", BIGINT, NONE, "Location that lists the plan.", ()),),
    columns=flatten(
        identifier(),
        link("patient_id", "Patient."),
        link("guarantor_id", "Who pays."),
        column("first_payment_due_date", DATE, FINANCIAL, "When the first instalment is due."),
        column("created_date", DATE, FINANCIAL, "When the plan was made."),
        column("active", BOOL, FINANCIAL, "False = closed, cleared or deleted in the practice system."),
    ),
    indexes=(("institution_id", "patient_id"), ("location_id",)),
)

DECLARED: tuple[Collection, ...] = (
    CHARGES,
    CLAIM_PAYOUTS,
    PAYMENTS,
    ADJUSTMENTS,
    CLAIMS,
    GUARANTOR_BALANCES,
    INSURANCE_BALANCES,
    PAYMENT_PLANS,
)
"""In the order they are shown."""
