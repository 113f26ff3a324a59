"""Layers of more units than sums over h may have terms to start from W x: accuracy and bits."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits, make, normal
from tolerances import REFERENCE, assert_close

import rnnfast

# Cell, inputs, units, steps, layers: off by up to 1.3e-6 where sums start from W x.
WIDE = [
    ("rnn_tanh", 16, 1760, 100, 1),
    ("rnn_tanh", 1760, 1760, 50, 1),
    ("rnn_tanh", 64, 1024, 100, 2),
    ("rnn_tanh", 512, 512, 100, 3),
    ("rnn_relu", 16, 1024, 100, 1),
    ("lstm", 16, 2048, 50, 1),
    ("gru", 64, 1024, 50, 2),
    ("gru_reset_before", 64, 1024, 50, 1),
]


@pytest.mark.parametrize("wide", WIDE, ids=str)
def test_accuracy(wide, rng):
    cell, inputs, hidden, steps, layers = wide
    layer = make(cell, inputs, hidden, num_layers=layers, seed=1)
    exact = make(cell, inputs, hidden, num_layers=layers, dtype="float64")
    exact.load_state_dict({k: v.astype("float64") for k, v in layer.state_dict().items()})
    x = normal(rng, (steps, 1, inputs), "float32")
    (output, _), (want, _) = layer(x), exact(x.astype("float64"))
    assert_close(output, want, REFERENCE["float32", "forward"])


@pytest.mark.parametrize("hidden", [255, 256, 257, 300])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"])
def test_bits(cell, hidden, dtype, rng, native, keep_threads):
    """Of a sequence, of its steps, of a row by itself, of rows and units shared by threads."""
    steps, batch = 3, 9
    layer = make(cell, 17, hidden, dtype=dtype, seed=1)
    x = normal(rng, (steps, batch, 17), dtype)
    want, last = layer(x)
    stream = layer.stream(batch_size=batch)
    assert_same_bits(np.stack([stream.step(now) for now in x]), want)
    for row in (0, 4, 8):
        assert_same_bits(layer(x[:, row : row + 1])[0], want[:, row : row + 1])
        alone = layer.stream()
        assert_same_bits(np.stack([alone.step(now[row]) for now in x]), want[:, row])
    zeros = [np.zeros_like(state) for state in (last if isinstance(last, tuple) else (last,))]
    given = tuple(zeros) if len(zeros) == 2 else zeros[0]
    np.testing.assert_array_equal(layer(x, given)[0], want)
    assert_same_bits(layer.record(x).output, want)
    rnnfast.set_num_threads(2)
    for schedule in ("shards", "units"):
        native.force_schedule(schedule)
        try:
            assert_same_bits(layer(x)[0], want)
        finally:
            native.force_schedule("none")
