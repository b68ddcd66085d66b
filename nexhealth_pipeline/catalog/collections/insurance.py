"""Plans, cover and who holds it (API.md E.1, E.3)."""

from nexhealth_pipeline.catalog.collection import Collection, Column, Events, Scope, column, flatten
from nexhealth_pipeline.catalog.collections.words import (
    ACTIVE_PASSES,
    BIGINT,
    BOOL,
    DATE,
    DELETED_PASSES,
    DEMOGRAPHIC,
    ID,
    INSURANCE,
    NONE,
    TEXT,
    TIME,
    deleted,
    identifier,
)
from nexhealth_pipeline.catalog.paging import Paging

__all__ = ["DECLARED"]

INSURANCE_PLANS = Collection(
    name="insurance_plans",
    group="insurance",
    doc="An insurer's plan as the practice system knows it.",
    path="/insurance_plans",
    scope=Scope.INSTITUTION,
    passes=DELETED_PASSES,
    increment="updated_since",
    sort="updated_at",
    version="updated_at",
    soft_delete="deleted_at",
    by_id="/insurance_plans/{id}",
    may_be_disabled=True,
    columns=flatten(
        identifier(),
        column("payer_id", TEXT, NONE, "Electronic payer id."),
        column("name", TEXT, NONE, "Name of the plan or insurer."),
        column("address", TEXT, NONE, "Street and number of the insurer."),
        column("address2", TEXT, NONE, "Second address line."),
        column("city", TEXT, NONE, "City."),
        column("state", TEXT, NONE, "State."),
        column("zip_code", TEXT, NONE, "Postal code."),
        column("country_code", TEXT, NONE, "ISO 3166 country."),
        column("group_num", TEXT, NONE, "Group number."),
        column("employer_name", TEXT, NONE, "Employer."),
        column("foreign_id", TEXT, NONE, "The practice system's own key."),
        column("updated_at", TIME, NONE, "When NexHealth last wrote the record."),
        deleted(),
    ),
)


INSURANCE_COVERAGES = Collection(
    name="insurance_coverages",
    group="insurance",
    doc="A patient's cover under a plan, current or ended.",
    path="/insurance_coverages",
    scope=Scope.INSTITUTION,
    passes=ACTIVE_PASSES,
    increment="updated_since",
    version="updated_at",
    by_id="/insurance_coverages/{id}",
    may_be_disabled=True,
    patient_filter="patient_id",
    references=(("patient_id", "patients"), ("plan_id", "insurance_plans")),
    filters=(("status", "active"),),
    columns=flatten(
        identifier(),
        column("subscription_relation", TEXT, INSURANCE, "Patient's relation to the subscriber."),
        column("patient_id", BIGINT, ID, "Covered patient."),
        column("priority", BIGINT, INSURANCE, "Lowest = primary."),
        column("plan_id", BIGINT, INSURANCE, "Plan."),
        column("subscriber_num", TEXT, INSURANCE, "Subscriber's number at the insurer."),
        column("effective_date", DATE, INSURANCE, "First day of cover."),
        column("expiration_date", DATE, INSURANCE, "Last day of cover."),
        column("insurance_type", TEXT, INSURANCE, "dental, medical or vision."),
        column("updated_at", TIME, NONE, "Newest of coverage and subscription."),
        column("active", BOOL, INSURANCE, "In force."),
    ),
    indexes=(("institution_id", "patient_id"), ("institution_id", "plan_id")),
    single_only=("subscriber", "plan"),  # the plan as under a patient (API.md E.3)
    events=Events(
        "PatientInsuranceCoverage",
        snapshots=("patient_insurance_created", "patient_insurance_updated"),
        keys=("patient_insurance_coverage", "patient_insurance_coverages", "insurance_coverage", "patient_insurance"),
    ),
)


COVERAGE_SUBSCRIBERS = Collection(
    name="coverage_subscribers",
    group="insurance",
    doc="The person who holds the insurance behind a coverage, which only the single-coverage read gives.",
    path="/insurance_coverages/{id}",
    scope=Scope.INSTITUTION,
    key=("institution_id", "coverage_id"),
    paging=Paging.ONE,
    per="insurance_coverages",
    may_be_disabled=True,
    records_at=("subscriber",),
    after=("insurance_coverages",),
    references=(("coverage_id", "insurance_coverages"),),
    from_request=(Column("coverage_id", BIGINT, INSURANCE, "Coverage that the person holds.", ()),),
    columns=flatten(
        column("id", BIGINT, ID, "NexHealth's id of the subscriber."),
        column("name", TEXT, DEMOGRAPHIC, "Full name."),
        column("date_of_birth", DATE, DEMOGRAPHIC, "Date of birth."),
    ),
    indexes=(("institution_id", "id"),),
)

DECLARED: tuple[Collection, ...] = (INSURANCE_PLANS, INSURANCE_COVERAGES, COVERAGE_SUBSCRIBERS)
"""In the order they are shown."""
