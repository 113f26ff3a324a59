"""Tapes: gradients against finite differences, recomputation, independence, and release."""

from __future__ import annotations

import gc
import sys
import threading
import weakref

import numpy as np
import pytest
from oracle import KINDS, assert_same_gradients, make, normal, parts, state_for
from subprocesses import python
from tolerances import FINITE_DIFFERENCES, REFERENCE, assert_close

from rnnfast import _backend

STEPS, BATCH, SIZE = 5, 3, 4
LENGTHS = [3, 0, 5]


def loss_of(output, state, d_output, d_state) -> float:
    return float(
        np.sum(output * d_output)
        + sum(np.sum(s * d) for s, d in zip(parts(state), parts(d_state), strict=True))
    )


def differences(function, array, eps=1e-6):
    """The gradient of `function()` at `array`, which it reads, by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        value = array[index]
        array[index] = value + eps
        above = function()
        array[index] = value - eps
        below = function()
        array[index] = value
        gradient[index] = (above - below) / (2 * eps)
    return gradient


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_against_finite_differences(kind, rng):
    options = {"num_layers": 2, "bidirectional": True, "dtype": "float64"}
    layer = make(kind, input_size=2, hidden_size=4, **options)
    x, state = normal(rng, (STEPS, BATCH, 2), "float64"), state_for(layer, BATCH, rng)
    reset = rng.random((STEPS, BATCH)) < 0.3
    tape = layer.record(x, state, lengths=LENGTHS, reset=reset)
    d_output = normal(rng, tape.output.shape, "float64")
    d_state = state_for(layer, BATCH, rng)
    grads = tape.backward(d_output, d_state)

    def loss():
        return loss_of(*layer(x, state, lengths=LENGTHS, reset=reset), d_output, d_state)

    assert_close(grads.input, differences(loss, x), FINITE_DIFFERENCES, "input")
    for got, own in zip(parts(grads.state), parts(state), strict=True):
        assert_close(got, differences(loss, own), FINITE_DIFFERENCES, "state")
    # Every entry would take minutes: one direction in space for each parameter.
    for name, gradient in grads.parameters.items():
        value, direction = layer.state_dict()[name], rng.standard_normal(gradient.shape)
        losses = []
        for eps in (1e-6, -1e-6):
            layer.parameters[name] = value + eps * direction
            losses.append(loss())
        layer.parameters[name] = value
        slope = (losses[0] - losses[1]) / 2e-6
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs(slope - np.sum(gradient * direction)) <= FINITE_DIFFERENCES * scale, name


def test_dropout_is_part_of_the_gradient(rng):
    layer = make("gru", num_layers=3, dropout=0.5, dtype="float64", bidirectional=True)
    x = normal(rng, (STEPS, BATCH, SIZE), "float64")
    seeded = make("gru", num_layers=3, dropout=0.5, dtype="float64", bidirectional=True)
    tape = seeded.record(x)
    d_output = normal(rng, tape.output.shape, "float64")
    grads = tape.backward(d_output)
    direction = normal(rng, x.shape, "float64")

    def loss(eps):
        fresh = make("gru", num_layers=3, dropout=0.5, dtype="float64", bidirectional=True)
        return np.sum(fresh.record(x + eps * direction).output * d_output)

    slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    assert slope == pytest.approx(np.sum(grads.input * direction), rel=1e-6)
    assert not np.allclose(layer(x)[0], tape.output)


@pytest.mark.parametrize("case", ["plain", "lengths", "reset", "both"])
# Chunks have 43 steps of three rows.
@pytest.mark.parametrize("steps", [1, 43, 44, 130])
@pytest.mark.parametrize("kind", KINDS)
def test_recompute_gives_the_same(kind, steps, case, rng):
    layer = make(kind, num_layers=2, bidirectional=True, dropout=0.3)
    same = make(kind, num_layers=2, bidirectional=True, dropout=0.3)
    x, state = normal(rng, (steps, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    arguments = {}
    if case in ("lengths", "both"):
        arguments["lengths"] = [steps // 2, 0, steps]
    if case in ("reset", "both"):
        arguments["reset"] = rng.random((steps, BATCH)) < 0.1
    want = layer.record(x, state, **arguments)
    got = same.record(x, state, **arguments, recompute=True)
    assert_close(got.output, want.output, REFERENCE["float32", "forward"])
    for a, b in zip(parts(got.state), parts(want.state), strict=True):
        assert_close(a, b, REFERENCE["float32", "forward"])
    d_output, d_state = normal(rng, got.output.shape, "float32"), state_for(layer, BATCH, rng)
    tolerance = REFERENCE["float32", "backward"]
    for d in ((d_output, d_state), (None, d_state), (d_output, None)):
        got_grads = got.backward(*d, retain=True)
        want_grads = want.backward(*d, retain=True)
        assert_close(got_grads.input, want_grads.input, tolerance, "input")
        for a, b in zip(parts(got_grads.state), parts(want_grads.state), strict=True):
            assert_close(a, b, tolerance, "state")
        for name, gradient in got_grads.parameters.items():
            assert_close(gradient, want_grads.parameters[name], tolerance, name)


def test_recompute_without_arguments(rng):
    layer = make("lstm")
    x = normal(rng, (40, BATCH, SIZE), "float32")
    got, want = layer.record(x, recompute=True).backward(), layer.record(x).backward()
    assert_same_gradients(got, want)
    assert not got.input.any()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_recompute_saves_memory():
    """What a tape holds, and the most that both passes take, of a process of their own."""
    code = """
import re, sys
import numpy as np, rnnfast

def megabytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1000

layer = rnnfast.LSTM(4, 64, seed=0)
d_output = np.ones((1000, 32, 64), np.float32)
layer.record(np.ones((40, 32, 4), np.float32)).backward(d_output[:40])
held, most = megabytes("VmRSS"), megabytes("VmHWM")
tape = layer.record(np.ones((1000, 32, 4), np.float32), recompute=RECOMPUTE)
held = megabytes("VmRSS") - held
tape.backward(d_output)
print(held, megabytes("VmHWM") - most)
"""
    backend = _backend.current().name
    results = []
    for recompute in ("False", "True"):
        done = python(
            code.replace("RECOMPUTE", recompute), RNNFAST_BACKEND=backend, RNNFAST_NUM_THREADS="1"
        )
        assert done.returncode == 0, done.stderr
        results.append(list(map(float, done.stdout.split())))
    (plain_held, plain_most), (held, most) = results
    # y is 8 MB; the four gates and c, which recomputation does without, are 41 MB.
    assert plain_held > 30 and held < 0.5 * plain_held, results
    assert plain_most > 30 and most < 0.7 * plain_most, results


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_sums_over_what_they_come_from(kind, recompute, rng):
    layer = make(kind, num_layers=2, dtype="float64")
    x = normal(rng, (STEPS, BATCH, SIZE), "float64")
    tape = layer.record(x, recompute=recompute)
    d_output, d_state = normal(rng, tape.output.shape, "float64"), state_for(layer, BATCH, rng)
    both = tape.backward(d_output, d_state, retain=True)
    pieces = [tape.backward(d_output, retain=True)]
    if isinstance(d_state, tuple):
        pieces += [tape.backward(None, (d_state[0], None), retain=True)]
        pieces += [tape.backward(None, (None, d_state[1]), retain=True)]
    else:
        pieces += [tape.backward(None, d_state, retain=True)]
    tolerance = REFERENCE["float64", "backward"]
    assert_close(sum(g.input for g in pieces), both.input, tolerance)
    for name, gradient in both.parameters.items():
        assert_close(sum(g.parameters[name] for g in pieces), gradient, tolerance, name)


@pytest.mark.parametrize("batch_first", [False, True])
def test_layouts(batch_first, rng):
    layer = make("lstm", num_layers=2, bidirectional=True)
    other = make("lstm", num_layers=2, bidirectional=True, batch_first=batch_first)
    x, state = normal(rng, (STEPS, 1, SIZE), "float32"), state_for(layer, 1, rng)
    d_output = normal(rng, (STEPS, 1, 10), "float32")
    reset = rng.random((STEPS, 1)) < 0.3
    want = layer.record(x, state, lengths=[4], reset=reset).backward(d_output, state)
    axes = (1, 0, 2) if batch_first else (0, 1, 2)
    tape = other.record(x.transpose(axes), state, lengths=[4], reset=reset)
    got = tape.backward(d_output.transpose(axes), state)
    np.testing.assert_array_equal(got.input.transpose(axes), want.input)
    squeezed = tuple(s[:, 0] for s in state)
    tape = other.record(x[:, 0], squeezed, lengths=4, reset=reset[:, 0])
    got = tape.backward(d_output[:, 0], squeezed)
    assert tape.output.shape == (STEPS, 10)
    np.testing.assert_array_equal(got.input, want.input[:, 0])
    for a, b in zip(got.state, want.state, strict=True):
        np.testing.assert_array_equal(a, b[:, 0])
    for name, gradient in got.parameters.items():
        np.testing.assert_array_equal(gradient, want.parameters[name])


def test_second_backward_needs_retain(rng):
    layer = make("gru")
    tape = layer.record(normal(rng, (STEPS, BATCH, SIZE), "float32"))
    d_output = np.ones_like(tape.output)
    first = tape.backward(d_output, retain=True)
    assert_same_gradients(tape.backward(d_output), first)
    with pytest.raises(RuntimeError, match=r"backward: expected the only call.*retain=True"):
        tape.backward(d_output)


@pytest.mark.parametrize(
    "d_output, d_state, error",
    [
        (np.ones((STEPS, BATCH, 4), "f4"), None, ValueError),
        (np.ones((STEPS, BATCH, 5)), None, TypeError),
        (None, np.ones((1, BATCH, 5), "f4"), TypeError),
        (None, (np.ones((1, BATCH, 5), "f4"),), ValueError),
        (None, (None, np.ones((2, BATCH, 5), "f4")), ValueError),
        (None, (None, np.ones((1, BATCH, 5), "i4")), TypeError),
    ],
)
def test_a_refused_backward_leaves_the_tape_usable(d_output, d_state, error, rng):
    layer = make("lstm")
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    tape = layer.record(x)
    with pytest.raises(error, match=r"^d_(output|state).*: expected .*, got "):
        tape.backward(d_output, d_state)
    good = np.ones_like(tape.output)
    assert_same_gradients(tape.backward(good), layer.record(x).backward(good))


def test_tapes_are_independent(rng):
    layer = make("lstm", num_layers=2, bidirectional=True)
    inputs = [normal(rng, (steps, BATCH, SIZE), "float32") for steps in (3, 5, 4)]
    outs = [normal(rng, (len(x), BATCH, 10), "float32") for x in inputs]
    want = [layer.record(x).backward(d) for x, d in zip(inputs, outs, strict=True)]
    tapes = [layer.record(x) for x in inputs]
    got = {}

    def work(k):
        got[k] = tapes[k].backward(outs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, grads in enumerate(want):
        assert_same_gradients(got[k], grads)


@pytest.mark.parametrize("recompute", [False, True])
def test_inputs_may_be_reused_before_backward(recompute, rng):
    layer = make("lstm", num_layers=2)
    x, state = normal(rng, (STEPS, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    lengths, reset = np.array(LENGTHS), rng.random((STEPS, BATCH)) < 0.3
    arguments = {"lengths": lengths, "reset": reset, "recompute": recompute}
    want = layer.record(x, state, **arguments).backward(None, state)
    d_state = tuple(s.copy() for s in state)
    tape = layer.record(x, state, **arguments)
    for array in (x, *state, lengths, reset):
        array[...] = 0
    assert_same_gradients(tape.backward(None, d_state), want)


def test_output_and_state_are_read_only(rng):
    tape = make("lstm", bidirectional=True, batch_first=True).record(
        normal(rng, (BATCH, STEPS, SIZE), "float32")
    )
    for array in (tape.output, *tape.state):
        with pytest.raises(ValueError):
            array.flags.writeable = True


def test_backward_releases_memory(rng):
    layer = make("lstm", num_layers=2)
    tape = layer.record(normal(rng, (STEPS, BATCH, SIZE), "float32"))
    run = weakref.ref(tape._run)
    tape.backward(retain=True)
    assert run() is not None
    tape.backward()
    gc.collect()
    assert run() is None
