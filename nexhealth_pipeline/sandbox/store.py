"""Rows of one collection, found by id, by institution or by an indexed fact, and sorted views of them.

A view (a filtered, sorted list) is kept until the collection changes, so that walking through a million rows
page by page filters them once.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .rows import Kind, Row

__all__ = ["Order", "Slice", "Store", "View"]

_KEPT_VIEWS = 64


@dataclass(frozen=True, slots=True)
class Order:
    """How a list is sorted: by id, by updated_at or by another text, then by id, up or down; nulls are least.

    `crossed`: ids run the other way than the field.
    """

    field: str = "id"
    descending: bool = False
    crossed: bool = False

    def key(self, row: Row) -> tuple[Any, int]:
        """What this order compares; the id makes it total."""
        if self.field == "id":
            return (row.id, row.id)
        first = row.updated if self.field == "updated_at" else row.facts[self.field] or ""
        return (first, -row.id if self.crossed else row.id)


@dataclass(frozen=True, slots=True)
class Slice:
    """A page of a view."""

    rows: list[Row]
    before: bool
    after: bool


@dataclass(frozen=True, slots=True)
class View:
    """Rows in ascending order of `order.key`; `order.descending` is applied when slicing."""

    rows: list[Row]
    order: Order

    def after(self, key: tuple[Any, int] | None, count: int) -> Slice:
        """The next `count` rows behind `key` (None = from the start), in the requested direction."""
        if self.order.descending:
            end = len(self.rows) if key is None else bisect_left(self.rows, key, key=self.order.key)
            return self._slice(max(0, end - count), end)
        start = 0 if key is None else bisect_right(self.rows, key, key=self.order.key)
        return self._slice(start, start + count)

    def before(self, key: tuple[Any, int], count: int) -> Slice:
        """The `count` rows just in front of `key`, in the requested direction."""
        if self.order.descending:
            start = bisect_right(self.rows, key, key=self.order.key)
            return self._slice(start, start + count)
        end = bisect_left(self.rows, key, key=self.order.key)
        return self._slice(max(0, end - count), end)

    def _slice(self, start: int, end: int) -> Slice:
        rows, before, after = self.rows[start:end], start > 0, end < len(self.rows)
        if self.order.descending:
            return Slice(rows[::-1], after, before)
        return Slice(rows, before, after)


class Store:
    """Rows of one kind. Not locked: State holds the lock."""

    def __init__(self, kind: Kind, rows: Iterable[Row] = ()) -> None:
        self.kind = kind
        self.version = 0
        self.rows: dict[int, Row] = {}
        self._index: dict[tuple[str, Any], dict[int, Row]] = {}
        self._views: OrderedDict[bytes, View] = OrderedDict()
        for row in rows:
            self._add(row)

    def put(self, row: Row) -> None:
        """Add a row or replace the one with its id."""
        self.remove(row.id)
        self._add(row)

    def _add(self, row: Row) -> None:
        self.rows[row.id] = row
        for slot in self._slots(row):
            self._index.setdefault(slot, {})[row.id] = row

    def remove(self, row_id: int) -> None:
        """Forget a row; nothing happens if there is none."""
        self.version += 1
        self._views.clear()
        row = self.rows.pop(row_id, None)
        if row is None:
            return
        for slot in self._slots(row):
            self._index[slot].pop(row_id, None)

    def find(self, fact: str, value: Any) -> Iterable[Row]:
        """Rows whose indexed `fact` (or `institution_id`) is `value`."""
        return self._index.get((fact, value), {}).values()

    def view(self, name: bytes, order: Order, select: Callable[[], Iterable[Row]]) -> View:
        """The view called `name`, made by `select` unless the collection has not changed since it was."""
        kept = self._views.get(name)
        if kept is None:
            kept = View(sorted(select(), key=order.key), order)
            self._views[name] = kept
            if len(self._views) > _KEPT_VIEWS:
                self._views.popitem(last=False)
        else:
            self._views.move_to_end(name)
        return kept

    def _slots(self, row: Row) -> list[tuple[str, Any]]:
        slots: list[tuple[str, Any]] = [("institution_id", row.institution_id)]
        for name in self.kind.indexes:
            value = row.facts.get(name)
            if value is None or isinstance(value, int | str):  # a fact broken on purpose has no place here
                slots.append((name, value))
        return slots
