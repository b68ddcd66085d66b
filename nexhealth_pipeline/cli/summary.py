"""How a sync ended, for people: a table of collections, the failures by name, the time beside its floor."""

from typing import TYPE_CHECKING

from nexhealth_pipeline.cli.tables import beside_seconds, number, seconds, table
from nexhealth_pipeline.errors import Cancelled, WarehouseError
from nexhealth_pipeline.warehouse.sync_log import Counts

if TYPE_CHECKING:
    from nexhealth_pipeline.orchestration.launch import CollectionSummary, SyncSummary

__all__ = ["summary_lines"]

_COUNTED = ("records_read", "inserted", "updated", "unchanged", "quarantined", "pages", "requests", "retries")
_HEAD = (
    "collection",
    "slices",
    "failed",
    "read",
    "inserted",
    "updated",
    "unchanged",
    "quarantined",
    "pages",
    "requests",
)


def summary_lines(
    summary: "SyncSummary", *, dry_run: bool = False, partial: bool = False, reconcile: bool = False
) -> list[str]:
    """Everything to print about a sync that ended; `partial`: that read part of its slices, see `SyncRequest.partial`."""
    lines = ["Nothing was written: a dry run. What it would have done:", ""] if dry_run else []
    if dry_run and reconcile:  # what is gone is told by what a read that writes has kept
        lines.insert(0, "Absences are not judged by a dry run: what a reconcile would mark as deleted is not told.")
    lines += table(
        (*_HEAD, "retries", "seconds"),
        [*map(_row, summary.collections), _total(summary)],
        right=" " + ">" * (len(_HEAD) + 1),
    )
    lines += ["", _time(summary)]
    lines += _absence_lines(summary)
    lines += [f"failed: {label}: {reason}" for label, reason in summary.failures]
    lines += _next_lines(summary, dry_run=dry_run, partial=partial)
    if summary.new_notes:
        lines.append(
            f"{summary.new_notes:,} new notes in nexhealth_quarantine: fields or records that could not be read;"
            " `nexhealth quarantine list` shows them"
        )
    return lines


def _next_lines(summary: "SyncSummary", *, dry_run: bool, partial: bool) -> list[str]:
    """What the next sync makes of one that was stopped, or ended by the database."""
    if summary.exit_status == Cancelled.exit_status:
        if dry_run:
            return ["stopped before its end: a dry run keeps nothing, the next one begins anew"]
        if partial:
            return ["stopped on a committed page: what was committed stays; run it again, and it is read anew"]
        return ["stopped on a committed page: the next sync goes on from there"]
    # A slice alone also ends so, by a value that the database refuses or a right that is missing: what to do stands there.
    lost = any(label == "run" for label, _ in summary.failures)
    if summary.exit_status == WarehouseError.exit_status and lost and not dry_run:
        again = "is read anew" if partial else "goes on from there"
        return [f"what was committed stays: run it again once the database can be used, and it {again}"]
    return []


_ABSENCE = ("seen", "missing", "confirmed", "found", "tombstoned", "revived")


def _absence_lines(summary: "SyncSummary") -> list[str]:
    """What a reconcile found gone, by collection, and where it could not tell."""
    if not summary.absences:
        return []
    figures: dict[str, list[int]] = {}
    for one in summary.absences:
        sums = figures.setdefault(one["collection"], [0] * len(_ABSENCE))
        figures[one["collection"]] = [sums[index] + one[name] for index, name in enumerate(_ABSENCE)]
    changed = [[name, *map(number, sums)] for name, sums in figures.items() if any(sums[1:])]
    lines = ["", "Absences: records met, rows that the complete lists lacked, asked for one by one, marked as deleted"]
    lines += table(("collection", *_ABSENCE), changed, right=" " + ">" * len(_ABSENCE)) if changed else ["none"]
    reasons: dict[str, list[str]] = {}
    for one in summary.absences:
        if one["reason"] and one["reason"].startswith("absences not judged"):
            reasons.setdefault(one["reason"], []).append(one["label"])
    return lines + [f"{reason}: {_named(labels)}" for reason, labels in reasons.items()]


def _named(labels: list[str], most: int = 5) -> str:
    return ", ".join(labels[:most]) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def _row(collection: "CollectionSummary") -> list[str]:
    counts = [number(getattr(collection.counts, name)) for name in _COUNTED]
    return [
        collection.name,
        number(collection.slices),
        number(collection.failed),
        *counts,
        seconds(collection.seconds),
    ]


def _total(summary: "SyncSummary") -> list[str]:
    counts = Counts()
    for collection in summary.collections:
        counts.add(collection.counts)
    slices = sum(collection.slices for collection in summary.collections)
    failed = sum(collection.failed for collection in summary.collections)
    figures = [number(getattr(counts, name)) for name in _COUNTED]
    return ["all", number(slices), number(failed), *figures, seconds(summary.seconds)]


def _time(summary: "SyncSummary") -> str:
    return (
        f"{summary.seconds:,.1f} s{beside_seconds(summary.seconds)} in all; at an even rate the API's limits allow these"
        f" requests in {summary.floor_seconds:,.1f} s{beside_seconds(summary.floor_seconds)};"
        " a collection's seconds add up over slices that were read side by side"
    )
