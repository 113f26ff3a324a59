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


def rounded(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The products of one weight each, (N, H), as the kernels round weights (H,) and x (N,)."""
    layer = make("rnn_relu", 1, len(weights), bias=False, precision="bfloat16")
    layer.load_state_dict(
        {"weight_ih_l0": weights[:, None], "weight_hh_l0": np.zeros([len(weights)] * 2, "f4")}
    )
    return layer(x[None, :, None])[0][0]


def rounded_specials() -> np.ndarray:
    one = np.ones(1, "f4")
    both = np.concatenate([SPECIAL, -SPECIAL])
    return np.nan_to_num(np.stack([rounded(both, one)[0], rounded(one, both)[:, 0]]), nan=-1)


def test_what_is_rounded_how(backend):
    """To nearest even; denormals to zeros, NaN to NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        fraction, exponent = np.frexp(SPECIAL.astype("f8"))
        want = np.ldexp(np.rint(np.ldexp(fraction, 8)), exponent - 8).astype("f4")
    want[np.abs(SPECIAL) < np.finfo("f4").tiny] = 0
    want = np.nan_to_num(want, nan=-1)
    of_negative = np.where(want == -1, -1, 0)  # relu's
    both = np.concatenate([want, of_negative])
    np.testing.assert_array_equal(rounded_specials(), np.stack([both, both]))


def results() -> dict[str, np.ndarray]:
    """Outputs and states of all kinds and precisions."""
    arrays = {"rnn_relu specials": rounded_specials()}
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
