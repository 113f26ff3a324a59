"""Arrays as users may have them: unusual memory, wrong dtypes and shapes, and what is no array."""

from __future__ import annotations

import tempfile

import numpy as np
from hypothesis import strategies as st

try:
    import torch
except ImportError:
    torch = None


class Wrapper:
    """Has `__array__`, which returns or raises what it was made with."""

    def __init__(self, result):
        self.result = result

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


class Subclass(np.ndarray):
    """A subclass that says so in its text only."""


def misaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    odd = raw[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


def offset(array):
    """The inner part of a larger array that is full of NaN."""
    wide = np.full([n + 2 for n in array.shape], np.nan).astype(array.dtype)
    inner = wide[(slice(1, -1),) * array.ndim]
    inner[...] = array
    return inner


def every_other(array):
    """Every second row and column of an array that is full of NaN between."""
    wide = np.full([2 * n for n in array.shape], np.nan).astype(array.dtype)
    view = wide[(slice(None, None, 2),) * array.ndim]
    view[...] = array
    return view


def reversed_memory(array):
    flip = (slice(None, None, -1),) * array.ndim
    return np.ascontiguousarray(array[flip])[flip]


def swapped_axes(array):
    return np.ascontiguousarray(array.T).T


def repeated(array):
    """One row, seen many times through strides of zero."""
    return np.broadcast_to(array[:1], array.shape)


def read_only(array):
    array = array.view()
    array.flags.writeable = False
    return array


def memory_mapped(array):
    if not array.size:
        return array
    mapped = np.memmap(tempfile.TemporaryFile(), array.dtype, "w+", shape=array.shape)
    mapped[...] = array
    return mapped


def record_field(array):
    """One field of a structured array."""
    records = np.zeros(array.shape, [("before", "u1"), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def as_tensor(array):
    if torch is None or array.dtype.kind != "f" or array.itemsize > 8:
        return array
    return torch.tensor(array.astype(array.dtype.newbyteorder("=")))


# What holds the same kind of numbers in the same shape.
LAYOUTS = [
    misaligned,
    offset,
    every_other,
    reversed_memory,
    swapped_axes,
    repeated,
    read_only,
    memory_mapped,
    record_field,
    lambda a: a.astype(a.dtype.newbyteorder(">")),
    lambda a: a.astype(a.dtype.newbyteorder("<")),
]
# The same, in other types; last, because they are no plain arrays.
CONTAINERS = [
    lambda a: a,
    lambda a: a.view(Subclass),
    lambda a: np.ma.masked_array(a),
    lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
    lambda a: np.matrix(a) if a.ndim == 2 else a,
    Wrapper,
    as_tensor,
    list,
    lambda a: a.tolist(),
]
# Never fit.
DTYPES = ["O", "U3", "S2", "c8", "c16", "i1", "i4", "i8", "u8", "?", "f2", "M8[s]", "m8[s]", "V4"]
NO_ARRAYS = [
    object(),
    "text",
    b"\0" * 64,
    {},
    {"x": 1},
    [[1.0], [1.0, 2.0]],
    [None],
    range(3),
    Ellipsis,
    np.float32,
    Wrapper(None),
    Wrapper(ValueError("no")),
    Wrapper(TypeError("no")),
    Wrapper(RuntimeError("no")),
    Wrapper([1.0]),
    np.zeros(3, [("a", "f4"), ("b", "f4")]),
    np.ma.masked_all((4, 3, 5), "f4"),
]
SHAPES = [
    lambda a: a[..., 0],
    lambda a: a[None],
    lambda a: a[:-1],
    lambda a: a[..., :-1],
    lambda a: np.concatenate([a, a]),
    lambda a: np.concatenate([a, a], axis=-1),
    lambda a: a.reshape(-1),
    lambda a: a.reshape(-1)[:1].reshape(()),
    lambda a: a[:0],
    lambda a: a.swapaxes(0, -1),
]


@st.composite
def variants(draw, array):
    """`array` in other memory, or something wrong instead of it."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(NO_ARRAYS))
    if draw(st.integers(0, 3)) == 0:
        array = draw(st.sampled_from(SHAPES))(array)
    if draw(st.integers(0, 4)) == 0:
        code = draw(st.sampled_from([*DTYPES, "f4", "f8", "g"]))
        array = np.zeros(array.shape, code)
    for layout in draw(st.lists(st.sampled_from(LAYOUTS), max_size=3)):
        if array.dtype.kind == "f" and array.ndim:
            array = layout(array)
    return draw(st.sampled_from(CONTAINERS))(array) if array.ndim else array


def clean(value, dtype):
    """`value` as a plain array of `dtype`, or None where it is none of that dtype."""
    if np.ma.is_masked(value):
        return None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    if array.dtype.kind != "f" or array.dtype.newbyteorder("=") != dtype:
        return None
    return np.array(array, dtype, order="C")
