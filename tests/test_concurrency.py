"""Threads, forks, other processes, and long runs: results stay, and so does memory."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from oracle import KINDS, assert_same_gradients, make, normal, parts

import rnnfast
from rnnfast import _backend, _module

THREADS = 8
SECONDS = 60  # far more than anything here takes; a hang becomes a failure
TASKS = Path("/proc/self/task")  # Linux: the threads of this process


@pytest.fixture(autouse=True)
def three_threads(keep_threads):
    """More than this machine may have."""
    rnnfast.set_num_threads(3)


def job(kind: str, seed: int = 0, steps: int = 20):
    """A layer and an input, with work enough for three threads."""
    layer = make(kind, 24, 33, num_layers=2, bidirectional=True, seed=seed)
    return layer, normal(np.random.default_rng(seed), (steps, 13, 24), "float32")


def forward(layer, x) -> bytes:
    """Everything that inference gives."""
    output, state = layer(x)
    return output.tobytes() + b"".join(s.tobytes() for s in parts(state))


def both_passes(layer, x) -> bytes:
    """Everything that training gives."""
    return backward(layer.record(x))


def backward(tape) -> bytes:
    gradients = tape.backward(tape.output.copy())
    arrays = [tape.output, gradients.input, *parts(gradients.state), *gradients.parameters.values()]
    return b"".join(a.tobytes() for a in arrays)


def at_once(function, arguments) -> list:
    """`function` of each of `arguments`, each on a thread of its own, all started together."""
    gate = threading.Barrier(len(arguments))

    def call(argument):
        gate.wait(SECONDS)
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as threads:
        return list(threads.map(call, arguments, timeout=SECONDS))


@contextmanager
def in_background(function):
    """Calls `function` again and again on another thread within the block; at least once."""
    stop, ran, errors = threading.Event(), threading.Event(), []

    def loop():
        try:
            while not stop.is_set():
                function()
                ran.set()
        except BaseException as error:
            errors.append(error)
            ran.set()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        assert ran.wait(SECONDS)
        yield
    finally:
        stop.set()
        thread.join(SECONDS)
    assert not thread.is_alive()
    assert not errors, errors


@pytest.mark.parametrize("passes", [forward, both_passes])
@pytest.mark.parametrize("kind", KINDS)
def test_one_layer_from_many_threads(kind, passes):
    layer, x = job(kind)
    inputs = [x * np.float32(k + 1) for k in range(THREADS)]
    want = [passes(layer, each) for each in inputs]
    assert len(set(want)) == THREADS
    for _ in range(3):
        assert at_once(lambda each: passes(layer, each), inputs) == want


@pytest.mark.parametrize("passes", [forward, both_passes])
def test_many_layers_from_many_threads(passes):
    jobs = [job(kind, seed) for kind in KINDS for seed in range(2)]
    want = [passes(*each) for each in jobs]
    for _ in range(3):
        assert at_once(lambda each: passes(*each), jobs) == want


def test_one_tape_from_many_threads():
    layer, x = job("lstm")
    tape = layer.record(x)
    want = tape.backward(np.ones_like(tape.output), retain=True)
    got = at_once(lambda d: tape.backward(d, retain=True), [np.ones_like(tape.output)] * THREADS)
    for gradients in got:
        assert_same_gradients(gradients, want)


def test_a_tape_is_used_up_once():
    layer, x = job("gru")
    tape = layer.record(x)

    def succeeds(_):
        try:
            tape.backward()
        except RuntimeError:
            return False
        return True

    assert sum(at_once(succeeds, range(THREADS))) == 1


def test_the_number_of_threads_changes_meanwhile():
    layer, x = job("lstm")
    want = both_passes(layer, x)
    counts = iter(range(10**9))

    def change():
        rnnfast.set_num_threads(1 + next(counts) % 4)
        time.sleep(0)

    with in_background(change):
        for _ in range(10):
            assert at_once(lambda _: both_passes(layer, x), range(2)) == [want] * 2


@pytest.mark.parametrize(("first", "second"), [("native", "numpy"), ("numpy", "native")])
def test_the_backend_changes_between_packs(first, second, native, keep_backend, monkeypatch, rng):
    pack = _module.pack_checked

    def pack_and_change(*arguments):
        packed = pack(*arguments)
        rnnfast.set_backend(second)
        return packed

    rnnfast.set_backend(first)
    layer = make("lstm", 7, 20, num_layers=2, bidirectional=True)
    x = normal(rng, (6, 4, 7), "float32")
    want = layer(x)[0]
    layer.load_state_dict(layer.state_dict())
    monkeypatch.setattr(_module, "pack_checked", pack_and_change)
    np.testing.assert_array_equal(layer(x)[0], want)


class TestParametersChangeMeanwhile:
    """A call sees all of one version of the parameters."""

    @pytest.fixture
    def versions(self):
        """A layer, an input, and two versions of the parameters with what they give."""
        layer, x = job("gru", steps=6)
        states = [job("gru", seed)[0].state_dict() for seed in (1, 2)]
        results = []
        for state in states:
            layer.load_state_dict(state)
            results.append((forward(layer, x), both_passes(layer, x)))
        assert results[0][0] != results[1][0]
        return layer, x, states, results

    @pytest.fixture
    def changing(self, versions):
        layer, _, states, _ = versions
        turns = iter(range(10**9))
        with in_background(lambda: layer.load_state_dict(states[next(turns) % 2])):
            yield versions

    @pytest.mark.parametrize("which, passes", [(0, forward), (1, both_passes)])
    def test_calls(self, changing, which, passes):
        layer, x, _, results = changing
        allowed = {result[which] for result in results}
        seen = set()
        for _ in range(200):
            seen.update(at_once(lambda _: passes(layer, x), range(2)))
            assert seen <= allowed
            if seen == allowed:
                break
        assert seen == allowed, "the writer never came in between"

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))]
    )
    def test_copies(self, changing, copied):
        layer, x, _, results = changing
        allowed = {result[0] for result in results}
        with in_background(lambda: forward(layer, x)):
            for _ in range(20):
                assert forward(copied(layer), x) in allowed

    def test_a_tape_keeps_its_version(self, changing):
        layer, x, _, results = changing
        backward_of = dict(results)
        for _ in range(20):
            tape = layer.record(x)
            recorded = tape.output.tobytes() + b"".join(s.tobytes() for s in parts(tape.state))
            time.sleep(0.001)
            assert backward(tape) == backward_of[recorded]


def exit_code_of_fork(child) -> int:
    """That of a forked process that calls `child`: 0 where it returns true; fails on a hang."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: on purpose
        pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if child() else 1
        finally:
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the forked process hangs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
class TestFork:
    @pytest.mark.parametrize("kind", ["lstm", "gru_reset_before"])
    def test_after_threaded_work(self, kind, request):
        if _backend.current().name == "native":
            request.getfixturevalue("estimated")
        layer, x = job(kind)
        want = both_passes(layer, x)

        def child():
            # It has none of the parent's threads, and starts its own.
            started = not TASKS.is_dir() or len(list(TASKS.iterdir())) == 1
            right = both_passes(layer, x) == want
            if TASKS.is_dir() and _backend.current().name == "native":
                started = started and len(list(TASKS.iterdir())) == 3
            return right and started

        for _ in range(3):
            assert exit_code_of_fork(child) == 0
        assert both_passes(layer, x) == want

    def test_while_another_thread_is_in_a_call(self, native):
        """The others multiply with NumPy's BLAS, which a fork in the midst of it may hang."""
        layer, x = job("lstm", steps=100)
        other, y = job("gru")
        want = both_passes(other, y)
        with in_background(lambda: forward(layer, x)):
            for _ in range(10):
                assert exit_code_of_fork(lambda: both_passes(other, y) == want) == 0


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_worker_processes(method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system has no {method}")
    layer, x = job("lstm")
    inputs = [x, -x, x[:3]]
    want = [layer(each)[0] for each in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = multiprocessing.get_context(method).Pool(2)
    with pool:
        got = pool.map_async(layer, inputs).get(SECONDS)
    for (output, _), expected in zip(got, want, strict=True):
        np.testing.assert_array_equal(output, expected)


def test_memory_does_not_grow():
    """Over 10,000 calls with passes of every kind; a leak of 210 bytes a call is too much."""
    psutil = pytest.importorskip("psutil")
    layer = make("lstm", 8, 16)
    x = np.ones((4, 3, 8), np.float32)
    process = psutil.Process()

    def round_of_calls():
        for call in range(10_000):
            if call % 4:
                layer(x)
                continue
            gradients = layer.record(x).backward(np.ones((4, 3, 16), np.float32))
            if call % 8:
                layer.load_state_dict(gradients.parameters)

    round_of_calls()
    growth = []
    for _ in range(3):  # what allocators keep for later, they take once; a leak grows every time
        gc.collect()
        before = process.memory_info().rss
        round_of_calls()
        gc.collect()
        growth.append(process.memory_info().rss - before)
    assert min(growth) < 2e6, growth
