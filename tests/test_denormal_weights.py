"""Weights in int8 that are denormal, or of which a row's unit would be: they count as zero."""

from __future__ import annotations

import numpy as np
from oracle import assert_same_bits, make


def test_a_denormal_weight(native):
    """Also where nine tenths of it would round to one unit of its row."""
    tiny = np.finfo(np.float32).tiny
    layer = make("rnn_relu", 2, 1, bias=False, precision="int8")
    with layer.parameters.edit() as p:
        p["weight_ih_l0"][...] = [[127 * tiny, 0.9 * tiny]]
        p["weight_hh_l0"][...] = 0
    x = np.array([[[0, 1e30]]], np.float32)
    for output in (layer(x)[0], layer.stream().run(x)):
        assert_same_bits(output, np.zeros((1, 1, 1), np.float32))


def test_a_row_of_them_raises_nothing(backend):
    layer = make("gru", 4, 5, precision="int8")
    with layer.parameters.edit() as p:
        p["weight_ih_l0"][0] = 1e-44
    with np.errstate(all="raise"):
        layer(np.ones((3, 2, 4), np.float32))
        layer.stream(2)
