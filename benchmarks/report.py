"""Writes benchmarks/RESULTS.md from the kept parts; `run.py` calls it."""

from pathlib import Path

from results import Part, kept, markdown

INTRODUCTION = """# Results

Written by `make bench` (see `benchmarks/run.py`). Each section is one run of one script, at the time and on the machine
that stand below it; not all are of one day. A median is followed by the least and the greatest of its rounds. Server,
client and the local API share the machine's cores, so compare figures within a section, not with other machines.
What was tried to get there, and what was dropped: [TRIED.md](TRIED.md).
"""


def section(part: Part) -> list[str]:
    """The lines of one part."""
    ran = f"{part.machine}; {part.measured_at}{'; a quick run: sizes are small' if part.quick else ''}"
    lines = [f"## {part.title}", "", *([part.text, ""] if part.text else [])]
    lines += ["**It failed; what follows is what it said until then.**", ""] if part.failed else []
    for table in part.tables:
        lines += [*markdown(table), ""]
    lines += [f"![{chart.title}](charts/{part.name}-{chart.name}.svg)" for chart in part.charts]
    lines += [""] if part.charts else []
    return [*lines, f"*{ran}*", ""]


def write(place: Path, order: list[str]) -> Path:
    """Write `place`/RESULTS.md of `place`/results and say where it is; parts come in `order`, unknown ones last."""
    rank = {name: at for at, name in enumerate(order)}
    parts = sorted(map(kept, (place / "results").glob("*.json")), key=lambda part: rank.get(part.name, len(rank)))
    lines = [line for part in parts for line in section(part)]
    file = place / "RESULTS.md"
    file.write_text(INTRODUCTION + "\n" + "\n".join(lines).rstrip() + "\n")
    return file
