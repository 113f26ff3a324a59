"""What is no precision, or cannot be computed in one, fails before anything is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from files import joined, saved, split
from oracle import assert_same_bits, make, normal

import rnnfast
from rnnfast import functional

CLASSES = [rnnfast.RNN, rnnfast.GRU, rnnfast.LSTM]
CLASSES += [rnnfast.RNNCell, rnnfast.GRUCell, rnnfast.LSTMCell]


@pytest.mark.parametrize("constructor", CLASSES)
@pytest.mark.parametrize(
    ("dtype", "given", "choices"),
    [
        ("float64", "bfloat16", "float64"),
        ("float64", "float32", "float64"),
        ("float32", "float64", "float32, bfloat16, int8"),
        ("float32", "int4", "float32, bfloat16, int8"),
        ("float32", 8, "float32, bfloat16, int8"),
        ("float32", np.dtype("int8"), "float32, bfloat16, int8"),
    ],
)
def test_what_is_no_precision(constructor, dtype, given, choices):
    want = f"precision: expected one of {choices}, got {given!r}"
    with pytest.raises(ValueError) as error:
        constructor(2, 3, dtype=dtype, precision=given)
    assert str(error.value) == want
    layer = constructor(2, 3, dtype=dtype)
    with pytest.raises(ValueError) as error:
        layer.precision = given
    assert str(error.value) == want and layer.precision == dtype


def test_functions_take_what_layers_take():
    weights = np.zeros((3, 2), "f8"), np.zeros((3, 3), "f8")
    functional.pack("rnn_tanh", *weights, precision="float64")
    with pytest.raises(ValueError) as error:
        functional.pack("rnn_tanh", *weights, precision="bfloat16")
    assert str(error.value) == "precision: expected one of float64, got 'bfloat16'"


class TestInt8HasNoBackwardPass:
    WANT = "precision: expected one of float32, bfloat16 for training, got 'int8'"

    @pytest.mark.parametrize("make_one", [rnnfast.GRU, rnnfast.LSTMCell])
    def test_of_layers_and_cells(self, backend, make_one, rng):
        layer = make_one(4, 5, precision="int8")
        x = normal(rng, (3, 4), "f4")
        layer(x)  # packed
        for given in (x, "nothing that could be computed with"):
            with pytest.raises(ValueError) as error:
                layer.record(given)
            assert str(error.value) == self.WANT

    def test_leaves_dropout_alone(self, backend, rng):
        layer = make("gru", num_layers=2, dropout=0.5)
        x = normal(rng, (3, 2, 4), "f4")
        want = make("gru", num_layers=2, dropout=0.5).record(x).output
        layer.precision = "int8"
        with pytest.raises(ValueError):
            layer.record(x)
        layer.precision = "float32"
        assert_same_bits(layer.record(x).output, want)

    def test_of_functions(self, backend, rng):
        weights = normal(rng, (15, 4), "f4"), normal(rng, (15, 5), "f4")
        packed = functional.pack("gru", *weights, precision="int8")
        with pytest.raises(ValueError) as error:
            functional.forward(packed, normal(rng, (2, 3, 4), "f4"), training=True)
        assert str(error.value) == "training: expected False with int8 weights, got True"


def test_sums_of_int8_fit():
    with pytest.raises(ValueError) as error:
        rnnfast.RNN(131073, 1, precision="int8")
    assert str(error.value) == "input_size: expected 131072 or less with int8 weights, got 131073"
    layer = rnnfast.RNN(131073, 1, precision="bfloat16")
    with pytest.raises(ValueError, match="input_size"):
        layer.precision = "int8"
    assert layer.precision == "bfloat16"
    weights = np.zeros((1, 131073), np.float32), np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError) as error:
        functional.pack("rnn_relu", *weights, precision="int8")
    assert str(error.value) == "I: expected 131072 or less with int8 weights, got 131073"
    wide = {"proj_size": 65537, "num_layers": 2, "bidirectional": True, "bias": False}
    with pytest.raises(ValueError) as error:
        rnnfast.LSTM(0, 131072, **wide, precision="int8")
    want = "2 * proj_size: expected 131072 or less with int8 weights, got 131074"
    assert str(error.value) == want


@pytest.mark.parametrize("given", ["int4", "float64", "", "null", "[" * 100_000])
def test_a_file_with_a_wrong_one(given, tmp_path):
    header, data = split(saved(make("gru"), tmp_path))
    header["__metadata__"]["precision"] = given
    path = tmp_path / "wrong"
    path.write_bytes(joined(json.dumps(header), data))
    with pytest.raises(ValueError) as error:
        rnnfast.load(path)
    shown = repr(given) if len(given) < 100 else repr(given)[:100] + "..."
    want = f"{path}: precision: expected one of float32, bfloat16, int8, got {shown}"
    assert str(error.value) == want
