"""Matrices in low precision, and products with them in NumPy.

`csrc/kernels/bfloat16.h` and `int8.h` do the same in C++. They round operands to the same values
(int8: to the same integers); sums in float32 may differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from rnnfast import _validate
from rnnfast._cells import Weights

# The sum of this many products of 8-bit integers fits in 32 bits, as in `csrc/core/format.h`.
_MOST_OF_INT8 = 131072

# A row whose largest element is smaller counts as zeros: its unit would not be a normal number.
_LEAST = 127 * np.finfo(np.float32).tiny


class Bfloat16:
    """A matrix (N, K) rounded to bfloat16, which is the upper half of float32."""

    trains: ClassVar = True

    def __init__(self, array: NDArray) -> None:
        self._halves = (_rounded(array).view(np.uint32) >> 16).astype(np.uint16)

    def floats(self) -> NDArray:
        """The matrix in float32; converting it again gives the same matrix."""
        return (self._halves.astype(np.uint32) << 16).view(np.float32)

    def operand(self) -> Any:
        """The object that replaces the matrix in products of the reference backend."""
        return _Rounded(self.floats())


class Int8:
    """A matrix (N, K) of integers: each row is rounded, to even, in units of its max|.| / 127."""

    trains: ClassVar = False

    def __init__(self, array: NDArray) -> None:
        self._largest = _largest(array)
        self._integers = _integers(array, _unit(self._largest))

    def floats(self) -> NDArray:
        """The matrix in float32; converting it again gives the same matrix."""
        # The largest element as it was, since 127 times the unit may be another number.
        with np.errstate(all="ignore"):
            whole = self._integers * _unit(self._largest)
            signs = np.sign(self._integers, dtype=np.float32)
            is_largest = np.abs(self._integers) == 127
            return np.where(is_largest, signs * self._largest, whole).astype(np.float32)

    def operand(self) -> Any:
        """The object that replaces the matrix in products of the reference backend."""
        return _Quantised(self._integers, _unit(self._largest))


# The low-precision formats of the weights of a float32 layer, as in `csrc/core/formats.inc`.
FORMATS: dict[str, type[Bfloat16] | type[Int8]] = {"bfloat16": Bfloat16, "int8": Int8}

# The formats that have no backward pass.
INFERENCE_ONLY = tuple(name for name, matrix in FORMATS.items() if not matrix.trains)


def checked_format(name: str, value: Any, dtype: str) -> str | None:
    """The format that `value` names; None if `value` is None or the dtype: no rounding."""
    if value is None:
        return None
    formats = FORMATS if dtype == "float32" else ()
    chosen = _validate.one_of(name, value, [dtype, *formats])
    return None if chosen == dtype else chosen


def check_sums(format_name: str | None, sizes: Mapping[str, int]) -> None:
    """Raises ValueError if sums over these numbers of products, by users' names, do not fit."""
    for name, size in sizes.items():
        if format_name == "int8" and size > _MOST_OF_INT8:
            raise ValueError(
                f"{name}: expected {_MOST_OF_INT8} or less with int8 weights, got {size}"
            )


def check_trains(format_name: str | None, dtype: str) -> None:
    """Raises ValueError if the precision has no backward pass."""
    if format_name in INFERENCE_ONLY:
        trained = [dtype, *(name for name in FORMATS if name not in INFERENCE_ONLY)]
        raise ValueError(
            f"precision: expected one of {', '.join(trained)} for training, got {format_name!r}"
        )


def keep(weights: Weights, format_name: str) -> Weights:
    """The parameters with their matrices converted to one of FORMATS."""
    matrix, given = FORMATS[format_name], weights._asdict()
    kept: dict[str, Any] = {n: matrix(w) for n, w in given.items() if w is not None and w.ndim == 2}
    return Weights(**{**given, **kept})


def floats(weights: Weights) -> Weights:
    """The parameters as arrays, from the result of `keep` or from arrays."""
    given: tuple[Any, ...] = weights
    return Weights(*(w.floats() if _is_kept(w) else w for w in given))


def operands(weights: Weights, format_name: str) -> Weights:
    """The parameters with their matrices replaced by the operands of the reference backend."""
    given: tuple[Any, ...] = keep(weights, format_name)
    return Weights(*(w.operand() if _is_kept(w) else w for w in given))


def _is_kept(value: Any) -> bool:
    return isinstance(value, tuple(FORMATS.values()))


def _rounded(array: NDArray) -> NDArray:
    """Rounded to bfloat16 as processors do it: NaN stays NaN, and denormals become zero."""
    bits = np.asarray(array, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    halves = np.where(np.isnan(array), bits >> 16 | 0x40, rounded)
    halves = np.where(bits & 0x7F800000, halves, bits >> 16 & 0x8000)
    return (halves.astype(np.uint32) << 16).view(np.float32)


def _largest(array: NDArray) -> NDArray:
    """The largest |element| of each row, (N, 1); NaN for a row with an element not finite."""
    largest = np.abs(array).max(axis=-1, keepdims=True, initial=0)
    return np.where(np.isfinite(largest), largest, np.nan).astype(np.float32)


def _unit(largest: NDArray) -> NDArray:
    with np.errstate(all="ignore"):
        return np.where(largest < _LEAST, 0, largest / np.float32(127)).astype(np.float32)


def _integers(array: NDArray, unit: NDArray) -> NDArray:
    with np.errstate(all="ignore"):
        inverse = np.where(unit > 0, 1 / unit, 0).astype(np.float32)
        # Denormals count as zero, as in the kernels.
        normal = np.where(np.abs(array) < np.finfo(np.float32).tiny, 0, array)
        return np.nan_to_num(np.rint(normal * inverse)).astype(np.int8)


class _Rounded:
    """A matrix in products whose other operand is rounded too."""

    __array_ufunc__ = None  # NumPy leaves the product to __rmatmul__

    def __init__(self, matrix: NDArray) -> None:
        # matrix: float32, rounded
        self._matrix = matrix

    @property
    def shape(self) -> tuple[int, ...]:
        return self._matrix.shape

    @property
    def T(self) -> _Rounded:
        return _Rounded(self._matrix.T)

    def __getitem__(self, rows: slice) -> _Rounded:
        return _Rounded(self._matrix[rows])

    def __rmatmul__(self, rows: NDArray) -> NDArray:
        return _rounded(rows) @ self._matrix

    def gradient(self, da: NDArray, rows: NDArray) -> NDArray:
        """The gradient with respect to the matrix before rounding: da^T rows, both rounded."""
        return _rounded(da).T @ _rounded(rows)


class _Quantised:
    """The right operand of `rows @ operand.T`, which rounds each of `rows` in its own unit."""

    __array_ufunc__ = None

    def __init__(self, integers: NDArray, units: NDArray) -> None:
        self._integers, self._units = integers, units

    @property
    def shape(self) -> tuple[int, ...]:
        return self._integers.shape

    @property
    def T(self) -> _Quantised:
        return self  # only the transpose is ever multiplied

    def __getitem__(self, rows: slice) -> _Quantised:
        return _Quantised(self._integers[rows], self._units[rows])

    def __rmatmul__(self, rows: NDArray) -> NDArray:
        unit = _unit(_largest(rows))
        # Sums of fewer than 2^39 products are exact in float64.
        sums = _integers(rows, unit).astype(np.float64) @ self._integers.astype(np.float64).T
        return self._units.T * sums.astype(np.float32) * unit
