"""Schema `nexhealth_current`: one plain view per collection, right without knowing the traps.

A view shows the rows that are there (no deleted ones, nor what stood in a deleted record) with the record's own
columns, and what its declaration adds (`Collection.current`): local times, flags, names behind ids. The view's comment
ends with a fingerprint of its definition, so that one that is up to date is left alone. Columns of a view that exists
keep their order and new ones follow, because only so can PostgreSQL replace it under grants and under views that others
built on it.

Migrations add the view `patient_locations`, whose table is no collection's.

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
    """One view as the catalog wants it."""

    shown: Shown
    collection: Collection
    fields: tuple[_Field, ...]

    def query(self, order: list[str]) -> sql.Composed:
        """The SELECT, with the columns `order` names first and the others behind them."""
        ranks = {name: rank for rank, name in enumerate(order)}
        fields = sorted(self.fields, key=lambda field: ranks.get(field.name, len(ranks)))
        conditions: list[sql.Composable] = [sql.SQL("t.deleted_at IS NULL")]
        if self.shown.where:
            conditions.append(sql.SQL(f"({self.shown.where})"))
        if self.collection.inside:
            conditions.append(_record_is_there(self.collection))
        return sql.SQL("SELECT {} FROM {} t{} WHERE {}").format(
            sql.SQL(", ").join(sql.SQL("{} AS {}").format(field.sql, sql.Identifier(field.name)) for field in fields),
            sql.Identifier(self.collection.table),
            sql.SQL("".join(f" {join}" for join in self.collection.current.joins)),
            sql.SQL(" AND ").join(conditions),
        )

    @property
    def identifier(self) -> sql.Identifier:
        """Schema and name."""
        return sql.Identifier(SCHEMA, self.shown.name)

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
        return f"{self.shown.doc} (definition {hashlib.blake2b(definition.encode(), digest_size=8).hexdigest()})"


def ensure_views(connection: psycopg.Connection, visible: Mapping[Collection, tuple[Column, ...]]) -> None:
    """Make the views of collections, each with the table columns it shows, where they are not as declared.

    The tables exist; the caller commits. Raises WarehouseError where a view must lose a column on which a
    view of somebody else is built.
    """
    present = _present(connection)
    for collection, columns in visible.items():
        for view in _views(collection, columns):
            comment, order = present.get(view.shown.name, (None, []))
            wanted = view.comment
            if comment != wanted:
                _make(connection, view, order, wanted)


def _views(collection: Collection, columns: tuple[Column, ...]) -> Iterator[_View]:
    """The views that the catalog wants of a collection."""
    fields = {one.name: _Field(one.name, sql.Identifier("t", one.name), one.phi, one.doc) for one in columns}
    for derived in collection.current.columns:
        fields[derived.name] = _Field(derived.name, sql.SQL(derived.sql), derived.phi, derived.doc)
    for shown in collection.current.views or (Shown(collection.name, collection.doc),):
        yield _View(shown, collection, tuple(fields.values()))


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
            f"view {SCHEMA}.{view.shown.name} must lose a column, and other views are built on it: "
            "drop those, run `nexhealth db upgrade`, and make them again"
        ) from None
