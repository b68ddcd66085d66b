"""What a benchmark found, in one form: each script keeps a `Part` as JSON, `report.py` and `charts.py` show all of them.

python benchmarks/budget.py --json benchmarks/results/budget.json
"""

import argparse
import os
import platform
import re
import signal
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

NOT_HERE = 77
"""Status of a script that lacks something on this machine; 1 is a failure's and 2 a wrong option's."""


class Table(msgspec.Struct):
    """Figures as people read them, in Markdown's own columns."""

    columns: list[str]
    rows: list[list[str]]
    title: str = ""


class Chart(msgspec.Struct):
    """Figures as a picture: a bar per label and series, or a line per series over `labels` that are numbers."""

    name: str
    """Of its file."""
    title: str
    unit: str
    labels: list[str]
    series: dict[str, list[float | None]]
    kind: str = "bars"
    """`bars` or `lines`."""
    logarithmic: bool = False


class Part(msgspec.Struct):
    """One script's findings."""

    name: str
    title: str
    text: str = ""
    """What was done, and what of it is not as in production."""
    tables: list[Table] = []
    charts: list[Chart] = []
    machine: str = ""
    measured_at: str = ""
    quick: bool = False
    failed: bool = False


def show(part: Part, file: Path | None) -> None:
    """Print what `part` found, and keep it where a file is given."""
    for table in part.tables:
        print("\n" + "\n".join(markdown(table)), flush=True)
    if file is not None:
        keep(part, file)


def keep(part: Part, file: Path) -> None:
    """Keep `part` in `file`, with the machine and the time."""
    part.machine, part.measured_at = machine(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(part), indent=1) + b"\n")


def kept(file: Path) -> Part:
    """The part that was kept in `file`."""
    return msgspec.json.decode(file.read_bytes(), type=Part)


def markdown(table: Table) -> list[str]:
    """The table's lines; a bar inside a cell would end it."""
    lines = [f"**{table.title}**", ""] if table.title else []
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def spread(figures: Iterable[float], digits: int = 0) -> str:
    """The median and, of more than one figure, the least and the greatest."""
    known = sorted(figures)
    if not known:
        return "-"
    median = f"{statistics.median(known):,.{digits}f}"
    return median if len(known) == 1 else f"{median} ({known[0]:,.{digits}f}-{known[-1]:,.{digits}f})"


def percentile(figures: Sequence[float], share: float) -> float:
    """The least figure that at least `share` (0-1) of all do not exceed; 0 of none."""
    ordered = sorted(figures)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)] if ordered else 0.0


def machine() -> str:
    """What it ran on: no names, no paths."""
    facts = [f"{os.cpu_count()} cores{_of(Path('/proc/cpuinfo'), 'model name', ' ({})')}"]
    memory = _of(Path("/proc/meminfo"), "MemTotal", "{}")
    facts += [f"{int(memory.split()[0]) / 2**20:.0f} GiB RAM"] if memory else []
    facts += [f"{platform.system()} {platform.release().partition('-')[0]}", f"Python {platform.python_version()}"]
    return ", ".join([*facts, f"PostgreSQL {_postgres()}", f"load {os.getloadavg()[0]:.1f} at the end"])


def _of(file: Path, name: str, shape: str) -> str:
    """The value of a `name: value` line of a file of the kernel's, put into `shape`; empty where there is none."""
    if not file.exists():
        return ""
    lines = (line.partition(":") for line in file.read_text().splitlines())
    return next((shape.format(value.strip()) for key, _, value in lines if key.strip() == name), "")


def _postgres() -> str:
    """The embedded server's version."""
    from nexhealth_pipeline.warehouse.binaries import bin_folder

    told = subprocess.run([bin_folder() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)*", told)
    return found.group() if found else "?"


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with what every script takes; SIGTERM ends the script through every `finally` from now on."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="keep what was found there")
    return parser
