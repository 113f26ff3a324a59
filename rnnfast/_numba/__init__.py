"""The backend `numba`: compiled on first use, for installs without the native backend.

NumPy computes the products over all rows of a chunk of steps. Numba compiles what is sequential:
the time loops of `sequence`, and the equations of `rnn`, `lstm` and `gru`. Low precision runs on
the NumPy reference.

Letters: T steps, B batch, I input size, H hidden size, P projection size, W the width of h (P or
H), N rows, V the units of a block. `sequence` explains rows, blocks and slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Backward, Forward
from rnnfast._cells import Cell, Weights
from rnnfast._numba import gru, lstm, rnn
from rnnfast._numba.environment import denormals_are_zero
from rnnfast._numba.gradients import add_product
from rnnfast._numba.layout import Kernel, Packed, Rows, padded
from rnnfast._numba.tile import V
from rnnfast._reference import ReferenceBackend
from rnnfast._validate import HOST

KERNELS: dict[str, Kernel] = {
    "rnn_tanh": Kernel(rnn.GROUPS, rnn.tanh_forward, rnn.tanh_backward),
    "rnn_relu": Kernel(rnn.GROUPS, rnn.relu_forward, rnn.relu_backward),
    "lstm": Kernel(lstm.GROUPS, lstm.forward, lstm.backward),
    "gru": Kernel(gru.AFTER, gru.after_forward, gru.after_backward),
    "gru_reset_before": Kernel(gru.BEFORE, gru.before_forward, gru.before_backward),
}

# The numbers in the pre-activations of a chunk. Forward: 512 KiB of float32 stay in the L2 cache,
# and give BLAS enough rows. Backward takes more, and at least `_BACKWARD_ROWS` rows, because each
# chunk also adds to the whole of dW and dR.
_FORWARD_CHUNK = 1 << 17
_BACKWARD_CHUNK = 1 << 19
_BACKWARD_ROWS = 512


class Saved(NamedTuple):
    """The values that a forward pass saves for its backward pass, by rows."""

    rows: Rows
    reset: NDArray  # (N,)
    h: NDArray  # (N, W padded): h before each step, after its reset
    own: NDArray  # (N, blocks * saves * V): the saved slots of the cell


class NumbaBackend:
    """The backend `numba`; see `rnnfast._backend.Backend`."""

    name = "numba"
    memory = HOST

    def pack(
        self, cell: Cell, weights: Weights, format_name: str | None = None
    ) -> Packed | Weights:
        """A private copy of the weights; in low precision, the reference's pack."""
        if format_name is not None:
            return _REFERENCE.pack(cell, weights, format_name)
        return Packed(KERNELS[cell.name], cell, weights)

    def forward(self, cell: Cell, packed: Any, args: Forward, training: bool) -> Any:
        """Runs a forward pass; returns what `backward` needs if `training`, else None."""
        if not isinstance(packed, Packed):
            return _REFERENCE.forward(cell, packed, args, training)
        with np.errstate(all="ignore"), denormals_are_zero():
            return _forward(packed, args, training)

    def backward(self, cell: Cell, packed: Any, saved: Any, args: Forward, grads: Backward) -> None:
        """Runs a backward pass; leaves `saved` as it is."""
        if not isinstance(packed, Packed):
            _REFERENCE.backward(cell, packed, saved, args, grads)
            return
        with np.errstate(all="ignore"), denormals_are_zero():
            _backward(packed, saved, args, grads)


def _forward(packed: Packed, args: Forward, training: bool) -> Saved | None:
    rows, dtype, kernel = Rows.of(args), packed.dtype, packed.kernel
    total = int(rows.offsets[-1])
    recurrent, candidate, projection = packed.forward_panels
    width = padded(packed.output)
    reset = np.zeros(total, bool)
    if args.reset is not None:
        reset = np.ascontiguousarray(rows.gather(args.reset, 0, len(args.x)))
    h = rows.state_in(args.h0, width, dtype)
    c = rows.state_in(args.c0, packed.units if args.cn is not None else 0, dtype)
    u = h
    if projection.size or candidate.size:
        u = np.zeros((rows.batch, packed.units), dtype)
    kept = total if training else 0
    h_saved = np.empty((kept, width), dtype)
    saved = np.empty((kept, kernel.groups.saves * packed.units), dtype)
    direct = rows.direct(args.y)
    if rows.index is not None:
        args.y[...] = 0
    chunks = rows.chunks(_FORWARD_CHUNK // packed.columns)
    buffer = np.empty((rows.most(chunks), packed.columns), dtype)
    for begin, end in reversed(chunks) if args.reverse else chunks:
        span = slice(rows.offsets[begin], rows.offsets[end])
        x = _flushed(rows.gather(args.x, begin, end))
        a = buffer[: len(x)]
        _input_product(packed, x, a)
        y = rows.gather(args.y, begin, end) if direct else np.empty((len(x), packed.output), dtype)
        kernel.forward(
            rows.offsets, begin, end, args.reverse, packed.hidden, training,
            recurrent, candidate, projection,
            reset[span], a, h, u, c, y, h_saved[span], saved[span],
        )  # fmt: skip
        if not direct:
            rows.scatter(y, args.y, begin, end)
    rows.state_out(h, args.hn)
    if args.cn is not None:
        rows.state_out(c, args.cn)
    return Saved(rows, reset, h_saved, saved) if training else None


def _backward(packed: Packed, saved: Saved, args: Forward, grads: Backward) -> None:
    rows, dtype, kernel = saved.rows, packed.dtype, packed.kernel
    recurrent, candidate, projection = packed.backward_panels
    dh = rows.state_in(grads.dhn, padded(packed.output), dtype)
    dc = rows.state_in(grads.dcn, packed.units if grads.dc0 is not None else 0, dtype)
    du = np.zeros((rows.batch, packed.units), dtype)
    if grads.dx is not None and rows.index is not None:
        grads.dx[...] = 0
    chunks = rows.chunks(max(_BACKWARD_CHUNK // packed.columns, _BACKWARD_ROWS))
    buffer = np.zeros((rows.most(chunks), packed.columns), dtype)
    for begin, end in chunks if args.reverse else reversed(chunks):
        span = slice(rows.offsets[begin], rows.offsets[end])
        x = _flushed(rows.gather(args.x, begin, end))
        h, own = saved.h[span], saved.own[span]
        dy = np.empty((0, packed.output), dtype)
        if grads.dy is not None:
            dy = np.ascontiguousarray(rows.gather(grads.dy, begin, end))
        da = buffer[: len(x)]
        dh_rows = np.empty((len(x) if projection.size else 0, packed.output), dtype)
        kernel.backward(
            rows.offsets, begin, end, args.reverse, packed.hidden,
            recurrent, candidate, projection,
            saved.reset[span], dy, h, own, dh, du, dc, dh_rows, da,
        )  # fmt: skip
        _add_weight_gradients(packed, x, h[:, : packed.output], own, da, grads.weights)
        if grads.weights.weight_hr is not None:
            grads.weights.weight_hr[...] += dh_rows.T @ _unprojected(packed, own)
        if grads.dx is not None:
            dx = da[:, packed.x_span] @ packed.weight_x.T
            rows.scatter(dx, grads.dx, begin, end)
    rows.state_out(dh, grads.dh0)
    if grads.dc0 is not None:
        rows.state_out(dc, grads.dc0)


def _flushed(x: NDArray) -> NDArray:
    """A copy with denormals set to zero, because the threads of a BLAS do not flush them."""
    return np.multiply(x, x.dtype.type(1))


def _input_product(packed: Packed, x: NDArray, a: NDArray) -> None:
    """Sets a (rows, columns) to x W + b, and to b in the columns that the input does not add to."""
    span = packed.x_span
    np.matmul(x, packed.weight_x, out=a[:, span])
    a[:, span] += packed.bias[span]
    if span.stop < packed.columns:
        a[:, span.stop :] = packed.bias[span.stop :]


def _add_weight_gradients(
    packed: Packed, x: NDArray, h: NDArray, own: NDArray, da: NDArray, sums: Weights
) -> None:
    x_columns, h_columns, span = packed.x_columns, packed.h_columns, packed.h_span
    add_product(sums.weight_ih, da[:, packed.x_span], x_columns, x)
    split = len(h_columns)
    if packed.own_candidate:
        split -= packed.hidden
        reset_h = _slot(packed, own, 0)[:, : packed.output] * h
        columns = h_columns[split:] - span.stop
        add_product(sums.weight_hh[split:], da[:, span.stop :], columns, reset_h)
    add_product(sums.weight_hh[:split], da[:, span], h_columns[:split] - span.start, h)
    if sums.bias_ih is not None and sums.bias_hh is not None:
        db = da.sum(axis=0)
        sums.bias_ih[...] += db[x_columns]
        sums.bias_hh[...] += db[h_columns]


def _unprojected(packed: Packed, own: NDArray) -> NDArray:
    """The h that the projection multiplied, o tanh(c'): (rows, H)."""
    o, t = _slot(packed, own, lstm.SAVED_O), _slot(packed, own, lstm.SAVED_T)
    return (o * t)[:, : packed.hidden]


def _slot(packed: Packed, own: NDArray, slot: int) -> NDArray:
    """The values of one saved slot, (rows, units)."""
    rows, saves = len(own), packed.kernel.groups.saves
    return own.reshape(rows, -1, saves, V)[:, :, slot].reshape(rows, -1)


_REFERENCE = ReferenceBackend()
_BACKEND = NumbaBackend()


def load() -> NumbaBackend:
    """The backend: always the same object, so that packed weights stay valid."""
    return _BACKEND
