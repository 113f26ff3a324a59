"""The cells and dtypes that rnnfast supports; no other Python module lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cell:
    """The properties of a cell, besides its equations, that the layers and backends need.

    name : its name in every backend, also in `csrc/core/cells.inc`.
    gates : the gates in the order of the rows of `weight_ih` and `weight_hh`.
    states : the states that go from step to step, `h` first.
    projects : whether the cell may have a projection `weight_hr`, as LSTM may.
    """

    name: str
    gates: tuple[str, ...]
    states: tuple[str, ...] = ("h",)
    projects: bool = False


CELLS: dict[str, Cell] = {
    cell.name: cell
    for cell in (
        Cell("rnn_tanh", ("h",)),
        Cell("rnn_relu", ("h",)),
        Cell("lstm", ("i", "f", "g", "o"), ("h", "c"), projects=True),
        Cell("gru", ("r", "z", "n")),
        Cell("gru_reset_before", ("r", "z", "n")),
    )
}

DTYPES: dict[str, np.dtype] = {name: np.dtype(name) for name in ("float32", "float64")}


class Weights(NamedTuple):
    """The parameters of one layer in one direction, or their gradients, as torch names them.

    G gates, H hidden, I input, P projection size. None: the layer has no such parameter.
    """

    weight_ih: NDArray  # (G*H, I)
    weight_hh: NDArray  # (G*H, P or H)
    bias_ih: NDArray | None = None  # (G*H,)
    bias_hh: NDArray | None = None  # (G*H,)
    weight_hr: NDArray | None = None  # (P, H)


class Sizes(NamedTuple):
    """The sizes that determine the shapes of the weights: I, H and P (0: no projection)."""

    input: int
    hidden: int
    projection: int

    @property
    def output(self) -> int:
        """The width of h: P, or H if there is no projection."""
        return self.projection or self.hidden


def weight_shapes(cell: Cell, sizes: Sizes, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter of a layer of `cell`, in torch's order."""
    rows = len(cell.gates) * sizes.hidden
    shapes: dict[str, tuple[int, ...]] = {
        "weight_ih": (rows, sizes.input),
        "weight_hh": (rows, sizes.output),
    }
    if bias:
        shapes.update(bias_ih=(rows,), bias_hh=(rows,))
    if sizes.projection:
        shapes["weight_hr"] = (sizes.projection, sizes.hidden)
    return shapes
