"""How this backend lays out weights, rows and states; see `sequence` for the columns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Forward
from rnnfast._cells import Cell, Weights
from rnnfast._numba.sequence import V


class Kernel(NamedTuple):
    """A cell's entry points, and its constants, which `sequence` explains."""

    together: int
    apart: int
    saves: int
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
    """A private copy of one layer's weights; what each direction needs is laid out when needed."""

    def __init__(self, kernel: Kernel, cell: Cell, weights: Weights) -> None:
        self.kernel = kernel
        self.weights = Weights._make(None if w is None else np.array(w) for w in weights)
        gates, rows = len(cell.gates), len(weights.weight_ih)
        self.hidden = rows // gates
        self.output = weights.weight_hh.shape[1]
        self.dtype = weights.weight_ih.dtype
        self.units = padded(self.hidden)
        self.columns = (kernel.together + kernel.apart) * self.units
        # A candidate whose reset comes before its product has that product for itself; one whose
        # reset comes after has its two sums apart.
        self.product = self.columns - self.units if kernel.apart else self.columns
        self.own_candidate = kernel.apart == 1

        gate, unit = np.divmod(np.arange(rows), self.hidden)
        block, lane = np.divmod(unit, V)
        grouped = (block * kernel.together + gate) * V + lane
        first_group = np.where(gate < kernel.together, grouped, gate * self.units + unit)
        last_group = (kernel.together + kernel.apart - 1) * self.units + unit
        # The column of each row of weight_hh, and of weight_ih.
        self.h_columns = first_group
        self.x_columns = np.where(gate < kernel.together, grouped, last_group)
        # Columns that the input adds to: all, or all but h_n, as slices of (columns, weights).
        cut = kernel.together * self.units
        self.x_slices = [(slice(None), slice(None))]
        if kernel.apart == 2:
            end = cut + self.units
            self.x_slices = [(slice(cut), slice(cut)), (slice(end, None), slice(cut, None))]
        self.x_places = np.where(
            self.x_columns < cut, self.x_columns, self.x_columns - self.columns + self.x_width
        )

    @property
    def x_width(self) -> int:
        """The columns that the input adds to."""
        return self.columns - (self.units if self.kernel.apart == 2 else 0)

    @cached_property
    def weight_x(self) -> NDArray:
        """(I, x_width): weight_ih transposed, its columns in place."""
        weight = self.weights.weight_ih
        result = np.zeros((weight.shape[1], self.x_width), self.dtype)
        result[:, self.x_places] = weight.T
        return result

    @cached_property
    def bias(self) -> NDArray:
        """(columns,): both biases in place."""
        result = np.zeros(self.columns, self.dtype)
        if self.weights.bias_ih is not None:
            result[self.x_columns] += self.weights.bias_ih
            result[self.h_columns] += self.weights.bias_hh
        return result

    @cached_property
    def _weight_h(self) -> NDArray:
        """(columns, W): weight_hh, its rows in place."""
        result = np.zeros((self.columns, self.output), self.dtype)
        result[self.h_columns] = self.weights.weight_hh
        return result

    def _recurrent(self) -> tuple[NDArray, NDArray, NDArray]:
        """Weights (columns of the product, W), (columns of the candidate's, W), (P, H)."""
        nothing = np.zeros((0, 0), self.dtype)
        split = self.product
        candidate = self._weight_h[split:] if self.own_candidate else nothing
        projection = self.weights.weight_hr
        return self._weight_h[:split], candidate, nothing if projection is None else projection

    @cached_property
    def forward_panels(self) -> tuple[NDArray, ...]:
        """What `sequence.forward` takes."""
        return tuple(panels(w.T) for w in self._recurrent())

    @cached_property
    def backward_panels(self) -> tuple[NDArray, ...]:
        """What `sequence.backward` takes."""
        return tuple(panels(w) for w in self._recurrent())


@dataclass(frozen=True)
class Rows:
    """The steps that exist, (t, b), as rows: by t, then by length, the longest first.

    order : (B,), the sequences by length; the first n of them have the step.
    offsets : (T + 1,), the rows before each step.
    index : t and b of each row; None where every sequence has all T steps.
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
            steps = 0  # no rows in any of them, of which there may be more than fit in memory
        lengths = args.lengths
        if lengths is None or (lengths == steps).all():
            return cls(batch, None, np.arange(steps + 1, dtype=np.int64) * batch, None)
        order = np.argsort(-lengths, kind="stable")
        t, place = np.nonzero(np.arange(steps)[:, None] < lengths[order])
        offsets = np.searchsorted(t, np.arange(steps + 1)).astype(np.int64)
        return cls(batch, order, offsets, (t, order[place]))

    def chunks(self, rows: int, descending: bool) -> Iterator[tuple[int, int]]:
        """Ranges of steps of at most `rows` rows (at least one step), empty steps left out."""
        borders = [0]
        steps = int(np.searchsorted(self.offsets, self.offsets[-1]))
        while borders[-1] < steps:
            begin = borders[-1]
            end = int(np.searchsorted(self.offsets, self.offsets[begin] + rows, "right")) - 1
            borders.append(min(max(end, begin + 1), steps))
        ranges = list(itertools.pairwise(borders))
        return reversed(ranges) if descending else iter(ranges)

    def gather(self, array: NDArray, begin: int, end: int) -> NDArray:
        """(T, B, ...) -> (rows, ...) of the steps from `begin` to `end`; a view if it can be."""
        if self.index is None:
            count = (end - begin) * self.batch  # not -1, which needs a size other than 0
            return array[begin:end].reshape(count, *array.shape[2:])
        return array[self._index(begin, end)]

    def scatter(self, rows: NDArray, array: NDArray, begin: int, end: int) -> None:
        """The inverse of `gather`."""
        if self.index is None:
            array[begin:end] = rows.reshape(end - begin, *array.shape[1:])
        else:
            array[self._index(begin, end)] = rows

    def direct(self, array: NDArray) -> bool:
        """Whether what `gather` returns can be written to instead of `scatter`."""
        return self.index is None and array.flags.c_contiguous

    def state_in(self, state: NDArray | None, width: int, dtype: np.dtype) -> NDArray:
        """A state (B, n), ordered like the rows and padded with zeros to `width`."""
        result = np.zeros((self.batch, width), dtype)
        if state is not None:
            result[:, : state.shape[1]] = state if self.order is None else state[self.order]
        return result

    def state_out(self, state: NDArray, out: NDArray) -> None:
        """The inverse of `state_in`."""
        out[slice(None) if self.order is None else self.order] = state[:, : out.shape[1]]

    def _index(self, begin: int, end: int) -> tuple[NDArray, NDArray]:
        rows = slice(self.offsets[begin], self.offsets[end])
        assert self.index is not None
        return self.index[0][rows], self.index[1][rows]
