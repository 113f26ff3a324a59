"""Checks of what users give. Every message reads `name: expected …, got …`.

A wrong dtype is a TypeError; a wrong shape, layout, value or name is a ValueError. An array of
the right dtype but foreign byte order, alignment or strides is copied into the native form.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of `choices`."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    return value


def integer(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`; bool is no integer."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = type(value).__name__
        raise TypeError(f"{name}: expected an integer, got {got}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {number}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value`, if it is a bool."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def floats(
    name: str, value: Any, dtype: np.dtype, shape: tuple[int, ...], letters: str = ""
) -> NDArray:
    """`value` as an aligned array of `dtype` and `shape` with unit stride in its last axis.

    No copy where it is one already. A shape entry of -1 admits any size. `letters` explains the
    shape in messages, such as "(T, B, I)".
    """
    array = _array(name, value)
    if array.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {array.dtype}")
    fits = len(shape) == array.ndim and all(
        want in (-1, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {_shape(shape, letters)}, got {array.shape}")
    return _row_major(array, dtype)


def lengths(value: Any, batch: int, steps: int) -> NDArray | None:
    """`lengths` as contiguous int64 (B,), each in 0..T; None stays None."""
    if value is None:
        return None
    array = _array("lengths", value)
    if array.size == 0 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {array.dtype}")
    if array.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {array.shape}")
    if array.size and not (0 <= array.min() and array.max() <= steps):
        worst = array.min() if array.min() < 0 else array.max()
        raise ValueError(f"lengths: expected values in 0..T = 0..{steps}, got {worst}")
    return np.array(array, np.int64, order="C")


def reset(value: Any, steps: int, batch: int) -> NDArray | None:
    """`reset` as contiguous bool (T, B); None stays None."""
    if value is None:
        return None
    array = _array("reset", value)
    if array.dtype != np.bool_:
        raise TypeError(f"reset: expected bool, got {array.dtype}")
    if array.shape != (steps, batch):
        raise ValueError(f"reset: expected shape (T, B) = ({steps}, {batch}), got {array.shape}")
    return np.array(array, order="C")


def _array(name: str, value: Any) -> NDArray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}: {error}") from None


def _row_major(array: NDArray, dtype: np.dtype) -> NDArray:
    """`array`, copied unless its rows lie in the given order, aligned, with unit stride."""
    rows = array.strides[:-1]
    fine = (
        array.dtype == dtype
        and array.dtype.isnative
        and array.flags.aligned
        and (array.strides[-1] == array.itemsize or array.shape[-1] <= 1)
        and all(s >= 0 and s % array.itemsize == 0 for s in rows)
    )
    return array if fine else np.array(array, dtype, order="C", subok=False)


def _shape(shape: tuple[int, ...], letters: str) -> str:
    sizes = ", ".join("*" if n < 0 else str(n) for n in shape)
    sizes = f"({sizes},)" if len(shape) == 1 else f"({sizes})"
    return f"{letters} = {sizes}" if letters else sizes
