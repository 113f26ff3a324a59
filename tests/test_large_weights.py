"""Backward passes whose products are cut: of many rows and gates, and of a large W.

From 96 rows a chunk and a W of 1 MiB on, its transpose is made a piece at a time; of many rows, the
products over gates go on from what earlier pieces of them have stored. Bits show that: those of a
few rows, whose products are whole. Steps have different numbers of rows, and so of pieces.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, assert_same_bits, assert_same_gradients, make, normal, parts, state_for
from tolerances import REFERENCE, assert_close

import rnnfast
from rnnfast import _backend

STEPS, BATCH, FEW = 3, 520, 3  # a step is a chunk, with rows enough for pieces of 256 k
# Panels are 64 wide: one and a part, of a W of less than 1 MiB; five and a part, of one of more.
INPUTS = (100, 330)
# Of about 800 gates, and no multiple of a vector: in four pieces.
HIDDEN = {"rnn_tanh": 805, "rnn_relu": 805, "lstm": 205, "lstm_projected": 205}
LENGTHS = np.random.default_rng(3).integers(0, STEPS + 1, BATCH)  # 393, 264, 135 rows or so


@pytest.fixture(autouse=True)
def _native(native, keep_threads):
    """All of this is about the native backend."""
    rnnfast.set_num_threads(1)


def layer_of(kind: str, inputs: int, **options):
    return make(kind, inputs, HIDDEN.get(kind, 270), **options)


def gradients_of(layer, x, state, dy, d_state, lengths=None):
    return layer.record(x, state, lengths=lengths).backward(dy, d_state)


def arguments_of(layer, inputs: int, rng, batch: int = BATCH):
    state, d_state = state_for(layer, batch, rng), state_for(layer, batch, rng)
    width = parts(state)[0].shape[-1]
    x = normal(rng, (STEPS, batch, inputs), layer.dtype)
    return x, state, normal(rng, (STEPS, batch, width), layer.dtype), d_state


def first_rows(state):
    few = [np.ascontiguousarray(s[:, :FEW]) for s in parts(state)]
    return tuple(few) if isinstance(state, tuple) else few[0]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_rows_have_the_bits_of_few(kind, inputs, lengths, dtype, rng):
    layer = layer_of(kind, inputs, dtype=dtype)
    x, state, dy, d_state = arguments_of(layer, inputs, rng)
    many = gradients_of(layer, x, state, dy, d_state, lengths)
    few = gradients_of(
        layer,
        x[:, :FEW],
        first_rows(state),
        dy[:, :FEW],
        first_rows(d_state),
        None if lengths is None else lengths[:FEW],
    )
    assert_same_bits(many.input[:, :FEW], few.input)
    for a, b in zip(parts(many.state), parts(few.state), strict=True):
        assert_same_bits(a[:, :FEW], b)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["whole", "ragged"])
def test_threads_share_it_out(kind, lengths, batch_first, rng):
    layer = layer_of(kind, INPUTS[-1], batch_first=batch_first)
    x, state, dy, d_state = arguments_of(layer, INPUTS[-1], rng)
    if batch_first:
        x, dy = (np.ascontiguousarray(a.swapaxes(0, 1)) for a in (x, dy))
    want = gradients_of(layer, x, state, dy, d_state, lengths)
    rnnfast.set_num_threads(3)
    assert_same_gradients(gradients_of(layer, x, state, dy, d_state, lengths), want)


def test_all_layers_and_directions(kind, rng):
    layer = layer_of(kind, INPUTS[-1], num_layers=2, bidirectional=True)
    x = normal(rng, (STEPS, BATCH, INPUTS[-1]), "float32")
    width = layer(x[:, :FEW])[0].shape[-1]
    dy = normal(rng, (STEPS, BATCH, width), "float32")
    many = layer.record(x, lengths=LENGTHS).backward(dy)
    few = layer.record(x[:, :FEW], lengths=LENGTHS[:FEW]).backward(dy[:, :FEW])
    assert_same_bits(many.input[:, :FEW], few.input)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "rnn_relu"])
def test_gradients_are_the_references(kind, rng):
    layer = layer_of(kind, INPUTS[-1])
    exact = layer_of(kind, INPUTS[-1], dtype="float64")
    exact.load_state_dict({k: w.astype(np.float64) for k, w in layer.state_dict().items()})
    x, _, dy, _ = arguments_of(layer, INPUTS[-1], rng)
    got = gradients_of(layer, x, None, dy, None)
    _backend.use("numpy")
    want = gradients_of(exact, x.astype(np.float64), None, dy.astype(np.float64), None)
    assert_close(got.input, want.input, REFERENCE["float32", "backward"])
    for name, gradient in got.parameters.items():
        assert_close(gradient, want.parameters[name], REFERENCE["float32", "backward"], name)
