"""The LSTM: i, f, o = sigmoid(a); g = tanh(a); c' = f c + i g; h' = o tanh(c').

a = W x + b_ih + R h + b_hh. Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al.
2000.
"""

from __future__ import annotations

from rnnfast._numba import sequence
from rnnfast._numba.activations import sigmoid, tanh
from rnnfast._numba.compiling import entry, inlined
from rnnfast._numba.sequence import C_PREV, DC, DH, SAVED, A, C, Groups, H
from rnnfast._numba.tile import V

GROUPS = Groups(lead=0, together=4, tail=0, saves=6)
AI, AF, AG, AO = (A + k * V for k in range(4))
SI, SF, SG, SO, SC, ST = (SAVED + k * V for k in range(6))  # saved: i, f, g, o, c, tanh(c')
SAVED_O, SAVED_T = 3, 5


@inlined
def _forward(s):
    for j in range(V):
        i, f, o = sigmoid(s[AI + j]), sigmoid(s[AF + j]), sigmoid(s[AO + j])
        g = tanh(s[AG + j])
        c = s[C_PREV + j]
        c_new = f * c + i * g
        t = tanh(c_new)
        s[SI + j], s[SF + j], s[SG + j], s[SO + j], s[SC + j], s[ST + j] = i, f, g, o, c, t
        s[C + j] = c_new
        s[H + j] = o * t


@inlined
def _backward(s):
    one, zero = s.dtype.type(1), s.dtype.type(0)
    for j in range(V):
        i, f, g, o, c, t = s[SI + j], s[SF + j], s[SG + j], s[SO + j], s[SC + j], s[ST + j]
        dh = s[DH + j]
        do = dh * t
        dc = s[DC + j] + dh * o * (one - t * t)
        di, df, dg = dc * g, dc * c, dc * i
        s[AI + j] = di * i * (one - i)
        s[AF + j] = df * f * (one - f)
        s[AG + j] = dg * (one - g * g)
        s[AO + j] = do * o * (one - o)
        s[DC + j] = dc * f
        s[DH + j] = zero


@entry
def forward(*args):
    """`sequence.forward` for this cell."""
    sequence.forward(_forward, None, GROUPS, args)


@entry
def backward(*args):
    """`sequence.backward` for this cell."""
    sequence.backward(_backward, None, GROUPS, args)
