"""Writes benchmarks/RESULTS.md from the kept parts.

python benchmarks/report.py
"""

from pathlib import Path

from results import FOLDER, Part, kept, markdown

FILE = Path(__file__).parent / "RESULTS.md"
INTRODUCTION = """# Results

Written by `make bench` (see `benchmarks/run.py`); every figure comes from the run that its section names.
A median is followed by the least and the greatest of its rounds. Server, client and the local API share the
machine's cores, so compare figures within a section, not with other machines.
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
    lines += ["```", part.output.strip(), "```", ""] if part.output.strip() else []
    return [*lines, f"*{ran}*", ""]


def write(order: list[str]) -> None:
    """Write the report; parts come in `order`, unknown ones last."""
    rank = {name: at for at, name in enumerate(order)}
    parts = sorted(map(kept, FOLDER.glob("*.json")), key=lambda part: rank.get(part.name, len(rank)))
    lines = [line for part in parts for line in section(part)]
    FILE.write_text(INTRODUCTION + "\n" + "\n".join(lines).rstrip() + "\n")
