"""Passes of the native stack on a tape of the caller's, and the gradients that they must give."""

from __future__ import annotations

import numpy as np
from oracle import assert_same_bits, make, normal, parts, state_for

import rnnfast

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6
ONE_STEP = {
    "rnn_tanh": (rnnfast.RNNCell, {}),
    "rnn_relu": (rnnfast.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTMCell, {}),
    "gru": (rnnfast.GRUCell, {}),
    "gru_reset_before": (rnnfast.GRUCell, {"reset_after": False}),
}
LENGTHS = np.array([3, 0, 5])


class Case:
    """A stack, the arguments of its two passes, and the gradients that `Run.backward` gives."""

    def __init__(self, module, x, state, lengths=None, seed=1):
        rng = np.random.default_rng(seed)
        self.stack = module._packs().native
        self.x, self.state, self.lengths = x, state, lengths
        run, output, last = self.stack.record(x, state, lengths, None, None)
        self.output, self.last = output, last  # a cell's output, too, is an array here
        self.d_output = normal(rng, output.shape, x.dtype)
        d_state = tuple(normal(rng, s.shape, x.dtype) for s in parts(last))
        self.d_state = d_state if isinstance(last, tuple) else d_state[0]
        self.one_step = type(module) in {cell for cell, _ in ONE_STEP.values()}
        if self.one_step:  # its output is h: one gradient for both
            self.d_output = None
        self.want = flat(run.backward(self.d_output, self.d_state))
        self.parameters = len(module.parameters)
        self.all = (True,) * (2 + self.parameters)

    def forward(self, threads=0):
        """Output, state and tape; the output is what `backward` takes."""
        return self.stack.forward(self.x, self.state, self.lengths, threads)

    def arguments(self, **changes):
        """Those of `backward`, in its order, after a forward pass."""
        output, _, tape = self.forward()
        given = {
            "x": self.x,
            "state": self.state,
            "lengths": self.lengths,
            "output": output,
            "tape": tape,
            "d_output": self.d_output,
            "d_state": self.d_state,
            "wanted": self.all,
            "threads": 0,
        }
        assert changes.keys() <= given.keys()
        return {**given, **changes}

    def backward(self, **changes):
        return self.stack.backward(*self.arguments(**changes).values())

    def assert_wanted(self, gradients, wanted):
        """Those that `wanted` tells are there, in the bits of all."""
        states = len(parts(self.last))
        got = flat(gradients, states)
        asked = (wanted[0], *(wanted[1],) * states, *wanted[2:])
        assert [g is not None for g in got] == list(asked)
        for a, b in zip(got, self.want, strict=True):
            if a is not None:
                assert_same_bits(a, b)


def flat(gradients, states=1):
    """The gradients at x, at each of the states and at each parameter, in a list."""
    dx, state, parameters = gradients
    own = parameters.values() if isinstance(parameters, dict) else parameters
    return [dx, *([None] * states if state is None else parts(state)), *own]


def layer_case(kind, dtype="float32", *, lengths=None, batched=True, state=True, **options):
    layer = make(kind, SIZE, HIDDEN, dtype=dtype, **options)
    rng = np.random.default_rng(3)
    x, initial = normal(rng, (STEPS, BATCH, SIZE), dtype), state_for(layer, BATCH, rng)
    if not batched:
        x, initial = x[:, 0].copy(), tuple(s[:, 0].copy() for s in parts(initial))
        initial = initial if len(initial) > 1 else initial[0]
    elif layer.batch_first:
        x = x.swapaxes(0, 1).copy()
    return Case(layer, x, initial if state else None, lengths)


def cell_case(kind, dtype="float32", *, batched=True, state=True, bias=True):
    constructor, options = ONE_STEP[kind]
    cell = constructor(SIZE, HIDDEN, bias=bias, dtype=dtype, seed=2, **options)
    rng = np.random.default_rng(3)
    shape = (BATCH,) if batched else ()
    arrays = [normal(rng, (*shape, HIDDEN), dtype) for _ in range(1 + (kind == "lstm"))]
    initial = tuple(arrays) if len(arrays) > 1 else arrays[0]
    return Case(cell, normal(rng, (*shape, SIZE), dtype), initial if state else None)
