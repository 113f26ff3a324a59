"""Layers in low precision on the native backend: a row's bits depend on nothing but the row."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import (
    KINDS,
    assert_same_bits,
    assert_same_gradients,
    assert_same_states,
    make,
    normal,
    parts,
)
from subprocesses import results_by_isa
from tolerances import assert_close

import rnnfast
from rnnfast._low_precision import FORMATS, INFERENCE_ONLY

TRAINED = [name for name in FORMATS if name not in INFERENCE_ONLY]
STEPS, BATCH, SIZE, HIDDEN = 9, 4, 13, 21
LENGTHS = np.array([9, 0, 4, 7])


def test_bits_of_a_row(kind, precision, native, rng):
    layer = make(kind, 19, 37, num_layers=2, bidirectional=True, precision=precision)
    x = normal(rng, (6, 13, 19), "f4")
    together = layer(x)[0]
    for row in range(13):
        assert_same_bits(layer(x[:, row : row + 1])[0], together[:, row : row + 1])


def test_bits_of_chunks(kind, precision, native, rng):
    layer = make(kind, 19, 37, num_layers=2, precision=precision)
    x = normal(rng, (300, 3, 19), "f4")
    want, last = layer(x)
    state, pieces = None, []
    for piece in np.split(x, [1, 2, 130]):
        output, state = layer(piece, state)
        pieces.append(output)
    assert_same_bits(np.concatenate(pieces), want)
    assert_same_states(state, last)


def test_bits_of_steps(kind, precision, native, rng):
    layer = make(kind, 19, 37, num_layers=2, precision=precision)
    x = normal(rng, (7, 3, 19), "f4")
    stream = layer.stream(3)
    assert stream.weights == precision
    assert_same_bits(stream.run(x), layer(x)[0])
    assert_same_states(stream.state, layer(x)[1])


def test_bits_of_lengths(kind, precision, native, rng):
    layer = make(kind, SIZE, HIDDEN, num_layers=2, bidirectional=True, precision=precision)
    x = normal(rng, (STEPS, BATCH, SIZE), "f4")
    got = layer(x, lengths=LENGTHS)[0]
    for row, length in enumerate(LENGTHS):
        want = layer(x[:length, row : row + 1])[0]
        assert_same_bits(got[:length, row : row + 1], want)
        assert not got[length:, row].any()


@pytest.mark.parametrize(("steps", "batch"), [(40, 1), (40, 24), (300, 5)])
def test_bits_of_threads(kind, precision, steps, batch, native, keep_threads, rng):
    layer = make(kind, 40, 70, num_layers=2, bidirectional=True, precision=precision)
    x = normal(rng, (steps, batch, 40), "f4")
    rnnfast.set_num_threads(1)
    want = layer(x)
    tape = layer.record(x) if precision in TRAINED else None
    wanted = tape.backward(np.ones_like(tape.output)) if tape else None
    rnnfast.set_num_threads(2)
    for schedule in ("none", "shards", "units", "directions", "layers"):
        native.force_schedule(schedule)
        try:
            got = layer(x)
            tape = layer.record(x) if precision in TRAINED else None
            grads = tape.backward(np.ones_like(tape.output)) if tape else None
        finally:
            native.force_schedule("none")
        assert_same_bits(got[0], want[0], schedule)
        assert_same_states(got[1], want[1])
        if tape:
            assert_same_gradients(grads, wanted)


def test_bits_of_every_isa(native, tmp_path):
    """The same wherever multiply-adds are fused."""
    found = results_by_isa(native, "test_precision_bits", tmp_path)
    first, *_ = found.values()
    assert first
    for isa, arrays in found.items():
        assert arrays.keys() == first.keys()
        for name, array in arrays.items():
            if isa != "generic":
                assert_same_bits(array, first[name], f"{isa} {name}")
            else:
                assert_close(array, first[name], 2e-2, name)


# Ties, the last and the first number that one rounds to, denormals, infinities, NaNs of few bits.
_BITS = """0 1 7fffff 7f8000 800000 807fff 808000 818000 3f807fff 3f808000 3f808001 3f818000
    3fffffff 7f7f7fff 7f7fffff 7f800000 7f800001 7fc00000 7fffffff""".split()
SPECIAL = np.array([int(bits, 16) for bits in _BITS], np.uint32).view(np.float32)


# Those that stay finite, of either sign, in rows of more than two vectors and a part of one.
_FINITE = SPECIAL[np.abs(SPECIAL) < 3.39e38]
ROW = np.resize(np.concatenate([_FINITE, -_FINITE]), 41 * 3)


def nearest(values: np.ndarray) -> np.ndarray:
    """In bfloat16, to nearest even, by float64; denormals are zeros."""
    with np.errstate(over="ignore", invalid="ignore"):
        fraction, exponent = np.frexp(values.astype("f8"))
        found = np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8).astype("f4")
    return np.where(np.abs(values) < np.finfo("f4").tiny, 0, found)


def weighted(weights: np.ndarray, bias: float = 0):
    """A layer of one step that gives the positive of W x + bias."""
    hidden, size = weights.shape
    layer = make("rnn_relu", size, hidden, precision="bfloat16")
    layer.load_state_dict(
        {
            "weight_ih_l0": weights,
            "weight_hh_l0": np.zeros((hidden, hidden), "f4"),
            "bias_ih_l0": np.full(hidden, bias, "f4"),
            "bias_hh_l0": np.zeros(hidden, "f4"),
        }
    )
    return layer


def rounded_specials() -> list[np.ndarray]:
    """What weights and inputs are rounded to, alone and in long rows; NaN as -1."""
    one, eye = np.ones((1, 1), "f4"), np.eye(len(ROW), dtype="f4")
    both = np.concatenate([SPECIAL, -SPECIAL])[:, None]
    found = [
        weighted(both)(one[None])[0],
        weighted(one)(both[None])[0],
        weighted(np.stack([ROW, ROW[::-1]]))(eye[None])[0],
        weighted(eye)(ROW[None, None])[0],
    ]
    return [np.nan_to_num(a[0], nan=-1) for a in found]


def test_what_is_rounded_how(backend):
    """To nearest even; denormals to zeros, NaN to NaN."""
    want = np.nan_to_num(np.maximum(nearest(np.concatenate([SPECIAL, -SPECIAL])), 0), nan=-1)
    row = np.maximum(nearest(ROW), 0)
    of_weight, of_input, of_weights, of_inputs = rounded_specials()
    np.testing.assert_array_equal(of_weight, want[None])
    np.testing.assert_array_equal(of_input, want[:, None])
    np.testing.assert_array_equal(of_weights, np.stack([row, row[::-1]], 1))
    np.testing.assert_array_equal(of_inputs, row[None])


@pytest.mark.parametrize("batch", [1, 2, 3, 40])
def test_what_gradients_are_made_of_is_rounded_how(batch, backend):
    """dW, sums over the rows, each of which has been rounded, at even and at odd places."""
    for place in {0, 1, batch - 1} & set(range(batch)):
        x = np.zeros((1, batch, len(ROW)), "f4")
        x[0, place] = ROW
        tape = weighted(np.zeros((3, len(ROW)), "f4"), bias=1).record(x)
        grads = tape.backward(np.ones_like(tape.output))
        want = np.stack([nearest(ROW)] * 3)
        np.testing.assert_array_equal(grads.parameters["weight_ih_l0"], want)


def results() -> dict[str, np.ndarray]:
    """Outputs and states of all kinds and precisions."""
    arrays = {f"specials {k}": a for k, a in enumerate(rounded_specials())}
    for kind in KINDS:
        for precision in FORMATS:
            for size, hidden, batch in ((17, 33, 1), (4, 70, 13), (35, 150, 1)):
                rng = np.random.default_rng(hidden)
                layer = make(kind, size, hidden, num_layers=2, bidirectional=True)
                layer.precision = precision
                output, state = layer(normal(rng, (6, batch, size), "f4"))
                name = f"{kind} {precision} {hidden}"
                arrays[name] = output
                arrays |= {f"{name} {k}": s for k, s in enumerate(parts(state))}
    return arrays
