"""Streams, which run a layer one step at a time and hold its state.

`Form` says what a stream computes, and checks its arguments. Two classes with the same interface
run it: the compiled `rnnfast.stream.Stream` on the native backend, and `Stream` on the others.

Letters: T steps, B batch, I input size, H hidden size, P projection size, W the width of h (P, or
H without projection), L layers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rnnfast import _backend, _validate
from rnnfast._cells import Weights
from rnnfast._layout import LAYER_LAYOUTS, Layout, Signature, State, state_widths
from rnnfast._low_precision import FORMATS, check_sums, floats, keep
from rnnfast._native_backend import NativeBackend
from rnnfast._stack import Inputs, PackedStack
from rnnfast.functional import pack_checked

if TYPE_CHECKING:
    from rnnfast.stream import Stream as CompiledStream


@dataclass(frozen=True, eq=False)
class Form:
    """What a stream computes, and the checks of its arguments.

    layer : the text that the layer prints as, without its precision.
    signature : that of the layer, which has one direction.
    layers : the parameters of each layer, contiguous, with their matrices in the format `weights`.
        They never change.
    weights : the layer's dtype, or the name of one of `_low_precision.FORMATS`.
    batch_size : B.

    Raises
    ------
    ValueError : a state would not fit in memory, or a sum of int8 products in 32 bits.
    """

    layer: str
    signature: Signature
    layers: tuple[Weights, ...]
    weights: str
    batch_size: int

    def __post_init__(self) -> None:
        sizes = self.signature.sizes
        widest = max(sizes.input, sizes.hidden) * self.signature.dtype.itemsize
        if widest * len(self.layers) * self.batch_size > np.iinfo(np.intp).max:
            raise ValueError(
                f"batch_size: expected a size that fits in memory, got {self.batch_size}"
            )
        check_sums(self._format, {"input_size": sizes.input, "hidden_size": sizes.hidden})

    @classmethod
    def of(
        cls,
        layer: str,
        signature: Signature,
        layers: Sequence[Weights],
        weights: str,
        batch_size: int,
    ) -> Form:
        """The form of a stream that keeps the parameters in `layers` in the format `weights`."""
        kept = tuple(keep(own, weights) if weights in FORMATS else own for own in layers)
        return cls(layer, signature, kept, weights, batch_size)

    @property
    def _format(self) -> str | None:
        """The name in FORMATS; None: the weights are kept in the dtype."""
        return self.weights if self.weights in FORMATS else None

    def open(self, state: State | None = None) -> Stream | CompiledStream:
        """A new stream on the backend in use; `state` : that of another stream; None: zeros."""
        stream: Stream | CompiledStream
        backend = _backend.current()
        if isinstance(backend, NativeBackend):
            from rnnfast.stream import Stream as CompiledStream

            stream = CompiledStream(self)
        else:
            stream = Stream(self, backend)
        if state is not None:
            stream.state = state
        return stream

    def text(self) -> str:
        """The text that a stream prints as."""
        weights = f', weights="{self.weights}"' if self.weights in FORMATS else ""
        return f"Stream({self.layer}, batch_size={self.batch_size}{weights})"

    def arrays(self) -> list[Weights]:
        """The parameters of each layer as arrays of the dtype."""
        return [floats(weights) for weights in self.layers]

    def arguments(self, x: Any, out: Any, steps: bool) -> tuple[NDArray, NDArray]:
        """The arguments of `run` (`steps`) or `step`, checked and converted.

        Returns
        -------
        x : (T, B, I), contiguous, which shares no memory with `out`.
        out : `out` itself, or a new array if it is None.
        """
        sizes, dtype, batch = self.signature.sizes, self.signature.dtype, self.batch_size
        given = _validate.of_dtype("x", x, dtype)
        # A batch of one may lack its axis.
        layout = Layout((steps, batch > 1 or given.ndim > 1 + steps))
        shape = (-1 if steps else 1, batch, sizes.input)
        given = np.ascontiguousarray(layout.floats("x", given, dtype, shape, "T B I"))
        shape = (*given.shape[:2], sizes.output)
        if out is None:
            own = [size for size, has in zip(shape, (*layout.has, True), strict=True) if has]
            return given, np.empty(own, dtype)
        if not isinstance(out, np.ndarray):
            raise TypeError(f"out: expected an array, got {type(out).__name__}")
        layout.floats("out", out, dtype, shape, f"T B {'P' if sizes.projection else 'H'}")
        flags = out.flags
        if not (flags.carray and out.dtype.isnative):
            raise ValueError(
                "out: expected a writable, aligned, C-contiguous array in native byte order, "
                "got another"
            )
        return given.copy() if np.may_share_memory(given, out) else given, out

    def packed(self, backend: _backend.Backend) -> PackedStack:
        """The weights for a backend."""
        signature, sizes = self.signature, self.signature.sizes
        above = sizes._replace(input=sizes.output)
        packs = [
            pack_checked(signature.cell, above if k else sizes, weights, self._format, backend)
            for k, weights in enumerate(self.arrays())
        ]
        return PackedStack(signature, packs, [])

    def new_states(self) -> list[NDArray]:
        """Zeros for h (L, B, W) and, of an LSTM, c (L, B, H)."""
        widths = state_widths(self.signature.cell, self.signature.sizes).values()
        leading = (len(self.layers), self.batch_size)
        return [np.zeros((*leading, width), self.signature.dtype) for width in widths]

    def states(self, value: Any) -> list[NDArray] | None:
        """A state in the form that the layer takes, as contiguous arrays; None: zeros."""
        first = value
        if len(self.signature.cell.states) > 1 and isinstance(value, (tuple, list)) and value:
            first = value[0]
        # The state of a layer whose input has no B has none either.
        has_batch = self.batch_size > 1 or _ndim(first) != 2
        layout = LAYER_LAYOUTS[3 if has_batch else 2]
        states = self.signature.states("state", value, layout, self.batch_size)
        return [array for array in states.values() if array is not None] or None

    def rows(self, value: Any) -> NDArray | None:
        """A mask (B,) of bytes, from a mask of booleans or the numbers of rows; None: all rows."""
        if value is None:
            return None
        batch = self.batch_size
        given = _validate.array("rows", value)
        if given.size == 0 and not isinstance(value, np.ndarray):
            given = given.astype(np.int64)  # an empty list has no dtype of its own
        if given.dtype.kind not in "biu":
            raise TypeError(f"rows: expected bool or integers, got {given.dtype}")
        if given.dtype.kind == "b":
            if given.shape != (batch,):
                raise ValueError(f"rows: expected shape (B,) = ({batch},), got {given.shape}")
            return given.astype(np.uint8)
        if given.size and not (0 <= given.min() and given.max() < batch):
            worst = given.min() if given.min() < 0 else given.max()
            raise ValueError(f"rows: expected values in 0..B-1 = 0..{batch - 1}, got {worst}")
        mask = np.zeros(batch, np.uint8)
        mask[given.astype(np.intp)] = 1
        return mask


class Stream:
    """A layer that runs one step at a time and holds its state; `layer.stream()` makes one.

    This class runs on the backends "numba" and "numpy"; the compiled `rnnfast.stream.Stream`, with
    the same interface, runs on "native". A stream has its own copy of the weights. A copy of a
    stream (`copy.copy`) shares them, starts from the same state and goes on independently. A pickle
    contains weights and state, and opens on the backend that is then in use. Only one thread at a
    time may call a stream: a call during another call raises RuntimeError.
    """

    __slots__ = ("__weakref__", "_form", "_lock", "_stack", "_states")

    batch_size = property(attrgetter("_form.batch_size"), doc="B, the number of rows.")
    input_size = property(attrgetter("_form.signature.sizes.input"), doc="I, the width of x.")
    output_size = property(
        attrgetter("_form.signature.sizes.output"), doc="W, the width of h: P or H."
    )
    dtype = property(attrgetter("_form.signature.dtype.name"), doc='"float32" or "float64".')
    weights = property(
        attrgetter("_form.weights"), doc='The format of weights: the dtype, "bfloat16" or "int8".'
    )

    @property
    def nbytes(self) -> int:
        """The bytes of the weights. Here they are kept in the dtype, even if they were rounded."""
        arrays = (array for layer in self._form.arrays() for array in layer if array is not None)
        return sum(array.nbytes for array in arrays)

    def __init__(self, form: Form, given: _backend.Backend | Stream) -> None:
        # given: the backend to run on, or the stream of which this is a copy
        self._form = form
        self._lock = threading.Lock()
        self._stack: PackedStack
        self._states: list[NDArray]
        if isinstance(given, Stream):
            self._stack, self._states = given._stack, given._copies()
        else:
            self._stack, self._states = form.packed(given), form.new_states()

    def step(self, x: Any, out: Any = None) -> NDArray:
        """Runs one step.

        Parameters
        ----------
        x : (B, I), or (I,) if B is 1; in the layer's dtype.
        out : the array in which the result is written: (B, W), or (W,) if x is (I,); C-contiguous.
            It may share memory with x. None: a new array.

        Returns
        -------
        out : h of the last layer.

        Raises
        ------
        TypeError : an argument has the wrong dtype or form.
        ValueError : an argument has the wrong shape or layout.
        RuntimeError : another call of this stream is running.
            In each case the state stays as it is.
        """
        return self._advance(x, out, steps=False)

    def run(self, x: Any, out: Any = None) -> NDArray:
        """Runs T steps, one after the other.

        Parameters
        ----------
        x : (T, B, I), or (T, I) if B is 1, also with `batch_first`; in the layer's dtype.
        out : (T, B, W), or (T, W) if x is (T, I); as for `step`.

        Returns
        -------
        out : h of the last layer after each step.

        Raises
        ------
        TypeError, ValueError, RuntimeError : as for `step`.
        """
        return self._advance(x, out, steps=True)

    @property
    def state(self) -> State:
        """A copy of the state: h (L, B, W), or for LSTM a pair (h, c) with c (L, B, H).

        It can be assigned in the form that the layer takes, also without the axis B if B is 1. None
        sets it to zeros.
        """
        states = self._copies()
        return states[0] if len(states) == 1 else (states[0], states[1])

    @state.setter
    def state(self, value: Any) -> None:
        given = self._form.states(value)
        states = self._form.new_states() if given is None else [s.copy() for s in given]
        with self._alone():
            self._states = states

    @state.deleter
    def state(self) -> None:
        raise AttributeError("state: cannot be deleted; None sets zeros")

    def reset(self, rows: Any = None) -> None:
        """Sets the state of some or all rows to zero.

        Parameters
        ----------
        rows : (B,) booleans, or the numbers of rows in 0..B-1. None: all rows.

        Raises
        ------
        TypeError : `rows` has neither booleans nor integers.
        ValueError : `rows` is a mask of the wrong shape, or has a number out of range.
        RuntimeError : another call of this stream is running.
        """
        mask = self._form.rows(rows)
        chosen = slice(None) if mask is None else mask.astype(bool)
        with self._alone():
            for state in self._states:
                state[:, chosen] = 0

    def __copy__(self) -> Stream:
        return Stream(self._form, self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return Stream(self._form, self)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._form.open, (self.state,)

    def __repr__(self) -> str:
        return self._form.text()

    def _advance(self, x: Any, out: Any, steps: bool) -> NDArray:
        given, result = self._form.arguments(x, out, steps)
        names = self._form.signature.cell.states
        with self._alone():
            states = dict(zip(names, self._states, strict=True))
            output, last = self._stack.infer(Inputs(given, states, LAYER_LAYOUTS[3]))
            result[...] = output.reshape(result.shape)
            self._states = list(last) if isinstance(last, tuple) else [last]
        return result

    def _copies(self) -> list[NDArray]:
        with self._alone():
            return [state.copy() for state in self._states]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("stream: expected one call at a time, got one during another")
        try:
            yield
        finally:
            self._lock.release()


def _ndim(value: Any) -> int | None:
    """The number of axes of an array-like value; None if it cannot be made an array."""
    try:
        return np.ndim(value)
    except Exception:  # the `__array__` of a user's class may raise anything
        return None
