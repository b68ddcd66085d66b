"""`nexhealth quarantine`: what could not be loaded and why, and another try. Never shows a record's values."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from nexhealth_pipeline.cli.json_output import json_line, told_as_json
from nexhealth_pipeline.cli.options import demo_option, json_option
from nexhealth_pipeline.cli.realm import Realm, account
from nexhealth_pipeline.cli.realm import demo as demo_realm
from nexhealth_pipeline.cli.tables import moment, table
from nexhealth_pipeline.errors import InvalidSetting

if TYPE_CHECKING:
    import psycopg

    from nexhealth_pipeline.sync.retry_quarantine import Retried

__all__ = ["NoteLine", "notes_of", "quarantine"]


@dataclass(frozen=True, slots=True)
class NoteLine:
    """A note of quarantine, without the record."""

    id: int
    collection: str
    institution: str
    """Subdomain, or the id of an institution that is not known; empty for key-wide lists."""
    location_id: int | None
    record_id: str
    """NexHealth's id; empty where the record has none that can be read."""
    field: str
    """Empty where the record as a whole could not be read."""
    rule: str
    loaded: bool
    """The record is in its table, without the field."""
    first_seen_at: datetime
    resolved_at: datetime | None


@click.group()
def quarantine() -> None:
    """Records that could not be loaded: which and why, and another try."""


@quarantine.command("list")
@click.option("--collection", metavar="NAME", help="Only notes of this collection.")
@click.option("--institution", metavar="KEY", help="Only notes of this institution, by subdomain or id.")
@click.option("--open/--all", "only_open", default=True, help="Those not resolved (default), or all there ever were.")
@json_option
@demo_option
def show(*, collection: str | None, institution: str | None, only_open: bool, as_json: bool, demo: bool) -> int:
    """List what could not be loaded, and why.

    A note is resolved when its record is read later without the fault; when the patient's list that the record stood
    in, or of a record without an id the whole collection, is read without it; when the patient is gone; or by a retry.
    The record itself is never shown: column `raw` of `nexhealth_quarantine` has it, for those who may see it.
    """
    from nexhealth_pipeline.warehouse.connect import connect, driver_errors

    with told_as_json(as_json):
        name = _known(collection)
        with driver_errors("reading quarantine"), connect(_url(demo), autocommit=True) as connection:
            notes = notes_of(connection, collection=name, institution=institution, only_open=only_open)
    if as_json:
        click.echo(json_line({"notes": [asdict(note) for note in notes]}))
    else:
        click.echo("\n".join(_lines(notes, only_open=only_open)))
    return 0


@quarantine.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=click.IntRange(1))
@click.option("--collection", metavar="NAME", help="All open notes of this collection.")
@json_option
@demo_option
def retry(*, ids: tuple[int, ...], collection: str | None, as_json: bool, demo: bool) -> int:
    """Load what passes the rules of this release.

    The notes with these IDs, or all that are open. Asks NexHealth nothing: the stored records are read once more, and
    never replace a newer one. Exit status 0: none of them is open any more; 1: some still cannot be loaded.
    """
    from nexhealth_pipeline.sync.retry_quarantine import retry_quarantine

    with told_as_json(as_json):
        if ids and collection:
            raise InvalidSetting("give IDs, or --collection: not both")
        done = retry_quarantine(_url(demo), ids=ids, collection=_known(collection))
    click.echo(json_line(_as_json(done)) if as_json else _in_words(done))
    return 1 if done.still_open else 0


def notes_of(
    connection: "psycopg.Connection", *, collection: str | None, institution: str | None, only_open: bool
) -> list[NoteLine]:
    """The notes, oldest first. Raises InvalidSetting for an institution that is not known."""
    known = {str(number): subdomain or str(number) for number, subdomain in _institutions(connection)}
    chosen = next((int(number) for number, name in known.items() if institution in (number, name)), None)
    if institution is not None and chosen is None:
        choices = ", ".join(known.values()) or "none is known"
        raise InvalidSetting(f"institution {institution!r} is not known; use one of: {choices}")
    rows = connection.execute(
        "SELECT id, collection, institution_id, nullif(location_id, 0), record_id, field, rule, loaded,"
        " first_seen_at, resolved_at FROM nexhealth_quarantine"
        " WHERE (%(collection)s::text IS NULL OR collection = %(collection)s)"
        " AND (%(institution)s::bigint IS NULL OR institution_id = %(institution)s)"
        " AND (resolved_at IS NULL OR NOT %(only_open)s) ORDER BY id",
        {"collection": collection, "institution": chosen, "only_open": only_open},
    ).fetchall()
    return [NoteLine(number, name, known.get(str(where), ""), *rest) for number, name, where, *rest in rows]


def _institutions(connection: "psycopg.Connection") -> list[tuple[int, str | None]]:
    """All that the warehouse or a note knows, by id."""
    return connection.execute(
        "SELECT ids.id, i.subdomain FROM (SELECT id FROM nexhealth_institutions UNION"
        " SELECT institution_id FROM nexhealth_quarantine WHERE institution_id <> 0) ids"
        " LEFT JOIN nexhealth_institutions i ON i.id = ids.id ORDER BY 1"
    ).fetchall()


def _known(collection: str | None) -> str | None:
    """The collection's name as notes have it. Raises InvalidSetting."""
    from nexhealth_pipeline.catalog.collections import COLLECTIONS

    name = None if collection is None else collection.removeprefix("nexhealth_")
    if name is not None and name not in COLLECTIONS:
        raise InvalidSetting(f"{collection!r} is no collection; use one of: {', '.join(COLLECTIONS)}")
    return name


def _url(demo: bool) -> str:
    """Address of the warehouse, at this release's schema. Raises WarehouseError."""
    from nexhealth_pipeline.log import set_up_for
    from nexhealth_pipeline.warehouse.migrate import check

    realm: Realm = demo_realm() if demo else account()
    set_up_for(realm.settings, quiet=True)
    url = realm.warehouse_url()
    check(url)
    return url


def _lines(notes: list[NoteLine], *, only_open: bool) -> list[str]:
    if not notes:
        return ["nothing is in quarantine" if only_open else "nothing was ever in quarantine"]
    head = ("id", "collection", "institution", "location", "record", "field", "why", "loaded", "first seen", "resolved")
    rows = [
        [
            str(note.id),
            note.collection,
            note.institution,
            str(note.location_id or ""),
            note.record_id or "unknown",
            note.field or "(the record)",
            note.rule,
            "without it" if note.loaded else "no",
            moment(note.first_seen_at),
            moment(note.resolved_at),
        ]
        for note in notes
    ]
    return table(head, rows, right=">")


def _in_words(done: "Retried") -> str:
    if not done.tried:
        return "no open note to try"
    return (
        f"{done.tried:,} notes tried: {done.loaded:,} loaded ({done.rows.inserted:,} rows inserted, "
        f"{done.rows.updated:,} updated), {done.outdated:,} out of date, {done.still_open:,} still open"
    )


def _as_json(done: "Retried") -> dict[str, Any]:
    rows = {name: getattr(done.rows, name) for name in ("inserted", "updated", "unchanged")}
    return {"tried": done.tried, "loaded": done.loaded, "outdated": done.outdated, "still_open": done.still_open} | rows
