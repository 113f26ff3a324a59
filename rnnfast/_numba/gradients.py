"""Adds to the gradients of the parameters, and reorders columns to torch's order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rnnfast._numba.compiling import entry

# Up to this many rows, adding them one by one takes less time than a NumPy product, which first
# writes a matrix: for one row at H = 256, 0.02 ms instead of 0.24.
_FEW = 4


def add_product(target: NDArray, da: NDArray, columns: NDArray, operand: NDArray) -> None:
    """Adds da[:, columns[k]] @ operand, a sum over the rows, to each target[k].

    target : (K, N); da : (rows, ...); columns : (K,); operand : (rows, N).
    """
    if len(da) <= _FEW:
        _add_outer(target, np.ascontiguousarray(da), columns, np.ascontiguousarray(operand))
    else:
        _add_rows(target, columns, da.T @ operand)


@entry
def _add_outer(target, da, columns, operand):
    for k in range(target.shape[0]):
        for row in range(da.shape[0]):
            factor = da[row, columns[k]]
            for j in range(target.shape[1]):
                target[k, j] += factor * operand[row, j]


@entry
def _add_rows(target, columns, source):
    for k in range(target.shape[0]):
        place = columns[k]
        for j in range(target.shape[1]):
            target[k, j] += source[place, j]
