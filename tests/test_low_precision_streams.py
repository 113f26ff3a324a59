"""Streams with weights in bfloat16 and int8: what is rounded, and nothing besides."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from oracle import (
    KINDS,
    assert_same_bits,
    assert_same_states,
    make,
    normal,
    parts,
    state_for,
    use_or_skip,
)
from subprocesses import results_by_isa
from tolerances import assert_close

import rnnfast
from rnnfast import _backend
from rnnfast._low_precision import FORMATS

F = np.float32
# I and H below, at and off multiples of the vector width; odd, and no multiple of 4.
SIZES = [(4, 5), (1, 16), (17, 33), (0, 7), (35, 70), (35, 150)]
# Of these a step rounds numbers that it has computed, which an error of 1e-7 may take elsewhere.
ROUNDED_WITHIN = ("lstm_projected", "gru_reset_before")


def bfloat16(a) -> np.ndarray:
    """To nearest even in 8 bits, by a float64 that float32's bits are not looked at for."""
    fraction, exponent = np.frexp(a.astype("f8"))
    return np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8).astype(F)


def quantised(a) -> tuple[np.ndarray, np.ndarray]:
    """Integers in -127..127, and the unit of each row, (N, 1)."""
    unit = np.abs(a).max(-1, keepdims=True, initial=0) / F(127)
    inverse = np.divide(F(1), unit, where=unit > 0, out=np.zeros_like(unit))
    return np.rint(a * inverse).astype(int), unit


def added(sums, rows, matrix, weights) -> np.ndarray:
    """sums + rows matrix^T, as the kernels round it: bit by bit."""
    if weights == "int8":
        (a, unit_a), (b, unit_b) = quantised(rows), quantised(matrix)
        return sums + unit_b.T * (a @ b.T).astype(F) * unit_a
    a, b = bfloat16(rows), bfloat16(matrix)
    products = [a[:, k, None] * b[:, k] for k in range(a.shape[1])]  # which are exact
    if _backend.current().name == "native" and rnnfast.show_config()["amx"]:
        for first in range(0, len(products), 32):
            even, odd = (sum(products[first + i : first + 32 : 2], F(0)) for i in (0, 1))
            sums = sums + (even + odd)
        return sums
    for k in range(0, len(products), 2):
        for product in reversed(products[k : k + 2]):
            sums = sums + product
    return sums


def sigmoid(a):
    return 1 / (1 + np.exp(-a.astype("f8")))


def tanh(a):
    return np.tanh(a.astype("f8"))


def model(kind, layer, x, state, weights) -> list[np.ndarray]:
    """One step of one layer: the new h, and c."""
    p = {name.removesuffix("_l0"): a for name, a in layer.parameters.items()}
    h, *rest = (s[0] for s in parts(state))
    both = p["bias_ih"] + p["bias_hh"]
    if kind.startswith("gru"):
        size = h.shape[1]
        (wr, wz, wn), (rr, rz, rn) = (np.split(p[f"weight_{n}"], 3) for n in ("ih", "hh"))
        br, bz, bn = (both[k * size : (k + 1) * size] for k in range(3))

        def of_both(bias, w, r):
            return added(added(np.tile(bias, (len(x), 1)), x, w, weights), h, r, weights)

        r, z = sigmoid(of_both(br, wr, rr)), sigmoid(of_both(bz, wz, rz))
        start = np.zeros_like(h)
        if kind == "gru":
            n_x = added(start + p["bias_ih"][2 * size :], x, wn, weights)
            n = tanh(n_x + r * added(start + p["bias_hh"][2 * size :], h, rn, weights))
        else:
            n_x = added(start + bn, x, wn, weights)
            n = tanh(added(n_x, (r * h).astype(F), rn, weights))
        return [(1 - z) * n + z * h]
    a = added(np.tile(both, (len(x), 1)), x, p["weight_ih"], weights)
    a = added(a, h, p["weight_hh"], weights)
    if kind.startswith("rnn"):
        return [np.maximum(a, F(0)) if kind == "rnn_relu" else tanh(a)]
    i, f, g, o = np.split(a, 4, axis=1)
    c = sigmoid(f) * rest[0] + sigmoid(i) * tanh(g)
    h = sigmoid(o) * np.tanh(c)
    if "weight_hr" in p:
        h = added(F(0), h.astype(F), p["weight_hr"], weights)
    return [h, c]


@pytest.fixture(params=FORMATS)
def weights(request):
    return request.param


@pytest.mark.parametrize("batch", [1, 3, 11])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_rounds_what_the_model_does(kind, size, batch, weights, rng):
    layer = make(kind, *size)
    x, state = normal(rng, (batch, size[0]), "f4"), state_for(layer, batch, rng)
    want = model(kind, layer, x, state, weights)
    stream = layer.stream(batch, weights)
    stream.state = state
    y = stream.step(x)
    assert_same_bits(parts(stream.state)[0][0], y)
    if kind == "rnn_relu" and _backend.current().name == "native":
        assert_same_bits(y, want[0])
    for got, exact in zip(parts(stream.state), want, strict=True):
        assert_close(got[0], exact, 5e-3 if kind in ROUNDED_WITHIN else 1e-6)


def results() -> dict[str, np.ndarray]:
    """Outputs and last states of all cells, formats and sizes, of batches and stacks."""
    arrays = {}
    for kind in KINDS:
        for weights in FORMATS:
            for input_size, hidden in SIZES:
                rng = np.random.default_rng(hidden)
                layer = make(kind, input_size, hidden, num_layers=2)
                for batch in (1, 13):
                    stream = layer.stream(batch, weights)
                    stream.state = state_for(layer, batch, rng)
                    name = f"{kind} {weights} {hidden} {batch}"
                    arrays[name] = stream.run(normal(rng, (5, batch, input_size), "f4"))
                    for k, state in enumerate(parts(stream.state)):
                        arrays[f"{name} {k}"] = state
    return arrays


def test_bits_are_those_of_every_isa(native, tmp_path):
    """Products have the same bits everywhere; equations, wherever multiply-adds are fused."""
    found = results_by_isa(native, "test_low_precision_streams", tmp_path)
    first, *_ = found.values()
    assert first
    for isa, arrays in found.items():
        assert arrays.keys() == first.keys()
        for name, array in arrays.items():
            if isa != "generic" or name.startswith("rnn_relu"):
                assert_same_bits(array, first[name])
            else:
                assert_close(array, first[name], 2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind, weights, native, rng):
    layer = make(kind, 19, 37, num_layers=2)
    x = normal(rng, (6, 13, 19), "f4")
    together = layer.stream(13, weights).run(x)
    for row in range(13):
        alone = layer.stream(1, weights)
        got = np.stack([alone.step(x_t) for x_t in np.ascontiguousarray(x[:, row])])
        assert_same_bits(got, together[:, row])


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_is_its_layers_one_by_one(kind, weights, native, rng):
    layer = make(kind, 9, 18, num_layers=2)
    x = normal(rng, (6, 3, 9), "f4")
    want = x
    for k in range(2):
        one = make(kind, want.shape[2], 18)
        own = {n: p for n, p in layer.parameters.items() if n.endswith(f"l{k}")}
        one.load_state_dict({n.replace(f"l{k}", "l0"): p for n, p in own.items()})
        want = one.stream(3, weights).run(want)
    assert_same_bits(layer.stream(3, weights).run(x), want)


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_over_a_thousand_steps(kind, weights, rng):
    # Of 3 outputs, the projection of other kinds of tests, some seeds make all but nothing.
    projection = {"proj_size": 48} if kind == "lstm_projected" else {}
    layer = make(kind, 40, 96, num_layers=2, **projection)
    x = normal(rng, (1000, 40), "f4")
    got, want = layer.stream(1, weights).run(x), layer(x)[0]
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert 1e-4 < error <= {"bfloat16": 2e-2, "int8": 5e-2}[weights]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "h"])
def test_what_is_not_finite_stays_in_its_row(kind, weights, bad, where, rng):
    layer = make(kind, 20, 21)
    x, state = normal(rng, (3, 20), "f4"), state_for(layer, 3, rng)
    stream = layer.stream(3, weights)
    stream.state = state
    want = stream.step(x)
    (x if where == "x" else parts(state)[0][0])[1, 2] = bad
    stream.state = state
    got = stream.step(x)
    np.testing.assert_array_equal(got[[0, 2]], want[[0, 2]])
    if weights == "int8" or np.isnan(bad):
        assert np.isnan(got[1]).all()
    else:
        assert not np.array_equal(got[1], want[1])


def test_a_weight_that_is_not_finite_stays_in_its_unit(weights, rng):
    layer = make("rnn_tanh", 6, 9)
    x = normal(rng, (2, 6), "f4")
    want = layer.stream(2, weights).step(x)
    with layer.parameters.edit() as p:
        p["weight_ih_l0"][4, 1] = np.nan
    got = layer.stream(2, weights).step(x)
    assert np.isnan(got[:, 4]).all()
    np.testing.assert_array_equal(np.delete(got, 4, 1), np.delete(want, 4, 1))


@pytest.mark.parametrize("size", [0, 1e-37, 1e-40])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_makes_the_biases_alone(kind, weights, size, rng):
    layer = make(kind, 6, 9)
    got = layer.stream(1, weights).step(np.full(6, size, F))
    want = layer.stream(1).step(np.zeros(6, F))
    if "projected" not in kind:
        assert_close(got, want, 1e-6)
    assert np.isfinite(got).all()
    with layer.parameters.edit() as parameters:
        for array in parameters.values():
            array[...] = 0
    assert not layer.stream(1, weights).step(np.ones(6, F)).any()


@pytest.mark.parametrize(("cell", "hidden"), [("lstm", 256), ("gru", 512), ("rnn_tanh", 256)])
def test_bytes(cell, hidden, weights, native):
    layer = make(cell, hidden, hidden)
    ratio = layer.stream(1, weights).nbytes / layer.stream(1).nbytes
    assert 0.2 < ratio <= {"bfloat16": 0.52, "int8": 0.27}[weights]
    pickled = len(pickle.dumps(layer.stream(1, weights))) / len(pickle.dumps(layer.stream(1)))
    assert pickled <= {"bfloat16": 0.52, "int8": 0.27}[weights]


@pytest.mark.parametrize("name", _backend.BACKENDS)
def test_other_backends_compute_the_same(name, weights, keep_backend, rng):
    for kind in KINDS:
        layer = make(kind, 9, 18, num_layers=2)
        x = normal(rng, (4, 3, 9), "f4")
        want = layer.stream(3, weights).run(x)
        use_or_skip(name)
        stream = layer.stream(3, weights)
        assert stream.weights == weights and stream.nbytes > 0
        assert_close(stream.run(x), want, 1e-2)


def test_copies_pickles_states_and_resets(weights, rng):
    layer = make("lstm_projected", 6, 9, num_layers=2)
    x = normal(rng, (8, 3, 6), "f4")
    stream = layer.stream(3, weights)
    assert repr(stream) == f'Stream({layer!r}, batch_size=3, weights="{weights}")'
    want = stream.run(x)
    stream.reset()
    stream.run(x[:5])
    state = stream.state
    others = [copy.copy(stream), copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))]
    for other in others:
        assert other.weights == weights and repr(other) == repr(stream)
        assert_same_bits(other.run(x[5:]), want[5:])
    assert_same_states(stream.state, state)
    stream.reset([1])
    assert not any(s[:, 1].any() for s in stream.state)
    stream.state = state
    assert_same_bits(np.stack([stream.step(x_t) for x_t in x[5:]]), want[5:])


def test_it_prints_its_own_precision_once(weights):
    """Whether the layer has the same, another or none."""
    plain = make("lstm", 4, 5)
    for precision in (None, *FORMATS):
        layer = make("lstm", 4, 5, precision=precision)
        in_format = f'Stream({plain!r}, batch_size=2, weights="{weights}")'
        assert repr(layer.stream(2, weights)) == in_format
        assert repr(layer.stream(2, "float32")) == f"Stream({plain!r}, batch_size=2)"
    layer.precision = weights
    assert repr(layer.stream(2)) == in_format


def test_x_and_out_may_share_memory(weights, rng):
    layer = make("gru", 8, 8)
    x = normal(rng, (3, 8), "f4")
    want = layer.stream(3, weights).step(x)
    assert_same_bits(layer.stream(3, weights).step(x, out=x), want)


@pytest.mark.parametrize(
    ("dtype", "given", "choices"),
    [
        ("float64", "int8", "float64"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float32, bfloat16, int8"),
        ("float32", "int4", "float32, bfloat16, int8"),
    ],
)
def test_formats_that_are_none(dtype, given, choices):
    layer = rnnfast.GRU(2, 3, dtype=dtype)
    with pytest.raises(ValueError) as error:
        layer.stream(weights=given)
    assert str(error.value) == f"weights: expected one of {choices}, got {given!r}"


def test_int8_of_more_than_32_bits_can_sum():
    layer = rnnfast.RNN(131073, 1)
    layer.stream(weights="bfloat16")
    with pytest.raises(ValueError) as error:
        layer.stream(weights="int8")
    assert str(error.value) == ("input_size: expected 131072 or less with int8 weights, got 131073")


def test_the_largest_sums_of_int8(native):
    """131072 products of 127 and -127 are all but 2^31."""
    layer = rnnfast.RNN(131072, 1, nonlinearity="relu", bias=False)
    with layer.parameters.edit() as parameters:
        parameters["weight_ih_l0"][...] = 1
    for sign in (1, -1):
        with layer.parameters.edit() as parameters:
            parameters["weight_ih_l0"][...] = sign
        y = layer.stream(weights="int8").step(np.full(131072, sign, F))
        assert_close(y, np.array([131072], F), 1e-6)
