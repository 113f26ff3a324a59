"""The figure of the demo: the loss during training, and how gradients vanish back in time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Colours of Okabe & Ito 2008, which colour-blind readers can tell apart, too.
COLOURS = {"rnn": "#D55E00", "lstm": "#0072B2", "gru": "#009E73"}
GREY = "#595959"
SMOOTHING = 50
FLOOR = 1e-12


def figure(
    path: Path,
    cell: str,
    hidden: int,
    losses: list[float],
    held_out: float,
    norms: Mapping[str, tuple[NDArray, NDArray]],
    updates: int,
) -> None:
    """Writes the figure to `path` as a PNG; needs matplotlib.

    cell, hidden : the cell and the hidden size of the trained model.
    losses : the bits per character of each update of its training.
    held_out : its bits per character on the held-out tenth of the text.
    norms : for each cell, the results of `gradient_norms` before and after a training of `updates`
        updates.
    """
    # pyplot is not used, as it needs a window system and has settings that outlive the call.
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(9, 3.9), dpi=150, layout="constrained")
    left, right = drawing.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _draw_losses(left, COLOURS[cell], losses, held_out)
    left.set_title(f"Training the {cell.upper()}, {hidden} hidden units", loc="left", fontsize=11)
    _draw_norms(right, norms, updates)
    right.set_title("How far back in time a gradient reaches", loc="left", fontsize=11)
    drawing.savefig(path, format="png", pil_kwargs={"optimize": True})


def _draw_losses(axes: Any, colour: str, losses: list[float], held_out: float) -> None:
    window = min(SMOOTHING, len(losses))
    smooth = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    middle = np.arange(smooth.size) + (window + 1) / 2
    axes.plot(np.arange(1, len(losses) + 1), losses, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(middle, smooth, color=colour, linewidth=1.8)
    axes.axhline(held_out, color=GREY, linewidth=1, linestyle="--")
    axes.annotate(
        f"held-out tenth, after training: {held_out:.2f}",
        (1, held_out),
        xycoords=("axes fraction", "data"),
        xytext=(0, 60),
        textcoords="offset points",
        ha="right",
        color=GREY,
        arrowprops={"arrowstyle": "-", "color": GREY, "relpos": (1, 0), "shrinkB": 0},
    )
    axes.set(xlabel="update", ylabel="bits per character", xlim=(0, None))
    axes.set_ylim(min(1.0, *losses, held_out), max(losses))


def _draw_norms(axes: Any, norms: Mapping[str, tuple[NDArray, NDArray]], updates: int) -> None:
    for cell, (before, after) in norms.items():
        colour = COLOURS[cell]
        axes.semilogy(before, color=colour, linewidth=1.2, linestyle=":")
        axes.semilogy(after, color=colour, linewidth=2)
        # The cell's name stands at the end of its line: at the right, or, if the gradient vanishes,
        # at the floor, left of both lines.
        vanishes = after[-1] <= FLOOR
        lines = (before, after) if vanishes else (after,)
        end = min(int(np.flatnonzero(line > FLOOR)[-1]) for line in lines)
        axes.annotate(
            cell.upper(),
            (end, FLOOR if vanishes else after[end]),
            xytext=(-12, 4) if vanishes else (6, 0),
            textcoords="offset points",
            ha="right" if vanishes else "left",
            va="bottom" if vanishes else "center",
            color=colour,
            weight="bold",
            annotation_clip=False,
        )
    axes.text(
        0.98,
        0.99,
        f"solid: after {updates} updates\ndotted: untrained",
        transform=axes.transAxes,
        ha="right",
        va="top",
        color=GREY,
    )
    axes.set(
        xlabel="steps back in time, $T-t$",
        ylabel=r"$\Vert\partial L_T/\partial h_t\Vert$",
        ylim=(FLOOR, 1e3),
        xlim=(0, len(after) - 1),
    )
