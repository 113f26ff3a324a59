"""What calls cost beside the kernels: the short way of a call, reuse, references, and the GIL."""

from __future__ import annotations

import sys
import threading
import time
import timeit

import numpy as np
import pytest
from oracle import assert_same_gradients, make, normal, state_for

from rnnfast import _backend, functional

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6


@pytest.fixture(autouse=True)
def _native(native):
    """All of this is about the native backend."""


class TestCurrentWeights:
    """The short way is taken only with the weights that the layer has now."""

    @pytest.fixture
    def layer(self, rng):
        return make("gru", SIZE, HIDDEN)

    def test_after_every_kind_of_update(self, layer, rng):
        x = normal(rng, (STEPS, BATCH, SIZE), "float32")

        def current():
            weights = [layer.parameters[n].copy() for n in layer.parameters]
            return functional.forward(functional.pack("gru", *weights), x).y

        def check():
            for output in (layer(x)[0], layer.record(x).output, layer(x)[0]):
                np.testing.assert_array_equal(output, current())

        check()
        before = layer._native()
        assert before is not None
        layer.parameters["weight_hh_l0"] = layer.parameters["weight_hh_l0"] * np.float32(0.5)
        assert layer._native() not in (None, before)  # packed anew, on the short way
        check()
        layer.load_state_dict({n: w + 1 for n, w in layer.state_dict().items()})
        check()
        with layer.parameters.edit() as p:
            for _ in range(3):
                p["bias_ih_l0"] -= np.float32(0.1)
                check()
        check()
        assert layer._native() is layer._native() is not None

    def test_after_a_change_of_backend(self, layer, rng):
        x = normal(rng, (STEPS, BATCH, SIZE), "float32")
        tape, want = layer.record(x), layer(x)[0]
        gradients = layer.record(x).backward(want)
        _backend.use("numpy")
        assert layer._native() is None
        layer(x)
        assert layer._native() is None and layer._packs().native is None
        assert_same_gradients(tape.backward(want), gradients)
        _backend.use("native")
        np.testing.assert_array_equal(layer(x)[0], want)


def test_tapes_of_other_sizes_do_not_share_memory(rng):
    """Memory that a tape gives back is another's next."""
    layer = make("lstm", SIZE, HIDDEN, num_layers=3, bidirectional=True)
    inputs = [normal(rng, (steps, BATCH, SIZE), "float32") for steps in (9, 8, 30, 9, 2, 16, 9)]
    want = [layer.record(x).backward(np.ones((len(x), BATCH, 2 * HIDDEN), "f4")) for x in inputs]
    for first in range(len(inputs)):
        tapes = [layer.record(x) for x in inputs]
        order = [*range(first, len(inputs)), *range(first)]
        for k in order:
            assert_same_gradients(tapes[k].backward(np.ones_like(tapes[k].output)), want[k])
            tapes[k] = layer.record(inputs[k])


def test_a_state_does_not_keep_the_output():
    tape = make("lstm", SIZE, HIDDEN).record(np.ones((STEPS, BATCH, SIZE), "f4"))
    bases = {id(array.base) for array in (tape.output, *tape.state)}
    assert len(bases) == 2 and tape.output.base is not tape.state[0].base


def test_references_are_given_back(rng):
    layer = make("lstm", SIZE, HIDDEN, num_layers=2)
    x, (h, c) = normal(rng, (STEPS, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    layer(x)
    d_output = np.ones((STEPS, BATCH, HIDDEN), "f4")
    names = layer._packs().names[0]
    watched = [x, h, c, d_output, names[0], layer._native(), np.dtype("f4")]
    kinds = [type(layer._native()), type(layer.record(x)._run)]

    def calls():
        for _ in range(100):
            layer(x, (h, c))
            layer(x[..., ::-1], (h, c))
            tape = layer.record(x, (h, c))
            tape.backward(d_output, (h, c), retain=True)
            tape.backward(d_output[..., ::-1], (h, None))

    calls()
    before = [sys.getrefcount(each) for each in (*watched, *kinds)]
    calls()
    after = [sys.getrefcount(each) for each in (*watched, *kinds)]
    assert max(abs(b - a) for a, b in zip(before, after, strict=True)) < 50


def test_steps_of_training_give_each_other_their_memory():
    """Of all layers, and what `edit` hands out: new pages, cleared, would take half of the time."""
    resource = pytest.importorskip("resource")
    layer = make("gru", 256, 256, num_layers=3, bidirectional=True)
    x, d_output = np.ones((2, 2, 256), "f4"), np.ones((2, 2, 512), "f4")

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def step():
        gradients = layer.record(x).backward(d_output).parameters
        with layer.parameters.edit() as parameters:
            for name, gradient in gradients.items():
                parameters[name][...] = gradient

    for _ in range(3):
        step()
    before = faults()
    for _ in range(10):
        step()
    pages = sum(w.nbytes for w in layer.parameters.values()) // 4096
    assert faults() - before < pages  # of ten steps, each of which fills four times as many


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (3, 5, 4), (300, 400)])
def test_copies_of_arrays(native, dtype, shape):
    given = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    made = native.copy(given)
    assert made.dtype == given.dtype and made.flags.writeable
    assert not np.shares_memory(made, given)
    np.testing.assert_array_equal(made, given, strict=True)


def test_no_copies_of_others(native):
    for other in (
        np.ones((3, 4)).T,
        np.ones((1, 1, 1, 1)),
        np.ones(2, "i4"),
        np.ones(2, ">f4"),
        [1.0],
    ):
        assert native.copy(other) is None


def test_a_long_call_lets_other_threads_run():
    layer = make("lstm", 256, 256, num_layers=2)
    x = np.ones((400, 16, 256), np.float32)
    layer(x[:2])
    tape = layer.record(x)
    for call in (lambda: layer(x), lambda: layer.record(x), tape.backward):
        thread = threading.Thread(target=call)
        thread.start()
        turns = 0
        while thread.is_alive():
            time.sleep(0.0005)
            turns += 1
        assert turns > 5


def test_a_call_takes_less_than_the_checks_of_python():
    """Half of what `functional.forward` takes, which checks in Python and runs the same kernel."""
    layer = make("gru", 32, 32)
    x = np.ones((1, 1, 32), np.float32)
    packed = layer._packs().packs[0]

    def best(function):
        return min(timeit.repeat(function, number=50, repeat=200))

    for _ in range(5):  # another process may take the core for a while
        short, long = best(lambda: layer(x)), best(lambda: functional.forward(packed, x))
        if short < 0.6 * long:
            return
    raise AssertionError(f"{short / 50 * 1e6:.2f} us, {long / 50 * 1e6:.2f} us by `functional`")
