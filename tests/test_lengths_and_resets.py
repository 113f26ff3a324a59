"""Lengths and resets: padding has no effect, and a reset is where a sequence is cut."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, assert_same_states, make, normal, parts, state_for
from tolerances import REFERENCE, assert_close

STEPS, BATCH, SIZE = 7, 3, 4
LENGTHS = [4, 0, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_padding_has_no_effect(kind, rng):
    layer = make(kind, num_layers=2, bidirectional=True)
    x, state = normal(rng, (STEPS, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    output, last = layer(x, state, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS):
        padded = x.copy()
        padded[length:, b] = np.nan
        again, again_last = layer(padded, state, lengths=LENGTHS)
        np.testing.assert_array_equal(again, output)
        assert_same_states(again_last, last)
        assert not output[length:, b].any()
        one = tuple(s[:, b : b + 1] for s in parts(state))
        one = one if isinstance(state, tuple) else one[0]
        alone, alone_last = layer(x[:length, b : b + 1], one)
        assert_close(output[:length, b], alone[:, 0], REFERENCE["float32", "forward"])
        for got, want in zip(parts(last), parts(alone_last), strict=True):
            assert_close(got[:, b], want[:, 0], REFERENCE["float32", "forward"])
    for got, want in zip(parts(last), parts(state), strict=True):
        np.testing.assert_array_equal(got[:, 1], want[:, 1])  # the row of length 0


@pytest.mark.parametrize("kind", KINDS)
def test_reset_cuts_the_sequence(kind, rng):
    layer = make(kind, num_layers=2)
    x = normal(rng, (STEPS, 1, SIZE), "float32")
    reset = np.zeros((STEPS, 1), bool)
    reset[3] = True
    output, last = layer(x, state_for(layer, 1, rng), reset=reset)
    tail, tail_last = layer(x[3:])
    assert_close(output[3:], tail, REFERENCE["float32", "forward"])
    for got, want in zip(parts(last), parts(tail_last), strict=True):
        assert_close(got, want, REFERENCE["float32", "forward"])


@pytest.mark.parametrize("kind", KINDS)
def test_reset_cuts_both_directions_at_the_same_place(kind, rng):
    layer = make(kind, bidirectional=True)
    x = normal(rng, (STEPS, 2, SIZE), "float32")
    state = state_for(layer, 2, rng)
    lengths = np.array([STEPS, STEPS - 1])
    reset = np.zeros((STEPS, 2), bool)
    reset[2] = True
    reset[STEPS - 1, 1] = True  # past the end of row 1: no cut
    output, last = layer(x, state, lengths=lengths, reset=reset)
    # In front of the cut the initial state is the forward direction's, behind it the reverse's.
    head_state, tail_state = ([p.copy() for p in parts(state)] for _ in range(2))
    for head, tail in zip(head_state, tail_state, strict=True):
        head[1] = 0
        tail[0] = 0
    form = tuple if isinstance(state, tuple) else lambda s: s[0]
    head, head_last = layer(x[:2], form(head_state))
    tail, tail_last = layer(x[2:], form(tail_state), lengths=lengths - 2)
    assert_close(output, np.concatenate([head, tail]), REFERENCE["float32", "forward"])
    for got, first, second in zip(parts(last), parts(head_last), parts(tail_last), strict=True):
        assert_close(got[0], second[0], REFERENCE["float32", "forward"])
        assert_close(got[1], first[1], REFERENCE["float32", "forward"])
