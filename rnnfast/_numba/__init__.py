"""The backend `numba`: compiled on first use, for where the native one was not built.

What is wide is NumPy's: the products over all rows of a chunk of steps. What is sequential is
compiled: the time loops of `sequence`, and the equations of `rnn`, `lstm` and `gru`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnnfast._backend import Backward, Forward
from rnnfast._cells import Cell, Weights
from rnnfast._numba import gru, lstm, rnn
from rnnfast._numba.environment import denormals_are_zero
from rnnfast._numba.layout import Kernel, Packed, Rows
from rnnfast._numba.sequence import V

KERNELS: dict[str, Kernel] = {
    "rnn_tanh": Kernel(rnn.TOGETHER, rnn.APART, rnn.SAVES, rnn.tanh_forward, rnn.tanh_backward),
    "rnn_relu": Kernel(rnn.TOGETHER, rnn.APART, rnn.SAVES, rnn.relu_forward, rnn.relu_backward),
    "lstm": Kernel(lstm.TOGETHER, lstm.APART, lstm.SAVES, lstm.forward, lstm.backward),
    "gru": Kernel(
        gru.TOGETHER, gru.AFTER_APART, gru.AFTER_SAVES, gru.after_forward, gru.after_backward
    ),
    "gru_reset_before": Kernel(
        gru.TOGETHER, gru.BEFORE_APART, gru.BEFORE_SAVES, gru.before_forward, gru.before_backward
    ),
}

# Numbers in a chunk's pre-activations: 512 KiB of float32 stay in L2, and have rows enough for
# BLAS. Backward takes more: each chunk also adds to the whole of dW and dR.
_FORWARD_CHUNK = 1 << 17
_BACKWARD_CHUNK = 1 << 19


class Saved(NamedTuple):
    """What backward needs of forward, in rows."""

    rows: Rows
    reset: NDArray  # (N,)
    h: NDArray  # (N, W padded), before each step, after its reset
    own: NDArray  # (N, blocks * saves * V)


class NumbaBackend:
    """The backend `numba`; see `rnnfast._backend.Backend`."""

    name = "numba"

    def pack(self, cell: Cell, weights: Weights) -> Packed:
        """A private copy."""
        return Packed(KERNELS[cell.name], cell, weights)

    def forward(self, cell: Cell, packed: Packed, args: Forward, training: bool) -> Saved | None:
        """Runs forward; returns what `backward` needs when `training`."""
        with np.errstate(all="ignore"), denormals_are_zero():
            return _forward(packed, args, training)

    def backward(
        self, cell: Cell, packed: Packed, saved: Saved, args: Forward, grads: Backward
    ) -> None:
        """Runs backward; leaves `saved` as it was."""
        with np.errstate(all="ignore"), denormals_are_zero():
            _backward(packed, saved, args, grads)


def _forward(packed: Packed, args: Forward, training: bool) -> Saved | None:
    rows, dtype, kernel = Rows.of(args), packed.dtype, packed.kernel
    total, projected = int(rows.offsets[-1]), packed.weights.weight_hr is not None
    recurrent, candidate, projection = packed.forward_panels
    width = recurrent.size // packed.product
    reset = np.zeros(total, bool)
    if args.reset is not None:
        reset = np.ascontiguousarray(rows.gather(args.reset, 0, len(args.x)))
    h = rows.state_in(args.h0, width, dtype)
    c = rows.state_in(args.c0, packed.units, dtype)
    u = np.zeros((rows.batch, packed.units), dtype) if projected or candidate.size else h
    kept = total if training else 0
    h_saved = np.empty((kept, width), dtype)
    saved = np.empty((kept, kernel.saves * packed.units), dtype)
    direct = rows.direct(args.y)
    if rows.index is not None:
        args.y[...] = 0
    for begin, end in rows.chunks(_FORWARD_CHUNK // packed.columns, args.reverse):
        span = slice(rows.offsets[begin], rows.offsets[end])
        x = rows.gather(args.x, begin, end)
        a = _input_product(packed, x)
        y = np.empty((len(x), packed.output), dtype)
        if direct:
            y = rows.gather(args.y, begin, end)
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
    rows, dtype, kernel, sums = saved.rows, packed.dtype, packed.kernel, grads.weights
    projected = packed.weights.weight_hr is not None
    recurrent, candidate, projection = packed.backward_panels
    width = saved.h.shape[1]
    dh = rows.state_in(grads.dhn, width, dtype)
    dc = rows.state_in(grads.dcn, packed.units, dtype)
    du = np.zeros((rows.batch, packed.units), dtype)
    # In the layout of the columns; each chunk adds to them.
    dw = np.zeros((packed.x_width, args.x.shape[2]), dtype)
    dr = np.zeros((packed.columns, packed.output), dtype)
    db = np.zeros(packed.columns, dtype)
    if grads.dx is not None and rows.index is not None:
        grads.dx[...] = 0
    for begin, end in rows.chunks(_BACKWARD_CHUNK // packed.columns, not args.reverse):
        span = slice(rows.offsets[begin], rows.offsets[end])
        x, h, own = rows.gather(args.x, begin, end), saved.h[span], saved.own[span]
        dy = np.empty((0, packed.output), dtype)
        if grads.dy is not None:
            dy = np.ascontiguousarray(rows.gather(grads.dy, begin, end))
        da = np.zeros((len(x), packed.columns), dtype)
        dh_rows = np.empty((len(x) if projected else 0, packed.output), dtype)
        kernel.backward(
            rows.offsets, begin, end, args.reverse, packed.hidden,
            recurrent, candidate, projection,
            saved.reset[span], dy, h, own, dh, du, dc, dh_rows, da,
        )  # fmt: skip
        _add_weight_gradients(packed, x, h, own, da, dw, dr, db)
        if sums.weight_hr is not None:
            sums.weight_hr[...] += dh_rows.T @ _unprojected(packed, own)
        if grads.dx is not None:
            rows.scatter(_input_gradient(packed, da), grads.dx, begin, end)
    rows.state_out(dh, grads.dh0)
    if grads.dc0 is not None:
        rows.state_out(dc, grads.dc0)
    sums.weight_ih[...] += dw[packed.x_places]
    sums.weight_hh[...] += dr[packed.h_columns]
    if sums.bias_ih is not None and sums.bias_hh is not None:
        sums.bias_ih[...] += db[packed.x_columns]
        sums.bias_hh[...] += db[packed.h_columns]


def _input_product(packed: Packed, x: NDArray) -> NDArray:
    """x W + b, (rows, columns); b alone where the input does not add."""
    a = np.zeros((len(x), packed.columns), packed.dtype)
    for columns, places in packed.x_slices:
        np.matmul(x, packed.weight_x[:, places], out=a[:, columns])
    a += packed.bias
    return a


def _input_gradient(packed: Packed, da: NDArray) -> NDArray:
    """da W, (rows, I)."""
    parts = (da[:, columns] @ packed.weight_x[:, places].T for columns, places in packed.x_slices)
    return sum(parts)


def _add_weight_gradients(packed, x, h, own, da, dw, dr, db) -> None:
    for columns, places in packed.x_slices:
        dw[places] += da[:, columns].T @ x
    h, split = h[:, : packed.output], packed.product
    dr[:split] += da[:, :split].T @ h
    if packed.own_candidate:
        reset_h = _slot(packed, own, 0)[:, : packed.output] * h
        dr[split:] += da[:, split:].T @ reset_h
    db += da.sum(axis=0)


def _unprojected(packed: Packed, own: NDArray) -> NDArray:
    """What the projection took, o tanh(c'): (rows, H)."""
    o, t = _slot(packed, own, lstm.SAVED_O), _slot(packed, own, lstm.SAVED_T)
    return (o * t)[:, : packed.hidden]


def _slot(packed: Packed, own: NDArray, slot: int) -> NDArray:
    """One of the saved slots, (rows, units)."""
    return own.reshape(len(own), -1, packed.kernel.saves, V)[:, :, slot].reshape(len(own), -1)


def load() -> NumbaBackend:
    """The backend; ImportError where numba is missing."""
    return NumbaBackend()
