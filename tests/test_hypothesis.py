"""Layers of random options on random sizes, against the reference in float64."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
from oracle import KINDS, make, normal, parts, state_for
from tolerances import REFERENCE, assert_close

from rnnfast import _backend
from rnnfast._cells import DTYPES

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st

# The same examples in every run, so that what fails is the change and not the luck of a run.
BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=120)


@contextmanager
def reference_in_use():
    """The NumPy backend, until the end of the block."""
    before = _backend.current().name
    _backend.use("numpy")
    try:
        yield
    finally:
        _backend.use(before)


@st.composite
def layers(draw):
    """A layer, and its twin in float64."""
    kind, hidden = draw(st.sampled_from(list(KINDS))), draw(st.integers(1, 40))
    options = {
        "input_size": draw(st.integers(0, 20)),
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if "proj_size" in KINDS[kind][1]:
        hidden = max(hidden, 2)
        options["proj_size"] = draw(st.integers(1, hidden - 1))
    layer = make(kind, hidden_size=hidden, dtype=draw(st.sampled_from(list(DTYPES))), **options)
    exact = make(kind, hidden_size=hidden, dtype="float64", **options)
    exact.load_state_dict(layer.state_dict())
    return layer, exact


def without_batch(state):
    """A state of one row without its batch axis."""
    arrays = tuple(s[:, 0] for s in parts(state))
    return arrays if isinstance(state, tuple) else arrays[0]


@st.composite
def inputs_for(draw, layer):
    """Arguments of a call, and gradients of a loss with respect to its results."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    batched = draw(st.booleans())
    steps, batch = draw(st.integers(0, 20)), draw(st.integers(0, 20)) if batched else 1
    leading = (steps,)
    if batched:
        leading = (batch, steps) if layer.batch_first else (steps, batch)
    x = normal(rng, (*leading, layer.input_size), layer.dtype)
    # Weights are of the size 1/sqrt(H): more inputs than that would saturate h, and 1 - h² cancel.
    x /= max(1, layer.input_size / layer.hidden_size) ** 0.5
    arguments = {"x": x}
    state, d_state = (state_for(layer, batch, rng) for _ in range(2))
    width = parts(state)[0].shape[-1] * (1 + layer.bidirectional)
    gradients = {"d_output": normal(rng, (*leading, width), layer.dtype), "d_state": d_state}
    if draw(st.booleans()):
        arguments["state"] = state
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(0, steps), min_size=batch, max_size=batch))
        arguments["lengths"] = lengths if batched else lengths[0]
    if draw(st.booleans()):
        reset = rng.random((steps, batch)) < draw(st.sampled_from([0.05, 0.5, 1.0]))
        arguments["reset"] = reset if batched else reset[:, 0]
    if not batched:
        for given_to in (arguments, gradients):
            for name in given_to.keys() & {"state", "d_state"}:
                given_to[name] = without_batch(given_to[name])
    for name in gradients:
        if not draw(st.integers(0, 4)):
            gradients[name] = None
    return arguments, gradients


def in_float64(values: dict) -> dict:
    """The floats among arguments in float64, the others as they are."""

    def widen(value):
        if isinstance(value, tuple):
            return tuple(map(widen, value))
        is_floats = isinstance(value, np.ndarray) and value.dtype.kind == "f"
        return value.astype(np.float64) if is_floats else value

    return {name: widen(value) for name, value in values.items()}


def joined(arrays) -> np.ndarray:
    """All numbers of some arrays: the error of one that cancels to nearly 0 is not relative to it.

    Sums of few numbers do, in projections to one number and in gradients of few steps.
    """
    return np.concatenate([np.ravel(a) for a in arrays])


def assert_forward(output, state, want: np.ndarray, tolerance) -> None:
    assert_close(joined([output, *parts(state)]), want, tolerance, "output and state")


@given(data=st.data())
@BOUNDED
def test_layers_match_the_reference(data):
    layer, exact = data.draw(layers())
    arguments, gradients = data.draw(inputs_for(layer))
    with reference_in_use():
        reference = exact.record(**in_float64(arguments))
        want = reference.backward(**in_float64(gradients))
    values = joined([reference.output, *parts(reference.state)])
    forward, backward = (REFERENCE[layer.dtype, which] for which in ("forward", "backward"))
    assert_forward(*layer(**arguments), values, forward)
    for recompute in (False, True):
        tape = layer.record(**arguments, recompute=recompute)
        assert_forward(tape.output, tape.state, values, forward)
        got = tape.backward(**gradients)
        assert got.input.dtype == np.dtype(layer.dtype)
        assert_close(got.input, want.input, backward, "d input")
        assert_close(joined(parts(got.state)), joined(parts(want.state)), backward, "d state")
        assert list(got.parameters) == list(want.parameters)
        assert_close(
            joined(got.parameters.values()), joined(want.parameters.values()), backward, "d weights"
        )
