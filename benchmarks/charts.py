"""Draws the charts of the kept parts as SVG. Runs in benchmarks/.venv, which has matplotlib.

benchmarks/.venv/bin/python benchmarks/charts.py benchmarks
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot

COLOURS = ("#0b6e4f", "#c8553d", "#f2a541", "#3d5a80", "#98a6b3", "#7d5ba6", "#2a9d8f", "#8d6e63")
_MANY = 5
"""Series whose bars need more room."""
# Text stays text, and the same figures give the same file: else every run would rewrite all charts.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nexhealth", "font.family": "sans-serif", "font.size": 9})


def draw(chart: dict[str, Any], file: Path) -> None:
    """Write one chart."""
    figure, axes = pyplot.subplots(figsize=(7.5 if len(chart["series"]) < _MANY else 11.5, 3.2), layout="constrained")
    (_bars if chart["kind"] == "bars" else _lines)(axes, chart)
    axes.set_title(chart["title"], loc="left", fontweight="bold")
    axes.set_ylabel(chart["unit"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    if chart["logarithmic"]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,g}"))
    if len(chart["series"]) > 1:
        axes.legend(
            frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0)
        )  # beside the bars, not on them
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def _bars(axes: Any, chart: dict[str, Any]) -> None:
    """A group of bars per label."""
    width = 0.8 / len(chart["series"])
    for number, (name, values) in enumerate(chart["series"].items()):
        known = [(at, value) for at, value in enumerate(values) if value is not None]
        places = [at - 0.4 + (number + 0.5) * width for at, _ in known]
        bars = axes.bar(
            places, [value for _, value in known], width * 0.92, label=name, color=COLOURS[number % len(COLOURS)]
        )
        axes.bar_label(bars, [_short(value) for _, value in known], fontsize=6.5, padding=1)
    axes.set_xticks(range(len(chart["labels"])), chart["labels"])


def _lines(axes: Any, chart: dict[str, Any]) -> None:
    """A line per series over labels that are numbers."""
    across = [float(label.replace(",", "")) for label in chart["labels"]]
    for number, (name, values) in enumerate(chart["series"].items()):
        axes.plot(across, [float("nan") if value is None else value for value in values], marker="o", markersize=3.5,
                  label=name, color=COLOURS[number % len(COLOURS)])  # fmt: skip
    axes.set_xticks(across, chart["labels"])


def _short(value: float) -> str:
    """A figure that fits over a bar."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(place: Path) -> None:
    """Draw all charts of `place`/results anew."""
    folder = place / "charts"
    folder.mkdir(exist_ok=True)
    wanted = set()
    for file in sorted((place / "results").glob("*.json")):
        part = json.loads(file.read_text())
        for chart in part["charts"]:
            target = folder / f"{part['name']}-{chart['name']}.svg"
            draw(chart, target)
            wanted.add(target)
    for old in set(folder.glob("*.svg")) - wanted:
        old.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
