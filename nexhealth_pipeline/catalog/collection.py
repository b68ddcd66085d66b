"""The words in which a NexHealth collection is declared.

One :class:`Collection` drives everything: what the client asks for, the table and its comments, the
Dagster asset, the command line's `--resource` names and README's table. Nothing here does anything;
adding a collection means writing one declaration in the module of its domain in
`catalog/collections/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from nexhealth_pipeline.catalog.paging import Paging

__all__ = [
    "Collection",
    "Column",
    "Current",
    "Derived",
    "Events",
    "Pass",
    "Phi",
    "Reader",
    "Scope",
    "Shown",
    "SqlType",
    "Window",
    "column",
    "flatten",
    "money",
    "nested",
]


class Scope(StrEnum):
    """What one partition of a collection's asset is."""

    PRACTICE = "practice"
    """Unpartitioned: one list for everything the key reaches."""
    INSTITUTION = "institution"
    LOCATION = "location"
    LOCATION_MONTH = "location_month"


class Phi(StrEnum):
    """What a column tells about a person; decides who may see it."""

    NONE = "none"
    ID = "id"
    CONTACT = "contact"
    DEMOGRAPHIC = "demographic"
    CLINICAL = "clinical"
    FINANCIAL = "financial"
    INSURANCE = "insurance"
    SECRET = "secret"  # noqa: S105 - a class of data, no password


class SqlType(StrEnum):
    """PostgreSQL type of a column."""

    BIGINT = "bigint"
    TEXT = "text"
    BOOLEAN = "boolean"
    TIMESTAMPTZ = "timestamptz"
    DATE = "date"
    NUMERIC = "numeric"
    DOUBLE = "double precision"
    JSONB = "jsonb"


class Reader(StrEnum):
    """Which of the locations that share one EHR database makes a pass."""

    EVERY = "every"
    """Each location for itself."""
    OWNER = "owner"
    """The lowest-id active location of the database, for all of them."""
    SHARED = "shared"
    """Each location, but only where several share a database."""


@dataclass(frozen=True, slots=True)
class Column:
    """One typed column: where its value stands in the record, and what it means."""

    name: str
    type: SqlType
    phi: Phi
    doc: str
    path: tuple[str, ...]
    """Keys from the record's top to the value."""
    utc: bool = False
    """A day that is one of UTC; any other is one of somebody's calendar, wherever that hangs."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One complete way through a list; a collection is complete when all its passes are."""

    name: str
    params: tuple[tuple[str, str], ...] = ()
    """Fixed query parameters, for example those that reveal rows hidden by default."""
    dispensable: tuple[str, ...] = ()
    """Names among them without which no row would be missing or wrong; an answer that ignores another is no answer."""
    reader: Reader = Reader.EVERY
    membership: bool = False
    """The pass says which patients a location lists; it is always read whole and loads no rows."""
    reconcile_only: bool = False
    """Made only before absences are judged: it may meet rows that moved from one of the other passes to another."""


@dataclass(frozen=True, slots=True)
class Window:
    """A list that is read by date: the parameters that bound it, and the column they bound."""

    start: str
    end: str
    column: str


@dataclass(frozen=True, slots=True)
class Derived:
    """A column that a view adds, or gives another meaning than the table's of the same name."""

    name: str
    sql: str
    """Expression over the row `t` and the names that :attr:`Current.joins` brings."""
    phi: Phi
    doc: str


@dataclass(frozen=True, slots=True)
class Shown:
    """One view: rows of the collection that are a thing of their own."""

    name: str
    doc: str
    """One sentence: what a row is."""
    where: str = ""
    """Condition over the row `t`, and the names that :attr:`Current.joins` brings; deleted rows are left out anyway."""


@dataclass(frozen=True, slots=True)
class Current:
    """How the collection is shown in schema `nexhealth_current`."""

    columns: tuple[Derived, ...] = ()
    joins: tuple[str, ...] = ()
    """SQL of joins to other tables; they must keep every row of `t` exactly once."""
    views: tuple[Shown, ...] = ()
    """Empty = one view of the collection's name with all its rows."""


@dataclass(frozen=True, slots=True)
class Events:
    """Webhook events that tell of the collection's rows (API.md F.3)."""

    resource_type: str
    """As a subscription names it: `Patient`."""
    snapshots: tuple[str, ...] = ()
    """Events whose `data` holds the record as the list gives it."""
    hints: tuple[str, ...] = ()
    """Events that only tell that something changed: the API is asked again."""
    keys: tuple[str, ...] = ()
    """Keys of `data` that hold a record, or a list of them; where none is there, `data` itself may be the record, or the
    only member of it that can be one."""

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, to subscribe to."""
        return self.snapshots + self.hints


@dataclass(frozen=True, slots=True)
class Collection:
    """One readable collection of NexHealth."""

    name: str
    """Plural, as in the API; table and asset are `nexhealth_<name>`."""
    group: str
    """Dagster group: practice, patients, scheduling, insurance, ledger, clinical."""
    doc: str
    """One sentence: what a row is."""
    path: str
    """Request path; `{location_id}` is filled in, and in lists under one row (`per`) `{id}` of that row."""
    scope: Scope
    columns: tuple[Column, ...]
    key: tuple[str, ...] = ("institution_id", "id")
    """Primary key; `institution_id` comes from the request, or from `institution_at`."""
    paging: Paging = Paging.CURSOR
    passes: tuple[Pass, ...] = (Pass("all"),)
    increment: str | None = None
    """Query parameter that limits the answer to rows changed since a time; None = always read whole."""
    sort: str | None = None
    """Value of `sort` that keeps pages stable while rows change; None where the API takes none."""
    version: str | None = None
    """Column that orders versions of a record (`updated_at`); None = content hash and read time do."""
    records_at: tuple[str, ...] = ()
    """Keys to nested lists that hold the records, where the answer wraps them."""
    institution_at: tuple[str, ...] | None = None
    """Where a key-wide record names its institution; None = the request's."""
    from_request: tuple[Column, ...] = ()
    """Columns that the request knows and the record does not."""
    per: str | None = None
    """One request a row of that collection (`patients`): for new and changed rows, and a rotating rest."""
    inside: str | None = None
    """No request of its own: the rows are a list, at `records_at`, in each record of that collection."""
    needs_filter: bool = False
    """The API refuses to list everything: a read of the whole asks for changes since long ago (API.md A.4)."""
    by_id: str | None = None
    """Path of the single read that tells whether row `{id}` still exists.

    None = there is none, or its 404 proves nothing: it may also mean a location that the key does not reach (procedures
    and insurance balances say so), and of most others the API does not say what it means.
    """
    by_id_legacy: bool = False
    """`by_id` is answered in the v2 representation (API.md D.3)."""
    unlisted_if: str | None = None
    """Flag of rows that a list may leave out although they are there: that it lacked one says nothing, `by_id` alone does."""
    place_if: tuple[str, str, str] | None = None
    """(column, other column, value): the column is the row's location where the other one has that value.

    None = `location_id`, where there is such a column.
    """
    per_location_if: str | None = None
    """Flag of the institution that makes this institution-wide list one to ask per location."""
    window: Window | None = None
    patient_filter: str | None = None
    """Query parameter that limits the list to one patient; used when one patient is refreshed."""
    guarantor_filter: str | None = None
    """The same of a list that is of who pays, and knows no patient."""
    soft_delete: str | None = None
    """The API's own deletion time, where it has one; with `deleted_if` what is taken for it."""
    deleted_if: str | None = None
    """Flag, perhaps in no record, by which a record itself says that it is deleted: since its version, as the API gives
    no time."""
    may_be_disabled: bool = False
    """Not every practice has it: 403 means that the vendor has not enabled it (API.md K), 404 and the like that the
    practice system does not have it (A.7), and neither is a failure."""
    legacy_accept: bool = False
    """Answered in the v2 representation: the Accept header of API.md D.3 is sent as well."""
    sensitive: tuple[tuple[str, ...], ...] = ()
    """Paths that are removed before anything is stored; of webhook events the last key, wherever it stands."""
    indexes: tuple[tuple[str, ...], ...] = ()
    after: tuple[str, ...] = ()
    """Collections that must be read before (also the asset's upstream)."""
    references: tuple[tuple[str, str], ...] = ()
    """(column, collection it points to), soft: rows arrive in any order and 0 means none. Also the asset's lineage."""
    events: Events | None = None
    """Webhook events that tell of its rows; None = only reads do."""
    single_only: tuple[str, ...] = ()
    """Keys that single reads and events may have and the list has not: `raw` is always the list's shape.

    Many hold persons with all their particulars, in rows that are only to point to them.
    """
    filters: tuple[tuple[str, str], ...] = ()
    """(filter, API parameter) that subsets may be asked by: `status` (active or inactive), `provider`."""
    current: Current = Current()
    """What its views in schema `nexhealth_current` show beside its columns."""

    @property
    def table(self) -> str:
        """Name of the table and of the asset."""
        return f"nexhealth_{self.name}"

    @property
    def is_asset(self) -> bool:
        """Whether it is read by requests of its own, so that it has an asset and `--resource` takes it."""
        return self.inside is None

    @property
    def per_patient(self) -> bool:
        """Whether it costs a request a patient."""
        return self.per == "patients"

    @property
    def list_columns(self) -> tuple[str, ...]:
        """Columns, none of the key, that only the list a record is in can tell: it may move to another row's list.

        Not the location of a list that several locations of one database give alike: they would take turns.
        """
        return tuple(one.name for one in self.from_request if self.per and one.name not in self.key)

    @property
    def placed_by_request(self) -> bool:
        """Whether the request alone tells which location lists a row: several that share a database may, alike."""
        return self.per is None and any(one.name == "location_id" for one in self.from_request)

    @property
    def parent_columns(self) -> tuple[str, ...]:
        """Of rows in the own list of another row, or inside it: what holds its id, which the request knows or the record."""
        if self.per is None and self.inside is None:
            return ()
        known = tuple(one.name for one in self.from_request)
        return known or tuple(name for name, pointed_to in self.references if pointed_to in (self.per, self.inside))

    @property
    def regular_passes(self) -> tuple[Pass, ...]:
        """The passes that make a slice complete, in whatever mode it is read."""
        return tuple(one for one in self.passes if not one.reconcile_only)

    @property
    def second_looks(self) -> list[str]:
        """Names of the passes that only a reconcile reads: its next one is the first to move what they left in the state."""
        return [one.name for one in self.passes if one.reconcile_only]

    @property
    def upstream(self) -> tuple[str, ...]:
        """Collections that its asset comes after: what must be read before, and what its rows point to."""
        pointed_to = (name for _, name in self.references if name != self.name)
        return tuple(dict.fromkeys((*self.after, *pointed_to)))


def column(name: str, type_: SqlType, phi: Phi, doc: str, *, utc: bool = False) -> tuple[Column, ...]:
    """A column named as the API's field."""
    return (Column(name, type_, phi, doc, (name,), utc=utc),)


def money(name: str, doc: str, phi: Phi = Phi.FINANCIAL) -> tuple[Column, ...]:
    """`{amount, currency}` as `<name> numeric` and `<name>_currency text`."""
    return (
        Column(name, SqlType.NUMERIC, phi, doc, (name, "amount")),
        Column(f"{name}_currency", SqlType.TEXT, Phi.NONE, f"ISO 4217 currency of {name}.", (name, "currency")),
    )


def nested(name: str, *columns: Iterable[Column]) -> tuple[Column, ...]:
    """The fields of a nested object, flattened with `_`."""
    return tuple(
        replace(inner, name=f"{name}_{inner.name}", path=(name, *inner.path)) for group in columns for inner in group
    )


def flatten(*groups: Iterable[Column]) -> tuple[Column, ...]:
    """Several column groups as one tuple."""
    return tuple(column for group in groups for column in group)
