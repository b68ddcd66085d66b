"""`nexhealth_check_results`: what the checks found last, by institution, and what somebody has seen of it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from nexhealth_pipeline.warehouse.checks import CHECKS, Check, CheckResult, run

__all__ = ["FailedCheck", "acknowledge", "failed_checks", "keep", "run_all", "store"]


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that an institution did not pass when it was run last."""

    collection: str
    check: str
    institution_id: int
    """0 = key-wide lists."""
    severity: str
    faults: int
    acknowledged: int
    """As many faults as somebody has seen; more are something new to look at."""
    sample_ids: list[str]
    checked_at: datetime
    failing_since: datetime

    @property
    def is_new(self) -> bool:
        """Whether it is something new to look at."""
        return self.faults > self.acknowledged


_STORE = """
INSERT INTO nexhealth_check_results AS c
    (collection, check_name, institution_id, severity, faults, sample_ids, failing_since)
VALUES (%s, %s, %s, %s, %s, %s, CASE WHEN %s > 0 THEN clock_timestamp() END)
ON CONFLICT (collection, check_name, institution_id) DO UPDATE SET
    severity = excluded.severity,
    faults = excluded.faults,
    -- What has gone and comes back is new again.
    acknowledged = least(c.acknowledged, excluded.faults),
    sample_ids = excluded.sample_ids,
    checked_at = clock_timestamp(),
    failing_since = CASE WHEN excluded.faults > 0 THEN coalesce(c.failing_since, excluded.failing_since) END
"""


def run_all(
    connection: psycopg.Connection, institutions: Collection[int], checks: Iterable[Check] = CHECKS
) -> list[CheckResult]:
    """Run `checks` for these institutions and keep what each found. Needs a connection in autocommit mode.

    Where one breaks off, what those before it found is there.
    """
    results: list[CheckResult] = []
    for check in checks:
        results.append(run(connection, check, institutions))
        store(connection, results[-1:], institutions)
    return results


def store(connection: psycopg.Connection, results: Iterable[CheckResult], institutions: Iterable[int]) -> None:
    """Keep results, one row for each of `institutions` and for whatever else has faults; commits."""
    known = {0, *institutions}
    rows: list[tuple[Any, ...]] = [
        (
            *(result.check.collection.name, result.check.rule.name, institution),
            result.check.rule.severity.value,
            result.institutions.get(institution, 0),
            list(result.sample_ids.get(institution, ())),
            result.institutions.get(institution, 0),
        )
        # In one order for all, so that two runs wait for each other in no circle.
        for result in sorted(results, key=lambda one: (one.check.collection.name, one.check.rule.name))
        for institution in sorted(known | result.institutions.keys())
    ]
    keep(connection, rows)


def keep(connection: psycopg.Connection, rows: Iterable[tuple[Any, ...]]) -> None:
    """Keep rows of (collection, check, institution, severity, faults, sample ids, faults again); commits."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.executemany(_STORE, rows)


def failed_checks(connection: psycopg.Connection) -> list[FailedCheck]:
    """Checks that did not pass when they were run last: new ones first, errors before warnings."""
    rows = connection.execute(
        "SELECT collection, check_name, institution_id, severity, faults, acknowledged, sample_ids, checked_at,"
        " failing_since FROM nexhealth_check_results WHERE faults > 0"
        " ORDER BY faults <= acknowledged, severity, collection, check_name, institution_id"
    )
    return [FailedCheck(*row) for row in rows]


def acknowledge(connection: psycopg.Connection, shown: Iterable[FailedCheck]) -> int:
    """Note that these failed checks have been seen, with as many faults as they say; returns how many were new.

    What was found since they were read stays new.
    """
    seen = [(one.collection, one.check, one.institution_id, one.faults) for one in shown if one.is_new]
    done = connection.execute(
        "UPDATE nexhealth_check_results c SET acknowledged = least(c.faults, s.faults)"
        " FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[]) s (collection, check_name, institution_id, faults)"
        " WHERE (c.collection, c.check_name, c.institution_id) = (s.collection, s.check_name, s.institution_id)"
        " AND c.acknowledged < least(c.faults, s.faults)",
        [[one[place] for one in seen] for place in range(4)],
    )
    return done.rowcount
