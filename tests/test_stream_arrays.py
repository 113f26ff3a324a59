"""What streams are given: errors, unusual memory, `out`; and what a step costs in Python."""

from __future__ import annotations

import gc
import itertools
import re
import sys
import threading
import time
import timeit
import tracemalloc

import numpy as np
import pytest
from oracle import KINDS, assert_same_states, make, normal, state_for

STEPS, BATCH, SIZE, HIDDEN = 4, 3, 5, 6


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


def read_only(array):
    array.flags.writeable = False
    return array


X = zeros(BATCH, SIZE)
H = zeros(2, BATCH, HIDDEN)

# Calls of a stream of 3 rows of a 2-layer LSTM(5, 6), and the error.
WRONG_CALLS = [
    (lambda s: s.step(X.astype("f8")), TypeError, "x: expected float32, got float64"),
    (lambda s: s.step(X.astype("i4")), TypeError, "x: expected float32, got int32"),
    (lambda s: s.step(None), TypeError, "x: expected an array, got None"),
    (lambda s: s.step([[1.0], [1.0, 2.0]]), TypeError, "x: expected an array, got list: "),
    (lambda s: s.step(np.ma.masked_all(X.shape, "f4")), TypeError, "x: expected an array without"),
    (lambda s: s.step(zeros(3, 7)), ValueError, "x: expected shape (B, I) = (3, 5), got (3, 7)"),
    (lambda s: s.step(zeros(2, 5)), ValueError, "x: expected shape (B, I) = (3, 5), got (2, 5)"),
    (lambda s: s.step(zeros(5)), ValueError, "x: expected shape (B, I) = (3, 5), got (5,)"),
    (
        lambda s: s.run(zeros(4, 2, 5)),
        ValueError,
        "x: expected shape (T, B, I) = (*, 3, 5), got (4, 2, 5)",
    ),
    (lambda s: s.run(X), ValueError, "x: expected shape (T, B, I) = (*, 3, 5), got (3, 5)"),
    (lambda s: s.step(X, [0.0]), TypeError, "out: expected an array, got list"),
    (lambda s: s.step(X, out=0.0), TypeError, "out: expected an array, got float"),
    (lambda s: s.step(X, zeros(3, 6, dtype="f8")), TypeError, "out: expected float32, got float64"),
    (lambda s: s.step(X, X), ValueError, "out: expected shape (B, H) = (3, 6), got (3, 5)"),
    (lambda s: s.step(X, zeros(18)), ValueError, "out: expected shape (B, H) = (3, 6), got (18,)"),
    (lambda s: s.step(X, read_only(zeros(3, 6))), ValueError, "out: expected a wr"),
    (lambda s: s.step(X, zeros(6, 3).T), ValueError, "out: expected a writable, aligned, C-contig"),
    (lambda s: s.step(X, zeros(3, 12)[:, ::2]), ValueError, "out: expected a writable, aligned, "),
    (lambda s: s.step(X, zeros(3, 6, dtype=">f4")), ValueError, "out: expected a writable, align"),
    (
        lambda s: s.run(zeros(4, 3, 5), zeros(3, 3, 6)),
        ValueError,
        "out: expected shape (T, B, H) = (4, 3, 6), got (3, 3, 6)",
    ),
    (lambda s: s.step(X.astype("f8"), [0.0]), TypeError, "x: expected float32, got float64"),
    (lambda s: s.reset([0.0]), TypeError, "rows: expected bool or integers, got float64"),
    (lambda s: s.reset([3]), ValueError, "rows: expected values in 0..B-1 = 0..2, got 3"),
    (lambda s: s.reset(-1), ValueError, "rows: expected values in 0..B-1 = 0..2, got -1"),
    (lambda s: s.reset([2**63]), ValueError, "rows: expected values in 0..B-1 = 0..2, got 92233"),
    (lambda s: s.reset([True]), ValueError, "rows: expected shape (B,) = (3,), got (1,)"),
    (lambda s: setattr(s, "state", H), TypeError, "state: expected a pair (h, c), got ndarray"),
    (lambda s: setattr(s, "state", (H,)), ValueError, "state: expected a pair (h, c), got 1 entr"),
    (lambda s: setattr(s, "state", ()), ValueError, "state: expected a pair (h, c), got 0 entries"),
    (lambda s: setattr(s, "state", (H, None)), TypeError, "state[1]: expected an array, got None"),
    (
        lambda s: setattr(s, "state", (H, H[:1])),
        ValueError,
        "state[1]: expected shape (L*D, B, H) = (2, 3, 6), got (1, 3, 6)",
    ),
    (
        lambda s: setattr(s, "state", (H[:, 0], H[:, 0])),
        ValueError,
        "state[0]: expected shape (L*D, B, H) = (2, 3, 6), got (2, 6)",
    ),
    (lambda s: setattr(s, "state", (H.astype("f8"), H)), TypeError, "state[0]: expected float32, "),
]


@pytest.fixture
def layer():
    return make("lstm", SIZE, HIDDEN, num_layers=2)


@pytest.fixture
def x(rng):
    return normal(rng, (STEPS, BATCH, SIZE), "float32")


@pytest.fixture
def stream(layer, rng):
    stream = layer.stream(BATCH)
    stream.state = state_for(layer, BATCH, rng)
    return stream


@pytest.mark.parametrize("call, error, text", WRONG_CALLS, ids=[c[2] for c in WRONG_CALLS])
def test_wrong_arguments_change_nothing(call, error, text, stream):
    before = stream.state
    with pytest.raises(error) as caught:
        call(stream)
    assert str(caught.value).startswith(text)
    assert_same_states(stream.state, before)


def test_text_follows_the_stream(rng):
    stream = make("lstm_projected", SIZE, HIDDEN).stream()
    for call, text in {
        lambda: stream.step(zeros(6)): "x: expected shape (I,) = (5,), got (6,)",
        lambda: stream.step(zeros(2, 5)): "x: expected shape (B, I) = (1, 5), got (2, 5)",
        lambda: stream.run(zeros(2, 6)): "x: expected shape (T, I) = (*, 5), got (2, 6)",
        lambda: stream.step(zeros(5), zeros(1, 3)): "out: expected shape (P,) = (3,), got (1, 3)",
        lambda: stream.step(zeros(1, 5), zeros(3)): "out: expected shape (B, P) = (1, 3), got (3,)",
    }.items():
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == text


WEIGHTS = "weights: expected one of float32, bfloat16, int8"
WRONG_STREAMS = [
    ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
    ({"batch_size": 1.0}, TypeError, "batch_size: expected an integer, got float"),
    ({"batch_size": True}, TypeError, "batch_size: expected an integer, got bool"),
    ({"batch_size": 2**60}, ValueError, "batch_size: expected a size that fits in memory, got "),
    ({"batch_size": 10**30}, ValueError, "batch_size: expected a size that fits in memory, got "),
    ({"weights": "int4"}, ValueError, f"{WEIGHTS}, got 'int4'"),
    ({"weights": "float64"}, ValueError, f"{WEIGHTS}, got 'float64'"),
    ({"weights": np.float32}, ValueError, f"{WEIGHTS}, got <class"),
]


@pytest.mark.parametrize("options, error, text", WRONG_STREAMS, ids=[c[2] for c in WRONG_STREAMS])
def test_wrong_arguments_of_a_stream(options, error, text, layer):
    with pytest.raises(error) as caught:
        layer.stream(**options)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bidirectional_layer_does_not_stream(kind):
    with pytest.raises(ValueError, match="bidirectional: expected False for a stream, got True"):
        make(kind, SIZE, HIDDEN, bidirectional=True).stream()


def test_a_batch_beyond_memory(layer):
    with pytest.raises(MemoryError):
        layer.stream(2**44)


def test_out_is_returned(layer, stream, x):
    want, _ = layer(x, stream.state)
    out = np.full((BATCH, HIDDEN), np.nan, np.float32)
    for k, x_t in enumerate(x):
        before = x_t.copy()
        assert (stream.step(x_t, out) if k % 2 else stream.step(x_t, out=out)) is out
        np.testing.assert_allclose(out, want[k], rtol=1e-5)
        np.testing.assert_array_equal(x_t, before)
    out = np.full((STEPS, BATCH, HIDDEN), np.nan, np.float32)
    stream.reset()
    assert stream.run(x, out=out) is out
    np.testing.assert_allclose(out, layer(x)[0], rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 20])  # fewer and more rows than the kernels take at a time
@pytest.mark.parametrize("size", [69, 70, 71])
def test_out_may_overlap_x(size, batch, rng):
    hidden = 70
    layer = make("gru", size, hidden)
    for steps in (None, 2):
        leading = (batch,) if steps is None else (steps, batch)
        x = normal(rng, (*leading, size), "float32")
        count, written = x.size, x.size // size * hidden
        first = layer.stream(batch)
        want = first.step(x) if steps is None else first.run(x)
        for shift in (-written, -written // 2, -1, 0, 1, size, count // 2, count):
            memory = np.full(3 * max(count, written), np.nan, np.float32)
            given = memory[written : written + count].reshape(x.shape)
            given[...] = x
            out = memory[written + shift :][:written].reshape(*leading, hidden)
            stream = layer.stream(batch)
            (stream.step if steps is None else stream.run)(given, out)
            np.testing.assert_array_equal(out, want, err_msg=f"{shift}")


def memory_of(value) -> bytes | None:
    return value.tobytes() if isinstance(value, np.ndarray) and not value.dtype.hasobject else None


class TestHostileArrays:
    """The result of a clean copy, or an error that names the argument."""

    @pytest.fixture(autouse=True)
    def _hypothesis(self):
        pytest.importorskip("hypothesis")

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    @pytest.mark.parametrize("batch", [1, BATCH])
    def test_x(self, batch, layer, rng):
        from hostile import clean, variants
        from hypothesis import given, settings
        from hypothesis import strategies as st

        stream, state = layer.stream(batch), state_for(layer, batch, rng)
        good = normal(rng, (batch, SIZE), "float32")
        fitting = [good.shape] if batch > 1 else [good.shape, good.shape[1:]]

        @given(st.data())
        @settings(derandomize=True, database=None, deadline=None, max_examples=150)
        def check(data):
            value = data.draw(variants(good if batch > 1 else good[0]))
            same = clean(value, good.dtype)
            stream.state = state
            try:
                got = stream.step(value)
            except (TypeError, ValueError) as error:
                assert re.match("x: expected .*, got ", str(error), re.DOTALL), str(error)
                assert same is None or same.shape not in fitting
                assert_same_states(stream.state, state)
            else:
                stream.state = state
                np.testing.assert_array_equal(got, stream.step(same))

        check()

    @pytest.mark.filterwarnings("ignore:the matrix subclass")
    def test_out(self, stream, x):
        from hostile import memory_mapped, variants
        from hypothesis import given, settings
        from hypothesis import strategies as st

        state, want = stream.state, stream.step(x[0])

        @given(st.data())
        @settings(derandomize=True, database=None, deadline=None, max_examples=150)
        def check(data):
            value = data.draw(variants(np.zeros((BATCH, HIDDEN), np.float32)))
            before = memory_of(value)
            stream.state = state
            try:
                got = stream.step(x[0], value)
            except (TypeError, ValueError) as error:
                assert re.match("out: expected .*, got ", str(error), re.DOTALL), str(error)
                assert_same_states(stream.state, state)
                assert memory_of(value) == before
            else:
                assert got is value
                np.testing.assert_array_equal(value, want)

        check()
        mapped = memory_mapped(np.zeros((BATCH, HIDDEN), np.float32))
        stream.state = state
        assert stream.step(x[0], mapped) is mapped
        np.testing.assert_array_equal(mapped, want)


class TestCost:
    """What a step costs beside the kernel, on the native backend."""

    @pytest.fixture(autouse=True)
    def _native(self, native):
        """All of this is about the native backend."""

    # The larger step gives the GIL away.
    @pytest.mark.parametrize("size, steps", [(8, 10_000), (400, 100)])
    @pytest.mark.parametrize("batch", [1, BATCH])
    def test_a_step_into_out_allocates_nothing(self, batch, size, steps):
        stream = make("lstm", size + 1, size, num_layers=2).stream(batch)
        x, out = np.ones((batch, size + 1), np.float32), np.empty((batch, size), np.float32)
        step = stream.step  # bound once: for each `stream.step` Python 3.10 makes an object
        step(x, out)
        tracemalloc.start()
        try:
            before = sys.getallocatedblocks()
            tracemalloc.reset_peak()
            traced = tracemalloc.get_traced_memory()[0]
            for _ in itertools.repeat(None, steps):
                step(x, out)
                step(x, out=out)
            assert tracemalloc.get_traced_memory()[1] - traced < 100  # less than an array's header
            assert sys.getallocatedblocks() - before < 10
        finally:
            tracemalloc.stop()

    def test_references_are_given_back(self, stream, x):
        out = np.empty((BATCH, HIDDEN), np.float32)
        strided = np.empty((BATCH, 2 * HIDDEN), np.float32)[:, ::2]
        x_t, flipped = x[0].copy(), x[0, :, ::-1]
        watched = [x_t, flipped, out, strided, stream, type(stream), out.dtype]

        def calls():
            for _ in range(1000):
                stream.step(x_t)
                stream.step(x_t, out)
                stream.step(flipped, out=out)
                stream.run(x, None)
                stream.state = stream.state
                stream.reset([0])
                with pytest.raises(ValueError):
                    stream.step(x_t, strided)

        calls()
        gc.collect()
        before = [sys.getrefcount(each) for each in watched], sys.getallocatedblocks()
        calls()
        gc.collect()
        after = [sys.getrefcount(each) for each in watched], sys.getallocatedblocks()
        assert max(abs(b - a) for a, b in zip(before[0], after[0], strict=True)) < 50
        assert abs(after[1] - before[1]) < 500

    def test_a_long_run_lets_other_threads_run(self):
        stream = make("lstm", 256, 256, num_layers=2).stream(16)
        thread = threading.Thread(target=stream.run, args=(np.ones((400, 16, 256), np.float32),))
        thread.start()
        turns = 0
        while thread.is_alive():
            time.sleep(0.0005)
            turns += 1
        assert turns > 5

    def test_a_step_takes_less_than_a_call_of_the_layer(self):
        layer = make("gru", 8, 8)
        stream = layer.stream()
        x, out = np.ones(8, np.float32), np.empty(8, np.float32)
        sequence = x[None]
        layer(sequence)

        def best(function):
            return min(timeit.repeat(function, number=50, repeat=200))

        for _ in range(5):  # another process may take the core for a while
            short, long = best(lambda: stream.step(x, out)), best(lambda: layer(sequence))
            if short < 0.5 * long:
                break
        assert short < 0.5 * long
