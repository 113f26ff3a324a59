"""The pictures of streams and low precision; they need matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bench import low_floors, records
from bench.low_precision import BINS_PER_DECADE, WEIGHTS
from bench.pictures import CELL_COLOURS, CELL_MARKERS, DPI, GREY, label_powers
from bench.shapes import CELLS, STREAMS
from rnnfast._low_precision import FORMATS

WEIGHT_COLOURS = dict(zip(WEIGHTS, ("#0072B2", "#E69F00", "#009E73"), strict=True))
PERCENTILE_STYLES = {"50": "-", "99": "--", "99.9": ":"}


def latency(record: dict[str, Any]) -> Figure | None:
    """A histogram of the times of single steps, with a panel for each format; None without data."""
    entries = record.get("latency", [])
    if not entries:
        return None
    figure = Figure(figsize=(10, 1.2 + 1.9 * len(entries)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(entries), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, entry in zip(panels, entries, strict=True):
        numbers, counts = np.transpose(entry["bins"])
        edges = 10 ** (np.stack([numbers, numbers + 1]) / BINS_PER_DECADE)
        colour, case = WEIGHT_COLOURS[entry["weights"]], entry["case"]
        axes.bar(edges[0], counts, edges[1] - edges[0], align="edge", color=colour)
        axes.set(xscale="log", yscale="log", ylabel="steps")
        label_powers(axes.xaxis)
        label_powers(axes.yaxis)
        axes.spines[["top", "right"]].set_visible(False)
        title = f"{case['cell'].upper()}, H = {case['shape']['H']}, {entry['weights']}"
        axes.set_title(title, loc="left", fontsize=10)
        for name, value in entry["percentiles_us"].items():
            style, label = PERCENTILE_STYLES[name], f"p{name}: {value:.4g} µs"
            axes.axvline(value, color="black", linewidth=1, linestyle=style, label=label)
        axes.legend(fontsize=8, frameon=False, loc="upper right")
    panels[-1].set_xlabel("µs of one step from Python")
    return figure


def precision(record: dict[str, Any]) -> Figure | None:
    """The error and the speed of streams in low precision against H; None without data."""
    rows = [r for r in records.rows(record, STREAMS) if r.case.shape.I == r.case.shape.H]
    if not rows:
        return None
    figure = Figure(figsize=(10, 4), dpi=DPI, layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="H (I = H)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eeeeee", linewidth=0.6)
        sizes = sorted({row.case.shape.H for row in rows})
        axes.set_xticks(sizes, list(map(str, sizes)))
        axes.minorticks_off()
    left.set(yscale="log", ylim=(1e-3, 1e-1))
    right.axhline(1, color=GREY, linewidth=1)
    left.set_title("relative error of 1000 outputs", loc="left", fontsize=10)
    right.set_title("times as fast as float32, one step", loc="left", fontsize=10)
    for name, style in zip(FORMATS, ("-", "--"), strict=True):
        speed = low_floors.over_float32(name)
        for cell in CELLS:
            own = [row for row in rows if row.case.cell == cell]
            drawn = {"color": CELL_COLOURS[cell], "marker": CELL_MARKERS[cell], "linestyle": style}
            for axes, values in (
                (left, [(row.relative_error or {}).get(name) for row in own]),
                (right, [speed(row) for row in own]),
            ):
                points = [
                    (row.case.shape.H, value)
                    for row, value in zip(own, values, strict=True)
                    if value is not None
                ]
                if points:
                    label = f"{cell.upper()}, {name}"
                    axes.plot(*zip(*points, strict=True), ms=4, label=label, **drawn)
    left.legend(fontsize=8, frameon=False, ncols=2)
    return figure
