"""Building blocks of the tests of layers: each kind of layer, inputs for it, and comparisons."""

from __future__ import annotations

import numpy as np
import pytest

import rnnfast
from rnnfast import _backend, functional

# One line for each thing that a layer can be: a constructor and the options that select a cell.
KINDS = {
    "rnn_tanh": (rnnfast.RNN, {}),
    "rnn_relu": (rnnfast.RNN, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_projected": (rnnfast.LSTM, {"proj_size": 3}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
}


def make(kind: str, input_size: int = 4, hidden_size: int = 5, **options):
    """A layer of `kind`, by default with a seed."""
    constructor, own = KINDS[kind]
    return constructor(input_size, hidden_size, **{"seed": 7, **own, **options})


def normal(rng, shape, dtype) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype)


def state_for(layer, batch: int, rng):
    """A random initial state: h, or (h, c)."""
    options = layer._options
    rows = options.num_layers * (2 if options.bidirectional else 1)
    h = normal(rng, (rows, batch, options.proj_size or options.hidden_size), layer.dtype)
    if not isinstance(layer, rnnfast.LSTM):
        return h
    return h, normal(rng, (rows, batch, options.hidden_size), layer.dtype)


def parts(state) -> list[np.ndarray]:
    """The arrays of a state: [h], or [h, c]."""
    return list(state) if isinstance(state, tuple) else [state]


def by_hand(layer, x, state, lengths=None, reset=None):
    """The layer's output (T, B, D*W) and states, composed of `rnnfast.functional` calls.

    Written without any of the layers' own code: suffixes, stacking, and directions anew.
    """
    options = layer._options
    cell = {"RNN": f"rnn_{options.nonlinearity}", "LSTM": "lstm", "GRU": "gru"}
    name = cell[type(layer).__name__]
    if options.reset_after is False:
        name = "gru_reset_before"
    states, last, y = parts(state), [], x
    for k in range(options.num_layers):
        outputs = []
        for d, direction in enumerate(["", "_reverse"][: 1 + options.bidirectional]):
            names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"]
            weights = {n: layer.parameters.get(f"{n}_l{k}{direction}") for n in names}
            row = k * (1 + options.bidirectional) + d
            run = functional.forward(
                functional.pack(name, **weights),
                y,
                *(s[row] for s in states),
                lengths=lengths,
                reset=reset,
                reverse=d == 1,
            )
            outputs.append(run.y)
            last.append([run.h] if run.c is None else [run.h, run.c])
        y = np.concatenate(outputs, axis=-1)
    return y, [np.stack(s) for s in zip(*last, strict=True)]


def first_steps_from_zeros(layer, row: int, poison: float | None, rng):
    """The first output of either direction, which is that from zeros that are given.

    layer : a bidirectional one; poison : what R has in `row`; None: what it has.
    """
    if poison is not None:
        with layer.parameters.edit() as p:
            for name in ("weight_hh_l0", "weight_hh_l0_reverse"):
                p[name][row, -1] = poison
    x = normal(rng, (2, 5, layer.input_size), layer.dtype)
    zeros = [np.zeros_like(part) for part in parts(state_for(layer, 5, rng))]
    got = layer(x)[0]
    want = layer(x, tuple(zeros) if len(zeros) > 1 else zeros[0])[0]
    np.testing.assert_array_equal(got, want)
    width = got.shape[-1] // 2
    return got[0, :, :width], got[1, :, width:]


def assert_same_gradients(got, want) -> None:
    """The same bits in every gradient."""
    np.testing.assert_array_equal(got.input, want.input)
    for a, b in zip(parts(got.state), parts(want.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(got.parameters) == list(want.parameters)
    for name, gradient in got.parameters.items():
        np.testing.assert_array_equal(gradient, want.parameters[name], err_msg=name)


def assert_same_states(got, want) -> None:
    """Asserts the same form and the same bits."""
    assert isinstance(got, tuple) == isinstance(want, tuple)
    for a, b in zip(parts(got), parts(want), strict=True):
        np.testing.assert_array_equal(a, b)


def use_or_skip(name: str) -> str:
    """Puts a backend in use, or skips the test with the reason why it is missing."""
    try:
        _backend.use(name)
    except _backend.MissingBackendError as error:
        pytest.skip(str(error))
    return name


def assert_same_bits(got, want, what: str = "") -> None:
    """Tells -0 from 0, and one NaN from another."""
    assert got.dtype == want.dtype and got.shape == want.shape
    as_integers = f"i{got.itemsize}"
    got, want = (np.ascontiguousarray(a).view(as_integers) for a in (got, want))
    np.testing.assert_array_equal(got, want, err_msg=what)
