"""Checks of the arguments that users give. Every message reads `name: expected …, got …`.

A wrong type or dtype raises TypeError; a wrong shape, layout, value or name raises ValueError. An
array of the right dtype whose byte order, alignment or strides do not suit is copied.

Letters: T steps, B batch.
"""

from __future__ import annotations

import contextlib
import math
import numbers
import operator
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnnfast._cells import DTYPES

# The most steps in which NumPy may search for an overlap of two arrays. The type is Any because
# NumPy's stubs admit only 0 and -1.
_OVERLAP_WORK: Any = 1000

# The most characters of a value in an error message; a value from a file may have millions.
_MOST_SHOWN = 100


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """`value`, if it is one of `choices`; a plain str even if `value` is of a subclass of str."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {shown(value)}")
    return choices[choices.index(value)]


def shown(value: Any) -> str:
    """The `repr` of a value for an error message, cut after `_MOST_SHOWN` characters."""
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python prints
        return f"{type(value).__name__} of many digits"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def integer(name: str, value: Any, least: int) -> int:
    """`value` as an int of at least `least`; a bool does not count as an integer."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        got = type(value).__name__
        raise TypeError(f"{name}: expected an integer, got {got}") from None
    if number < least:
        raise ValueError(f"{name}: expected at least {least}, got {shown(number)}")
    return number


def flag(name: str, value: Any) -> bool:
    """`value` as a bool, if it is Python's or NumPy's."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def fraction(name: str, value: Any) -> float:
    """`value` as a float in 0..1; a bool does not count as a number."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # a large int
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a probability in 0..1, got {shown(value)}")
    return number


def path(name: str, value: Any) -> str | bytes:
    """The path of a file as a str or bytes, from anything that `open` takes as a path."""
    try:
        return os.fspath(value)
    except TypeError:
        got = type(value).__name__
        raise TypeError(f"{name}: expected a str or a path, got {got}") from None


def float_dtype(name: str, value: Any) -> np.dtype:
    """`value` as one of the dtypes that rnnfast computes in."""
    wrong = f"{name}: expected {' or '.join(DTYPES)}, got {shown(value)}"
    if value is None:  # NumPy would read None as float64
        raise TypeError(wrong)
    try:
        found = np.dtype(value)
    except (TypeError, ValueError):
        raise TypeError(wrong) from None
    if found not in DTYPES.values():
        raise TypeError(wrong)
    return found


def floats(
    name: str,
    value: Any,
    dtype: np.dtype,
    shape: tuple[int, ...],
    letters: str = "",
    memory: Memory | None = None,
) -> NDArray:
    """`value` as an aligned array of `dtype` and `shape` with unit stride in its last axis.

    It is copied only if necessary.

    shape : an entry of -1 admits any size.
    letters : the names of the axes for messages, such as "(T, B, I)".
    memory : the memory in which the array must lie; None: the host's.
    """
    memory = memory or HOST
    given = of_dtype(name, value, dtype, memory)
    got = given.shape
    fits = got == shape or (
        len(got) == len(shape)
        and all(want in (-1, size) for want, size in zip(shape, got, strict=True))
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {shape_text(shape, letters)}, got {got}")
    return memory.row_major(given, dtype)


def of_dtype(name: str, value: Any, dtype: np.dtype, memory: Memory | None = None) -> NDArray:
    """`value` as an array of `dtype` in any byte order and of any shape."""
    given = (memory or HOST).array(name, value)
    if given.dtype is not dtype and native_order(given.dtype) != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {given.dtype}")
    return given


def lengths(value: Any, batch: int, steps: int) -> NDArray | None:
    """A contiguous int64 copy of `lengths` (B,), each in 0..T; None stays None."""
    if value is None:
        return None
    given = array("lengths", value)
    if given.size == 0 and not isinstance(value, np.ndarray):
        given = given.astype(np.int64)  # an empty list has no dtype of its own
    if given.dtype.kind not in "iu":
        raise TypeError(f"lengths: expected integers, got {given.dtype}")
    if given.shape != (batch,):
        raise ValueError(f"lengths: expected shape (B,) = ({batch},), got {given.shape}")
    if given.size and not (0 <= given.min() and given.max() <= steps):
        worst = given.min() if given.min() < 0 else given.max()
        raise ValueError(f"lengths: expected values in 0..T = 0..{steps}, got {worst}")
    return np.array(given, np.int64, order="C")


def reset(value: Any, shape: tuple[int, ...], letters: str = "(T, B)") -> NDArray | None:
    """A contiguous bool copy of `reset`, which must have `shape`; None stays None."""
    if value is None:
        return None
    given = array("reset", value)
    if given.size == 0 and not isinstance(value, np.ndarray):
        given = given.astype(bool)  # an empty list has no dtype of its own
    check_reset(given, shape, letters)
    return np.array(given, order="C")


def check_reset(given: NDArray, shape: tuple[int, ...], letters: str = "(T, B)") -> None:
    """Raises unless the array, in any memory, consists of booleans and has `shape`."""
    if given.dtype != np.bool_:
        raise TypeError(f"reset: expected bool, got {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"reset: expected shape {shape_text(shape, letters)}, got {given.shape}")


def array(name: str, value: Any) -> NDArray:
    """`value` as an array of any dtype and shape; TypeError if values are masked."""
    if type(value) is np.ndarray:
        return value
    if value is None:  # NumPy would make it an array of objects
        raise TypeError(f"{name}: expected an array, got None")
    if cuda_interface(name, value) is not None:  # else some classes copy it to the host
        raise TypeError(f"{name}: expected an array in the host's memory, got one on a CUDA device")
    try:
        masked, given = np.ma.is_masked(value), np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # a user's `__array__` may raise anything
        got = type(value).__name__
        raise TypeError(f"{name}: expected an array, got {got}: {error}") from error
    if masked:
        raise TypeError(f"{name}: expected an array without masked values, got a masked array")
    return given


def cuda_interface(name: str, value: Any) -> dict[str, Any] | None:
    """The `__cuda_array_interface__` of an array on a CUDA device; None if `value` has none."""
    try:
        return getattr(value, "__cuda_array_interface__", None)
    except Exception as error:  # torch's raises for a tensor that requires grad
        got = type(value).__name__
        raise TypeError(f"{name}: expected an array, got {got}: {error}") from error


def native_order(dtype: np.dtype) -> np.dtype:
    """A float `dtype` in native byte order; any other, which may have no order, unchanged."""
    return dtype.newbyteorder("=") if dtype.kind == "f" else dtype


def apart(
    name: str, written: NDArray, others: Mapping[str, NDArray | None], memory: Memory | None = None
) -> None:
    """Raises ValueError if `written` shares memory with one of the `others`.

    Interleaved arrays, such as the two halves of the last axis of an array, share none.
    """
    overlap = (memory or HOST).overlap
    for other, array in others.items():
        if array is not None and overlap(written, array):
            raise ValueError(f"{name}: expected memory apart from {other}, got an overlap")


def rows_apart(name: str, written: NDArray) -> None:
    """Raises ValueError unless the rows of `written` lie one after the other in memory.

    A row runs along the last axis.
    """
    extent = written.shape[-1] * written.itemsize
    axes = zip(written.strides[:-1], written.shape[:-1], strict=True)
    for stride, size in sorted(axis for axis in axes if axis[1] > 1):
        if written.size and stride < extent:
            raise ValueError(f"{name}: expected rows one after the other in memory, got others")
        extent += stride * (size - 1)


def _row_major(given: NDArray, dtype: np.dtype) -> NDArray:
    """`given` if it is aligned, native, with unit stride and no negative ones; else a copy."""
    flags = given.flags
    if given.dtype is dtype and flags.c_contiguous and flags.aligned:  # usual; 5 times faster
        return given
    rows = given.strides[:-1]
    fine = (
        given.dtype == dtype
        and given.dtype.isnative
        and flags.aligned
        and (given.strides[-1] == given.itemsize or given.shape[-1] <= 1 or not given.size)
        and all(s >= 0 and s % given.itemsize == 0 for s in rows)
    )
    return given if fine else np.array(given, dtype, order="C", subok=False)


class Memory:
    """A memory and the functions that make arrays in it: here the host's memory and NumPy.

    `_cupy.Device` is another one, with CuPy's arrays.

    dtypes : the dtypes in which rnnfast computes, by name.
    """

    dtypes: Mapping[str, np.dtype] = DTYPES
    array = staticmethod(array)
    row_major = staticmethod(_row_major)
    contiguous: Any = staticmethod(np.ascontiguousarray)
    copy: Any = staticmethod(np.array)  # its argument is contiguous
    empty: Any = staticmethod(np.empty)
    zeros: Any = staticmethod(np.zeros)
    arange: Any = staticmethod(np.arange)
    lengths = staticmethod(lengths)
    reset = staticmethod(reset)

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """A context for code that makes or reads arrays without a method of this class."""
        return contextlib.nullcontext()

    @staticmethod
    def overlap(a: NDArray, b: NDArray) -> bool:
        """Whether two arrays may share memory; False is certain."""
        # The bounds alone almost always tell. If the further search reaches its limit, the answer
        # is yes.
        return np.may_share_memory(a, b, _OVERLAP_WORK)

    @staticmethod
    def is_writable(given: Any, taken: NDArray) -> bool:
        """Whether writing to `taken`, which a check returned for `given`, changes `given`."""
        return taken is given and taken.flags.writeable


HOST = Memory()


def shape_text(shape: tuple[int, ...], letters: str = "") -> str:
    """A shape in the form that messages show, such as `(T, B, I) = (*, *, 40)`."""
    sizes = ", ".join("*" if n < 0 else str(n) for n in shape)
    sizes = f"({sizes},)" if len(shape) == 1 else f"({sizes})"
    return f"{letters} = {sizes}" if letters else sizes
