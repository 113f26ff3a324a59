"""Streams: step by step what the layer gives for the whole sequence, and the state between."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys
import threading
from contextlib import suppress
from pathlib import Path

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
from subprocesses import python
from tolerances import REFERENCE, assert_close

import rnnfast
from rnnfast import _backend
from rnnfast._cells import DTYPES

STEPS, BATCH, SIZE, HIDDEN = 7, 3, 4, 5
SIZES = [(4, 5), (1, 16), (17, 33)]  # I and H below, at and off a multiple of the vector width


def assert_equal(got, want) -> None:
    """In bits on the native backend; elsewhere products of other sizes sum in other orders."""
    if _backend.current().name == "native":
        assert_same_bits(got, want)
    else:
        assert_close(got, want, REFERENCE[want.dtype.name, "forward"])


def stepped(stream, x) -> np.ndarray:
    return np.stack([stream.step(x_t) for x_t in x])


def run(stream, x) -> np.ndarray:
    return stream.run(x)


def check(kind, batch, dtype, num_layers, bias) -> None:
    """Steps and runs of every size, from a state and from none, against the layer."""
    for input_size, hidden in SIZES:
        rng = np.random.default_rng(hidden)
        layer = make(kind, input_size, hidden, num_layers=num_layers, dtype=dtype, bias=bias)
        x, state = normal(rng, (STEPS, batch, input_size), dtype), state_for(layer, batch, rng)
        output, last = layer(x, state)
        stream = layer.stream(batch)
        for advance in (stepped, run):
            stream.state = state
            assert_equal(advance(stream, x), output)
            for got, want in zip(parts(stream.state), parts(last), strict=True):
                assert_equal(got, want)
            stream.reset()
            assert_equal(advance(stream, x), layer(x)[0])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_sequence(kind, batch, dtype, num_layers, bias):
    check(kind, batch, dtype, num_layers, bias)


def check_all() -> None:
    """For a process with an ISA forced."""
    for kind, batch, dtype, bias in itertools.product(KINDS, (1, 3), DTYPES, (True, False)):
        check(kind, batch, dtype, 2, bias)


def test_steps_are_the_sequence_on_every_isa(native):
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\nimport test_streams; test_streams.check_all()"
    for isa in native.supported_isas():
        done = python(code, RNNFAST_ISA=isa, RNNFAST_BACKEND="native")
        assert done.returncode == 0, f"{isa}: {done.stderr}"


def test_large_steps(rng):
    """With more work than keeps the GIL, and more rows than a tile of the kernels."""
    layer = make("lstm", 200, 130, num_layers=2)
    x = normal(rng, (3, 37, 200), "float32")
    assert_equal(stepped(layer.stream(37), x), layer(x)[0])


def test_an_input_of_no_features(rng):
    layer = make("gru", 0, HIDDEN)
    x = np.zeros((STEPS, BATCH, 0), "float32")
    assert_equal(stepped(layer.stream(BATCH), x), layer(x)[0])


@pytest.fixture
def layer():
    return make("lstm_projected", SIZE, HIDDEN, num_layers=2)


@pytest.fixture
def x(rng):
    return normal(rng, (STEPS, BATCH, SIZE), "float32")


def test_the_axis_of_a_batch_of_one_is_optional(layer, x, rng):
    x, state = np.ascontiguousarray(x[:, :1]), state_for(layer, 1, rng)
    output, last = layer(x, state)
    bare = tuple(s[:, 0] for s in state)
    for given in (state, bare, list(bare)):
        for sequence, want in ((x, output), (x[:, 0], output[:, 0])):
            for advance in (stepped, run):
                stream = layer.stream()
                stream.state = given
                assert_equal(advance(stream, sequence), want)
                assert [s.shape for s in stream.state] == [s.shape for s in last]
    gru = make("gru", SIZE, HIDDEN, num_layers=2)
    stream = gru.stream()
    state = state_for(gru, 1, rng)
    for given in (state, state[:, 0], list(state)):
        stream.reset()
        stream.state = given
        np.testing.assert_array_equal(stream.state, state)


class Given:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


@pytest.mark.parametrize("form", [np.ndarray.tolist, Given])
def test_a_state_without_b_is_what_the_layer_takes(form, rng):
    layer = make("gru", SIZE, HIDDEN, dtype="float64")
    x, state = rng.standard_normal((STEPS, SIZE)), rng.standard_normal((1, HIDDEN))
    stream = layer.stream()
    stream.state = form(state)
    assert_equal(stream.run(x), layer(x, form(state))[0])
    with pytest.raises(TypeError, match="state: expected an array, got list"):
        stream.state = [[1.0], [2.0, 3.0]]


def test_the_state_cannot_be_deleted(backend):
    stream = make("lstm", SIZE, HIDDEN).stream()
    with pytest.raises(AttributeError, match="state: cannot be deleted; None sets zeros"):
        del stream.state


def test_batch_first_does_not_matter(x):
    layer = make("gru", SIZE, HIDDEN, batch_first=True)
    output = layer(np.ascontiguousarray(x.swapaxes(0, 1)))[0]
    for advance in (stepped, run):
        assert_equal(advance(layer.stream(BATCH), x), np.ascontiguousarray(output.swapaxes(0, 1)))


def test_a_run_of_no_steps(layer, x):
    stream = layer.stream(BATCH)
    stream.step(x[0])
    before = stream.state
    assert stream.run(x[:0]).shape == (0, BATCH, 3)
    assert_same_states(stream.state, before)


def test_the_state_is_copied_both_ways(layer, x, rng):
    stream, given = layer.stream(BATCH), state_for(layer, BATCH, rng)
    before = copy.deepcopy(given)
    stream.state = given
    for got in (*given, *stream.state):
        got[...] = 9
    assert_same_states(stream.state, before)
    stream.step(x[0])
    stream.reset()
    assert not any(s.any() for s in stream.state)
    stream.state = before
    assert any(s.any() for s in stream.state)
    stream.state = None
    assert not any(s.any() for s in stream.state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rows", [None, [], [1], [2, 0, 2], 1, np.uint8([2]), [True, False, True], np.zeros(3, bool)]
)
def test_reset_of_rows_is_that_of_the_layer(kind, rows, x):
    layer = make(kind, SIZE, HIDDEN, num_layers=2)
    stream = layer.stream(BATCH)
    reset = np.zeros((STEPS, BATCH), bool)
    reset[3, slice(None) if rows is None else rows] = True
    first = stepped(stream, x[:3])
    stream.reset(rows)
    got = np.concatenate([first, stepped(stream, x[3:])])
    assert_equal(got, layer(x, reset=reset)[0])


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_copies_go_on_by_themselves(duplicate, layer, x):
    stream = layer.stream(BATCH)
    output, _ = layer(x)
    stepped(stream, x[:3])
    fork = duplicate(stream)
    assert type(fork) is type(stream) and fork is not stream
    other = x[::-1] * np.float32(2)
    middle = stream.state
    assert_equal(stepped(fork, x[3:]), output[3:])
    want = fork.state
    assert_same_states(stream.state, middle)
    stepped(stream, other)
    stream.reset()
    assert_same_states(fork.state, want)
    del stream
    fork.state = middle
    assert_equal(stepped(fork, x[3:]), output[3:])


@pytest.mark.parametrize("name", _backend.BACKENDS)
def test_a_pickle_opens_on_the_backend_in_use(name, layer, x):
    stream = layer.stream(BATCH)
    output, _ = layer(x)
    stepped(stream, x[:3])
    for protocol in (2, pickle.HIGHEST_PROTOCOL):
        with_its_state = pickle.dumps(stream, protocol)
        before = _backend.current().name
        try:
            use_or_skip(name)
            opened = pickle.loads(with_its_state)
            got = stepped(opened, x[3:])
        finally:
            _backend.use(before)
        assert_close(got, output[3:], REFERENCE["float32", "forward"])
        assert repr(opened) == repr(stream)
        again = pickle.loads(pickle.dumps(opened))
        assert_same_states(again.state, opened.state)


@pytest.mark.parametrize("name", _backend.BACKENDS)
def test_a_stream_keeps_its_backend(name, layer, x, keep_backend):
    use_or_skip(name)
    output, _ = layer(x)
    stream = layer.stream(BATCH)
    assert type(stream).__module__ == ("rnnfast.stream" if name == "native" else "rnnfast._streams")
    got = stepped(stream, x[:3])
    _backend.use("numpy")
    got = np.concatenate([got, stepped(copy.copy(stream), x[3:])])
    _backend.use(name)
    assert_equal(got, output)


def test_weights_are_a_snapshot(layer, x):
    output, _ = layer(x)
    with layer.parameters.edit() as parameters:
        stream = layer.stream(BATCH)
        for name in parameters:
            parameters[name] *= 2
    changed = layer(x)[0]
    assert_equal(stepped(stream, x), output)
    assert_equal(stepped(layer.stream(BATCH), x), changed)
    fork, pickled = copy.copy(stream), pickle.dumps(stream)
    layer.parameters["bias_hh_l1"] = np.ones(4 * HIDDEN, "f4")
    del layer
    for same in (stream, fork, pickle.loads(pickled), pickle.loads(pickle.dumps(stream))):
        same.reset()
        assert_equal(stepped(same, x), output)


def test_attributes():
    layer = rnnfast.LSTM(SIZE, HIDDEN, 2, proj_size=3, dropout=0.5, dtype="float64", seed=0)
    stream = layer.stream(batch_size=2, weights="float64")
    sizes = stream.batch_size, stream.input_size, stream.output_size
    assert sizes == (2, SIZE, 3) and all(type(size) is int for size in sizes)
    assert stream.dtype == stream.weights == layer.dtype
    assert repr(stream) == f"Stream({layer!r}, batch_size=2)"
    for name in ("batch_size", "dtype", "unknown"):
        with pytest.raises(AttributeError):
            setattr(stream, name, 1)


def test_dropout_is_for_training_only(x):
    layer = make("gru", SIZE, HIDDEN, num_layers=2, dropout=0.5)
    assert_equal(stepped(layer.stream(BATCH), x), layer(x)[0])


CALLS = {
    "step": lambda stream, x: stream.step(x[0]),
    "run": lambda stream, x: stream.run(x[:1]),
    "state": lambda stream, x: stream.state,
    "set state": lambda stream, x: setattr(stream, "state", None),
    "reset": lambda stream, x: stream.reset(),
    "copy": lambda stream, x: copy.copy(stream),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_call_at_a_time(name):
    layer = make("lstm", 64, 64, num_layers=2)
    x = np.ones((2000, 64), np.float32)
    stream = layer.stream()

    def long_call():
        with suppress(RuntimeError):  # the other one came first
            stream.run(x)

    def refused() -> bool:
        thread = threading.Thread(target=long_call)
        thread.start()
        while thread.is_alive():
            try:
                CALLS[name](stream, x)
            except RuntimeError as error:
                assert str(error) == "stream: expected one call at a time, got one during another"
                thread.join()
                return True
        return False

    assert any(refused() for _ in range(20))
    stream.reset()
    assert_equal(stream.run(x[:5]), layer(x[:5])[0])


def test_a_stream_asks_once_which_backend_is_in_use(native, monkeypatch, rng):
    compiled = _backend.current()
    rnnfast.set_backend("numpy")
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    other = make("lstm", SIZE, HIDDEN).stream(BATCH)
    answers = iter([_backend.current()])
    monkeypatch.setattr(_backend, "current", lambda: next(answers, compiled))
    stream = other._form.open()
    monkeypatch.undo()
    assert type(stream) is type(other)
    assert_same_bits(stream.run(x), other.run(x))
