"""Errors: class and text of every wrong argument, and that nothing has changed after one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from oracle import make, normal

import rnnfast

STEPS, BATCH, SIZE, HIDDEN = 4, 3, 5, 6


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


X = zeros(STEPS, BATCH, SIZE)
H = zeros(2, BATCH, HIDDEN)


class NoDtype:
    """Like a tensor, whose dtype NumPy does not know."""

    @property
    def dtype(self):
        raise ValueError("none that NumPy has")


# arguments of a 1-layer bidirectional LSTM(5, 6), error, text
CALLS = {
    "x float64": ((X.astype("f8"),), {}, TypeError, "x: expected float32, got float64"),
    "x float16": ((X.astype("f2"),), {}, TypeError, "x: expected float32, got float16"),
    "x int": ((X.astype("i4"),), {}, TypeError, "x: expected float32, got int32"),
    "x complex": ((X.astype("c8"),), {}, TypeError, "x: expected float32, got complex64"),
    "x object": ((X.astype("O"),), {}, TypeError, "x: expected float32, got object"),
    "x text": ((X.astype("U1"),), {}, TypeError, "x: expected float32, got <U1"),
    "x bool": ((X.astype("?"),), {}, TypeError, "x: expected float32, got bool"),
    "x ragged": (([[1.0], [1.0, 2.0]],), {}, TypeError, "x: expected an array, got list: "),
    "x masked": (
        (np.ma.masked_array(X, np.ones_like(X, bool)),),
        {},
        TypeError,
        "x: expected an array without masked values, got a masked array",
    ),
    "x size": (
        (zeros(STEPS, BATCH, 7),),
        {},
        ValueError,
        "x: expected shape (T, B, I) = (*, *, 5), got (4, 3, 7)",
    ),
    "x unbatched size": (
        (zeros(STEPS, 7),),
        {},
        ValueError,
        "x: expected shape (T, I) = (*, 5), got (4, 7)",
    ),
    "x axes": (
        (zeros(SIZE),),
        {},
        ValueError,
        "x: expected shape (T, B, I) or (T, I), got (5,)",
    ),
    "state alone": ((X, H), {}, TypeError, "state: expected a pair (h, c), got ndarray"),
    "state of one": ((X, (H,)), {}, ValueError, "state: expected a pair (h, c), got 1 entries"),
    "state h": (
        (X, (zeros(1, BATCH, HIDDEN), H)),
        {},
        ValueError,
        "state[0]: expected shape (L*D, B, H) = (2, 3, 6), got (1, 3, 6)",
    ),
    "state c dtype": ((X, (H, H.astype("f8"))), {}, TypeError, "state[1]: expected float32, got "),
    "state c None": ((X, (H, None)), {}, TypeError, "state[1]: expected an array, got None"),
    "x None": ((None,), {}, TypeError, "x: expected an array, got None"),
    "x a word": (("a",), {}, TypeError, "x: expected float32, got <U1"),
    "x a number": ((1.0,), {}, TypeError, "x: expected float32, got float64"),
    "x axes and dtype": ((np.zeros(SIZE),), {}, TypeError, "x: expected float32, got float64"),
    "state unbatched": (
        (X[:, 0], (H, H)),
        {},
        ValueError,
        "state[0]: expected shape (L*D, H) = (2, 6), got (2, 3, 6)",
    ),
    "lengths dtype": (
        (X,),
        {"lengths": [1.0, 2.0, 3.0]},
        TypeError,
        "lengths: expected integers, got float64",
    ),
    "lengths bool": (
        (X,),
        {"lengths": [True, False, True]},
        TypeError,
        "lengths: expected integers, got bool",
    ),
    "lengths shape": (
        (X,),
        {"lengths": [1, 2]},
        ValueError,
        "lengths: expected shape (B,) = (3,), got (2,)",
    ),
    "lengths above": (
        (X,),
        {"lengths": [1, 2, 5]},
        ValueError,
        "lengths: expected values in 0..T = 0..4, got 5",
    ),
    "lengths below": (
        (X,),
        {"lengths": [1, -2, 4]},
        ValueError,
        "lengths: expected values in 0..T = 0..4, got -2",
    ),
    "lengths huge": (
        (X,),
        {"lengths": np.array([1, 2, 2**64 - 1], np.uint64)},
        ValueError,
        "lengths: expected values in 0..T = 0..4, got 18446744073709551615",
    ),
    "reset dtype": (
        (X,),
        {"reset": zeros(STEPS, BATCH)},
        TypeError,
        "reset: expected bool, got float32",
    ),
    "reset shape": (
        (X,),
        {"reset": zeros(BATCH, STEPS, dtype=bool)},
        ValueError,
        "reset: expected shape (T, B) = (4, 3), got (3, 4)",
    ),
    "reset unbatched": (
        (X[:, 0],),
        {"reset": zeros(STEPS, 1, dtype=bool)},
        ValueError,
        "reset: expected shape (T,) = (4,), got (4, 1)",
    ),
}


@pytest.mark.parametrize("how", ["call", "record", "recompute"])
@pytest.mark.parametrize("name", CALLS)
def test_wrong_arguments_of_a_call(name, how, monkeypatch):
    arguments, options, error, text = CALLS[name]
    layer = make("lstm", SIZE, HIDDEN, bidirectional=True)
    monkeypatch.setattr(layer, "_packs", lambda: pytest.fail("reached the backend"))
    with pytest.raises(error) as caught:
        if how == "call":
            layer(*arguments, **options)
        else:
            layer.record(*arguments, **options, recompute=how == "recompute")
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    "name, bidirectional",
    [
        *((name, True) for name in CALLS),
        *((name, False) for name in CALLS if not name.startswith("state")),  # theirs is of two
    ],
)
def test_wrong_arguments_once_weights_are_packed(name, bidirectional):
    """The compiled module sees them first then, and the errors are the same."""
    arguments, options, error, text = CALLS[name]
    layer = make("lstm", SIZE, HIDDEN, bidirectional=bidirectional)
    layer(X)
    for call in (layer, layer.record):
        with pytest.raises(error) as caught:
            call(*arguments, **options)
        assert str(caught.value).startswith(text)


def test_text_follows_the_layout():
    first = make("gru", SIZE, HIDDEN, batch_first=True)
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, I\) = \(\*, \*, 5\)"):
        first(zeros(BATCH, STEPS, 7))
    with pytest.raises(ValueError, match=r"x: expected shape \(B, T, I\) or \(T, I\), got \(5,\)"):
        first(zeros(SIZE))
    tape = first.record(zeros(BATCH, STEPS, SIZE))
    with pytest.raises(ValueError, match=r"d_output: expected shape \(B, T, D\*W\) = \(3, 4, 6\)"):
        tape.backward(zeros(STEPS, BATCH, HIDDEN))
    projected = make("lstm_projected", SIZE, HIDDEN)
    with pytest.raises(
        ValueError, match=r"state\[0\]: expected shape \(L\*D, B, P\) = \(1, 3, 3\)"
    ):
        projected(X, (zeros(1, BATCH, HIDDEN), zeros(1, BATCH, HIDDEN)))


@pytest.mark.parametrize(
    "bad", [{"lengths": [9, 9, 9]}, {"state": zeros(9, 9, 9)}, {"reset": zeros(1, 1, dtype=bool)}]
)
def test_a_refused_record_draws_no_dropout(bad, rng):
    layer, same = (make("gru", SIZE, HIDDEN, num_layers=2, dropout=0.5) for _ in range(2))
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    with pytest.raises(ValueError):
        layer.record(x, **bad)
    np.testing.assert_array_equal(layer.record(x).output, same.record(x).output)


CONSTRUCTORS = [
    (lambda: rnnfast.RNN(-1, 2), ValueError, "input_size: expected at least 0, got -1"),
    (lambda: rnnfast.RNN(1, 0), ValueError, "hidden_size: expected at least 1, got 0"),
    (lambda: rnnfast.RNN(1.0, 2), TypeError, "input_size: expected an integer, got float"),
    (lambda: rnnfast.RNN(1, True), TypeError, "hidden_size: expected an integer, got bool"),
    (lambda: rnnfast.RNN(1, 2, 0), ValueError, "num_layers: expected at least 1, got 0"),
    (
        lambda: rnnfast.RNN(1, 2, 1, "gelu"),
        ValueError,
        "nonlinearity: expected one of tanh, relu, got 'gelu'",
    ),
    (lambda: rnnfast.RNN(1, 2, bias=1), TypeError, "bias: expected a bool, got int"),
    (lambda: rnnfast.GRU(1, 2, batch_first=None), TypeError, "batch_first: expected a bool, got "),
    (lambda: rnnfast.GRU(1, 2, bidirectional="no"), TypeError, "bidirectional: expected a bool"),
    (lambda: rnnfast.GRU(1, 2, reset_after=0), TypeError, "reset_after: expected a bool, got int"),
    (
        lambda: rnnfast.GRU(1, 2, 2, dropout=1.5),
        ValueError,
        "dropout: expected a probability in 0..1, got 1.5",
    ),
    (lambda: rnnfast.GRU(1, 2, 2, dropout=float("nan")), ValueError, "dropout: expected a prob"),
    (
        lambda: rnnfast.GRU(1, 2, 2, dropout=10**400),
        ValueError,
        "dropout: expected a probability in",
    ),
    (
        lambda: rnnfast.RNN(1, 2, 2**70),
        ValueError,
        "num_layers: expected 65536 or less, got 118059162",
    ),
    (lambda: rnnfast.GRU(1, 2, 2, dropout=True), TypeError, "dropout: expected a number, got bool"),
    (lambda: rnnfast.GRU(1, 2, 2, dropout="1"), TypeError, "dropout: expected a number, got str"),
    (lambda: rnnfast.LSTM(1, 2, proj_size=2), ValueError, "proj_size: expected less than 2, got 2"),
    (lambda: rnnfast.LSTM(1, 2, proj_size=-1), ValueError, "proj_size: expected at least 0, got"),
    (
        lambda: rnnfast.LSTM(1, 2, dtype="float16"),
        TypeError,
        "dtype: expected float32 or float64, got 'float16'",
    ),
    (lambda: rnnfast.LSTM(1, 2, dtype=None), TypeError, "dtype: expected float32 or float64, got"),
    (
        lambda: rnnfast.LSTM(1, 2, dtype=NoDtype()),
        TypeError,
        "dtype: expected float32 or float64, go",
    ),
    (lambda: rnnfast.LSTM(1, 2, dtype="nonsense"), TypeError, "dtype: expected float32 or float64"),
    (lambda: rnnfast.LSTM(1, 2, seed=-1), ValueError, "seed: expected at least 0, got -1"),
    (lambda: rnnfast.LSTM(1, 2, seed="x"), TypeError, "seed: expected an integer, got str"),
    (lambda: rnnfast.LSTM(1, 2**62), ValueError, "weight_ih_l0: expected a size that fits in"),
    (lambda: rnnfast.LSTM(10**30, 2), ValueError, "weight_ih_l0: expected a size that fits in"),
    (lambda: rnnfast.RNNCell(1, 0), ValueError, "hidden_size: expected at least 1, got 0"),
    (lambda: rnnfast.RNNCell(1, 2, True, "x"), ValueError, "nonlinearity: expected one of tanh"),
    (lambda: rnnfast.GRUCell(1, 2, bias=None), TypeError, "bias: expected a bool, got NoneType"),
    (lambda: rnnfast.LSTMCell(1, 2, dtype=int), TypeError, "dtype: expected float32 or float64"),
]


@pytest.mark.parametrize("construct, error, text", CONSTRUCTORS, ids=[c[2] for c in CONSTRUCTORS])
def test_wrong_arguments_of_a_constructor(construct, error, text):
    with pytest.raises(error) as caught:
        construct()
    assert str(caught.value).startswith(text)


def test_sizes_beyond_memory_are_memory_errors():
    with pytest.raises(MemoryError):
        rnnfast.RNN(1, 2**29)


@pytest.mark.parametrize("dtype", ["float64", np.float64, np.dtype("float64"), float])
def test_dtype_in_any_notation(dtype):
    layer = rnnfast.GRU(np.int64(2), np.int32(3), dtype=dtype)
    assert layer.dtype == "float64"
    assert layer.parameters["weight_ih_l0"].dtype == np.float64


def test_options_are_read_only():
    layer = rnnfast.LSTM(2, 3)
    for name in ("input_size", "hidden_size", "num_layers", "bidirectional", "proj_size", "dtype"):
        with pytest.raises(AttributeError):
            setattr(layer, name, 1)


def test_dropout_without_effect_warns():
    with pytest.warns(
        UserWarning, match=r"dropout: expected num_layers above 1 .* got dropout=0.5"
    ):
        rnnfast.GRU(2, 3, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rnnfast.GRU(2, 3, 2, dropout=0.5)
        rnnfast.GRU(2, 3)


def test_flags_of_methods():
    layer = rnnfast.GRU(SIZE, HIDDEN)
    with pytest.raises(TypeError, match="recompute: expected a bool, got int"):
        layer.record(X, recompute=1)
    tape = layer.record(X)
    with pytest.raises(TypeError, match="retain: expected a bool, got int"):
        tape.backward(retain=1)
    with pytest.raises(TypeError, match="strict: expected a bool, got int"):
        layer.load_state_dict({}, strict=1)
