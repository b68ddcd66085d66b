"""What a copy that can be trusted must fulfil, as SQL over the warehouse, derived from the declarations.

A rule says for one collection which rows are at fault, or that it does not apply; a new check is one more
rule in :data:`RULES`. Results hold counts, NexHealth's ids and names of fields and locations, never a value.
The API is not asked: what it counted itself is in `nexhealth_sync_state`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import psycopg
from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS, DECLARED
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.warehouse.drift import field_of

__all__ = ["CHECKS", "FRESH_HOURS", "RULES", "SAMPLES", "Check", "CheckResult", "Rule", "Severity", "checks_of", "run"]

FRESH_HOURS = 26
"""A copy older than this is stale: a night and two hours."""
SOURCE_HOURS = 24
"""NexHealth reads an office every few minutes while its server runs (API.md A.5)."""
SAMPLES = 5
"""Most ids named per institution."""

_PERIODS = (("start_time", "end_time"), ("start_date", "end_date"), ("effective_date", "expiration_date"))
"""Names of columns that bound a period."""
_RECORD_ID = sql.SQL("substring(record_id FROM '^[0-9]{1,19}$')")
"""The id of a record in quarantine, where it is one: it may be anything."""


class Severity(StrEnum):
    """What a failed check means."""

    ERROR = "error"
    """Rows are lost or of another tenant: nothing should be built on them."""
    WARNING = "warning"
    """Worth a look."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that is checked of every collection it applies to."""

    name: str
    severity: Severity
    doc: str
    """What a collection fulfils that passes."""
    faults: Callable[[Collection], sql.Composed | None]
    """Query of the faults of a collection: institution_id, sample (an id), detail (a field, a location); None = not for it."""


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
        most = sorted(self.details.items(), key=lambda one: (-one[1], one[0]))[:SAMPLES]
        return f"{self.count:,} not so: {', '.join(f'{name} ({count:,})' for name, count in most)}"


def run(connection: psycopg.Connection, check: Check, institutions: Iterable[int] | None = None) -> CheckResult:
    """Ask the warehouse, about those of `institutions` only where some are named; key-wide lists always."""
    rows = connection.execute(
        sql.SQL(
            "SELECT institution_id, detail, count(*), (array_agg(DISTINCT sample) FILTER (WHERE sample IS NOT NULL))[:{}]"
            " FROM ({}) fault WHERE {wanted} GROUP BY 1, 2 ORDER BY 1, 2"
        ).format(
            sql.Literal(SAMPLES),
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
        samples[institution] = tuple(dict.fromkeys(found))[:SAMPLES]
    return CheckResult(check, counts, details, samples)


def checks_of(collections: Iterable[Collection]) -> tuple[Check, ...]:
    """Every rule that applies to each of `collections`."""
    return tuple(
        Check(collection, rule, faults)
        for collection in collections
        for rule in RULES
        if (faults := rule.faults(collection)) is not None
    )


def _table(collection: Collection) -> sql.Identifier:
    return sql.Identifier(collection.table)


def _own_key(collection: Collection) -> str:
    """The column that names a row within its institution, as a sample: the last number of the key."""
    numbers = {one.name for one in (*collection.columns, *collection.from_request) if one.type is SqlType.BIGINT}
    return next((name for name in reversed(collection.key) if name in numbers), "")


def _sample(collection: Collection, alias: str) -> sql.Composed:
    """The key of a row as text, without the institution; null where it has no number."""
    numbers = {one.name for one in (*collection.columns, *collection.from_request) if one.type is SqlType.BIGINT}
    parts = [sql.SQL("{}::text").format(sql.Identifier(alias, name)) for name in collection.key if name in numbers]
    return sql.SQL("concat_ws('/', {})").format(sql.SQL(", ").join(parts)) if parts else sql.SQL("NULL::text").format()


def _union(parts: list[sql.Composed]) -> sql.Composed | None:
    return sql.SQL(" UNION ALL ").join(parts) if parts else None


def _counted(collection: Collection) -> sql.Composed | None:
    """Per institution: rows now (`held`), rows of the last reads (`known`), and the least and most the API counted.

    One and the same row may be listed at several locations, so the most is the sum of the locations and the
    least the longest of them. Only lists whose every pass was read whole, with a count, are compared.
    """
    if collection.paging is Paging.CURSOR or collection.per or collection.inside:
        return None
    members = [one.name for one in collection.passes if one.membership]
    institution = sql.SQL("0" if collection.scope is Scope.PRACTICE else "institution_id")
    return sql.SQL(
        "SELECT api.institution_id, held, known, least, most FROM ("
        " SELECT institution_id, max(total) AS least, sum(total) AS most, max(complete_at) AS complete_at FROM ("
        "  SELECT institution_id, location_id, sum(total) AS total, max(complete_at) AS complete_at,"
        "   bool_and(total IS NOT NULL AND watermark = pass_started_at) AS whole FROM nexhealth_sync_state"
        "  WHERE collection = {name} AND pass <> ALL({members}::text[]) GROUP BY 1, 2) place"
        " GROUP BY 1 HAVING bool_and(whole)) api"
        " CROSS JOIN LATERAL (SELECT count(*) + (SELECT count(*) FROM nexhealth_quarantine q WHERE q.collection = {name}"
        "   AND q.institution_id = api.institution_id AND NOT q.loaded AND q.resolved_at IS NULL) AS held,"
        "  count(*) FILTER (WHERE source_read_at <= api.complete_at) AS known"
        "  FROM {table} t WHERE {institution} = api.institution_id AND deleted_by IS DISTINCT FROM 'absence') copy"
    ).format(
        name=sql.Literal(collection.name),
        members=sql.Literal(members),
        table=_table(collection),
        institution=institution,
    )


def _rows_lost(collection: Collection) -> sql.Composed | None:
    counted = _counted(collection)
    return counted and sql.SQL(
        "SELECT institution_id, NULL::text AS sample, 'rows that the API counts and the table lacks' AS detail"
        " FROM ({}) c CROSS JOIN LATERAL generate_series(1, least - held) missing"
    ).format(counted)


def _rows_left_over(collection: Collection) -> sql.Composed | None:
    counted = _counted(collection)
    return counted and sql.SQL(
        "SELECT institution_id, NULL::text AS sample, 'rows that the API no longer counts' AS detail"
        " FROM ({}) c CROSS JOIN LATERAL generate_series(1, known - most) spare"
    ).format(counted)


def _lists_complete(collection: Collection) -> sql.Composed | None:
    """Lists under rows: what each held when it was read, against the rows that are there."""
    parent = next((one for one in collection.from_request if one.name in collection.key or not one.path), None)
    if collection.per is None or parent is None:
        return None
    return sql.SQL(
        "SELECT r.institution_id, r.parent_id::text AS sample, 'lists with fewer rows than they had when read' AS detail"
        " FROM nexhealth_child_reads r LEFT JOIN (SELECT institution_id, {parent} AS parent_id, count(*) AS rows"
        "  FROM {table} GROUP BY 1, 2) t USING (institution_id, parent_id)"
        " WHERE r.collection = {name} AND coalesce(t.rows, 0) + (SELECT count(*) FROM nexhealth_quarantine q"
        "  WHERE q.collection = {name} AND q.institution_id = r.institution_id AND NOT q.loaded"
        "  AND q.resolved_at IS NULL) < r.rows"
    ).format(parent=sql.Identifier(parent.name), table=_table(collection), name=sql.Literal(collection.name))


def _other_tenant(collection: Collection) -> sql.Composed | None:
    if collection.inside or collection.institution_at:
        return None
    return sql.SQL(
        "SELECT institution_id, {sample} AS sample, 'rows whose record names another institution' AS detail"
        " FROM {table} t WHERE raw ->> 'institution_id' <> institution_id::text"
    ).format(sample=_sample(collection, "t"), table=_table(collection))


def _orphans(collection: Collection) -> sql.Composed | None:
    """A reference counts only where what it points to was read completely."""
    return _union(
        [
            sql.SQL(
                "SELECT t.institution_id, {sample} AS sample, {name} AS detail FROM {table} t"
                " WHERE t.{column} <> 0 AND t.deleted_at IS NULL"
                " AND NOT EXISTS (SELECT FROM {target} o WHERE o.institution_id = t.institution_id AND o.{key} = t.{column})"
                " AND EXISTS (SELECT FROM nexhealth_freshness f WHERE f.collection = {other}"
                "  AND f.institution_id IN (t.institution_id, 0) AND f.complete_through IS NOT NULL)"
            ).format(
                sample=_sample(collection, "t"),
                name=sql.Literal(column),
                table=_table(collection),
                column=sql.Identifier(column),
                target=_table(COLLECTIONS[other]),
                key=sql.Identifier(_own_key(COLLECTIONS[other])),
                other=sql.Literal(COLLECTIONS[other].inside or other),
            )
            for column, other in collection.references
            if column != "institution_id"
        ]
    )


def _backwards(collection: Collection) -> sql.Composed | None:
    types = {one.name: one.type for one in collection.columns}
    return _union(
        [
            sql.SQL(
                "SELECT institution_id, {sample} AS sample, {name} AS detail FROM {table} t"
                " WHERE {end} {before} {start} AND deleted_at IS NULL"
            ).format(
                sample=_sample(collection, "t"),
                name=sql.Literal(end),
                table=_table(collection),
                # A last day may be the first one, too.
                before=sql.SQL("<" if types[end] is SqlType.DATE else "<="),
                start=sql.Identifier(start),
                end=sql.Identifier(end),
            )
            for start, end in _PERIODS
            if types.get(start) in (SqlType.DATE, SqlType.TIMESTAMPTZ) and types.get(start) is types.get(end)
        ]
    )


def _unreadable_money(collection: Collection) -> sql.Composed | None:
    amounts = [one.name for one in collection.columns if one.path[-1] == "amount"]
    without_currency = [
        sql.SQL(
            "SELECT institution_id, {sample} AS sample, {name} AS detail FROM {table} t"
            " WHERE {amount} IS NOT NULL AND {currency} IS NULL"
        ).format(
            sample=_sample(collection, "t"),
            name=sql.Literal(f"{name} without a currency"),
            table=_table(collection),
            amount=sql.Identifier(name),
            currency=sql.Identifier(f"{name}_currency"),
        )
        for name in amounts
    ]
    quarantined = sql.SQL(
        "SELECT institution_id, {} AS sample, field AS detail FROM nexhealth_quarantine"
        " WHERE collection = {} AND resolved_at IS NULL AND field = ANY({})"
    ).format(_RECORD_ID, sql.Literal(collection.name), sql.Literal(amounts))
    return _union([*without_currency, quarantined]) if amounts else None


def _same_foreign_id(collection: Collection) -> sql.Composed | None:
    names = {one.name for one in collection.columns}
    if not {"id", "foreign_id"} <= names:
        return None
    group = [name for name in ("institution_id", "foreign_id", "foreign_id_type", "location_id") if name in names]
    return sql.SQL(
        "SELECT institution_id, min(id)::text AS sample, 'foreign ids that several rows have' AS detail FROM {}"
        " WHERE foreign_id <> '' AND deleted_at IS NULL GROUP BY institution_id, {} HAVING count(*) > 1"
    ).format(_table(collection), sql.SQL(", ").join(map(sql.Identifier, group)))


_STALE = """
SELECT place.institution_id, place.location_id::text AS sample,
    place.key || CASE
        WHEN f.complete_through IS NULL THEN ' was never read completely'
        WHEN f.complete_through < clock_timestamp() - make_interval(hours => {fresh}) THEN ' is stale'
        WHEN f.source_read_status <> 'green' THEN ' is offline'
        ELSE ' was not read by NexHealth for long' END AS detail
FROM ({places}) place
LEFT JOIN nexhealth_freshness f ON f.institution_id = place.institution_id AND f.location_id = place.location_id
    AND f.collection = {name}
WHERE NOT coalesce(f.complete_through >= clock_timestamp() - make_interval(hours => {fresh})
        AND coalesce(f.source_read_status, 'green') = 'green'
        AND coalesce(f.source_read_status_at >= clock_timestamp() - make_interval(hours => {source}), true), false)
    AND NOT EXISTS (SELECT FROM nexhealth_capabilities c WHERE c.institution_id = place.institution_id
        AND c.location_id = place.location_id AND c.collection = {name} AND c.status IN ('not_enabled', 'unsupported'))
"""
_PLACES = {
    Scope.PRACTICE: "SELECT 0 AS institution_id, 0 AS location_id, 'everything' AS key",
    Scope.INSTITUTION: "SELECT id AS institution_id, 0 AS location_id, subdomain AS key FROM nexhealth_institutions"
    " WHERE deleted_at IS NULL AND subdomain IS NOT NULL",
    Scope.LOCATION: "SELECT l.institution_id, l.id AS location_id, concat_ws('.', i.subdomain, l.id) AS key"
    " FROM nexhealth_locations l JOIN nexhealth_institutions i ON i.id = l.institution_id"
    " WHERE l.deleted_at IS NULL AND i.deleted_at IS NULL AND NOT coalesce(l.inactive, false)",
}
"""Where a collection is to be fresh, by its scope."""


def _stale(collection: Collection) -> sql.Composed | None:
    if collection.inside:
        return None
    scope = Scope.LOCATION if collection.scope is Scope.LOCATION_MONTH else collection.scope
    return sql.SQL(_STALE).format(
        fresh=sql.Literal(FRESH_HOURS),
        source=sql.Literal(SOURCE_HOURS),
        places=sql.SQL(_PLACES[scope]),
        name=sql.Literal(collection.name),
    )


def _drifted(collection: Collection) -> sql.Composed | None:
    """A declared field that never came says nothing; one whose column holds values has gone."""
    held = [
        sql.SQL(
            "WHEN {} THEN EXISTS (SELECT FROM {} t WHERE t.{} IS NOT NULL AND d.institution_id IN (t.institution_id, 0))"
        ).format(sql.Literal(field_of(column)), _table(collection), sql.Identifier(column.name))
        for column in collection.columns
    ]
    return sql.SQL(
        "SELECT institution_id, sample_id::text AS sample, concat_ws(' ', kind, field) AS detail"
        " FROM nexhealth_schema_drift d WHERE collection = {} AND (kind <> 'missing' OR CASE field {} ELSE true END)"
    ).format(sql.Literal(collection.name), sql.SQL(" ").join(held))


def _quarantined(collection: Collection) -> sql.Composed | None:
    return sql.SQL(
        "SELECT institution_id, {} AS sample, concat_ws(': ', nullif(field, ''), rule) AS detail"
        " FROM nexhealth_quarantine WHERE collection = {} AND resolved_at IS NULL"
    ).format(_RECORD_ID, sql.Literal(collection.name))


_WARNING, _ERROR = Severity.WARNING, Severity.ERROR
RULES: tuple[Rule, ...] = (
    Rule("no_rows_lost", _ERROR, "The table holds at least the rows that the API counted.", _rows_lost),
    Rule("no_rows_left_over", _WARNING, "The table holds no more rows than the API counted.", _rows_left_over),
    Rule("lists_complete", _WARNING, "Every list has the rows that it had when it was read.", _lists_complete),
    Rule("own_institution", _ERROR, "No record names another institution than its row's.", _other_tenant),
    Rule("no_orphans", _WARNING, "Every id of another collection points to a row, deleted ones included.", _orphans),
    Rule("ends_after_start", _WARNING, "What has a start ends after it.", _backwards),
    Rule("money_readable", _WARNING, "Every amount of money is a number with a currency.", _unreadable_money),
    Rule("foreign_ids_unique", _WARNING, "No two rows have one key of the practice system.", _same_foreign_id),
    Rule("fresh", _WARNING, f"Read within {FRESH_HOURS} hours everywhere, from offices that are online.", _stale),
    Rule("schema_as_declared", _WARNING, "The API delivers the declared fields and no others.", _drifted),
    Rule("quarantine_empty", _WARNING, "Nothing waits in quarantine.", _quarantined),
)
"""All rules, the order in which they are shown."""

CHECKS: tuple[Check, ...] = checks_of(DECLARED)
"""Every check of the catalog."""
