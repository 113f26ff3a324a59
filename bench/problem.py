"""The numbers of a case: the same weights, inputs and gradients for every peer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import rnnfast
from bench.shapes import GATES, Case, Shape

# Each call takes another input in turn, so that none finds its input in the caches only because the
# call before had read it. Two inputs suffice if they are large.
ROTATED = 4
ROTATED_BYTES = 32 << 20


@dataclass(frozen=True)
class Problem:
    """The data from which a peer is built.

    weights : the parameters with torch's names and shapes, as in a `state_dict`.
    inputs : K arrays (T, B, I).
    gradients : K arrays (T, B, D*H), the gradients of a loss at the output.
    lengths : (B,) in 1..T, in any order. None: all T.
    """

    case: Case
    weights: dict[str, NDArray]
    inputs: list[NDArray]
    gradients: list[NDArray]
    lengths: NDArray | None


def layer_of(case: Case, **options: str) -> rnnfast.LSTM:
    """Our layer of the case's sizes; every peer gets its parameters.

    options : further arguments of the layer.
    """
    shape = case.shape
    constructor = getattr(rnnfast, case.cell.upper())
    directions = {"bidirectional": shape.D == 2}
    return constructor(shape.I, shape.H, shape.L, dtype=case.dtype, seed=1, **directions, **options)


def make_problem(case: Case) -> Problem:
    """A problem from a fixed seed; its weights are a new layer's, uniform in ±1/sqrt(H)."""
    shape, rng = case.shape, np.random.default_rng(1)
    size = np.dtype(case.dtype).itemsize * shape.T * shape.B * (shape.I + shape.D * shape.H)
    count = ROTATED if ROTATED * size <= ROTATED_BYTES else 2

    def normal(width: int) -> NDArray:
        return rng.standard_normal((shape.T, shape.B, width)).astype(case.dtype)

    return Problem(
        case,
        layer_of(case).state_dict(),
        [normal(shape.I) for _ in range(count)],
        [normal(shape.D * shape.H) for _ in range(count)],
        lengths_of(shape),
    )


def lengths_of(shape: Shape) -> NDArray | None:
    """The lengths of a ragged shape's sequences; None if all are T."""
    if not shape.ragged:
        return None
    return np.random.default_rng(2).integers(1, shape.T + 1, shape.B)


def active_rows(shape: Shape) -> NDArray:
    """(T,): the number of sequences that have step t."""
    lengths = lengths_of(shape)
    if lengths is None:
        return np.full(shape.T, shape.B)
    return (lengths[None, :] > np.arange(shape.T)[:, None]).sum(axis=1)


def split_weights(case: Case, weights: dict[str, NDArray]) -> list[list[dict[str, NDArray]]]:
    """The weights as layers of directions, each with weight_ih, weight_hh, bias_ih and bias_hh."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    directions = ("", "_reverse")[: case.shape.D]
    return [
        [{name: weights[f"{name}_l{k}{d}"] for name in names} for d in directions]
        for k in range(case.shape.L)
    ]


def in_gate_order(cell: str, array: NDArray, order: str) -> NDArray:
    """A weight or bias (G*H, ·) with its gates in the order of another library.

    order : our letters of the gates (`ifgo`, `rzn`; `h` for the RNN) in that library's order.
    """
    ours = {"rnn": "h", "gru": "rzn", "lstm": "ifgo"}[cell]
    assert len(ours) == GATES[cell]
    blocks = np.split(array, len(ours))
    return np.concatenate([blocks[ours.index(gate)] for gate in order])
