"""Cells: one step of the layer with the same weights, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import normal, parts
from tolerances import REFERENCE, assert_close

import rnnfast

CELLS = {
    "rnn_tanh": (rnnfast.RNNCell, rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNNCell, rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTMCell, rnnfast.LSTM, {}),
    "gru": (rnnfast.GRUCell, rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRUCell, rnnfast.GRU, {"reset_after": False}),
}
BATCH, SIZE, HIDDEN = 3, 4, 5


def pair(kind, **options):
    """A cell, and the layer with its weights."""
    cell_type, layer_type, own = CELLS[kind]
    cell = cell_type(SIZE, HIDDEN, **own, **options, seed=3)
    layer = layer_type(SIZE, HIDDEN, **own, **options)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.parameters.items()})
    return cell, layer


def states(kind, rng, shape, dtype="float32"):
    h, c = normal(rng, shape, dtype), normal(rng, shape, dtype)
    return (h, c) if kind == "lstm" else h


def wrap(state, index):
    """A state with other axes, in the same form."""
    arrays = tuple(s[index] for s in parts(state))
    return arrays if isinstance(state, tuple) else arrays[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cell_is_one_step_of_the_layer(kind, bias, dtype, rng):
    cell, layer = pair(kind, bias=bias, dtype=dtype)
    x, state = normal(rng, (BATCH, SIZE), dtype), states(kind, rng, (BATCH, HIDDEN), dtype)
    got = cell(x, state)
    assert isinstance(got, tuple) == (kind == "lstm")
    _, want = layer(x[None], wrap(state, None))
    for a, b in zip(parts(got), parts(want), strict=True):
        assert a.shape == (BATCH, HIDDEN)
        assert_close(a, b[0], REFERENCE[dtype, "forward"])
    for a, b in zip(parts(cell(x)), parts(layer(x[None])[1]), strict=True):
        assert_close(a, b[0], REFERENCE[dtype, "forward"])


@pytest.mark.parametrize("kind", CELLS)
def test_unbatched(kind, rng):
    cell, _ = pair(kind)
    x, state = normal(rng, (1, SIZE), "float32"), states(kind, rng, (1, HIDDEN))
    for a, b in zip(parts(cell(x[0], wrap(state, 0))), parts(cell(x, state)), strict=True):
        np.testing.assert_array_equal(a, b[0])
    tape = cell.record(x[0], wrap(state, 0))
    assert tape.output.shape == (HIDDEN,)
    assert tape.backward(np.ones_like(tape.output)).input.shape == (SIZE,)


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_are_those_of_the_layer(kind, dtype, rng):
    cell, layer = pair(kind, dtype=dtype)
    x, state = normal(rng, (BATCH, SIZE), dtype), states(kind, rng, (BATCH, HIDDEN), dtype)
    d_output = normal(rng, (BATCH, HIDDEN), dtype)
    d_state = states(kind, rng, (BATCH, HIDDEN), dtype)
    tape = cell.record(x, state)
    np.testing.assert_array_equal(tape.output, parts(tape.state)[0])
    got = tape.backward(d_output, d_state)
    want = layer.record(x[None], wrap(state, None)).backward(d_output[None], wrap(d_state, None))
    tolerance = REFERENCE[dtype, "backward"]
    assert_close(got.input, want.input[0], tolerance, "input")
    for a, b in zip(parts(got.state), parts(want.state), strict=True):
        assert_close(a, b[0], tolerance, "state")
    assert list(got.parameters) == list(cell.parameters)
    for name, gradient in got.parameters.items():
        assert_close(gradient, want.parameters[f"{name}_l0"], tolerance, name)


def test_names_and_shapes_are_those_of_torch():
    shapes = {n: a.shape for n, a in rnnfast.GRUCell(SIZE, HIDDEN).parameters.items()}
    assert shapes == {
        "weight_ih": (15, 4),
        "weight_hh": (15, 5),
        "bias_ih": (15,),
        "bias_hh": (15,),
    }
    assert list(rnnfast.LSTMCell(4, 5, False).parameters) == ["weight_ih", "weight_hh"]


@pytest.mark.parametrize(
    "call, error, text",
    [
        (lambda c: c(np.zeros((2, 3, 4), "f4")), ValueError, r"x: expected shape \(B, I\) or"),
        (
            lambda c: c(np.zeros((2, 5), "f4")),
            ValueError,
            r"x: expected shape \(B, I\) = \(\*, 4\)",
        ),
        (
            lambda c: c(np.zeros(5, "f4")),
            ValueError,
            r"x: expected shape \(I,\) = \(4,\), got \(5,",
        ),
        (lambda c: c(np.zeros((2, 4))), TypeError, "x: expected float32, got float64"),
        (
            lambda c: c(np.zeros((2, 4), "f4"), (np.zeros((2, 5), "f4"), np.zeros((3, 5), "f4"))),
            ValueError,
            r"state\[1\]: expected shape \(B, H\) = \(2, 5\), got \(3, 5\)",
        ),
        (
            lambda c: c(np.zeros((2, 4), "f4"), np.zeros((2, 5), "f4")),
            TypeError,
            "state: expected a",
        ),
    ],
)
def test_wrong_arguments(call, error, text):
    cell = rnnfast.LSTMCell(4, 5)
    with pytest.raises(error, match=text):
        call(cell)
