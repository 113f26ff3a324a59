"""The layout of weights, rows and states in this backend; see `sequence` for the columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Forward
from rnnfast._cells import Cell, Weights
from rnnfast._numba.sequence import Groups
from rnnfast._numba.tile import V


class Kernel(NamedTuple):
    """The columns of a cell and its entry points; `sequence` explains both."""

    groups: Groups
    forward: Callable[..., None]
    backward: Callable[..., None]


def padded(units: int) -> int:
    """`units` rounded up to whole blocks."""
    return -(-units // V) * V


def panels(weights: NDArray) -> NDArray:
    """Weights (K, N), padded with zeros to whole blocks, as flat panels (N / V, K, V)."""
    depth, width = (padded(n) for n in weights.shape)
    full = np.zeros((depth, width), weights.dtype)
    full[: weights.shape[0], : weights.shape[1]] = weights
    return np.ascontiguousarray(full.reshape(depth, width // V, V).swapaxes(0, 1)).ravel()


class Packed:
    """A private copy of one layer's weights; each panel layout is made on its first use.

    columns : the number of columns of the pre-activations; `x_columns` and `h_columns` give the
        column of each row of `weight_ih` and `weight_hh`.
    """

    def __init__(self, kernel: Kernel, cell: Cell, weights: Weights) -> None:
        self.kernel = kernel
        self.weights = Weights._make(None if w is None else np.array(w) for w in weights)
        gates, rows = len(cell.gates), len(weights.weight_ih)
        self.hidden = rows // gates
        self.output = weights.weight_hh.shape[1]
        self.dtype = weights.weight_ih.dtype
        self.units = padded(self.hidden)
        lead, together, tail, _ = kernel.groups
        self.columns = (lead + together + tail) * self.units
        # The columns that the input adds to, and those that the product with h adds to. A candidate
        # with the reset before its product has a product of its own.
        self.x_span = slice(self.columns - tail * lead * self.units)
        self.own_candidate = tail > lead
        self.h_span = slice(lead * self.units, self.columns - self.own_candidate * self.units)

        gate, unit = np.divmod(np.arange(rows), self.hidden)
        block, lane = np.divmod(unit, V)
        grouped = (lead * self.units // V + block * together + gate) * V + lane
        last = (lead + together) * self.units + unit
        self.h_columns = np.where(gate < together, grouped, last)
        self.x_columns = np.where(gate < together, grouped, unit if lead else last)

    @cached_property
    def weight_x(self) -> NDArray:
        """(I, columns of x): weight_ih transposed, with its columns in this layout."""
        weight = self.weights.weight_ih
        result = np.zeros((weight.shape[1], self.x_span.stop), self.dtype)
        result[:, self.x_columns] = weight.T
        return result

    @cached_property
    def bias(self) -> NDArray:
        """(columns,): the sum of both biases, in this layout."""
        result = np.zeros(self.columns, self.dtype)
        if self.weights.bias_ih is not None:
            result[self.x_columns] += self.weights.bias_ih
            result[self.h_columns] += self.weights.bias_hh
        return result

    @cached_property
    def _weight_h(self) -> NDArray:
        """(columns, W): weight_hh, with its rows in this layout."""
        result = np.zeros((self.columns, self.output), self.dtype)
        result[self.h_columns] = self.weights.weight_hh
        return result

    def _recurrent(self) -> tuple[NDArray, NDArray, NDArray]:
        """The matrices of a step; (0, 0) stands for a missing one.

        They are those of the product with h (its columns, W), of the candidate's own product (its
        columns, W), and of the projection (P, H).
        """
        nothing = np.zeros((0, 0), self.dtype)
        candidate = self._weight_h[self.h_span.stop :] if self.own_candidate else nothing
        projection = self.weights.weight_hr
        return self._weight_h[self.h_span], candidate, nothing if projection is None else projection

    @cached_property
    def forward_panels(self) -> tuple[NDArray, ...]:
        """The panels that `sequence.forward` takes: recurrent, candidate, projection."""
        return tuple(panels(w.T) for w in self._recurrent())

    @cached_property
    def backward_panels(self) -> tuple[NDArray, ...]:
        """The panels that `sequence.backward` takes: recurrent, candidate, projection."""
        return tuple(panels(w) for w in self._recurrent())


@dataclass(frozen=True)
class Rows:
    """The steps (t, b) that exist, as rows: sorted by t, then by length, the longest first.

    batch : B.
    order : (B,), the sequences by length, the longest first, so that those that have a step are
        the first ones. None: the given order.
    offsets : (T + 1,), the number of rows before each step.
    index : t and b of each row. None: every sequence has all T steps.
    """

    batch: int
    order: NDArray | None
    offsets: NDArray
    index: tuple[NDArray, NDArray] | None

    @classmethod
    def of(cls, args: Forward) -> Rows:
        """The rows of a pass."""
        steps, batch = args.x.shape[:2]
        if not batch:
            steps = 0  # no step has a row; one offset each might not fit in memory
        lengths = args.lengths
        if lengths is None or (lengths == steps).all():
            return cls(batch, None, np.arange(steps + 1, dtype=np.int64) * batch, None)
        order = np.argsort(-lengths, kind="stable")
        t, place = np.nonzero(np.arange(steps)[:, None] < lengths[order])
        offsets = np.searchsorted(t, np.arange(steps + 1)).astype(np.int64)
        return cls(batch, order, offsets, (t, order[place]))

    def chunks(self, rows: int) -> list[tuple[int, int]]:
        """Consecutive ranges of steps, each of at most `rows` rows, but of at least one step."""
        total = int(self.offsets[-1])
        if total <= rows:
            return [(0, len(self.offsets) - 1)] if total else []
        steps = int(np.searchsorted(self.offsets, total))
        borders = [0]
        while borders[-1] < steps:
            begin = borders[-1]
            end = int(np.searchsorted(self.offsets, self.offsets[begin] + rows, "right")) - 1
            borders.append(min(max(end, begin + 1), steps))
        return list(itertools.pairwise(borders))

    def most(self, chunks: list[tuple[int, int]]) -> int:
        """The number of rows of the largest chunk."""
        sizes = (self.offsets[end] - self.offsets[begin] for begin, end in chunks)
        return int(max(sizes, default=0))

    def gather(self, array: NDArray, begin: int, end: int) -> NDArray:
        """(T, B, ...) -> (rows, ...) of the steps from `begin` to `end`; a view if possible."""
        if self.index is None:
            count = (end - begin) * self.batch  # -1 fails if a size is 0
            return array[begin:end].reshape(count, *array.shape[2:])
        return array[self._index(begin, end)]

    def scatter(self, rows: NDArray, array: NDArray, begin: int, end: int) -> None:
        """The inverse of `gather`."""
        if self.index is None:
            array[begin:end] = rows.reshape(end - begin, *array.shape[1:])
        else:
            array[self._index(begin, end)] = rows

    def direct(self, array: NDArray) -> bool:
        """Whether `gather` returns a view of `array`, which makes `scatter` unnecessary."""
        return self.index is None and array.flags.c_contiguous

    def state_in(self, state: NDArray | None, width: int, dtype: np.dtype) -> NDArray:
        """A copy of a state (B, n), in the order of the rows, padded with zeros to `width`."""
        result = np.zeros((self.batch, width), dtype)
        if state is not None:
            result[:, : state.shape[1]] = state if self.order is None else state[self.order]
        return result

    def state_out(self, state: NDArray, out: NDArray) -> None:
        """Writes a state in the order of the rows to `out`: the inverse of `state_in`."""
        out[slice(None) if self.order is None else self.order] = state[:, : out.shape[1]]

    def _index(self, begin: int, end: int) -> tuple[NDArray, NDArray]:
        rows = slice(self.offsets[begin], self.offsets[end])
        assert self.index is not None
        return self.index[0][rows], self.index[1][rows]
