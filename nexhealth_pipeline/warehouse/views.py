"""Schema `nexhealth_current`: one plain view per collection, right without knowing the traps.

A view shows the rows that are there (no deleted ones, nor what stood in a deleted record) with the record's own
columns, and what its declaration adds (`Collection.current`): local times, flags, names behind ids. The view's comment
ends with a fingerprint of its definition, so that one that is up to date is left alone. Columns of a view that exists
keep their order and new ones follow, because only so can PostgreSQL replace it under grants and under views that others
built on it.

Beside them there is `freshness`, else nobody who has the views alone could tell how old they are, or whether a list that
is empty was ever read. Migrations add the view `patient_locations`, whose table is no collection's either.

Nothing is granted here; an owner's `GRANT SELECT` outlives every replacement but that of a column's removal.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql

from nexhealth_pipeline.catalog.collection import Collection, Column, Phi, Shown
from nexhealth_pipeline.errors import WarehouseError

__all__ = ["SCHEMA", "ensure_views"]

SCHEMA = "nexhealth_current"


@dataclass(frozen=True, slots=True)
class _Field:
    """One column of a view."""

    name: str
    sql: sql.Composable
    phi: Phi
    doc: str


@dataclass(frozen=True, slots=True)
class _View:
    """One view as it is wanted."""

    name: str
    doc: str
    """What a row is."""
    fields: tuple[_Field, ...]
    source: sql.Composable
    """Where the rows come from, and which of them."""

    def query(self, order: list[str]) -> sql.Composed:
        """The SELECT, with the columns `order` names first and the others behind them."""
        ranks = {name: rank for rank, name in enumerate(order)}
        fields = sorted(self.fields, key=lambda field: ranks.get(field.name, len(ranks)))
        return sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(sql.SQL("{} AS {}").format(field.sql, sql.Identifier(field.name)) for field in fields),
            self.source,
        )

    @property
    def identifier(self) -> sql.Identifier:
        """Schema and name."""
        return sql.Identifier(SCHEMA, self.name)

    @property
    def comments(self) -> sql.Composed:
        """Statements that describe the columns."""
        return sql.SQL(";").join(
            sql.SQL("COMMENT ON COLUMN {}.{} IS {}").format(
                self.identifier, sql.Identifier(field.name), sql.Literal(f"{field.doc} PHI class: {field.phi.value}.")
            )
            for field in self.fields
        )

    @property
    def comment(self) -> str:
        """What a row is, and the fingerprint of the definition."""
        definition = self.query([]).as_string() + self.comments.as_string()
        return f"{self.doc} (definition {hashlib.blake2b(definition.encode(), digest_size=8).hexdigest()})"


_FRESHNESS = _View(
    "freshness",
    "How fresh a collection is at a location, and whether the practice has it at all. What is in no row was never read, but"
    " for what comes with another's records: claim_payouts with charges, treatment_plan_procedures with treatment_plans.",
    tuple(
        _Field(name, sql.SQL(source), phi, doc)
        for name, source, phi, doc in (
            ("institution_id", "t.institution_id", Phi.ID, "Institution it is about; 0 = all."),
            ("location_id", "t.location_id", Phi.NONE, "Location it is about; 0 = institution-wide."),
            ("location_name", "office.name", Phi.NONE, "Name of the location."),
            ("collection", "t.collection", Phi.NONE, "Collection it is about."),
            (
                "complete_through",
                "f.complete_through",
                Phi.NONE,
                "Every change that NexHealth had by then is here; null = never read completely.",
            ),
            ("last_full_at", "f.last_full_at", Phi.NONE, "When all of it was last read."),
            ("last_change_at", "f.last_change_at", Phi.NONE, "When a row of it last changed here."),
            (
                "source_read_status",
                "f.source_read_status",
                Phi.NONE,
                "Of the office when the list was read: green, or red while NexHealth could not read it.",
            ),
            (
                "source_read_status_at",
                "f.source_read_status_at",
                Phi.NONE,
                "When NexHealth had last read the office then.",
            ),
            (
                "capability",
                "c.status",
                Phi.NONE,
                "supported, empty, or not to be had (not_enabled, unsupported): then no rows say nothing; null = not known.",
            ),
            ("capability_since", "c.since", Phi.NONE, "Since when that is known."),
        )
    ),
    sql.SQL(
        "nexhealth_freshness f FULL JOIN nexhealth_capabilities c USING (institution_id, location_id, collection) AS t"
        " LEFT JOIN nexhealth_locations office"
        " ON office.institution_id = t.institution_id AND office.id = t.location_id"
    ),
)


def ensure_views(connection: psycopg.Connection, visible: Mapping[Collection, tuple[Column, ...]]) -> None:
    """Make the views of collections, each with the table columns it shows, where they are not as declared.

    The tables exist; the caller commits. Raises WarehouseError where a view must lose a column on which a
    view of somebody else is built.
    """
    present = _present(connection)
    views = [view for collection, columns in visible.items() for view in _views(collection, columns)]
    if any(collection.name == "locations" for collection in visible):
        views.append(_FRESHNESS)
    for view in views:
        comment, order = present.get(view.name, (None, []))
        wanted = view.comment
        if comment != wanted:
            _make(connection, view, order, wanted)


def _views(collection: Collection, columns: tuple[Column, ...]) -> Iterator[_View]:
    """The views that the catalog wants of a collection."""
    fields = {one.name: _Field(one.name, sql.Identifier("t", one.name), one.phi, one.doc) for one in columns}
    for derived in collection.current.columns:
        fields[derived.name] = _Field(derived.name, sql.SQL(derived.sql), derived.phi, derived.doc)
    for shown in collection.current.views or (Shown(collection.name, collection.doc),):
        yield _View(shown.name, shown.doc, tuple(fields.values()), _rows_of(collection, shown))


def _rows_of(collection: Collection, shown: Shown) -> sql.Composed:
    """The collection's rows as `t` that a view shows, with what is joined to them."""
    conditions: list[sql.Composable] = [sql.SQL("t.deleted_at IS NULL")]
    if shown.where:
        conditions.append(sql.SQL(f"({shown.where})"))
    if collection.inside:
        conditions.append(_record_is_there(collection))
    return sql.SQL("{} t{} WHERE {}").format(
        sql.Identifier(collection.table),
        sql.SQL("".join(f" {join}" for join in collection.current.joins)),
        sql.SQL(" AND ").join(conditions),
    )


def _record_is_there(collection: Collection) -> sql.Composed:
    """That the record which row `t` stands in is not deleted: a voided charge may keep its list, and nobody adds it up."""
    keys = [("institution_id", "institution_id"), *((one.path[0], one.name) for one in collection.from_request)]
    return sql.SQL("NOT EXISTS (SELECT FROM {} p WHERE p.deleted_at IS NOT NULL AND {})").format(
        sql.Identifier(f"nexhealth_{collection.inside}"),
        sql.SQL(" AND ").join(
            sql.SQL("p.{} = t.{}").format(sql.Identifier(theirs), sql.Identifier(ours)) for theirs, ours in keys
        ),
    )


def _present(connection: psycopg.Connection) -> dict[str, tuple[str | None, list[str]]]:
    """Comment and columns of the views that exist, by name."""
    rows = connection.execute(
        "SELECT c.relname::text, obj_description(c.oid, 'pg_class'),"
        " (SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid)"
        " FROM pg_class c WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind = 'v'",
        (SCHEMA,),
    )
    return {name: (comment, columns) for name, comment, columns in rows}


def _make(connection: psycopg.Connection, view: _View, order: list[str], comment: str) -> None:
    """Replace a view whose columns are `order` now, or drop it and create it where it cannot be replaced."""
    try:
        with connection.transaction():
            connection.execute(_statements(view, order, comment))
    except errors.InvalidTableDefinition:  # a column is gone, or of another type
        _drop(connection, view)
        connection.execute(_statements(view, [], comment))


def _statements(view: _View, order: list[str], comment: str) -> sql.Composed:
    """What makes a view and describes it."""
    return sql.SQL("CREATE OR REPLACE VIEW {} AS {}; {}; COMMENT ON VIEW {} IS {}").format(
        view.identifier, view.query(order), view.comments, view.identifier, sql.Literal(comment)
    )


def _drop(connection: psycopg.Connection, view: _View) -> None:
    try:
        with connection.transaction():
            connection.execute(sql.SQL("DROP VIEW {}").format(view.identifier))
    except errors.DependentObjectsStillExist:
        raise WarehouseError(
            f"view {SCHEMA}.{view.name} must lose a column, and other views are built on it: "
            "drop those, run `nexhealth db upgrade`, and make them again"
        ) from None
