"""The rules that a copy must fulfil to be trusted, each as a query of the rows of a collection that break it.

Derived from the declarations: a rule looks at what a collection has (an end beside a start, an amount of
money, a reference) and says for itself where it does not apply. A new check is one more rule in :data:`RULES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from psycopg import sql

from nexhealth_pipeline.catalog.collection import Collection, Scope, SqlType
from nexhealth_pipeline.catalog.collections import COLLECTIONS
from nexhealth_pipeline.catalog.paging import Paging
from nexhealth_pipeline.warehouse.drift import field_of, known_keys

__all__ = ["FRESH_HOURS", "RULES", "SOURCE_HOURS", "Rule", "Severity"]

FRESH_HOURS = 26
"""A copy older than this is stale: a night and two hours."""
SOURCE_HOURS = 24
"""NexHealth reads an office every few minutes while its server runs (API.md A.5)."""
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


def _table(collection: Collection) -> sql.Identifier:
    return sql.Identifier(collection.table)


def _own_key(collection: Collection) -> str:
    """The column that names a row within its institution, as a sample: the last number of the key."""
    numbers = {one.name for one in (*collection.columns, *collection.from_request) if one.type is SqlType.BIGINT}
    return next((name for name in reversed(collection.key) if name in numbers), "")


def _sample(collection: Collection) -> sql.Composed:
    """The key of row `t` as text, without the institution; null where it has no number."""
    numbers = {one.name for one in (*collection.columns, *collection.from_request) if one.type is SqlType.BIGINT}
    parts = [sql.SQL("{}::text").format(sql.Identifier("t", name)) for name in collection.key if name in numbers]
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
    twice = [*collection.second_looks, *(one.name for one in collection.passes if one.membership)]
    institution = sql.SQL("0" if collection.scope is Scope.PRACTICE else "institution_id")
    return sql.SQL(
        "SELECT api.institution_id, held, known, least, most FROM ("
        " SELECT institution_id, max(total) AS least, sum(total) AS most, max(complete_at) AS complete_at FROM ("
        "  SELECT institution_id, location_id, sum(total) AS total, max(complete_at) AS complete_at,"
        "   bool_and(total IS NOT NULL AND watermark = pass_started_at) AS whole FROM nexhealth_sync_state"
        "  WHERE collection = {name} AND pass <> ALL({twice}::text[]) GROUP BY 1, 2) place"
        " GROUP BY 1 HAVING bool_and(whole)) api"
        " CROSS JOIN LATERAL (SELECT count(*) + (SELECT count(*) FROM nexhealth_quarantine q WHERE q.collection = {name}"
        "   AND q.institution_id = api.institution_id AND NOT q.loaded AND q.resolved_at IS NULL) AS held,"
        "  count(*) FILTER (WHERE source_read_at <= api.complete_at) AS known"
        "  FROM {table} t WHERE {institution} = api.institution_id AND deleted_by IS DISTINCT FROM 'absence') copy"
    ).format(
        name=sql.Literal(collection.name),
        twice=sql.Literal(twice),
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
    if collection.per is None:
        return None
    return sql.SQL(
        "SELECT r.institution_id, r.patient_id::text AS sample, 'lists with fewer rows than they had when read' AS detail"
        " FROM nexhealth_child_reads r LEFT JOIN (SELECT institution_id, {parent} AS patient_id, count(*) AS rows"
        "  FROM {table} GROUP BY 1, 2) t USING (institution_id, patient_id)"
        # Once, not for each list: there are fifty thousand where the API changes the type of an id.
        " LEFT JOIN (SELECT institution_id, count(*) AS rows FROM nexhealth_quarantine"
        "  WHERE collection = {name} AND NOT loaded AND resolved_at IS NULL GROUP BY 1) q USING (institution_id)"
        " WHERE r.collection = {name} AND coalesce(t.rows, 0) + coalesce(q.rows, 0) < r.rows"
    ).format(
        parent=sql.Identifier(collection.parent_columns[0]), table=_table(collection), name=sql.Literal(collection.name)
    )


def _other_tenant(collection: Collection) -> sql.Composed | None:
    if collection.inside or collection.institution_at:
        return None
    return sql.SQL(
        "SELECT institution_id, {sample} AS sample, 'rows whose record names another institution' AS detail"
        " FROM {table} t WHERE raw ->> 'institution_id' <> institution_id::text"
    ).format(sample=_sample(collection), table=_table(collection))


def _orphans(collection: Collection) -> sql.Composed | None:
    """A reference counts only where what it points to was read completely, at all the institution's locations.

    So one active location that never comes complete silences it for the whole institution; `fresh` names that one.
    """
    return _union(
        [
            sql.SQL(
                "SELECT t.institution_id, {sample} AS sample, {name} AS detail FROM {table} t"
                " WHERE t.{column} <> 0 AND t.deleted_at IS NULL"
                " AND NOT EXISTS (SELECT FROM {target} o WHERE o.institution_id = t.institution_id AND o.{key} = t.{column})"
                " AND EXISTS (SELECT FROM nexhealth_freshness f WHERE f.collection = {other}"
                "  AND f.institution_id IN (t.institution_id, 0) AND f.complete_through IS NOT NULL)"
                # The patients of forty-nine locations are still to come when the first one's are complete.
                " AND t.institution_id NOT IN ({unread})"
            ).format(
                sample=_sample(collection),
                name=sql.Literal(column),
                table=_table(collection),
                column=sql.Identifier(column),
                target=_table(COLLECTIONS[other]),
                key=sql.Identifier(_own_key(COLLECTIONS[other])),
                other=sql.Literal(COLLECTIONS[other].inside or other),
                unread=_unread(COLLECTIONS[COLLECTIONS[other].inside or other]),
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
                sample=_sample(collection),
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
            sample=_sample(collection),
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
    group = ["institution_id", *(one for one in ("foreign_id", "foreign_id_type", "location_id") if one in names)]
    # An institution may have several practice systems: without its type, an id belongs to the one of its location.
    told_apart = (
        "true" if "foreign_id_type" in names else "location_id IS NOT NULL" if "location_id" in names else "true"
    )
    return sql.SQL(
        "SELECT institution_id, min(id)::text AS sample, 'foreign ids that several rows have' AS detail FROM {}"
        " WHERE foreign_id <> '' AND deleted_at IS NULL AND {} GROUP BY {} HAVING count(*) > 1"
    ).format(_table(collection), sql.SQL(told_apart), sql.SQL(", ").join(map(sql.Identifier, group)))


_STALE = """
SELECT place.institution_id, place.location_id::text AS sample,
    place.key || CASE
        WHEN f.complete_through IS NULL THEN ' was never read completely'
        WHEN refused.since IS NOT NULL THEN ' is no longer offered (' || refused.evidence || ' since '
            || to_char(refused.since AT TIME ZONE 'UTC', 'YYYY-MM-DD') || ')'
        ELSE ' is stale' END AS detail
FROM ({places}) place
LEFT JOIN nexhealth_freshness f ON f.institution_id = place.institution_id AND f.location_id = place.location_id
    AND f.collection = {name}
LEFT JOIN nexhealth_capabilities refused ON refused.institution_id = place.institution_id
    AND refused.location_id = place.location_id AND refused.collection = {name}
    AND refused.status IN ('not_enabled', 'unsupported')
WHERE NOT coalesce(f.complete_through >= clock_timestamp() - make_interval(hours => {fresh}), false)
    AND (refused.since IS NULL OR f.complete_through IS NOT NULL)
"""
"""What a practice never had is not late. What it had and has no more is: its rows stay, and nothing else tells of it."""
_ASKED = """
    AND (NOT EXISTS (SELECT FROM nexhealth_institutions i WHERE i.id = place.institution_id AND i.{flag})
        OR EXISTS (SELECT FROM nexhealth_locations l WHERE l.institution_id = place.institution_id
            AND l.deleted_at IS NULL AND NOT coalesce(l.inactive, false)))
"""
"""Of a list that is asked for at each active location: where there is none, nobody is asked."""
_UNREAD = """
SELECT place.institution_id FROM ({places}) place
WHERE NOT EXISTS (SELECT FROM nexhealth_freshness f WHERE f.institution_id = place.institution_id
        AND f.location_id = place.location_id AND f.collection = {name} AND f.complete_through IS NOT NULL)
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
    fresh = sql.Literal(FRESH_HOURS)
    if collection.per_location_if is None:
        return _over_places(_STALE, collection, fresh=fresh)
    return _over_places(_STALE + _ASKED, collection, fresh=fresh, flag=sql.Identifier(collection.per_location_if))


def _unread(collection: Collection) -> sql.Composed:
    """Institutions that have a place where the collection was never read completely, though it is offered there."""
    return _over_places(_UNREAD, collection)


def _over_places(query: str, collection: Collection, **more: sql.Composable) -> sql.Composed:
    scope = Scope.LOCATION if collection.scope is Scope.LOCATION_MONTH else collection.scope
    return sql.SQL(query).format(places=sql.SQL(_PLACES[scope]), name=sql.Literal(collection.name), **more)


def _offline(collection: Collection) -> sql.Composed | None:
    """Of the one collection that says so: locations whose office NexHealth itself cannot read."""
    if not {"read_status", "read_status_at", "locations"} <= {one.name for one in collection.columns}:
        return None
    return sql.SQL(
        "SELECT place.institution_id, place.location_id::text AS sample, place.key || CASE read_status WHEN 'green'"
        " THEN ' was not read by NexHealth for long' ELSE ' is offline' END AS detail"
        " FROM {table} s JOIN ({places}) place ON place.institution_id = s.institution_id"
        "  AND s.locations @> jsonb_build_array(jsonb_build_object('id', place.location_id))"
        " WHERE s.deleted_at IS NULL AND (read_status <> 'green'"
        "  OR read_status_at < clock_timestamp() - make_interval(hours => {hours}))"
    ).format(table=_table(collection), places=sql.SQL(_PLACES[Scope.LOCATION]), hours=sql.Literal(SOURCE_HOURS))


def _drifted(collection: Collection) -> sql.Composed | None:
    """A declared field that never came says nothing; one whose column holds values has gone.

    What was new to an earlier release is no fault any more once this one declares it, nor is that missing which it has
    given up.
    """
    known = [".".join((*place, key)) for place, keys in known_keys(collection).items() for key in sorted(keys)]
    held = [
        # A field that never came is looked for in every row. Asked apart, the key leads to an institution's rows, or
        # PostgreSQL reads the table once for all of them; asked in one, it read it once for each.
        sql.SQL(
            "WHEN {field} THEN CASE WHEN d.institution_id = 0 THEN EXISTS (SELECT FROM {table} t WHERE t.{column} IS NOT NULL)"
            " ELSE EXISTS (SELECT FROM {table} t WHERE t.institution_id = d.institution_id AND t.{column} IS NOT NULL) END"
        ).format(field=sql.Literal(field_of(column)), table=_table(collection), column=sql.Identifier(column.name))
        for column in collection.columns
    ]
    return sql.SQL(
        "SELECT institution_id, sample_id::text AS sample, concat_ws(' ', kind, field) AS detail"
        " FROM nexhealth_schema_drift d WHERE collection = {} AND CASE kind WHEN 'missing' THEN CASE field {} ELSE false END"
        " WHEN 'new' THEN field <> ALL({}::text[]) ELSE true END"
    ).format(sql.Literal(collection.name), sql.SQL(" ").join(held), sql.Literal(known))


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
    Rule(
        "no_orphans",
        _WARNING,
        "Every id of another collection points to a row, deleted ones included. It is not asked of an institution that has"
        " an active location where that collection was never read completely, of which `fresh` tells.",
        _orphans,
    ),
    Rule("ends_after_start", _WARNING, "What has a start ends after it.", _backwards),
    Rule("money_readable", _WARNING, "Every amount of money is a number with a currency.", _unreadable_money),
    Rule("foreign_ids_unique", _WARNING, "No two rows have one key of the practice system.", _same_foreign_id),
    Rule("fresh", _WARNING, f"Read within {FRESH_HOURS} hours wherever the practice has it, or had it.", _stale),
    Rule("offices_online", _WARNING, f"NexHealth has read every office within {SOURCE_HOURS} hours.", _offline),
    Rule("schema_as_declared", _WARNING, "The API delivers the declared fields and no others.", _drifted),
    Rule("quarantine_empty", _WARNING, "Nothing waits in quarantine.", _quarantined),
)
"""All rules, the order in which they are shown."""
