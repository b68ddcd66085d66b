"""What a copy that can be trusted must fulfil, asked of the warehouse: every rule for every collection.

Results hold counts, NexHealth's ids and names of fields and locations, never a value. The API is not
asked: what it counted itself is in `nexhealth_sync_state`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.warehouse.check_rules import RULES, Rule

__all__ = ["CHECKS", "Check", "CheckResult", "run"]

_SAMPLES = 5
"""Most ids named per institution."""


@dataclass(frozen=True, slots=True)
class Check:
    """A rule for one collection."""

    collection: Collection
    rule: Rule
    faults: sql.Composed = field(repr=False)

    @property
    def asset(self) -> str:
        """The asset it speaks of: a list inside records has none of its own."""
        return COLLECTIONS[self.collection.inside].table if self.collection.inside else self.collection.table

    @property
    def name(self) -> str:
        """Unique within the asset."""
        return f"{self.collection.name}_{self.rule.name}" if self.collection.inside else self.rule.name


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check found."""

    check: Check
    institutions: dict[int, int]
    """Faults by institution; 0 = key-wide lists."""
    details: dict[str, int]
    """Faults by what they are about."""
    sample_ids: dict[int, tuple[str, ...]]
    """`institution_id/id` of some rows at fault, by institution."""

    @property
    def count(self) -> int:
        """Faults in all."""
        return sum(self.institutions.values())

    @property
    def passed(self) -> bool:
        """Whether there is none."""
        return not self.count

    @property
    def description(self) -> str:
        """One line for people."""
        if self.passed:
            return self.check.rule.doc
        most = sorted(self.details.items(), key=lambda one: (-one[1], one[0]))[:_SAMPLES]
        return f"{self.count:,} not so: {', '.join(f'{name} ({count:,})' for name, count in most)}"


def run(connection: psycopg.Connection, check: Check, institutions: Iterable[int] | None = None) -> CheckResult:
    """Ask the warehouse, about those of `institutions` only where some are named; key-wide lists always."""
    rows = connection.execute(
        sql.SQL(
            "SELECT institution_id, detail, count(*), (array_agg(DISTINCT sample) FILTER (WHERE sample IS NOT NULL))[:{}]"
            " FROM ({}) fault WHERE {wanted} GROUP BY 1, 2 ORDER BY 1, 2"
        ).format(
            sql.Literal(_SAMPLES),
            check.faults,
            wanted=sql.SQL("true")
            if institutions is None
            else sql.SQL("institution_id = ANY({})").format(sql.Literal([0, *institutions])),
        )
    )
    counts: dict[int, int] = {}
    details: dict[str, int] = {}
    samples: dict[int, tuple[str, ...]] = {}
    for institution, detail, count, ids in rows:
        counts[institution] = counts.get(institution, 0) + count
        details[detail] = details.get(detail, 0) + count
        found = (*samples.get(institution, ()), *(f"{institution}/{one}" for one in ids or ()))
        samples[institution] = tuple(dict.fromkeys(found))[:_SAMPLES]
    return CheckResult(check, counts, details, samples)


CHECKS: tuple[Check, ...] = tuple(
    Check(collection, rule, faults)
    for collection in DECLARED
    for rule in RULES
    if (faults := rule.faults(collection)) is not None
)
"""Every check of the catalog: each rule that applies to each collection."""
