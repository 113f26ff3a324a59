"""`rnnfast.functional`: its errors, and memory that is written to while something else is read."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import normal
from tolerances import REFERENCE, assert_close

from rnnfast import functional
from rnnfast._cells import Weights

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 4
ROWS = 4 * HIDDEN


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


@pytest.fixture
def packed(rng) -> functional.Packed:
    shapes = [(ROWS, SIZE), (ROWS, HIDDEN), (ROWS,), (ROWS,)]
    return functional.pack("lstm", *(normal(rng, shape, "float32") for shape in shapes))


W_IH, W_HH, BIAS = zeros(ROWS, SIZE), zeros(ROWS, HIDDEN), zeros(ROWS)
PACKS = [
    (("lstm2", W_IH, W_HH), ValueError, "cell: expected one of rnn_tanh, "),
    ((None, W_IH, W_HH), ValueError, "cell: expected one of rnn_tanh, "),
    (("lstm", W_IH.astype("f2"), W_HH), TypeError, "weight_ih: expected float32 or float64, got f"),
    (("lstm", [[1.0], [1.0, 2.0]], W_HH), TypeError, "weight_ih: expected an array, got list"),
    (("lstm", W_IH[:-1], W_HH), ValueError, "weight_ih: expected G*H = 4*H rows, got 15"),
    (("lstm", W_IH[:0], W_HH), ValueError, "weight_ih: expected G*H = 4*H rows, got 0"),
    (("lstm", BIAS, W_HH), ValueError, "weight_ih: expected shape (G*H, I) = (*, *), got (16,)"),
    (("lstm", W_IH, W_HH.T), ValueError, "weight_hh: expected shape (16, 4), got (4, 16)"),
    (("lstm", W_IH, W_HH.astype("f8")), TypeError, "weight_hh: expected float32, got float64"),
    (("lstm", W_IH, None), TypeError, "weight_hh: expected an array, got None"),
    (("lstm", W_IH, W_HH, BIAS), ValueError, "bias_hh: expected both biases or none, got one"),
    (("lstm", W_IH, W_HH, None, BIAS), ValueError, "bias_hh: expected both biases or none, got"),
    (("lstm", W_IH, W_HH, BIAS, BIAS[1:]), ValueError, "bias_hh: expected shape (16,), got (15,)"),
    (("lstm", W_IH, W_HH, None, None, W_IH[:, 1:]), ValueError, "weight_hr: expected shape (P, H)"),
    (("lstm", W_IH, W_HH, None, None, W_IH[:0]), ValueError, "weight_hr: expected at least one"),
    (("lstm", W_IH, W_HH, None, None, W_IH[:3]), ValueError, "weight_hh: expected shape (16, 3), "),
    (("gru", W_IH[:12], W_HH[:12], None, None, W_IH), ValueError, "weight_hr: expected None for g"),
]


@pytest.mark.parametrize("arguments, error, text", PACKS, ids=[p[2] for p in PACKS])
def test_pack(arguments, error, text):
    with pytest.raises(error) as caught:
        functional.pack(*arguments)
    assert str(caught.value).startswith(text)


X, Y = zeros(STEPS, BATCH, SIZE), zeros(STEPS, BATCH, HIDDEN)
UPON_ITSELF = np.lib.stride_tricks.as_strided(zeros(8), Y.shape, (0, 4, 4))
FORWARDS = [
    ({"x": X[0]}, ValueError, "x: expected shape (T, B, I) = (*, *, 4), got (3, 4)"),
    ({"h0": zeros(2, HIDDEN)}, ValueError, "h0: expected shape (B, W) = (3, 4), got (2, 4)"),
    ({"c0": zeros(BATCH, 5)}, ValueError, "c0: expected shape (B, H) = (3, 4), got (3, 5)"),
    ({"reverse": 1}, TypeError, "reverse: expected a bool, got int"),
    ({"training": None}, TypeError, "training: expected a bool, got NoneType"),
    ({"out": Y.astype("f8")}, TypeError, "out: expected float32, got float64"),
    ({"out": Y[1:]}, ValueError, "out: expected shape (T, B, W) = (5, 3, 4), got (4, 3, 4)"),
    ({"out": Y.tolist()}, TypeError, "out: expected float32, got float64"),
    ({"out": np.asfortranarray(Y)}, ValueError, "out: expected a writable array with unit stride"),
    ({"out": Y[::-1]}, ValueError, "out: expected a writable array with unit stride"),
    ({"out": np.broadcast_to(Y[:1], Y.shape)}, ValueError, "out: expected a writable array with "),
    (
        {"out": UPON_ITSELF},
        ValueError,
        "out: expected rows one after the other in memory, got others",
    ),
    ({"packed": None}, TypeError, "packed: expected what pack returns, got NoneType"),
]


@pytest.mark.parametrize("changed, error, text", FORWARDS, ids=[f[2] for f in FORWARDS])
def test_forward(changed, error, text, packed):
    with pytest.raises(error) as caught:
        functional.forward(**{"packed": packed, "x": X, **changed})
    assert str(caught.value).startswith(text)


BACKWARDS = [
    ({"dy": Y[1:]}, ValueError, "dy: expected shape (T, B, W) = (5, 3, 4), got (4, 3, 4)"),
    ({"dh": zeros(BATCH, 5)}, ValueError, "dh: expected shape (B, W) = (3, 4), got (3, 5)"),
    ({"dc": zeros(BATCH, 4, dtype="f8")}, TypeError, "dc: expected float32, got float64"),
    ({"want_dx": 0}, TypeError, "want_dx: expected a bool, got int"),
    ({"into": (W_IH, W_HH, BIAS, BIAS, None)}, TypeError, "into: expected Weights, got tuple"),
    ({"weight_ih": W_IH.astype("f8")}, TypeError, "into.weight_ih: expected float32, got float64"),
    ({"weight_ih": W_IH[:, :3]}, ValueError, "into.weight_ih: expected shape (16, 4), got (16, 3)"),
    ({"weight_hh": zeros(ROWS, 8)[:, ::2]}, ValueError, "into.weight_hh: expected a writable cont"),
    ({"weight_hh": zeros(ROWS, 8)[:, :4]}, ValueError, "into.weight_hh: expected a writable conti"),
    ({"bias_ih": np.broadcast_to(BIAS, ROWS)}, ValueError, "into.bias_ih: expected a writable co"),
    ({"bias_ih": None}, TypeError, "into.bias_ih: expected an array, got None"),
    ({"weight_hr": W_IH}, ValueError, "into.weight_hr: expected None for such a layer, got an "),
]


@pytest.mark.parametrize("changed, error, text", BACKWARDS, ids=[b[2] for b in BACKWARDS])
def test_backward(changed, error, text, packed):
    run = functional.forward(packed, X, training=True)
    into = functional.zero_weights(packed)
    if changed.keys() <= set(Weights._fields):
        changed = {"into": into._replace(**changed)}
    with pytest.raises(error) as caught:
        run.backward(**{"dy": np.ones_like(Y), **changed})
    assert str(caught.value).startswith(text)
    assert not any(w.any() for w in into if w is not None), "computed all the same"


def test_a_cell_without_c_has_none():
    packed = functional.pack("gru", zeros(12, SIZE), zeros(12, HIDDEN))
    c = zeros(BATCH, HIDDEN)
    with pytest.raises(ValueError, match=r"^c0: expected None for gru, got an array"):
        functional.forward(packed, X, c0=c)
    run = functional.forward(packed, X, training=True)
    with pytest.raises(ValueError, match=r"^dc: expected None for gru, got an array"):
        run.backward(dc=c)
    with pytest.raises(ValueError, match=r"^into.bias_ih: expected None for such a layer, got"):
        run.backward(into=functional.zero_weights(packed)._replace(bias_ih=zeros(12)))


def test_backward_needs_training(packed):
    with pytest.raises(RuntimeError, match=r"^backward: expected a pass run with training=True"):
        functional.forward(packed, X).backward()


def views(first_width, second_width, offset):
    """Two views of one array (T, B, ·), the second `offset` elements after the first."""
    whole = zeros(STEPS, BATCH, 3 * (SIZE + HIDDEN))
    return whole[..., :first_width], whole[..., offset : offset + second_width]


@pytest.mark.parametrize("offset", range(SIZE + 2))
def test_out_beside_and_upon_x(offset, packed, rng):
    x, out = views(SIZE, HIDDEN, offset)
    x[...] = normal(rng, x.shape, "float32")
    want = functional.forward(packed, x.copy()).y
    if offset < SIZE:
        before = x.copy()
        with pytest.raises(ValueError, match=r"^out: expected memory apart from x, got an overlap"):
            functional.forward(packed, x, out=out)
        np.testing.assert_array_equal(x, before)
    else:
        assert functional.forward(packed, x, out=out).y is out
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("name", ["h0", "c0"])
def test_out_upon_a_state(name, packed):
    out = zeros(STEPS + 1, BATCH, HIDDEN)
    functional.forward(packed, X, **{name: out[0]}, out=out[1:])
    for step in (1, STEPS):
        text = rf"^out: expected memory apart from {name}, got an overlap"
        with pytest.raises(ValueError, match=text):
            functional.forward(packed, X, **{name: out[step]}, out=out[1:])


def test_gradients_upon_one_another_or_what_is_read(packed, rng):
    x = normal(rng, (ROWS, 1, SIZE), "float32")
    out = normal(rng, (ROWS, 1, HIDDEN), "float32")
    h0 = normal(rng, (1, ROWS), "float32")
    dy = normal(rng, (ROWS, 1, HIDDEN), "float32")
    run = functional.forward(packed, x, h0[:, :HIDDEN], out=out, training=True)
    into = functional.zero_weights(packed)
    both = zeros(ROWS + 1)
    wrong = {
        "x": {"weight_ih": x[:, 0]},
        "y": {"weight_hh": out[:, 0]},
        "h0": {"bias_ih": h0[0]},
        "dy": {"weight_hh": dy[:, 0]},
        "into.bias_ih": {"bias_ih": both[1:], "bias_hh": both[:-1]},
    }
    for other, changed in wrong.items():
        name = list(changed)[-1]
        text = rf"^into.{name}: expected memory apart from {other}, got an overlap"
        with pytest.raises(ValueError, match=text):
            run.backward(dy, into=into._replace(**changed))
    whole = zeros(2 * ROWS)  # two halves are apart
    halves = into._replace(bias_ih=whole[:ROWS], bias_hh=whole[ROWS:])
    got, want = run.backward(dy, into=halves).weights, run.backward(dy).weights
    for name, gradient in want._asdict().items():
        if gradient is not None:
            assert_close(getattr(got, name), gradient, REFERENCE["float32", "backward"], name)


def test_packs_and_runs_are_equal_to_themselves_alone(packed, rng):
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    runs = [functional.forward(packed, x, training=True) for _ in range(2)]
    assert packed == packed and runs[0] == runs[0] and runs[0] != runs[1]
    assert len({packed, *runs}) == 3


def test_pack_takes_views(rng):
    """A slice of a larger array is not contiguous, though its rows have unit stride."""
    wide = normal(rng, (ROWS + 2, SIZE + HIDDEN + 2), "float32")
    w_ih, w_hh = wide[1:-1, 1 : 1 + SIZE], wide[1:-1, 1 + SIZE : -1]
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    got = functional.forward(functional.pack("lstm", w_ih, w_hh), x)
    want = functional.forward(functional.pack("lstm", w_ih.copy(), w_hh.copy()), x)
    np.testing.assert_array_equal(got.y, want.y)
