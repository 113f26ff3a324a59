"""What rnnfast uses of CuPy, on the host's memory: for tests without a device.

An array is NumPy's in a wrapper that has only what CuPy's arrays have, and refuses to become
NumPy's by itself. Each operation checks that the current device is that of its arrays, as it has to
be where there are several. New memory is full of NaN.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np

__all__ = [
    "arange",
    "array",
    "asarray",
    "ascontiguousarray",
    "asnumpy",
    "concatenate",
    "cuda",
    "empty",
    "maximum",
    "ndarray",
    "where",
    "zeros",
]

_current = [0]  # a stack of devices
_streams: dict[int, int] = {}  # the pointers of the current streams that were set, by device
devices_of: dict[int, int] = {}  # by the pointers of foreign arrays that don't lie on device 0
waited_for: list[int] = []  # streams of foreign arrays


class ndarray:
    def __init__(self, host, device: int | None = None) -> None:
        self._host = host
        self.device = cuda.Device(_current[-1] if device is None else device)

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    nbytes = property(lambda self: self._host.nbytes)
    T = property(lambda self: ndarray(self._host.T, self.device.id))
    data = property(lambda self: SimpleNamespace(ptr=self._host.ctypes.data))
    flags = property(lambda self: SimpleNamespace(c_contiguous=self._host.flags.c_contiguous))

    @property
    def __cuda_array_interface__(self):
        strides = None if self.flags.c_contiguous else self._host.strides
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "strides": strides,
            "version": 3,
            "stream": cuda.get_current_stream().ptr or 1,
        }

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def get(self):
        return self._host.copy()

    def copy(self):
        return ndarray(_here(self).copy())

    def reshape(self, *shape):
        return ndarray(_here(self).reshape(*shape))

    def sum(self, axis):
        return ndarray(_here(self).sum(axis))

    def __len__(self):
        return len(self._host)

    def __getitem__(self, key):
        return ndarray(_here(self)[_key(key)])

    def __setitem__(self, key, value):
        _here(self)[_key(key)] = _inner(value)

    def __matmul__(self, other):
        return ndarray(_here(self) @ _here(other))

    def __sub__(self, other):
        return ndarray(_here(self) - _inner(other))

    def __lt__(self, other):
        return ndarray(_here(self) < _inner(other))

    def __iadd__(self, other):
        _here(self)[...] += _here(other)
        return self

    def __iand__(self, other):
        _here(self)[...] &= _here(other)
        return self


def _here(array):
    assert isinstance(array, ndarray), "arrays of the host don't mix with those of a device"
    assert array.device.id == _current[-1], "the array's device is not the current one"
    return array._host


def _inner(value):
    """What NumPy takes in place of an operand."""
    assert not isinstance(value, np.ndarray)
    return _here(value) if isinstance(value, ndarray) else value


def _key(value):
    if isinstance(value, tuple):
        return tuple(map(_key, value))
    is_mask = isinstance(value, ndarray) and value.dtype.kind == "b"
    assert not is_mask, "for which CuPy waits, to count them"
    return _inner(value)


def empty(shape, dtype=float):
    dtype = np.dtype(dtype)
    return ndarray(np.full(shape, np.nan if dtype.kind == "f" else 77, dtype))


def zeros(shape, dtype=float):
    return ndarray(np.zeros(shape, dtype))


def arange(*bounds):
    return ndarray(np.arange(*bounds))


def maximum(a, b):
    return ndarray(np.maximum(_here(a), _inner(b)))


def where(condition, a, b):
    return ndarray(np.where(_here(condition), _inner(a), _inner(b)))


def concatenate(arrays, axis=0):
    return ndarray(np.concatenate([_here(a) for a in arrays], axis))


def ascontiguousarray(a):
    return a if _here(a).flags.c_contiguous else ndarray(np.ascontiguousarray(a._host))


def array(value, order="K"):
    return ndarray(np.array(_here(value) if isinstance(value, ndarray) else value, order=order))


def asnumpy(a):
    return a.get()


def asarray(value):
    """Of one that has the interface: an array on the same memory, once its stream is done."""
    if isinstance(value, ndarray):
        return value
    interface = value.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ValueError("CuPy currently does not support masked arrays.")
    if interface.get("stream") is not None:
        waited_for.append(interface["stream"])
    fields = {**interface, "data": (interface["data"][0], False)}
    owner = SimpleNamespace(__array_interface__=fields, owner=value)
    return ndarray(np.asarray(owner), devices_of.get(interface["data"][0], 0))


class _Device:
    def __init__(self, device: int = 0) -> None:
        self.id = device

    def __enter__(self):
        _current.append(self.id)
        return self

    def __exit__(self, *args):
        _current.pop()


class _Stream(contextlib.AbstractContextManager):
    """The current stream of the current device, within."""

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr

    def __enter__(self):
        self._before = _streams.get(_current[-1], 0)
        _streams[_current[-1]] = self.ptr
        return self

    def __exit__(self, *args):
        _streams[_current[-1]] = self._before


cuda = SimpleNamespace(
    Device=_Device,
    ExternalStream=_Stream,
    get_current_stream=lambda: SimpleNamespace(ptr=_streams.get(_current[-1], 0)),
    runtime=SimpleNamespace(
        pointerGetAttributes=lambda ptr: SimpleNamespace(device=devices_of.get(ptr, 0))
    ),
)


class Foreign:
    """An array of another library, of which the interface is all that is known."""

    def __init__(self, array, *, read_only=False, **entries):
        self.array = array  # owns the memory
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (array.ctypes.data, read_only),
            "strides": array.strides,
            "version": 3,
            **entries,
        }


def on_device(value, device=0):
    """NumPy's array as CuPy's; a copy, so that what is written there does not show here."""
    return None if value is None else ndarray(value.copy(), device)
