"""Layers in bfloat16 and int8 against a model in float64 that rounds what they round."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import (
    KINDS,
    assert_same_bits,
    assert_same_gradients,
    assert_same_states,
    first_steps_from_zeros,
    make,
    normal,
    parts,
    state_for,
)
from precision_model import Model
from tolerances import assert_close

from rnnfast import _backend, functional
from rnnfast._low_precision import FORMATS, INFERENCE_ONLY

TRAINED = [name for name in FORMATS if name not in INFERENCE_ONLY]
STEPS, BATCH, SIZE, HIDDEN = 9, 4, 13, 21
LENGTHS = np.array([9, 0, 4, 7])
# Where float32 ends up on the other side of a tie, one operand is 4e-3 off in bfloat16, 1e-2 in
# int8: up to 4e-4 of a gradient here. An operand that is not rounded at all makes 1.5e-3 or more.
CLOSE = 8e-4

# Of gradients against those of float32. A unit of relu near 0 has all of its gradient or none.
FROM_FLOAT32 = dict.fromkeys(KINDS, 2e-2) | {"rnn_relu": 1e-1}

OPTIONS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "batch_first": True},
}


def cuts(rng) -> np.ndarray:
    return rng.random((STEPS, BATCH)) < 0.2


def ragged(options, rng) -> dict:
    """Lengths and resets, for one of the options."""
    return {"lengths": LENGTHS, "reset": cuts(rng)} if "num_layers" in options else {}


def gradients_of(tape, d_output, d_state, **options) -> dict[str, np.ndarray]:
    """As `Model.backward` gives them."""
    got = tape.backward(d_output, tuple(d_state) if len(d_state) > 1 else d_state[0], **options)
    states = {f"state {k}": s for k, s in enumerate(parts(got.state))}
    return {"x": got.input, **states, **got.parameters}


@pytest.mark.parametrize("options", OPTIONS)
def test_outputs_are_the_models(backend, kind, precision, options, rng):
    layer = make(kind, SIZE, HIDDEN, precision=precision, **OPTIONS[options])
    x, state = normal(rng, (STEPS, BATCH, SIZE), "f4"), state_for(layer, BATCH, rng)
    given = ragged(OPTIONS[options], rng)
    want = Model(kind, layer, x, parts(state), **given)
    if layer.batch_first:
        x = x.swapaxes(0, 1)
    output, last = layer(x, state, **given)
    assert_close(output.swapaxes(0, 1) if layer.batch_first else output, want.output, CLOSE)
    for got, exact in zip(parts(last), want.state, strict=True):
        assert_close(got, exact, CLOSE)


@pytest.mark.parametrize("precision", TRAINED)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_gradients_are_the_models(backend, kind, precision, options, recompute, rng):
    layer = make(kind, SIZE, HIDDEN, precision=precision, **OPTIONS[options])
    x, state = normal(rng, (STEPS, BATCH, SIZE), "f4"), state_for(layer, BATCH, rng)
    given = ragged(OPTIONS[options], rng)
    model = Model(kind, layer, x, parts(state), **given)
    d_output = normal(rng, model.output.shape, "f4")
    d_state = [normal(rng, s.shape, "f4") for s in model.state]
    first = layer.batch_first
    tape = layer.record(x.swapaxes(0, 1) if first else x, state, recompute=recompute, **given)
    got = gradients_of(tape, d_output.swapaxes(0, 1) if first else d_output, d_state)
    if first:
        got["x"] = got["x"].swapaxes(0, 1)
    want = model.backward(d_output, d_state)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == np.float32
        assert_close(got[name], array, CLOSE, name)


@pytest.mark.parametrize("precision", TRAINED)
def test_gradients_of_many_rows(kind, precision, native, rng):
    """More than a tile has of rows, units and inputs, and than are summed at a time."""
    layer = make(kind, 70, 75, precision=precision)
    x, state = normal(rng, (30, 37, 70), "f4"), state_for(layer, 37, rng)
    model = Model(kind, layer, x, parts(state))
    d_output = normal(rng, model.output.shape, "f4")
    d_state = [normal(rng, s.shape, "f4") for s in model.state]
    got = gradients_of(layer.record(x, state), d_output, d_state)
    limit = CLOSE if kind != "rnn_relu" else FROM_FLOAT32[kind]  # whose gradients have jumps
    for name, array in model.backward(d_output, d_state).items():
        assert_close(got[name], array, limit, name)


@pytest.mark.parametrize("precision", ["float32", *TRAINED])
def test_no_steps_have_no_gradients(kind, precision, native, rng):
    layer = make(kind, 20, 40, precision=precision)
    x = normal(rng, (5, 3, 20), "f4")
    for lengths in ([5, 5, 5], [0, 0, 0]):  # the second finds the memory of the first
        tape = layer.record(x, lengths=np.array(lengths))
        grads = tape.backward(np.ones_like(tape.output))
        found = [grads.input, *grads.parameters.values()]
        assert all(bool(np.any(a)) == bool(lengths[0]) for a in found)
        for array in found:
            array[...] = np.nan
        del array, found, grads, tape


@pytest.mark.parametrize("precision", TRAINED)
def test_ties_go_to_even(backend, precision, rng):
    """Integers of 9 bits, half of which lie between two of 8; sums of them are exact."""
    layer = make("rnn_relu", 6, 5, bias=False, precision=precision)

    def integers(*shape):
        return rng.integers(257, 512, shape).astype("f4")

    layer.parameters["weight_ih_l0"] = integers(5, 6)
    x, d_output = integers(1, 3, 6), integers(1, 3, 5)
    model = Model("rnn_relu", layer, x, [np.zeros((1, 3, 5))])
    tape = layer.record(x)
    got, want = tape.backward(d_output), model.backward(d_output, [0])
    np.testing.assert_array_equal(tape.output, model.output)
    np.testing.assert_array_equal(got.input, want["x"])
    weight_ih = got.parameters["weight_ih_l0"]
    np.testing.assert_array_equal(weight_ih, want["weight_ih_l0"])


def test_what_is_not_batched(backend, kind, precision, rng):
    layer = make(kind, SIZE, HIDDEN, precision=precision)
    x, state = normal(rng, (STEPS, 1, SIZE), "f4"), state_for(layer, 1, rng)
    row = tuple(s[:, 0] for s in parts(state))
    output, last = layer(x[:, 0], row if len(row) > 1 else row[0])
    want = layer(x, state)
    assert_same_bits(output, want[0][:, 0])
    for got, batched in zip(parts(last), parts(want[1]), strict=True):
        assert_same_bits(got, batched[:, 0])


def test_errors_over_a_thousand_steps(kind, precision, rng):
    # Of 3 outputs, the projection of other kinds of tests, some seeds make all but nothing.
    projection = {"proj_size": 48} if kind == "lstm_projected" else {}
    layer = make(kind, 40, 96, num_layers=2, bidirectional=True, **projection)
    x = normal(rng, (1000, 1, 40), "f4")
    want = layer(x)[0]
    layer.precision = precision
    error = np.linalg.norm(layer(x)[0] - want) / np.linalg.norm(want)
    assert 1e-4 < error <= {"bfloat16": 2e-2, "int8": 5e-2}[precision]


@pytest.mark.parametrize("precision", TRAINED)
def test_errors_of_gradients(kind, precision, rng):
    projection = {"proj_size": 24} if kind == "lstm_projected" else {}
    layer = make(kind, 20, 48, num_layers=2, **projection)
    x = normal(rng, (60, 8, 20), "f4")
    tape = layer.record(x)
    d_output = normal(rng, tape.output.shape, "f4")
    want = tape.backward(d_output)
    layer.precision = precision
    got = layer.record(x).backward(d_output)
    assert_close(got.input, want.input, FROM_FLOAT32[kind])
    for name, gradient in got.parameters.items():
        assert not np.array_equal(gradient, want.parameters[name])
        assert_close(gradient, want.parameters[name], FROM_FLOAT32[kind], name)


@pytest.mark.parametrize("precision", TRAINED)
def test_dropout(backend, kind, precision, rng):
    """The masks are those of float32, and what is not dropped is scaled before it is rounded."""
    x = normal(rng, (STEPS, BATCH, SIZE), "f4")
    tapes = [
        make(kind, SIZE, HIDDEN, num_layers=2, dropout=p, precision=precision).record(x)
        for p in (0.4, 0.4, 0.0, 1.0)
    ]
    d_output = normal(rng, tapes[0].output.shape, "f4")
    first, second, none, every = (tape.backward(d_output) for tape in tapes)
    assert_same_gradients(first, second)
    assert not np.array_equal(first.input, none.input)
    assert not every.input.any() and not every.parameters["weight_ih_l1"].any()
    exact = make(kind, SIZE, HIDDEN, num_layers=2, dropout=0.4).record(x)
    assert_close(tapes[0].output, exact.output, 2e-2)
    assert_close(first.input, exact.backward(d_output).input, FROM_FLOAT32[kind])


@pytest.mark.parametrize("poison", [None, np.nan, np.inf, 3.4e38])
@pytest.mark.parametrize("row", [0, -1])
def test_first_step_from_zeros(backend, kind, precision, row, poison, rng):
    """Its product with R is left out where that is zeros, but not where rounded R makes it NaN."""
    layer = make(kind, 3, 19, bidirectional=True, precision=precision)
    first_steps = first_steps_from_zeros(layer, row, poison, rng)
    infinite = poison is not None and (poison != 3.4e38 or precision == "bfloat16")
    assert all(np.isnan(step).any() == infinite for step in first_steps)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "state"])
def test_what_is_not_finite_stays_in_its_row(backend, kind, precision, bad, where, rng):
    layer = make(kind, SIZE, HIDDEN, num_layers=2, precision=precision)
    x, state = normal(rng, (STEPS, BATCH, SIZE), "f4"), state_for(layer, BATCH, rng)
    others = [0, 1, 3]

    def results():
        output, last = layer(x, state)
        found = [output, *parts(last)]
        if precision in TRAINED:
            tape = layer.record(x, state)
            gradients = tape.backward(np.ones_like(output))
            found += [gradients.input, *parts(gradients.state)]
        return found

    want = results()
    if where == "x":
        x[3, 2, 5] = bad
    else:
        parts(state)[0][0, 2, 1] = bad
    got = results()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a[:, others], b[:, others])
    if (np.isnan(bad) and kind != "rnn_relu") or precision == "int8":
        assert np.isnan(got[0][4:, 2]).all()
    else:
        assert not np.array_equal(got[0][4:, 2], want[0][4:, 2])


@pytest.mark.parametrize(("steps", "batch", "size"), [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)])
def test_sizes_of_zero(backend, kind, precision, steps, batch, size, rng):
    layer = make(kind, size, 6, num_layers=2, bidirectional=True, precision=precision)
    x, state = normal(rng, (steps, batch, size), "f4"), state_for(layer, batch, rng)
    output, last = layer(x, state)
    assert output.shape[:2] == (steps, batch) and np.isfinite(output).all()
    if not steps:
        assert_same_states(last, state)
    if precision in TRAINED:
        got = layer.record(x, state).backward(np.ones_like(output))
        assert got.input.shape == x.shape
        assert all(np.isfinite(g).all() for g in got.parameters.values())


@pytest.mark.parametrize("hidden, projection", [(5, 40), (16, 17), (64, 128)])
@pytest.mark.parametrize("steps, batch", [(2, 1), (10, 16), (3, 40)])
def test_projections_wider_than_the_units(precision, hidden, projection, steps, batch, native, rng):
    """Which layers refuse, as torch does, but `functional` takes."""
    shapes = [(4, 4), (4, projection), (4,), (4,)]
    shapes = [(hidden * rows, *rest) for rows, *rest in shapes] + [(projection, hidden)]
    weights = [normal(rng, shape, "float32") * np.float32(0.2) for shape in shapes]
    x, dy = (normal(rng, (steps, batch, n), "float32") for n in (4, projection))
    trains = precision in TRAINED
    found = []
    for backend in ("native", "numpy"):
        _backend.use(backend)
        packed = functional.pack("lstm", *weights, precision=precision)
        run = functional.forward(packed, x, training=trains)
        gradients = run.backward(dy) if trains else None
        found.append([run.y, run.h, run.c])
        if gradients is not None:
            found[-1] += [gradients.x, gradients.h0, gradients.c0, *gradients.weights]
    for got, want in zip(*found, strict=True):
        assert_close(got, want, 5 * CLOSE)  # few numbers, some beside ties
