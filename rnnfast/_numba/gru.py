"""The two forms of the GRU, Cho et al. 2014.

r, z = sigmoid(a); h' = (1 - z) n + z h. With the reset after the product, as in torch and cuDNN,
n = tanh(x_n + r h_n), where h_n = R_n h + b_n. With the reset before the product, as in equation 8
of the paper and by default in ONNX, n = tanh(x_n + R_n (r h) + b_n).

In the names of slots, A.. are pre-activations or their gradients: AX is x_n, AH is h_n, AN is the
pre-activation of n. S.. are saved values: SR, SZ, SN and SHN are r, z, n and h_n.
"""

from __future__ import annotations

from rnnfast._numba import sequence
from rnnfast._numba.activations import sigmoid, tanh
from rnnfast._numba.compiling import entry, inlined
from rnnfast._numba.sequence import DC, DH, H_PREV, SAVED, A, Groups, H
from rnnfast._numba.tile import V

AFTER = Groups(lead=1, together=2, tail=1, saves=4)
AX, AFTER_AR, AFTER_AZ, AH = (A + k * V for k in range(4))
BEFORE = Groups(lead=0, together=2, tail=1, saves=3)
BEFORE_AR, BEFORE_AZ, AN = (A + k * V for k in range(3))
SR, SZ, SN, SHN = (SAVED + k * V for k in range(4))


@inlined
def _after_forward(s):
    one = s.dtype.type(1)
    for j in range(V):
        r, z = sigmoid(s[AFTER_AR + j]), sigmoid(s[AFTER_AZ + j])
        hn = s[AH + j]
        n = tanh(s[AX + j] + r * hn)
        s[H + j] = (one - z) * n + z * s[H_PREV + j]
        s[SR + j], s[SZ + j], s[SN + j], s[SHN + j] = r, z, n, hn


@inlined
def _after_backward(s):
    one = s.dtype.type(1)
    for j in range(V):
        r, z, n, hn = s[SR + j], s[SZ + j], s[SN + j], s[SHN + j]
        dh, h = s[DH + j], s[H_PREV + j]
        dn, dz = dh * (one - z), dh * (h - n)
        dan = dn * (one - n * n)
        s[AFTER_AR + j] = dan * hn * r * (one - r)
        s[AFTER_AZ + j] = dz * z * (one - z)
        s[AX + j] = dan
        s[AH + j] = dan * r
        s[DH + j] = dh * z


@inlined
def _before_forward_first(s):
    """Computes r and z in place, and r h, which the candidate's product takes."""
    for j in range(V):
        r = sigmoid(s[BEFORE_AR + j])
        s[H + j] = r * s[H_PREV + j]
        s[BEFORE_AR + j] = r
        s[BEFORE_AZ + j] = sigmoid(s[BEFORE_AZ + j])


@inlined
def _before_forward(s):
    one = s.dtype.type(1)
    for j in range(V):
        r, z, n = s[BEFORE_AR + j], s[BEFORE_AZ + j], tanh(s[AN + j])
        s[H + j] = (one - z) * n + z * s[H_PREV + j]
        s[SR + j], s[SZ + j], s[SN + j] = r, z, n


@inlined
def _before_backward(s):
    """The gradients at z and at the candidate. The one at r needs d(r h) first."""
    one = s.dtype.type(1)
    for j in range(V):
        z, n = s[SZ + j], s[SN + j]
        dh, h = s[DH + j], s[H_PREV + j]
        dn, dz = dh * (one - z), dh * (h - n)
        s[BEFORE_AZ + j] = dz * z * (one - z)
        s[AN + j] = dn * (one - n * n)
        s[DH + j] = dh * z


@inlined
def _before_backward_last(s):
    """The gradient at r, from d(r h) in the slot DC, which this cell does not use otherwise."""
    one = s.dtype.type(1)
    for j in range(V):
        r, drh = s[SR + j], s[DC + j]
        s[BEFORE_AR + j] = drh * s[H_PREV + j] * r * (one - r)
        s[DH + j] += drh * r


@entry
def after_forward(*args):
    """`sequence.forward` for the cell gru."""
    sequence.forward(_after_forward, None, AFTER, args)


@entry
def after_backward(*args):
    """`sequence.backward` for the cell gru."""
    sequence.backward(_after_backward, None, AFTER, args)


@entry
def before_forward(*args):
    """`sequence.forward` for the cell gru_reset_before."""
    sequence.forward(_before_forward, _before_forward_first, BEFORE, args)


@entry
def before_backward(*args):
    """`sequence.backward` for the cell gru_reset_before."""
    sequence.backward(_before_backward, _before_backward_last, BEFORE, args)
