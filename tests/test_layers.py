"""Layers: forward in every layout and option, against compositions of functional calls."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
from oracle import (
    KINDS,
    assert_same_gradients,
    assert_same_states,
    by_hand,
    make,
    normal,
    parts,
    state_for,
)
from tolerances import REFERENCE, assert_close

import rnnfast

STEPS, BATCH, SIZE = 7, 3, 4
LENGTHS = [4, 0, 7]


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_stack_is_composed_of_single_layers(kind, num_layers, bidirectional, dtype, rng):
    layer = make(kind, num_layers=num_layers, bidirectional=bidirectional, dtype=dtype)
    x, state = normal(rng, (STEPS, BATCH, SIZE), dtype), state_for(layer, BATCH, rng)
    reset = rng.random((STEPS, BATCH)) < 0.3
    output, last = layer(x, state, lengths=LENGTHS, reset=reset)
    want, want_last = by_hand(layer, x, state, np.array(LENGTHS), reset)
    tolerance = REFERENCE[dtype, "forward"]
    assert_close(output, want, tolerance, "output")
    for got, state_want in zip(parts(last), want_last, strict=True):
        assert_close(got, state_want, tolerance, "state")
    assert output.dtype == np.dtype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first_moves_axes_only(kind, rng):
    layer = make(kind, num_layers=2, bidirectional=True)
    first = make(kind, num_layers=2, bidirectional=True, batch_first=True)
    x, state = normal(rng, (STEPS, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    reset = rng.random((STEPS, BATCH)) < 0.3
    output, last = layer(x, state, lengths=LENGTHS, reset=reset)
    x_first = np.ascontiguousarray(x.swapaxes(0, 1))
    first_output, first_last = first(x_first, state, lengths=LENGTHS, reset=reset)
    assert first_output.flags.c_contiguous
    np.testing.assert_array_equal(first_output.swapaxes(0, 1), output)
    assert_same_states(first_last, last)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_unbatched_is_a_batch_of_one_without_its_axis(kind, batch_first, rng):
    layer = make(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    x, state = normal(rng, (STEPS, SIZE), "float32"), state_for(layer, 1, rng)
    reset = rng.random(STEPS) < 0.3
    squeezed = tuple(s[:, 0] for s in parts(state))
    squeezed = squeezed if isinstance(state, tuple) else squeezed[0]
    output, last = layer(x, squeezed, lengths=5, reset=reset)
    axis = 0 if batch_first else 1
    want, want_last = layer(np.expand_dims(x, axis), state, lengths=[5], reset=reset[:, None])
    np.testing.assert_array_equal(output, want.squeeze(axis))
    for got, state_want in zip(parts(last), parts(want_last), strict=True):
        np.testing.assert_array_equal(got, state_want[:, 0])
    np.testing.assert_array_equal(layer(x, squeezed, lengths=[5], reset=reset)[0], output)


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_direction_is_the_layer_on_reversed_input(kind, rng):
    layer, forward = make(kind, bidirectional=True), make(kind)
    for name in forward.parameters:
        forward.parameters[name] = layer.parameters[f"{name}_reverse"]
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    output, last = layer(x)
    want, want_last = forward(x[::-1])
    width = want.shape[-1]
    assert_close(output[..., width:], want[::-1], REFERENCE["float32", "forward"])
    for got, state_want in zip(parts(last), parts(want_last), strict=True):
        assert_close(got[1:], state_want, REFERENCE["float32", "forward"])


def odd_arrays(x):
    """The same numbers in unusual memory."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    misaligned = raw[1:].view(x.dtype).reshape(x.shape)
    misaligned[...] = x
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    read_only = x.copy()
    read_only.flags.writeable = False
    return {
        "reversed": np.ascontiguousarray(x[::-1, ::-1, ::-1])[::-1, ::-1, ::-1],
        "strided": wide[..., ::2],
        "every other step": np.repeat(x, 2, axis=0)[::2],
        "fortran": np.asfortranarray(x),
        "misaligned": misaligned,
        "read-only": read_only,
        "big-endian": x.astype(x.dtype.newbyteorder(">")),
        "masked without a mask": np.ma.masked_array(x),
    }


@pytest.mark.parametrize("name", odd_arrays(np.zeros((1, 1, 1))))
def test_memory_of_inputs_does_not_matter(name, dtype, rng):
    layer = make("lstm", num_layers=2, bidirectional=True, dtype=dtype)
    x, state = normal(rng, (STEPS, BATCH, SIZE), dtype), state_for(layer, BATCH, rng)
    d_output = normal(rng, (STEPS, BATCH, 10), dtype)
    want, want_last = layer(x, state)
    odd_x = odd_arrays(x)[name]
    odd_state = tuple(odd_arrays(s)[name] for s in state)
    output, last = layer(odd_x, odd_state)
    np.testing.assert_array_equal(output, want)
    assert_same_states(last, want_last)
    got = layer.record(odd_x, odd_state).backward(odd_arrays(d_output)[name], odd_state)
    assert_same_gradients(got, layer.record(x, state).backward(d_output, state))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_matrix_is_taken_as_an_unbatched_array(rng):
    layer, x = make("gru"), normal(rng, (STEPS, SIZE), "float32")
    output, _ = layer(np.asmatrix(x))
    np.testing.assert_array_equal(output, layer(x)[0])
    assert type(output) is np.ndarray


def test_arguments_are_not_written_to(rng):
    layer = make("lstm", num_layers=2, bidirectional=True)
    arrays = [normal(rng, (STEPS, BATCH, SIZE), "float32"), *state_for(layer, BATCH, rng)]
    lengths, reset = np.array(LENGTHS), rng.random((STEPS, BATCH)) < 0.3
    before = [a.copy() for a in (*arrays, lengths, reset)]
    layer(arrays[0], arrays[1:], lengths=lengths, reset=reset)
    layer.record(arrays[0], arrays[1:], lengths=lengths, reset=reset).backward()
    for a, b in zip((*arrays, lengths, reset), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps, batch, size", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("recompute", [False, True])
def test_sizes_of_zero(kind, steps, batch, size, recompute, rng):
    layer = make(kind, input_size=size, num_layers=2, bidirectional=True)
    x, state = normal(rng, (steps, batch, size), "float32"), state_for(layer, batch, rng)
    output, last = layer(x, state)
    width = parts(state)[0].shape[-1]
    assert output.shape == (steps, batch, 2 * width)
    tape = layer.record(x, state, recompute=recompute)
    grads = tape.backward(np.ones_like(output), state)
    assert grads.input.shape == x.shape
    if steps == 0:
        assert_same_states(last, state)
        assert_same_states(tape.state, state)
        assert_same_states(grads.state, state)
    if steps == 0 or batch == 0:
        assert not any(g.any() for g in grads.parameters.values())


def test_inference_is_without_dropout_and_record_with(rng):
    layer = make("gru", hidden_size=50, num_layers=2, dropout=0.4)
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    want, _ = by_hand(layer, x, state := np.zeros((2, BATCH, 50), np.float32))
    assert_close(layer(x, state)[0], want, REFERENCE["float32", "forward"])
    first, second = layer.record(x).output, layer.record(x).output
    assert not np.array_equal(first, second)
    again = make("gru", hidden_size=50, num_layers=2, dropout=0.4)
    np.testing.assert_array_equal(again.record(x).output, first)
    np.testing.assert_array_equal(again.record(x).output, second)


def test_dropout_scales_what_it_keeps(rng):
    # The second layer is relu(x), so that its output shows what it got from the first.
    layer = make("rnn_relu", hidden_size=200, num_layers=2, dropout=0.25, bias=False)
    layer.parameters["weight_ih_l1"] = np.eye(200, dtype=np.float32)
    layer.parameters["weight_hh_l1"] = np.zeros((200, 200), np.float32)
    x = normal(rng, (20, 5, SIZE), "float32")
    full, dropped = layer(x)[0], layer.record(x).output
    alive = full > 0
    kept = dropped[alive] > 0
    assert_close(dropped[alive][kept], full[alive][kept] / 0.75, 1e-6)
    # About 10 000 draws: 0.75 ± 4 standard deviations of 0.0043.
    assert abs(kept.mean() - 0.75) < 0.018


def test_full_dropout_passes_nothing(rng):
    layer = make("rnn_tanh", num_layers=2, dropout=1.0, bias=False)
    tape = layer.record(normal(rng, (STEPS, BATCH, SIZE), "float32"))
    assert not tape.output.any()
    assert not tape.backward(np.ones_like(tape.output)).input.any()


def test_seed_fixes_parameters_within_the_bound():
    bound = 1 / np.sqrt(300)
    a, b = make("lstm", hidden_size=300), make("lstm", hidden_size=300)
    for name, value in a.parameters.items():
        np.testing.assert_array_equal(value, b.parameters[name])
        assert np.abs(value).max() <= bound
        assert abs(value.std() - bound / np.sqrt(3)) < 0.1 * bound
    other, fresh = make("lstm", hidden_size=300, seed=8), make("lstm", hidden_size=300, seed=None)
    name = "weight_hh_l0"
    assert not np.array_equal(a.parameters[name], other.parameters[name])
    assert not np.array_equal(
        fresh.parameters[name], make("lstm", hidden_size=300, seed=None).parameters[name]
    )


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["copy", "pickle"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_equal_and_independent(kind, copied, rng):
    layer = make(kind, num_layers=2, dropout=0.5, bidirectional=True)
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    layer.record(x)  # moves the random generator on, and packs the weights
    other = copied(layer)
    assert repr(other) == repr(layer)
    np.testing.assert_array_equal(other(x)[0], layer(x)[0])
    np.testing.assert_array_equal(other.record(x).output, layer.record(x).output)
    before = layer(x)[0]
    other.parameters["weight_ih_l0"] = np.zeros_like(other.parameters["weight_ih_l0"])
    assert not np.array_equal(other(x)[0], before)
    np.testing.assert_array_equal(layer(x)[0], before)


@pytest.mark.parametrize(
    "layer, text",
    [
        (rnnfast.LSTM(40, 128, num_layers=2, bidirectional=True), None),
        (rnnfast.GRU(3, 4), "GRU(3, 4)"),
        (rnnfast.GRU(3, 4, bias=False, batch_first=True, reset_after=False), None),
        (rnnfast.RNN(3, 4, 2, "relu", dropout=0.5, dtype="float64"), None),
        (rnnfast.LSTM(3, 4, proj_size=2), "LSTM(3, 4, proj_size=2)"),
        (rnnfast.RNNCell(3, 4, nonlinearity="relu"), "RNNCell(3, 4, nonlinearity='relu')"),
        (rnnfast.LSTMCell(3, 4, bias=False), "LSTMCell(3, 4, bias=False)"),
    ],
    ids=str,
)
def test_repr_is_the_constructor_call(layer, text):
    if text is not None:
        assert repr(layer) == text
    again = eval(f"rnnfast.{layer!r}")
    assert repr(again) == repr(layer)
    assert {n: a.shape for n, a in again.parameters.items()} == {
        n: a.shape for n, a in layer.parameters.items()
    }


def test_repr_as_documented():
    layer = rnnfast.LSTM(40, 128, num_layers=2, bidirectional=True)
    assert repr(layer) == "LSTM(40, 128, num_layers=2, bidirectional=True)"


def test_several_threads_may_use_one_layer(rng):
    layer = make("lstm", hidden_size=16, num_layers=2)
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    want = layer(x)[0]
    layer.parameters["bias_ih_l0"] = layer.parameters["bias_ih_l0"].copy()  # to be packed anew
    got, errors = [], []

    def work():
        try:
            for _ in range(10):
                got.append(layer(x)[0])
                layer.record(x).backward(want)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(got) == 40
    for output in got:
        np.testing.assert_array_equal(output, want)


def test_weights_are_packed_anew_for_another_backend(keep_backend, rng):
    layer, x = make("gru"), normal(rng, (STEPS, BATCH, SIZE), "float32")
    want = layer(x)[0]
    tape = layer.record(x)
    rnnfast.set_backend("numpy")
    assert_close(layer(x)[0], want, REFERENCE["float32", "forward"])
    tape.backward(np.ones_like(want))  # keeps the backend that it was made with


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_takes_no_time_however_long(kind, recompute):
    layer = make(kind, num_layers=2, bidirectional=True)
    x = np.zeros((2**40, 0, SIZE), np.float32)
    for options in ({}, {"lengths": [], "reset": np.zeros(x.shape[:2], bool)}):
        output, _ = layer(x, **options)
        assert output.shape[:2] == (2**40, 0)
        tape = layer.record(x, **options, recompute=recompute)
        grads = tape.backward(np.zeros(output.shape, np.float32))
        assert grads.input.shape == x.shape
        assert not any(g.any() for g in grads.parameters.values())
