"""Functions that run one recurrent layer in one direction, forward and backward.

The layers of `rnnfast.layers` are built from them. Use them directly with weights of your own:
`pack` the weights, run `forward`, and call `backward` on the `Run` that it returns.

Arrays are NumPy's, or all lie on one CUDA device: CuPy's, or others with a
`__cuda_array_interface__`. Results on a device are CuPy's, computed on CuPy's current stream.
`lengths` and `reset` may lie in the host's memory in either case.

Letters: T steps, B batch, I input size, H hidden size, P projection size, W the width of h (P, or
H without projection), G gates. Weights have torch's names, shapes and gate order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast import _backend, _cupy, _validate
from rnnfast._cells import CELLS, Cell, Sizes, Weights, weight_shapes
from rnnfast._layout import reversed_reset
from rnnfast._low_precision import INFERENCE_ONLY, check_sums, checked_format


@dataclass(frozen=True, eq=False)
class Packed:
    """A copy of one layer's weights in the layout of the backend that made it; see `pack`.

    format_name : "bfloat16" or "int8"; None: the weight matrices are in `dtype`.
    """

    cell: Cell
    sizes: Sizes
    dtype: np.dtype
    bias: bool
    format_name: str | None
    backend: _backend.Backend = field(repr=False)
    weights: Any = field(repr=False)

    @property
    def memory(self) -> _validate.Memory:
        """The memory in which the arrays of its passes lie."""
        return self.backend.memory


class Gradients(NamedTuple):
    """The gradients that `Run.backward` returns, in the dtype of the weights.

    x : (T, B, I), or None with `want_dx=False`.
    h0 : (B, W).
    c0 : (B, H), or None for a cell without c.
    weights : a named tuple of the weights' gradients, in torch's names and shapes.
    """

    x: NDArray | None
    h0: NDArray
    c0: NDArray | None
    weights: Weights


def pack(
    cell: str,
    weight_ih: NDArray,
    weight_hh: NDArray,
    bias_ih: NDArray | None = None,
    bias_hh: NDArray | None = None,
    weight_hr: NDArray | None = None,
    *,
    precision: str | None = None,
) -> Packed:
    """Copies the weights of one layer into the layout of the backend in use, as a `Packed`.

    Parameters
    ----------
    cell : "rnn_tanh", "rnn_relu", "lstm", "gru" or "gru_reset_before".
    weight_ih : (G*H, I), float32 or float64. Gates are in the order i f g o (LSTM) or r z n (GRU).
    weight_hh : (G*H, W), the same dtype as all others.
    bias_ih, bias_hh : (G*H,), both or neither.
    weight_hr : (P, H), LSTM only: the projection h = weight_hr (o tanh(c)). Unlike in a layer, P
        may be H or more.
    precision : the format in which products are computed, as for `rnnfast.RNN`: the weights' dtype
        or None; for float32 weights also "bfloat16" or, for inference only, "int8".

    Raises
    ------
    TypeError : a dtype is not float32 or float64, or not that of `weight_ih`; some arrays lie on a
        CUDA device and others do not.
    ValueError : a shape that does not fit; an unknown cell; an unknown precision; arrays on more
        than one device.
    RuntimeError : the arrays lie on a CUDA device, and CuPy or rnnfast's CUDA kernels are missing.

    Notes
    -----
    On a CUDA device the dtype and the precision are float32, and there is neither a projection
    nor "gru_reset_before".
    """
    kind = CELLS[_validate.one_of("cell", cell, CELLS)]
    given = Weights(weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)._asdict()
    backend = _cupy.backend_for(given) or _backend.current()
    memory = backend.memory
    floats = partial(_validate.floats, memory=memory)
    given_dtype = memory.array("weight_ih", weight_ih).dtype
    dtype = _validate.native_order(given_dtype)
    if dtype not in memory.dtypes.values():
        raise TypeError(f"weight_ih: expected {' or '.join(memory.dtypes)}, got {given_dtype}")
    gates = len(kind.gates)
    w_ih = floats("weight_ih", weight_ih, dtype, (-1, -1), "(G*H, I)")
    hidden, rest = divmod(w_ih.shape[0], gates)
    if rest or not hidden:
        raise ValueError(f"weight_ih: expected G*H = {gates}*H rows, got {w_ih.shape[0]}")
    projection = 0
    if weight_hr is not None:
        if not kind.projects:
            raise ValueError(f"weight_hr: expected None for {cell}, got an array")
        projection = floats("weight_hr", weight_hr, dtype, (-1, hidden), "(P, H)").shape[0]
        if not projection:
            raise ValueError("weight_hr: expected at least one row, got 0")
    if (bias_ih is None) != (bias_hh is None):
        raise ValueError("bias_hh: expected both biases or none, got one")
    sizes = Sizes(w_ih.shape[1], hidden, projection)
    format_name = checked_format("precision", precision, dtype.name)
    check_sums(format_name, {"I": sizes.input, "H": hidden, "P": projection})
    if isinstance(backend, _cupy.CudaBackend):
        backend.check(kind, sizes, format_name)
    shapes = weight_shapes(kind, sizes, bias_ih is not None)
    checked = {n: floats(n, given[n], dtype, shape) for n, shape in shapes.items()}
    weights = Weights(**{n: memory.contiguous(array) for n, array in checked.items()})
    return pack_checked(kind, sizes, weights, format_name, backend)


def pack_checked(
    cell: Cell,
    sizes: Sizes,
    weights: Weights,
    format_name: str | None = None,
    backend: _backend.Backend | None = None,
) -> Packed:
    """`pack` without its checks, for arrays that are known to be right.

    backend : None selects the backend in use.
    """
    backend = backend or _backend.current()
    dtype, bias = weights.weight_ih.dtype, weights.bias_ih is not None
    packed = backend.pack(cell, weights, format_name)
    return Packed(cell, sizes, dtype, bias, format_name, backend, packed)


@dataclass(slots=True, eq=False)
class Run:
    """A forward pass that has run. `backward` may be called any number of times."""

    packed: Packed
    args: _backend.Forward = field(repr=False)
    saved: Any = field(repr=False)

    @property
    def y(self) -> NDArray:
        """The output (T, B, W): h after each step; zero past a row's length."""
        return self.args.y

    @property
    def h(self) -> NDArray:
        """The state h (B, W) after each row's last step."""
        return self.args.hn

    @property
    def c(self) -> NDArray | None:
        """The state c (B, H) after each row's last step; None for a cell without c."""
        return self.args.cn

    def backward(
        self,
        dy: NDArray | None = None,
        dh: NDArray | None = None,
        dc: NDArray | None = None,
        *,
        want_dx: bool = True,
        into: Weights | None = None,
    ) -> Gradients:
        """Computes the `Gradients` of a loss from its gradients with respect to y, h and c.

        Parameters
        ----------
        dy, dh, dc : (T, B, W), (B, W) and (B, H), in the weights' dtype. None: zeros.
        want_dx : whether to compute the gradient with respect to x.
        into : a `Weights` of contiguous arrays to which the weights' gradients are added. They
            share no memory with one another or with arrays that are read. None: new zeros.

        Raises
        ------
        RuntimeError : the pass was run without `training=True`.
        TypeError, ValueError : an array of the wrong dtype, shape or layout; nothing is computed.
        """
        if self.saved is None:
            raise RuntimeError("backward: expected a pass run with training=True")
        args, packed = self.args, self.packed
        if dy is not None:
            shape = args.y.shape
            dy = _validate.floats("dy", dy, packed.dtype, shape, "(T, B, W)", packed.memory)
        if dc is not None and args.cn is None:
            raise ValueError(f"dc: expected None for {packed.cell.name}, got an array")
        dh = _state("dh", dh, packed, args.hn.shape, "(B, W)")
        if args.cn is not None:
            dc = _state("dc", dc, packed, args.cn.shape, "(B, H)")
        _validate.flag("want_dx", want_dx)
        if into is not None:
            read = {"x": args.x, "h0": args.h0, "c0": args.c0, "y": args.y}
            into = _checked_into(packed, into, {**read, "dy": dy, "dh": dh, "dc": dc})
        return self.backward_checked(dy, dh, dc, want_dx=want_dx, into=into)

    def backward_checked(
        self,
        dy: NDArray | None,
        dh: NDArray | None,
        dc: NDArray | None,
        *,
        want_dx: bool = True,
        into: Weights | None = None,
    ) -> Gradients:
        """`backward` without its checks, for arguments that are known to be right."""
        args, packed = self.args, self.packed
        empty = packed.memory.empty
        grads = _backend.Backward(
            dy=dy,
            dhn=dh,
            dcn=dc,
            dx=empty(args.x.shape, packed.dtype) if want_dx else None,
            dh0=empty(args.hn.shape, packed.dtype),
            dc0=None if args.cn is None else empty(args.cn.shape, packed.dtype),
            weights=zero_weights(packed) if into is None else into,
        )
        packed.backend.backward(packed.cell, packed.weights, self.saved, args, grads)
        return Gradients(grads.dx, grads.dh0, grads.dc0, grads.weights)


def forward(
    packed: Packed,
    x: NDArray,
    h0: NDArray | None = None,
    c0: NDArray | None = None,
    *,
    lengths: NDArray | None = None,
    reset: NDArray | None = None,
    reverse: bool = False,
    training: bool = False,
    out: NDArray | None = None,
) -> Run:
    """Runs the layer over a batch of sequences, and returns the `Run` with the results.

    Parameters
    ----------
    packed : the weights, from `pack`.
    x : (T, B, I), in the weights' dtype.
    h0, c0 : (B, W) and, for LSTM only, (B, H), in the weights' dtype. None: zeros.
    lengths : the number of steps of each row: (B,) integers in 0..T, in any order. None: all T.
    reset : (T, B) booleans. True at (t, b) cuts row b before step t: neither a state nor a
        gradient crosses from one side to the other, and the next step to run, t (with `reverse`
        t - 1), starts from zeros.
    reverse : whether to run from each row's last step to its first.
    training : whether to keep what `Run.backward` needs. Then x, h0, c0 and y must not change
        before `backward` is called.
    out : the array (T, B, W) in which y is written. It is writable, with unit stride in the last
        axis, no negative stride and rows that do not overlap, and shares no memory with x, h0 and
        c0. On a CUDA device it is contiguous. None: a new array.

    Raises
    ------
    TypeError, ValueError : an argument has the wrong dtype, shape or value; nothing is computed.
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"packed: expected what pack returns, got {type(packed).__name__}")
    if _validate.flag("training", training) and packed.format_name in INFERENCE_ONLY:
        raise ValueError(f"training: expected False with {packed.format_name} weights, got True")
    sizes, dtype, memory = packed.sizes, packed.dtype, packed.memory
    x = _validate.floats("x", x, dtype, (-1, -1, sizes.input), "(T, B, I)", memory)
    steps, batch = x.shape[:2]
    has_c = "c" in packed.cell.states
    if c0 is not None and not has_c:
        raise ValueError(f"c0: expected None for {packed.cell.name}, got an array")
    if out is None:
        y = memory.empty((steps, batch, sizes.output), dtype)
    else:
        y = _validate.floats("out", out, dtype, (steps, batch, sizes.output), "(T, B, W)", memory)
        if not memory.is_writable(out, y):
            raise ValueError("out: expected a writable array with unit stride, got another")
        _validate.rows_apart("out", y)
    args = _backend.Forward(
        x=x,
        h0=_state("h0", h0, packed, (batch, sizes.output), "(B, W)"),
        c0=_state("c0", c0, packed, (batch, sizes.hidden), "(B, H)"),
        lengths=memory.lengths(lengths, batch, steps),
        reset=memory.reset(reset, (steps, batch)),
        reverse=_validate.flag("reverse", reverse),
        y=y,
        hn=memory.empty((batch, sizes.output), dtype),
        cn=memory.empty((batch, sizes.hidden), dtype) if has_c else None,
    )
    if out is not None:
        _validate.apart("out", y, {"x": args.x, "h0": args.h0, "c0": args.c0}, memory)
    if args.reverse:
        with memory.current():
            args.reset = reversed_reset(args.reset, args.lengths, memory)
    return run_checked(packed, args, training)


def run_checked(packed: Packed, args: _backend.Forward, training: bool) -> Run:
    """`forward` without its checks, for arguments that are known to be right."""
    saved = packed.backend.forward(packed.cell, packed.weights, args, training)
    return Run(packed, args, saved)


def zero_weights(packed: Packed) -> Weights:
    """Zeros in the shapes of the weights, to which their gradients are added."""
    shapes = weight_shapes(packed.cell, packed.sizes, packed.bias)
    zeros = packed.memory.zeros
    return Weights(**{name: zeros(shape, packed.dtype) for name, shape in shapes.items()})


def _checked_into(packed: Packed, into: Weights, read: dict[str, NDArray | None]) -> Weights:
    """`into`, if gradients can be added to it; `read` has the arrays that backward reads."""
    if not isinstance(into, Weights):
        raise TypeError(f"into: expected Weights, got {type(into).__name__}")
    shapes = weight_shapes(packed.cell, packed.sizes, packed.bias)
    others, memory, taken = dict(read), packed.memory, {}
    for name, given in into._asdict().items():
        label = f"into.{name}"
        if name not in shapes:
            if given is not None:
                raise ValueError(f"{label}: expected None for such a layer, got an array")
            continue
        array = _validate.floats(label, given, packed.dtype, shapes[name], memory=memory)
        if not (memory.is_writable(given, array) and array.flags.c_contiguous):
            raise ValueError(f"{label}: expected a writable contiguous array, got another")
        _validate.apart(label, array, others, memory)
        others[label] = taken[name] = array
    return Weights(**taken)


def _state(
    name: str, value: NDArray | None, packed: Packed, shape: tuple[int, ...], letters: str
) -> NDArray | None:
    if value is None:
        return None
    memory = packed.memory
    return memory.contiguous(_validate.floats(name, value, packed.dtype, shape, letters, memory))
