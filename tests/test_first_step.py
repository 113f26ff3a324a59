"""The first step of a state that nobody gave, which has no product with R, is that from zeros."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits, make, normal, parts, state_for

BATCH = 3


def zeros_for(layer, rng):
    zeros = [np.zeros_like(part) for part in parts(state_for(layer, BATCH, rng))]
    return tuple(zeros) if len(zeros) > 1 else zeros[0]


@pytest.mark.parametrize("hidden", [1, 2, 19])
@pytest.mark.parametrize("negative", [0.0, 0.5, 1.0])
def test_signs_of_zeros(kind, dtype, native, hidden, negative, rng):
    """-0 before the product stays -0 where all of R is negative, in a sequence as in a stream."""
    layer = make(kind, 2, hidden + 4 * (kind == "lstm_projected"), dtype=dtype)
    with layer.parameters.edit() as p:
        for name, array in p.items():
            if name.startswith("bias"):
                array[...] = -0.0
            elif name == "weight_hh_l0":
                signs = np.where(rng.random(len(array)) < negative, -1, 1)
                array[...] = np.abs(array) * signs[:, None]
            else:
                array[...] = -np.abs(array)
    x = np.zeros((2, BATCH, 2), dtype)
    got, want = layer(x)[0], layer(x, zeros_for(layer, rng))[0]
    assert_same_bits(got, want)
    assert_same_bits(layer.stream(BATCH).run(x), want)
    if kind.startswith("rnn"):
        assert np.signbit(want).any() == (negative > 0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "float64"])
@pytest.mark.parametrize("name", ["bias_ih_l0", "bias_hh_l0", "weight_ih_l0"])
@pytest.mark.parametrize("gate", [0, -1])
def test_nan_goes_as_far_as_from_zeros(kind, backend, precision, name, gate, rng):
    """A reset that is NaN makes r h of zeros NaN too, and all that R_n takes it to."""
    dtype = "float64" if precision == "float64" else "float32"
    layer = make(kind, 2, 19, dtype=dtype, precision=None if dtype == precision else precision)
    with layer.parameters.edit() as p:
        p[name].reshape(-1, 19, *p[name].shape[1:])[gate, 3] = np.nan
    x = normal(rng, (1, BATCH, 2), dtype)
    got, want = layer(x)[0], layer(x, zeros_for(layer, rng))[0]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.isnan(layer.stream(BATCH).run(x)), np.isnan(want))
    if kind == "gru_reset_before" and gate == 0:
        assert np.isnan(want).all()
