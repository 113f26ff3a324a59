"""The RNN: h' = tanh(a) or max(a, 0), with a = W x + b_ih + R h + b_hh. Elman 1990."""

from __future__ import annotations

from rnnfast._numba import sequence
from rnnfast._numba.activations import tanh
from rnnfast._numba.compiling import entry, inlined
from rnnfast._numba.sequence import DH, SAVED, A, Groups, H
from rnnfast._numba.tile import V

GROUPS = Groups(lead=0, together=1, tail=0, saves=1)


@inlined
def _tanh_forward(s):
    for j in range(V):
        h = tanh(s[A + j])
        s[H + j] = h
        s[SAVED + j] = h


@inlined
def _tanh_backward(s):
    one = s.dtype.type(1)
    for j in range(V):
        h = s[SAVED + j]
        s[A + j] = s[DH + j] * (one - h * h)
        s[DH + j] = 0


@inlined
def _relu_forward(s):
    zero = s.dtype.type(0)
    for j in range(V):
        a = s[A + j]
        h = zero if a < zero else a  # NaN stays NaN
        s[H + j] = h
        s[SAVED + j] = h


@inlined
def _relu_backward(s):
    zero = s.dtype.type(0)
    for j in range(V):
        s[A + j] = zero if s[SAVED + j] <= zero else s[DH + j]
        s[DH + j] = zero


@entry
def tanh_forward(*args):
    """`sequence.forward` for the cell rnn_tanh."""
    sequence.forward(_tanh_forward, None, GROUPS, args)


@entry
def tanh_backward(*args):
    """`sequence.backward` for the cell rnn_tanh."""
    sequence.backward(_tanh_backward, None, GROUPS, args)


@entry
def relu_forward(*args):
    """`sequence.forward` for the cell rnn_relu."""
    sequence.forward(_relu_forward, None, GROUPS, args)


@entry
def relu_backward(*args):
    """`sequence.backward` for the cell rnn_relu."""
    sequence.backward(_relu_backward, None, GROUPS, args)
