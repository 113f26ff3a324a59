"""Times the steps of filter.pyx, after it has checked that they agree with the layer's."""

import time

import numpy as np
from filter import Filter

import rnnfast

HIDDEN, STEPS = 16, 100_000

rng = np.random.default_rng(0)
layer = rnnfast.LSTM(1, HIDDEN, seed=0)
w = rng.standard_normal(HIDDEN, np.float32)
x = rng.standard_normal(STEPS, np.float32)
y = np.empty_like(x)

output, _ = layer(x[:1000, None])
Filter(layer, w, 0.5)(x[:1000], y[:1000])
np.testing.assert_allclose(y[:1000], output @ w + 0.5, rtol=0, atol=1e-5)

run = Filter(layer, w, 0.5)
start = time.perf_counter()
run(x, y)
took = time.perf_counter() - start
print(f"an LSTM of {HIDDEN} units and a linear layer: {1e6 * took / STEPS:.3f} us a step")
