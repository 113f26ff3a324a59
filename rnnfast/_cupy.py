"""The backend of `rnnfast.functional` for CUDA arrays.

CuPy computes the products, and rnnfast's kernels the recurrence. Arrays are CuPy's, or any others
with a `__cuda_array_interface__`, such as Numba's. From these CuPy makes its own arrays on the same
memory. It waits for the stream that the interface names; the interface of torch's tensors names
none. Work is put on CuPy's current stream, and nothing waits for it. Only `lengths` on the device
are copied back to the host, to be checked.

CuPy is imported, and has to be installed, only when such an array is given.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rnnfast import _config, _cuda, _validate
from rnnfast._backend import Backward, Forward, MissingBackendError
from rnnfast._cells import DTYPES, Cell, Sizes, Weights
from rnnfast._validate import Memory, cuda_interface

Array = Any  # CuPy's


def library() -> _cuda.Library | None:
    """The library of the CUDA kernels; None if it or a device is missing."""
    return _cuda.library(_config.version())


def backend_for(arrays: Mapping[str, Any]) -> CudaBackend | None:
    """The backend for the CUDA device on which weights lie; None if none of them lies on one.

    Raises
    ------
    MissingBackendError : CuPy or the library is missing, or the library has no code for the device.
    TypeError : CuPy cannot take one of the arrays.
    """
    name = next((n for n, value in arrays.items() if cuda_interface(n, value) is not None), None)
    if name is None:
        return None
    try:
        importlib.import_module("cupy")
    except ImportError as error:
        raise MissingBackendError(
            f"{name}: lies on a CUDA device, and needs CuPy: {error}"
        ) from error
    found = library()
    if found is None:
        why = _cuda.describe(_config.version())
        raise MissingBackendError(f"{name}: lies on a CUDA device, and rnnfast's kernels: {why}")
    _, index = _taken(name, arrays[name])
    device = Device(index)
    with device.current():
        lacks = found.lacks()
    if lacks:
        raise MissingBackendError(
            f"{name}: lies on CUDA device {index}, and rnnfast's kernels do not run there: {lacks}"
        )
    return CudaBackend(device, found)


def _taken(name: str, value: Any) -> tuple[Array, int]:
    """An array on a device as a CuPy array, and the number of the device."""
    import cupy

    if isinstance(value, cupy.ndarray):
        return value, value.device.id
    interface = cuda_interface(name, value)
    assert interface is not None
    try:
        pointer = interface["data"][0]  # 0 where there are no elements
        device = cupy.cuda.runtime.pointerGetAttributes(pointer).device if pointer else 0
        with cupy.cuda.Device(device):  # else CuPy would copy it to the current device
            return cupy.asarray(value), device
    except Exception as error:  # anything may be wrong with the interface, such as a mask
        got = type(value).__name__
        raise TypeError(f"{name}: expected an array, got {got}: {error}") from error


class Device(Memory):
    """A CUDA device as the place of arrays, which are contiguous CuPy arrays."""

    dtypes: Mapping[str, np.dtype] = {"float32": DTYPES["float32"]}

    def __init__(self, index: int) -> None:
        import cupy

        self.index = index
        self._cupy = cupy

    def current(self) -> contextlib.AbstractContextManager[Any]:
        """A context manager that makes this the current device."""
        return self._cupy.cuda.Device(self.index)

    def array(self, name: str, value: Any) -> Array:
        """`value` as a CuPy array of its own dtype and shape; it has to lie on this device."""
        expected = f"{name}: expected an array on CUDA device {self.index}"
        if cuda_interface(name, value) is None:
            is_host = isinstance(value, np.ndarray)
            got = "one in the host's memory" if is_host else type(value).__name__
            raise TypeError(f"{expected}, got {got}")
        given, index = _taken(name, value)
        if index != self.index and given.size:
            raise ValueError(f"{expected}, got one on device {index}")
        return given

    def contiguous(self, given: Array) -> Array:
        """`given`, copied unless it is contiguous."""
        with self.current():
            return self._cupy.ascontiguousarray(given)

    def row_major(self, given: Array, dtype: np.dtype) -> Array:
        """The same as `contiguous`: the kernels need contiguous arrays."""
        return self.contiguous(given)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array on this device."""
        with self.current():
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A new array of zeros on this device."""
        with self.current():
            return self._cupy.zeros(shape, dtype)

    def arange(self, first: int, last: int) -> Array:
        """The integers from `first` to below `last`, on the current device."""
        return self._cupy.arange(first, last)

    def lengths(self, value: Any, batch: int, steps: int) -> Array | None:
        """`lengths`, from this device or the host, as int32 (B,) here, in 0..T; None stays None."""
        if cuda_interface("lengths", value) is not None:
            with self.current():
                value = self._cupy.asnumpy(self.array("lengths", value))
        checked = _validate.lengths(value, batch, steps)
        return None if checked is None else self._copy(checked.astype(np.int32))

    def reset(self, value: Any, shape: tuple[int, ...], letters: str = "(T, B)") -> Array | None:
        """`reset`, from this device or the host, as contiguous bool here; None stays None."""
        if cuda_interface("reset", value) is None:
            value = _validate.reset(value, shape, letters)
        else:
            value = self.array("reset", value)
            _validate.check_reset(value, shape, letters)
        return None if value is None else self._copy(value)

    def _copy(self, value: Any) -> Array:
        with self.current():
            return self._cupy.array(value, order="C")

    @staticmethod
    def overlap(a: Array, b: Array) -> bool:
        """Whether two contiguous arrays share memory."""
        (first, size), (other, other_size) = ((x.data.ptr, x.nbytes) for x in (a, b))
        return bool(size and other_size) and first < other + other_size and other < first + size

    @staticmethod
    def is_writable(given: Any, taken: Array) -> bool:
        """Whether writing to `taken`, the array that a check made of `given`, changes `given`."""
        pointer, is_read_only = given.__cuda_array_interface__["data"]
        return not is_read_only and (not taken.size or pointer == taken.data.ptr)


class _Saved(NamedTuple):
    """The numbers that backward reads, (T*B, S*H); None if there are no steps or no rows."""

    numbers: Array | None


class CudaBackend:
    """The backend of arrays on a CUDA device; see `rnnfast._backend.Backend`."""

    name = "cuda"

    def __init__(self, memory: Device, library: _cuda.Library) -> None:
        import cupy

        self.memory: Memory = memory
        self._device = memory
        self._library = library
        self._cupy = cupy

    def check(self, cell: Cell, sizes: Sizes, format_name: str | None) -> None:
        """Raises ValueError, naming the argument of `functional.pack`, if there is no kernel."""
        if not self._library.saved(cell.name):
            raise ValueError(f"cell: expected one that runs on a CUDA device, got {cell.name}")
        if sizes.projection:
            raise ValueError("weight_hr: expected None on a CUDA device, got an array")
        if format_name is not None:
            raise ValueError(f"precision: expected float32 on a CUDA device, got {format_name}")

    def pack(self, cell: Cell, weights: Weights, format_name: str | None = None) -> Weights:
        """Copies of the weights, which the kernels read in torch's layout."""
        with self._device.current():
            copies: list[Any] = [None if w is None else w.copy() for w in weights]
            return Weights(*copies)

    def forward(self, cell: Cell, packed: Weights, args: Forward, training: bool) -> _Saved | None:
        """Puts a forward pass on the current stream."""
        steps, batch, _ = args.x.shape
        with self._device.current():
            if not steps * batch:
                for last, first in ((args.hn, args.h0), (args.cn, args.c0)):
                    if last is not None:
                        last[...] = 0 if first is None else first
                return _Saved(None) if training else None
            wx = args.x.reshape(steps * batch, -1) @ packed.weight_ih.T
            if packed.bias_ih is not None:
                wx += packed.bias_ih
            saved = None
            if training:
                size = self._library.saved(cell.name) * packed.weight_hh.shape[1]
                saved = self._cupy.empty((steps * batch, size), wx.dtype)
            arrays = wx, args.y, args.hn, args.cn, saved
            self._run(cell, packed, args, _cuda.Outputs(*map(_pointer, arrays)))
        return _Saved(saved) if training else None

    def backward(
        self, cell: Cell, packed: Weights, saved: _Saved, args: Forward, grads: Backward
    ) -> None:
        """Puts a backward pass on the current stream."""
        steps, batch, _ = args.x.shape
        with self._device.current():
            if saved.numbers is None:
                for first, last in ((grads.dh0, grads.dhn), (grads.dc0, grads.dcn)):
                    if first is not None:
                        first[...] = 0 if last is None else last
                return
            hidden = packed.weight_hh.shape[1]
            dtype, rows = args.x.dtype, steps * batch
            da = self._cupy.empty((rows, packed.weight_hh.shape[0]), dtype)
            da_hidden = self._cupy.empty((rows, hidden), dtype) if cell.name == "gru" else None
            arrays = saved.numbers, args.y, grads.dy, grads.dhn, grads.dcn, da, da_hidden
            pointers = map(_pointer, (*arrays, grads.dh0, grads.dc0))
            self._run(cell, packed, args, _cuda.Gradients(*pointers))
            if grads.dx is not None:
                grads.dx[...] = (da @ packed.weight_ih).reshape(args.x.shape)
            # The gradients at R h + b_r are those at W x + b_w, except for the GRU's last gate.
            at_hidden = da
            if da_hidden is not None:
                at_hidden = self._cupy.concatenate((da[:, :-hidden], da_hidden), 1)
            found = Weights(
                weight_ih=da.T @ args.x.reshape(rows, -1),
                weight_hh=at_hidden.T @ self._before(args).reshape(rows, hidden),
                bias_ih=da.sum(0),
                bias_hh=at_hidden.sum(0),
            )
            for total, gradient in zip(grads.weights, found, strict=True):
                if total is not None:
                    total += gradient

    def _run(
        self, cell: Cell, packed: Weights, args: Forward, arrays: _cuda.Outputs | _cuda.Gradients
    ) -> None:
        steps, batch, _ = args.x.shape
        own = _cuda.Pass(
            cell=cell.name.encode(),
            dtype=args.x.dtype.name.encode(),
            steps=steps,
            batch=batch,
            hidden=packed.weight_hh.shape[1],
            reverse=args.reverse,
            lengths=_pointer(args.lengths),
            resets=_pointer(args.reset),
            weight_hh=_pointer(packed.weight_hh),
            bias_hh=_pointer(packed.bias_hh),
            h0=_pointer(args.h0),
            c0=_pointer(args.c0),
            stream=self._cupy.cuda.get_current_stream().ptr,
        )
        is_backward = isinstance(arrays, _cuda.Gradients)
        workspace = self._cupy.empty(self._library.workspace(own, is_backward), np.uint8)
        own.workspace = _pointer(workspace)
        if isinstance(arrays, _cuda.Gradients):
            self._library.backward(own, arrays)
        else:
            self._library.forward(own, arrays)

    def _before(self, args: Forward) -> Array:
        """The h before each step, (T, B, H), with which R was multiplied."""
        y, h0, lengths = args.y, args.h0, args.lengths
        before = self._cupy.zeros(y.shape, y.dtype)
        if not args.reverse:
            before[1:] = y[:-1]
            if h0 is not None:
                before[0] = h0
        else:
            before[:-1] = y[1:]
            if h0 is not None and lengths is None:
                before[-1] = h0
            elif h0 is not None and lengths is not None:
                # In a shorter row the step that runs first, its last one, starts from h0.
                last = self._cupy.maximum(lengths - 1, 0)
                before[last, self._cupy.arange(len(last))] = h0
        if args.reset is None:
            return before
        # Indexing with booleans would count them on the host.
        return self._cupy.where(args.reset[..., None], 0, before)


def _pointer(array: Array | None) -> int | None:
    return None if array is None else array.data.ptr
