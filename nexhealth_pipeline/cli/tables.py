"""Tables of text for people: columns as wide as their cells, figures to the right, nothing cut off."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from nexhealth_pipeline.log import printable

__all__ = ["age", "beside_seconds", "moment", "number", "seconds", "table"]

_LONG_SECONDS = 120


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, right: str = "") -> list[str]:
    """Lines of a table, a row each, whatever stands in a cell. `right` has one character a column: `>` puts that column to the right."""
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(_width(line[index]) for line in lines) for index in range(len(head))]
    sides = right.ljust(len(head))
    made = ["  ".join(map(_cell, line, widths, sides)).rstrip() for line in lines]
    return [made[0], "  ".join("-" * width for width in widths), *made[1:]]


def _cell(text: str, width: int, side: str) -> str:
    blank = " " * (width - _width(text))
    return blank + text if side == ">" else text + blank


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal: an emoji takes two, an accent of its own none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def number(value: float) -> str:
    """`value` with thousands set apart; empty for 0, so that what happened stands out."""
    return f"{value:,.0f}" if value else ""


def seconds(value: float) -> str:
    """A duration in seconds, one decimal."""
    return f"{value:,.1f}"


def beside_seconds(value: float) -> str:
    """What to say behind a duration in seconds of two minutes or more, ` (2 d 14 h)`: nobody divides by 86,400."""
    if value < _LONG_SECONDS:
        return ""
    # By what is told of it: a day less a second is told in hours and minutes, which are a day then.
    if round(value) < 3_600:
        unit, length, part, short = "min", 60, "s", 1
    elif round(value / 60) < 24 * 60:
        unit, length, part, short = "h", 3_600, "min", 60
    else:
        unit, length, part, short = "d", 86_400, "h", 3_600
    whole, rest = divmod(round(value / short) * short, length)
    return f" ({whole} {unit} {rest // short} {part})" if rest else f" ({whole} {unit})"


def moment(value: datetime | None) -> str:
    """A time in UTC to the minute, or empty."""
    return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if value else ""


def age(value: datetime | None, now: datetime) -> str:
    """How long ago `value` was, in its largest unit, or empty."""
    if value is None:
        return ""
    passed = max(0.0, (now - value).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= 2 * length or (unit == "min" and passed >= length):
            return f"{passed / length:.0f} {unit}"
    return f"{passed:.0f} s"
