"""`precision`: where it can be given, what it changes and keeps, and how it is saved."""

from __future__ import annotations

import copy
import enum
import pickle
import threading

import numpy as np
import pytest
from files import assert_same_module, joined, saved, split
from oracle import (
    KINDS,
    assert_same_bits,
    assert_same_gradients,
    assert_same_states,
    make,
    normal,
    parts,
    state_for,
)

import rnnfast
from rnnfast import _module, functional
from rnnfast._low_precision import FORMATS

CELLS = {
    "rnn_tanh": (rnnfast.RNNCell, {}),
    "rnn_relu": (rnnfast.RNNCell, {"nonlinearity": "relu"}),
    "lstm": (rnnfast.LSTMCell, {}),
    "gru": (rnnfast.GRUCell, {}),
    "gru_reset_before": (rnnfast.GRUCell, {"reset_after": False}),
}
CLASSES = [rnnfast.RNN, rnnfast.GRU, rnnfast.LSTM]
CLASSES += [rnnfast.RNNCell, rnnfast.GRUCell, rnnfast.LSTMCell]


@pytest.mark.parametrize("constructor", CLASSES)
def test_names(constructor, precision, dtype):
    assert constructor(2, 3, dtype=dtype).precision == dtype
    assert constructor(2, 3, dtype=dtype, precision=dtype).precision == dtype
    name = constructor.__name__
    layer = constructor(2, 3, precision=precision)
    assert layer.precision == precision and layer.dtype == "float32"
    assert repr(layer) == f"{name}(2, 3, precision='{precision}')"
    assert repr(constructor(2, 3, precision="float32")) == f"{name}(2, 3)"


@pytest.mark.parametrize("kind", KINDS)
def test_it_may_be_changed(backend, kind, precision, rng):
    """As if the layer had been made so; its parameters stay, and it can be changed back."""
    layer, x = make(kind, num_layers=2), normal(rng, (6, 3, 4), "f4")
    before, want = layer.state_dict(), layer(x)[0]
    layer.precision = precision
    got = layer(x)[0]
    assert not np.array_equal(got, want)
    assert_same_bits(got, make(kind, num_layers=2, precision=precision)(x)[0])
    for name, array in layer.state_dict().items():
        assert_same_bits(array, before[name])
    with layer.parameters.edit() as parameters:
        for array in parameters.values():
            array *= 0.5
    assert not np.array_equal(layer(x)[0], got)
    layer.load_state_dict(before)
    assert_same_bits(layer(x)[0], got)
    layer.precision = None
    assert layer.precision == "float32"
    assert_same_bits(layer(x)[0], want)


def test_it_may_be_changed_while_another_thread_packs(backend, monkeypatch, rng):
    """The pack that is being made is used for that call, and for none that comes after."""
    layer, x = make("gru", precision="bfloat16"), normal(rng, (3, 2, 4), "f4")
    want = {name: make("gru", precision=name)(x)[0] for name in FORMATS}
    threads = []

    def pack_while_it_changes(*arguments):
        def change() -> None:
            layer.precision = "int8"

        if not threads:
            threads.append(threading.Thread(target=change))
            threads[0].start()
            threads[0].join(0.2)
        return functional.pack_checked(*arguments)

    monkeypatch.setattr(_module, "pack_checked", pack_while_it_changes)
    assert_same_bits(layer(x)[0], want["bfloat16"])
    threads[0].join()
    assert_same_bits(layer(x)[0], want["int8"])


def test_it_may_be_changed_after_record_has_checked_it(backend, monkeypatch, rng):
    """By another thread: an error, and the same one."""
    layer, x = make("gru"), normal(rng, (6, 3, 4), "f4")
    check = layer._check_trains

    def check_before_a_change():
        check()
        layer.precision = "int8"

    monkeypatch.setattr(layer, "_check_trains", check_before_a_change)
    with pytest.raises(ValueError, match=r"precision: expected one of float32, .*, got 'int8'"):
        layer.record(x)


def test_tapes_and_streams_keep_theirs(backend, rng):
    layer, x = make("gru"), normal(rng, (6, 3, 4), "f4")
    layer.precision = "bfloat16"
    d_output = np.ones((6, 3, 5), np.float32)
    want = layer.record(x).backward(d_output)
    tape, stream = layer.record(x), layer.stream(3)
    output = layer.stream(3).run(x)
    layer.precision = "int8"
    assert_same_gradients(tape.backward(d_output), want)
    assert stream.weights == "bfloat16"
    assert_same_bits(stream.run(x), output)


def test_training_lowers_a_loss(backend, rng):
    """Gradients in bfloat16 move parameters in float32, by steps below what bfloat16 can tell."""
    layer = rnnfast.LSTM(3, 8, precision="bfloat16", seed=0)
    x = normal(rng, (12, 16, 3), "f4")
    want = np.cumsum(x.mean(-1, keepdims=True), 0).repeat(8, -1) / 8
    losses = []
    for _ in range(60):
        tape = layer.record(x)
        error = tape.output - want
        losses.append(float((error**2).mean()))
        grads = tape.backward(2 * error / error.size)
        with layer.parameters.edit() as parameters:
            for name, gradient in grads.parameters.items():
                parameters[name] -= 2 * gradient
    assert all(later < earlier for earlier, later in zip(losses, losses[5::5], strict=False))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_functions_are_the_layers(backend, kind, precision, rng):
    layer = make(kind, precision=precision)
    x, state = normal(rng, (6, 3, 4), "f4"), state_for(layer, 3, rng)
    weights = {name.removesuffix("_l0"): a for name, a in layer.parameters.items()}
    packed = functional.pack(layer._cell.name, **weights, precision=precision)
    run = functional.forward(packed, x, *(s[0] for s in parts(state)))
    assert_same_bits(run.y, layer(x, state)[0])


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_a_layer_of_one_step(backend, cell, precision, rng):
    constructor, options = CELLS[cell]
    one = constructor(4, 5, precision=precision, seed=3, **options)
    layer = make(cell, precision=precision)
    layer.load_state_dict({f"{name}_l0": a for name, a in one.parameters.items()})
    x, state = normal(rng, (3, 4), "f4"), state_for(layer, 3, rng)
    first = tuple(s[0] for s in parts(state))
    given = first if len(first) > 1 else first[0]
    want = layer(x[None], state)[1]
    for got, last in zip(parts(one(x, given)), parts(want), strict=True):
        assert_same_bits(got, last[0])
    if precision == "bfloat16":
        d_output = normal(rng, (3, 5), "f4")
        got = one.record(x, given).backward(d_output)
        wanted = layer.record(x[None], state).backward(d_output[None])
        assert_same_bits(got.input, wanted.input[0])
        for name, gradient in got.parameters.items():
            assert_same_bits(gradient, wanted.parameters[f"{name}_l0"], name)


class TestStreams:
    def test_have_the_layers(self, backend, precision, rng):
        layer = make("lstm_projected", num_layers=2, precision=precision)
        x = normal(rng, (6, 3, 4), "f4")
        stream = layer.stream(3)
        assert stream.weights == precision
        text = repr(layer).replace(f", precision='{precision}'", "")
        assert repr(stream) == f'Stream({text}, batch_size=3, weights="{precision}")'
        if backend == "native":
            assert_same_bits(stream.run(x), layer(x)[0])
        else:
            np.testing.assert_allclose(stream.run(x), layer(x)[0], rtol=1e-4, atol=1e-5)

    def test_may_have_another(self, backend, precision, rng):
        layer, x = make("gru", precision=precision), normal(rng, (6, 3, 4), "f4")
        exact = make("gru")
        for weights in ("float32", *FORMATS):
            stream = layer.stream(3, weights)
            assert stream.weights == weights
            assert_same_bits(stream.run(x), exact.stream(3, weights).run(x))


class TestCopies:
    @pytest.mark.parametrize("kind", KINDS)
    def test_have_it(self, backend, kind, precision, tmp_path, rng):
        layer = make(kind, num_layers=2, bidirectional=True, precision=precision)
        x = normal(rng, (6, 3, 4), "f4")
        want = layer(x)
        path = tmp_path / "layer"
        layer.save(path)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), rnnfast.load(path)):
            assert_same_module(other, layer)
            assert repr(other) == repr(layer) and other.precision == precision
            output, state = other(x)
            assert_same_bits(output, want[0])
            assert_same_states(state, want[1])

    def test_a_file_tells_it_where_it_is_not_the_dtype(self, precision, tmp_path, dtype):
        layer = rnnfast.GRUCell(2, 3, precision=precision)
        header, data = split(saved(layer, tmp_path))
        assert header["__metadata__"]["precision"] == precision
        assert {entry["dtype"] for name, entry in header.items() if name[0] != "_"} == {"F32"}
        plain = rnnfast.GRUCell(2, 3, dtype=dtype, precision=dtype)
        assert "precision" not in split(saved(plain, tmp_path))[0]["__metadata__"]
        header["__metadata__"]["precision"] = "float32"
        path = tmp_path / "written by hand"
        path.write_bytes(joined(header, data))
        assert repr(rnnfast.load(path)) == "GRUCell(2, 3)"


def test_a_precision_may_be_a_subclass_of_str():
    class Precision(str, enum.Enum):
        INT8 = "int8"

    for given in (np.str_("int8"), Precision.INT8):
        kept = make("lstm", 4, 5).stream(weights=given)
        layer = make("lstm", 4, 5, precision=given)
        for stream in (kept, layer.stream()):
            assert type(stream.weights) is str and stream.weights == "int8"
        assert repr(layer) == repr(make("lstm", 4, 5, precision="int8"))
