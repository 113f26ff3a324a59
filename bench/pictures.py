"""The pictures of a record; they need matplotlib."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench import peers, records
from bench.records import Row
from bench.shapes import CELLS, MODES, SHAPES

# Colours of Okabe & Ito 2008, which colour-blind readers can tell apart, too. Markers also differ.
PEER_STYLES = {
    "torch": ("torch", "#D55E00", "o"),
    "onnxruntime": ("ONNX Runtime", "#0072B2", "s"),
    "openvino": ("OpenVINO", "#009E73", "^"),
    "jax": ("JAX", "#CC79A7", "D"),
    peers.YARDSTICK: ("yardstick", "#000000", "|"),
}
CELL_COLOURS = {"rnn": "#D55E00", "gru": "#009E73", "lstm": "#0072B2"}
CELL_MARKERS = {"rnn": "o", "gru": "^", "lstm": "s"}
MODE_STYLES = {"inference": ("#0072B2", "o"), "training": ("#E69F00", "D")}
GREY = "#595959"
DPI = 130


def _one_thread(record: dict[str, Any]) -> list[Row]:
    return [
        row for row in records.rows(record) if row.case.dtype == "float32" and row.case.threads == 1
    ]


def _shapes(rows: list[Row]) -> list[str]:
    """The names of the shapes that have a row, from the bottom of the picture to the top."""
    present = {row.case.shape.name for row in rows}
    return [name for name in reversed(SHAPES) if name in present]


def _label_shapes(axes: Any, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8, family="monospace")
    axes.set_ylim(-0.7, len(names) - 0.3)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_powers(axis: Any) -> None:
    """Writes the numbers on a log axis in full, not as powers of ten."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def speedup(record: dict[str, Any]) -> Figure | None:
    """Every peer's time over ours, with a panel for each mode and cell; None without data."""
    rows = [row for row in _one_thread(record) if set(row.ratios) & set(PEER_STYLES)]
    names = _shapes(rows)
    if not rows:
        return None
    figure = Figure(figsize=(10, 2.4 + 0.42 * len(names)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(MODES), len(CELLS), sharey=True, sharex="row", squeeze=False)
    handles: dict[str, Any] = {}
    for line, mode in zip(panels, MODES, strict=True):
        for axes, cell in zip(line, CELLS, strict=True):
            _label_shapes(axes, names)
            axes.axvline(1, color=GREY, linewidth=1)
            axes.set_xscale("log")
            label_powers(axes.xaxis)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.set_title(f"{cell.upper()}, {mode}", loc="left", fontsize=10)
            for peer, (label, colour, marker) in PEER_STYLES.items():
                points = [
                    (*row.ratios[peer].values(), names.index(row.case.shape.name))
                    for row in rows
                    if row.case.cell == cell and row.mode == mode and peer in row.ratios
                ]
                if points:
                    median, q1, q3, place = zip(*points, strict=True)
                    axes.hlines(place, q1, q3, color=colour, linewidth=1.2)
                    handles[label] = axes.scatter(median, place, 26, color=colour, marker=marker)
        line[1].set_xlabel(
            "time of the other library over ours, and its quartiles (right of 1: we are faster)"
        )
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def dropin(record: dict[str, Any]) -> Figure | None:
    """rnnfast.torch's speed over torch.nn's, with a panel for each mode; None without data."""
    found = [(row, row.dropin_speedup) for row in _one_thread(record) if row.dropin_speedup]
    names = _shapes([row for row, _ in found])
    if not found:
        return None
    figure = Figure(figsize=(10, 1.6 + 0.26 * len(names)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(MODES), sharex=True, sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, mode in zip(panels, MODES, strict=True):
        _label_shapes(axes, names)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.set_xscale("log")
        label_powers(axes.xaxis)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.set_title(mode, loc="left", fontsize=10)
        for cell, colour in CELL_COLOURS.items():
            points = [
                (*speedup.values(), names.index(row.case.shape.name))
                for row, speedup in found
                if row.case.cell == cell and row.mode == mode
            ]
            if points:
                median, q1, q3, place = zip(*points, strict=True)
                axes.hlines(place, q1, q3, color=colour, linewidth=1.2)
                style = {"color": colour, "marker": CELL_MARKERS[cell], "s": 26}
                handles[cell.upper()] = axes.scatter(median, place, **style)
    figure.supxlabel(
        "time of torch.nn's module over rnnfast.torch's, and its quartiles (right of 1: ours is "
        "faster)",
        fontsize=10,
    )
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def roofline(record: dict[str, Any]) -> Figure | None:
    """The fraction of the bound, with a panel for each cell; None if no bound was measured."""
    rows = [row for row in _one_thread(record) if row.fraction is not None]
    names = _shapes(rows)
    if not rows:
        return None
    figure = Figure(figsize=(10, 1.6 + 0.21 * len(names)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(CELLS), sharey=True, squeeze=False)[0]
    handles: dict[str, Any] = {}
    for axes, cell in zip(panels, CELLS, strict=True):
        _label_shapes(axes, names)
        axes.axvline(1, color=GREY, linewidth=1)
        axes.set_xlim(0, max(1.1, 1.05 * max(row.fraction or 0 for row in rows)))
        axes.set_title(cell.upper(), loc="left", fontsize=10)
        for mode, (colour, marker) in MODE_STYLES.items():
            points = [
                (row.fraction, names.index(row.case.shape.name))
                for row in rows
                if row.case.cell == cell and row.mode == mode
            ]
            if points:
                style = {"color": colour, "marker": marker, "s": 28}
                handles[mode] = axes.scatter(*zip(*points, strict=True), **style)
    panels[1].set_xlabel("bound of this core over time taken (1: the machine's limit)")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles))
    return figure


def scaling(record: dict[str, Any]) -> Figure | None:
    """Time against T, B and H, with the slopes; None if nothing was swept."""
    rows = records.rows(record, "scaling")
    swept = list(dict.fromkeys(row.case.shape.name.partition("=")[0] for row in rows))
    if not rows:
        return None
    figure = Figure(figsize=(10, 6), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(MODES), len(swept), sharex="col", sharey="row", squeeze=False)
    for line, mode in zip(panels, MODES, strict=True):
        for axes, letter in zip(line, swept, strict=True):
            axes.set(xscale="log", yscale="log")
            axes.set_title(f"{mode}, against {letter}", loc="left", fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#eeeeee", linewidth=0.6)
            label_powers(axes.xaxis)
            for cell, colour in CELL_COLOURS.items():
                for name, style in (("ours", "-"), ("torch", ":")):
                    points = [
                        (getattr(row.case.shape, letter), row.times[name]["median"])
                        for row in rows
                        if (row.case.cell, row.mode) == (cell, mode)
                        and row.case.shape.name.startswith(f"{letter}=")
                        and name in row.times
                    ]
                    if len(points) < 2:
                        continue
                    x, y = map(list, zip(*points, strict=True))
                    label = f"{cell.upper()} {name}: {records.slope(x, y):.2f}"
                    marker = "o" if name == "ours" else None
                    axes.plot(x, y, style, color=colour, marker=marker, ms=3.5, label=label)
            axes.legend(fontsize=6.5, title="slopes", title_fontsize=7, frameon=False)
        line[0].set_ylabel("µs")
    for axes, letter in zip(panels[-1], swept, strict=True):
        axes.set_xlabel("H (I = H)" if letter == "H" else letter)
    return figure
