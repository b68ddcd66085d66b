"""Price lists, and the kinds of payments and adjustments: what a practice sets up once for its ledger (API.md E.1, E.3, K)."""

from nexhealth_pipeline.catalog.collection import Collection, Column, Events, Scope, column, flatten, money
from nexhealth_pipeline.catalog.collections.words import (
    ACTIVE_PASSES,
    BIGINT,
    BOOL,
    NONE,
    TEXT,
    identifier,
    link,
    updated,
)

__all__ = ["DECLARED"]

PAYMENT_TYPES = Collection(
    name="payment_types",
    group="ledger",
    doc="A kind of payment.",
    path="/payment_types",
    scope=Scope.LOCATION,
    passes=ACTIVE_PASSES,
    increment="updated_since",
    version="updated_at",
    may_be_disabled=True,
    references=(("location_id", "locations"),),
    filters=(("status", "active"),),
    from_request=(Column("location_id", BIGINT, NONE, "Location that lists the type.", ()),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the kind of payment."),
        column("active", BOOL, NONE, "Can be used."),
        updated(),
    ),
    events=Events(
        "PaymentType", hints=("payment_type_created", "payment_type_updated"), keys=("payment_type", "payment_types")
    ),
)

ADJUSTMENT_TYPES = Collection(
    name="adjustment_types",
    group="ledger",
    doc="A kind of adjustment, such as an insurance write-off.",
    path="/adjustment_types",
    scope=Scope.LOCATION,
    passes=ACTIVE_PASSES,
    increment="updated_since",
    version="updated_at",
    may_be_disabled=True,
    references=(("location_id", "locations"),),
    filters=(("status", "active"),),
    from_request=(Column("location_id", BIGINT, NONE, "Location that lists the type.", ()),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the kind of adjustment."),
        column("active", BOOL, NONE, "Can be used."),
        column("action", TEXT, NONE, "credit (lowers the balance), debit (raises it) or unknown."),
        updated(),
    ),
    events=Events(
        "AdjustmentType",
        hints=("adjustment_type_created", "adjustment_type_updated"),
        keys=("adjustment_type", "adjustment_types"),
    ),
)

FEE_SCHEDULES = Collection(
    name="fee_schedules",
    group="ledger",
    doc="A price list.",
    path="/fee_schedules",
    scope=Scope.LOCATION,
    passes=ACTIVE_PASSES,
    increment="updated_since",
    version="updated_at",
    # `active` may be null, and then it is in neither half.
    by_id="/fee_schedules/{id}",
    may_be_disabled=True,
    references=(("location_id", "locations"),),
    filters=(("status", "active"),),
    columns=flatten(
        identifier(),
        column("name", TEXT, NONE, "Name of the price list."),
        column("active", BOOL, NONE, "In use."),
        link("location_id", "Location; null where it is everybody's."),
        updated(),
    ),
    single_only=("procedure_fees",),
    events=Events(
        "FeeSchedule",
        snapshots=("fee_schedule_created", "fee_schedule_updated"),
        keys=("fee_schedule", "fee_schedules"),
    ),
)

FEE_SCHEDULE_PROCEDURES = Collection(
    name="fee_schedule_procedures",
    group="ledger",
    doc="The price of one procedure in a price list.",
    path="/fee_schedule_procedures",
    scope=Scope.LOCATION,
    increment="updated_since",
    needs_filter=True,
    version="updated_at",
    may_be_disabled=True,
    references=(("fee_schedule_id", "fee_schedules"), ("location_id", "locations")),
    columns=flatten(
        identifier(),
        column("procedure_code_id", TEXT, NONE, "The procedure code's own id, a UUID."),
        column("code", TEXT, NONE, "Procedure code."),
        money("fee", "Price, in whole units of the currency.", NONE),
        link("location_id", "Location; null where it is everybody's."),
        link("fee_schedule_id", "Price list."),
        updated(),
    ),
    indexes=(("institution_id", "fee_schedule_id"), ("location_id",), ("code",)),
)

DECLARED: tuple[Collection, ...] = (PAYMENT_TYPES, ADJUSTMENT_TYPES, FEE_SCHEDULES, FEE_SCHEDULE_PROCEDURES)
"""In the order they are shown."""
