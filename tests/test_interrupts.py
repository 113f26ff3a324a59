"""Ctrl-C at a bad moment, and the end of the process: nothing stays open, held or stale."""

from __future__ import annotations

import signal
import sys
import threading
import time

import numpy as np
import pytest
from oracle import by_hand, make, normal, state_for
from subprocesses import python
from tolerances import REFERENCE, assert_close

from rnnfast import _backend, _parameters
from rnnfast._locks import Lock

STEPS, BATCH, SIZE = 5, 3, 4


@pytest.fixture
def layer():
    return make("gru", SIZE, 6)


class InterruptedNumPy:
    """NumPy, whose `copyto` is interrupted once it has copied the first array."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def copyto(to, values):
        np.copyto(to, values)
        raise KeyboardInterrupt


def assert_current(layer, rng):
    x, state = normal(rng, (STEPS, BATCH, SIZE), "float32"), state_for(layer, BATCH, rng)
    assert_close(layer(x, state)[0], by_hand(layer, x, state)[0], REFERENCE["float32", "forward"])


def test_the_end_of_an_edit_block(layer, rng, monkeypatch):
    """Whoever comes next ends it: with all that was written before."""
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    layer(x)
    before = layer.state_dict()
    with pytest.raises(KeyboardInterrupt), layer.parameters.edit() as p:
        for name in p:
            p[name] *= 2
        array = p["bias_ih_l0"]
        monkeypatch.setattr(_parameters, "np", InterruptedNumPy())
    monkeypatch.undo()
    assert_current(layer, rng)
    for name, value in before.items():
        np.testing.assert_array_equal(layer.parameters[name], 2 * value)
    with pytest.raises(ValueError):
        array[...] = 0
    with layer.parameters.edit() as p:
        p["bias_ih_l0"][...] = 3
    assert (layer.parameters["bias_ih_l0"] == 3).all()
    assert_current(layer, rng)


def test_a_block_that_was_interrupted_at_its_end_is_used_again(layer, rng, monkeypatch):
    block = layer.parameters.edit()
    with pytest.raises(KeyboardInterrupt), block as p:
        p["bias_ih_l0"][...] = 2
        monkeypatch.setattr(_parameters, "np", InterruptedNumPy())
    monkeypatch.undo()
    with block as p:
        assert (p["bias_ih_l0"] == 2).all()
        p["bias_hh_l0"][...] = 3
    assert (layer.parameters["bias_hh_l0"] == 3).all()
    assert_current(layer, rng)


@pytest.mark.parametrize("how", ["assignment", "update", "load_state_dict"])
def test_a_change_of_parameters(layer, rng, how, monkeypatch):
    x = normal(rng, (STEPS, BATCH, SIZE), "float32")
    layer(x)
    new = {name: array * 2 for name, array in layer.state_dict().items()}
    monkeypatch.setattr(_parameters, "np", InterruptedNumPy())
    with pytest.raises(KeyboardInterrupt):
        if how == "assignment":
            layer.parameters["weight_ih_l0"] = new["weight_ih_l0"]
        elif how == "update":
            layer.parameters.update(new)
        else:
            layer.load_state_dict(new)
    monkeypatch.undo()
    np.testing.assert_array_equal(layer.parameters["weight_ih_l0"], new["weight_ih_l0"])
    assert_current(layer, rng)


@pytest.mark.parametrize("change", [lambda a: setattr(a, "shape", (3, 6)), lambda a: a.resize(5)])
def test_an_array_of_an_edit_block_that_gets_another_shape(layer, rng, change):
    with pytest.raises(ValueError), layer.parameters.edit() as p:
        change(p["bias_ih_l0"])
    with layer.parameters.edit() as p:
        p["bias_ih_l0"][...] = 3
    assert (layer.parameters["bias_ih_l0"] == 3).all()
    assert_current(layer, rng)


def test_a_lock_is_taken_and_given_back_by_no_code_of_python():
    """Which an interrupt could end after the lock is taken, and before the block."""
    own = type(threading.RLock())
    for name in ("__enter__", "__exit__", "acquire", "release"):
        assert getattr(Lock, name) is getattr(own, name)
        assert not hasattr(getattr(Lock, name), "__code__")


def test_a_lock_of_whoever_replaces_those_of_threading():
    """As gevent, whose RLock is one in Python."""
    code = """
import threading
threading._CRLock = None
import numpy as np
import rnnfast
layer = rnnfast.GRU(2, 3)
with layer.parameters.edit():
    pass
print(layer(np.ones((4, 2), np.float32))[0].shape)
"""
    done = python(code, RNNFAST_BACKEND=_backend.current().name)
    assert done.stdout.strip() == "(4, 3)", done.stderr


# On Python 3.14, whose `with` is compiled otherwise, an interrupt may come between the call that
# takes a lock and its block; that was not tried.
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="a lock may stay held")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX's timers")
# Of an interrupt in a callback, such as of a weak reference, Python tells, and goes on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment(layer, rng):
    """A sample of moments: other threads can still read, and the layer trains on."""

    def interrupt(*args):
        raise KeyboardInterrupt

    def read(states):
        states.append(layer.state_dict())

    def train():
        tape = layer.record(x)
        gradients = tape.backward(tape.output).parameters
        with layer.parameters.edit() as p:
            for name, gradient in gradients.items():
                p[name] -= np.float32(0.01) * gradient

    x = np.ones((2, SIZE), np.float32)
    train()  # what Numba compiles or loads here, an interrupt of it would break
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(100):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, 2e-3))
                end = time.monotonic() + 1  # where a callback, such as of a weak reference, took it
                while time.monotonic() < end:
                    train()
            except KeyboardInterrupt:
                pass
            states = []
            thread = threading.Thread(target=read, args=(states,), daemon=True)
            thread.start()
            thread.join(30)
            assert states, "the lock is still held"
            with layer.parameters.edit():
                pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert_current(layer, rng)


@pytest.mark.parametrize(
    "call",
    [
        "layer(x)",
        "layer.record(x)",
        "tape.backward(dy, retain=True)",
        "functional.forward(packed, x)",
    ],
)
def test_the_process_ends_while_a_daemon_thread_computes(call, native):
    code = f"""
import threading, time
import numpy as np
import rnnfast
from rnnfast import functional

x, dy = np.ones((100, 16, 64), np.float32), np.ones((100, 16, 128), np.float32)
layer = rnnfast.LSTM(64, 128)
tape = layer.record(x)
weights = layer.state_dict().values()
packed = functional.pack("lstm", *weights)

def loop():
    while True:
        {call}

for _ in range(2):
    threading.Thread(target=loop, daemon=True).start()
time.sleep(0.2)
"""
    done = python(code, RNNFAST_BACKEND="native")
    assert done.returncode == 0, done.stderr
