"""Matrices in low precision, as streams keep them, and products with them in NumPy.

`csrc/kernels/bfloat16.h` and `int8.h` are the same in C++: the same rounded operands, of int8 the
same integers; what is summed in float32 may differ in its last bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnfast._cells import Cell, Weights
from rnnfast._reference import ReferenceBackend

# Rows that are smaller are zeros: their unit would be no normal number.
_LEAST = 127 * np.finfo(np.float32).tiny


class Bfloat16:
    """A matrix (N, K) rounded to bfloat16: the upper halves of float32."""

    def __init__(self, array: NDArray) -> None:
        self._halves = (_rounded(array).view(np.uint32) >> 16).astype(np.uint16)

    def floats(self) -> NDArray:
        """In float32: numbers that are kept as they are."""
        return (self._halves.astype(np.uint32) << 16).view(np.float32)

    def operand(self) -> Any:
        """What takes the matrix's place in the reference."""
        return _Rounded(self.floats())


class Int8:
    """A matrix (N, K), each row in units of its max|.| / 127, to nearest even."""

    def __init__(self, array: NDArray) -> None:
        self._largest = _largest(array)
        self._integers = _integers(array, _unit(self._largest))

    def floats(self) -> NDArray:
        """In float32: numbers that are kept as they are."""
        # The largest as it was, since 127 units may be another number.
        with np.errstate(all="ignore"):
            whole = self._integers * _unit(self._largest)
            signs = np.sign(self._integers, dtype=np.float32)
            is_largest = np.abs(self._integers) == 127
            return np.where(is_largest, signs * self._largest, whole).astype(np.float32)

    def operand(self) -> Any:
        """What takes the matrix's place in the reference."""
        return _Quantised(self._integers, _unit(self._largest))


# How the weights of a float32 layer may be kept, other than as they are: `csrc/core/formats.inc`.
FORMATS: dict[str, type[Bfloat16] | type[Int8]] = {"bfloat16": Bfloat16, "int8": Int8}


def keep(weights: Weights, format_name: str) -> Weights:
    """The parameters with their matrices kept in one of FORMATS."""
    matrix, given = FORMATS[format_name], weights._asdict()
    kept: dict[str, Any] = {n: matrix(w) for n, w in given.items() if w is not None and w.ndim == 2}
    return Weights(**{**given, **kept})


def floats(weights: Weights) -> Weights:
    """The parameters as arrays, from what `keep` gave or from arrays."""
    given: tuple[Any, ...] = weights
    return Weights(*(w.floats() if _is_kept(w) else w for w in given))


def _is_kept(value: Any) -> bool:
    return isinstance(value, tuple(FORMATS.values()))


def _rounded(array: NDArray) -> NDArray:
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    halves = np.where(np.isnan(array), bits >> 16 | 0x40, rounded)
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _largest(array: NDArray) -> NDArray:
    """(N, 1): the largest size in each row; NaN where one is not finite."""
    largest = np.abs(array).max(axis=-1, keepdims=True, initial=0)
    return np.where(np.isfinite(largest), largest, np.nan).astype(np.float32)


def _unit(largest: NDArray) -> NDArray:
    return np.where(largest < _LEAST, 0, largest / np.float32(127)).astype(np.float32)


def _integers(array: NDArray, unit: NDArray) -> NDArray:
    with np.errstate(all="ignore"):
        inverse = np.where(unit > 0, 1 / unit, 0).astype(np.float32)
        return np.nan_to_num(np.rint(array * inverse)).astype(np.int8)


class _Operand:
    """The right operand of `rows @ operand.T`, which rounds the rows as it is rounded."""

    __array_ufunc__ = None  # NumPy leaves the product to __rmatmul__

    def __init__(self, *arrays: NDArray) -> None:
        self._arrays = arrays

    @property
    def shape(self) -> tuple[int, ...]:
        return self._arrays[0].shape

    @property
    def T(self) -> _Operand:
        return self  # of which only the transpose is ever multiplied

    def __getitem__(self, rows: slice) -> _Operand:
        return type(self)(*(array[rows] for array in self._arrays))


class _Rounded(_Operand):
    def __rmatmul__(self, rows: NDArray) -> NDArray:
        (matrix,) = self._arrays
        return _rounded(np.ascontiguousarray(rows)) @ matrix.T


class _Quantised(_Operand):
    def __rmatmul__(self, rows: NDArray) -> NDArray:
        integers, units = self._arrays
        unit = _unit(_largest(rows))
        # Sums of fewer than 2^39 products are exact in float64.
        sums = _integers(rows, unit).astype(np.float64) @ integers.astype(np.float64).T
        return units.T * sums.astype(np.float32) * unit


class LowPrecisionBackend(ReferenceBackend):
    """Forward passes of the reference, with weights that `keep` gave."""

    name = "low precision"

    def pack(self, cell: Cell, weights: Weights) -> Weights:
        """The operands, with zeros for absent biases."""
        matrices = {name: w.operand() for name, w in weights._asdict().items() if _is_kept(w)}
        zeros = np.zeros(matrices["weight_ih"].shape[0], np.float32)
        biases = (zeros if b is None else b for b in (weights.bias_ih, weights.bias_hh))
        return Weights(**matrices, **dict(zip(("bias_ih", "bias_hh"), biases, strict=True)))
