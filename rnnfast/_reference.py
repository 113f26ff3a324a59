"""The NumPy reference: slow and obvious, it defines the results of every backend.

Everything is computed in the dtype of the given arrays; tests run it in float64. In low precision
only the matrices differ: those of `_low_precision` round the values that they are multiplied with.
A cell is two functions, one step forward and one step backward. All cells share the time loop.

Notation: ax = W x_t + b_ih, R = weight_hh, b = b_hh, and h and c are the states before the step.
A name with d in front is the gradient of the loss with respect to the named value. A step backward
returns (dax, dah, dR, dh, dc), where dah is the gradient at the recurrent bias b.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnnfast._backend import Backward, Forward
from rnnfast._cells import Cell, Weights
from rnnfast._low_precision import operands
from rnnfast._validate import HOST


def sigmoid(a):
    """1 / (1 + exp(-a)), without overflow."""
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e))


def gradient(matrix, da, rows):
    """The gradient at `matrix` in a = rows matrix^T, from the gradient `da` at a."""
    return da.T @ rows if isinstance(matrix, np.ndarray) else matrix.gradient(da, rows)


def rnn_tanh_forward(ax, h, c, R, b):
    """h' = tanh(ax + R h + b). Elman 1990, with torch's two biases."""
    h_new = np.tanh(ax + h @ R.T + b)
    return h_new, None, (h_new,)


def rnn_tanh_backward(saved, h, c, R, dh_new, dc_new):
    """The gradient of `rnn_tanh_forward`."""
    (h_new,) = saved
    da = dh_new * (1 - h_new * h_new)
    return da, da, gradient(R, da, h), da @ R, None


def rnn_relu_forward(ax, h, c, R, b):
    """h' = max(ax + R h + b, 0); NaN stays NaN."""
    h_new = np.maximum(ax + h @ R.T + b, 0)
    return h_new, None, (h_new,)


def rnn_relu_backward(saved, h, c, R, dh_new, dc_new):
    """The gradient of `rnn_relu_forward`; it is 0 where h' is 0, as in torch."""
    (h_new,) = saved
    da = np.where(h_new <= 0, 0, dh_new)
    return da, da, gradient(R, da, h), da @ R, None


def lstm_forward(ax, h, c, R, b):
    """i, f, o = sigmoid; g = tanh; c' = f c + i g; h' = o tanh(c').

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000, without peepholes.
    """
    ai, af, ag, ao = np.split(ax + h @ R.T + b, 4, axis=-1)
    i, f, g, o = sigmoid(ai), sigmoid(af), np.tanh(ag), sigmoid(ao)
    c_new = f * c + i * g
    return o * np.tanh(c_new), c_new, (i, f, g, o, c, c_new)


def lstm_backward(saved, h, c, R, dh_new, dc_new):
    """The gradient of `lstm_forward`."""
    i, f, g, o, c, c_new = saved
    t = np.tanh(c_new)
    do = dh_new * t
    dct = dc_new + dh_new * o * (1 - t * t)
    di, df, dg = dct * g, dct * c, dct * i
    da = np.concatenate(
        [di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), do * o * (1 - o)], axis=-1
    )
    return da, da, gradient(R, da, h), da @ R, dct * f


def gru_forward(ax, h, c, R, b):
    """r, z = sigmoid; n = tanh(ax_n + r (R_n h + b_n)); h' = (1 - z) n + z h.

    Cho et al. 2014, but with the reset after the product, as in torch and cuDNN.
    """
    xr, xz, xn = np.split(ax, 3, axis=-1)
    hr, hz, hn = np.split(h @ R.T + b, 3, axis=-1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    return (1 - z) * n + z * h, None, (r, z, n, hn)


def gru_backward(saved, h, c, R, dh_new, dc_new):
    """The gradient of `gru_forward`."""
    r, z, n, hn = saved
    dn, dz = dh_new * (1 - z), dh_new * (h - n)
    dan = dn * (1 - n * n)
    dar = dan * hn * r * (1 - r)
    daz = dz * z * (1 - z)
    dax = np.concatenate([dar, daz, dan], axis=-1)
    dah = np.concatenate([dar, daz, dan * r], axis=-1)
    return dax, dah, gradient(R, dah, h), dah @ R + dh_new * z, None


def gru_reset_before_forward(ax, h, c, R, b):
    """r, z = sigmoid; n = tanh(ax_n + R_n (r h) + b_n); h' = (1 - z) n + z h.

    Cho et al. 2014, equation 8; also ONNX's default (`linear_before_reset=0`).
    """
    H = h.shape[-1]
    xr, xz, xn = np.split(ax, 3, axis=-1)
    hr, hz = np.split(h @ R[: 2 * H].T + b[: 2 * H], 2, axis=-1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + (r * h) @ R[2 * H :].T + b[2 * H :])
    return (1 - z) * n + z * h, None, (r, z, n)


def gru_reset_before_backward(saved, h, c, R, dh_new, dc_new):
    """The gradient of `gru_reset_before_forward`."""
    r, z, n = saved
    H = h.shape[-1]
    dn, dz = dh_new * (1 - z), dh_new * (h - n)
    dan = dn * (1 - n * n)
    drh = dan @ R[2 * H :]
    dar = drh * h * r * (1 - r)
    daz = dz * z * (1 - z)
    da = np.concatenate([dar, daz, dan], axis=-1)
    dR = np.concatenate([gradient(R[: 2 * H], da[:, : 2 * H], h), gradient(R[2 * H :], dan, r * h)])
    return da, da, dR, da[:, : 2 * H] @ R[: 2 * H] + drh * r + dh_new * z, None


_STEPS = {
    "rnn_tanh": (rnn_tanh_forward, rnn_tanh_backward),
    "rnn_relu": (rnn_relu_forward, rnn_relu_backward),
    "lstm": (lstm_forward, lstm_backward),
    "gru": (gru_forward, gru_backward),
    "gru_reset_before": (gru_reset_before_forward, gru_reset_before_backward),
}


class ReferenceBackend:
    """The backend `numpy`."""

    name = "numpy"
    memory = HOST

    def pack(self, cell: Cell, weights: Weights, format_name: str | None = None) -> Weights:
        """A copy of the weights, with zeros for absent biases; low-precision matrices if asked."""
        given = {name: np.array(w) for name, w in weights._asdict().items() if w is not None}
        zeros = np.zeros(len(weights.weight_ih), weights.weight_ih.dtype)
        copies = Weights(**{"bias_ih": zeros, "bias_hh": zeros, **given})
        return copies if format_name is None else operands(copies, format_name)

    def forward(self, cell: Cell, packed: Weights, args: Forward, training: bool) -> Any:
        """See `rnnfast._backend.Backend`; saves for each step what `_forward` appends."""
        with np.errstate(all="ignore"):
            return _forward(cell, packed, args, training)

    def backward(
        self, cell: Cell, packed: Weights, saved: Any, args: Forward, grads: Backward
    ) -> None:
        """See `rnnfast._backend.Backend`."""
        with np.errstate(all="ignore"):
            _backward(cell, packed, saved, args, grads)


def _columns(mask):
    """A mask (B,) as (B, 1), which selects whole rows."""
    return mask[:, None]


def _initial(args: Forward, packed: Weights):
    batch, dtype = args.x.shape[1], args.x.dtype
    hidden = packed.weight_hr.shape[1] if packed.weight_hr is not None else args.hn.shape[1]
    h = np.zeros((batch, args.hn.shape[1]), dtype) if args.h0 is None else args.h0
    c = np.zeros((batch, hidden), dtype) if args.c0 is None else args.c0
    return h, c


def _steps(args: Forward):
    """For each step, as run: t, the rows that have it, and the rows that are reset before it."""
    steps, batch = args.x.shape[:2]
    if not batch:
        return  # no step computes anything, and there may be very many
    never = np.zeros(batch, bool)
    lengths = np.full(batch, steps) if args.lengths is None else args.lengths
    for t in reversed(range(steps)) if args.reverse else range(steps):
        yield t, t < lengths, never if args.reset is None else args.reset[t]


def _forward(cell, packed, args, training):
    step = _STEPS[cell.name][0]
    h, c = _initial(args, packed)
    saved = []
    for t, active, reset in _steps(args):
        h_prev, c_prev = (np.where(_columns(reset), 0, s).astype(s.dtype) for s in (h, c))
        ax = args.x[t] @ packed.weight_ih.T + packed.bias_ih
        h_new, c_new, own = step(ax, h_prev, c_prev, packed.weight_hh, packed.bias_hh)
        unprojected = h_new
        if packed.weight_hr is not None:
            h_new = unprojected @ packed.weight_hr.T
        h = np.where(_columns(active), h_new, h)
        c = c if c_new is None else np.where(_columns(active), c_new, c)
        args.y[t] = np.where(_columns(active), h_new, 0)
        if training:
            saved.append((h_prev, c_prev, unprojected, own))
    args.hn[...] = h
    if args.cn is not None:
        args.cn[...] = c
    return saved if training else None


def _backward(cell, packed, saved, args, grads):
    step = _STEPS[cell.name][1]
    h, c = _initial(args, packed)
    dh = np.zeros_like(h) if grads.dhn is None else grads.dhn
    dc = np.zeros_like(c) if grads.dcn is None else grads.dcn
    dW, dR, dbw, dbr, dP = grads.weights
    if grads.dx is not None:
        grads.dx[...] = 0
    for (t, active, reset), s in zip(reversed(list(_steps(args))), reversed(saved), strict=True):
        h_prev, c_prev, unprojected = (a[active] for a in s[:3])
        own = tuple(a[active] for a in s[3])
        dh_t = dh[active] if grads.dy is None else dh[active] + grads.dy[t][active]
        if packed.weight_hr is not None:
            dP += gradient(packed.weight_hr, dh_t, unprojected)
            dh_t = dh_t @ packed.weight_hr
        dax, dah, dR_t, dh_prev, dc_prev = step(
            own, h_prev, c_prev, packed.weight_hh, dh_t, dc[active]
        )
        dW += gradient(packed.weight_ih, dax, args.x[t][active])
        dR += dR_t
        if dbw is not None:
            dbw += dax.sum(axis=0)
            dbr += dah.sum(axis=0)
        if grads.dx is not None:
            grads.dx[t][active] = dax @ packed.weight_ih
        cut = _columns(reset[active])
        dh, dc = dh.copy(), dc.copy()
        dh[active] = np.where(cut, 0, dh_prev)
        if dc_prev is not None:
            dc[active] = np.where(cut, 0, dc_prev)
    grads.dh0[...] = dh
    if grads.dc0 is not None:
        grads.dc0[...] = dc


def load() -> ReferenceBackend:
    """The backend, which is always available."""
    return ReferenceBackend()
