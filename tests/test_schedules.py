"""Every way to share a stack out to threads gives the bits of one thread."""

import numpy as np
import pytest
from oracle import assert_same_bits

import rnnfast
from rnnfast import _backend
from rnnfast._low_precision import FORMATS

SCHEDULES = ("shards", "units", "directions", "layers")
CELLS = {
    "rnn": (rnnfast.RNN, {}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_projected": (rnnfast.LSTM, {"proj_size": 200}),
}


@pytest.fixture
def native():
    if _backend.current().name != "native":
        pytest.skip("only the native backend has threads")
    import rnnfast._native as module

    threads = rnnfast.get_num_threads()
    yield module
    module.force_schedule("none")
    rnnfast.set_num_threads(threads)


def cuts(rng, steps, batch, ragged):
    if not ragged:
        return {}
    lengths = rng.integers(0, steps + 1, batch)
    lengths[0] = steps
    return {"lengths": lengths, "reset": rng.random((steps, batch)) < 0.1}


def everything(native, layer, x, state=None, **options):
    """Outputs, states and gradients, by name; and how each of the three passes was shared out."""
    output, last = layer(x, state, **options)
    ran = [native.last_schedule()]
    tape = layer.record(x, state, **options)
    ran.append(native.last_schedule())
    rng = np.random.default_rng(1)
    d_output = rng.standard_normal(tape.output.shape).astype(x.dtype)
    d_state = state_like(rng, last, x.dtype)
    grads = tape.backward(d_output, d_state)
    ran.append(native.last_schedule())
    flat = {"output": output, "tape.output": tape.output, "dx": grads.input, **grads.parameters}
    for name, value in (("state", last), ("d_state", grads.state)):
        parts = value if isinstance(value, tuple) else (value,)
        flat.update({f"{name}{i}": part for i, part in enumerate(parts)})
    return flat, ran


def state_like(rng, state, dtype):
    if isinstance(state, tuple):
        return tuple(state_like(rng, part, dtype) for part in state)
    return rng.standard_normal(state.shape).astype(dtype)


def assert_all_same_bits(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert_same_bits(got[name], value, name)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_gives_the_bits_of_one_thread(native, schedule, cell, dtype, ragged):
    kind, options = CELLS[cell]
    both = schedule == "directions"
    # Units go by panels of four vectors, three or one: 224 of them are shared out by different
    # blocks in different products.
    layer = kind(33, 224, 2, bidirectional=both, dtype=dtype, seed=0, **options)
    rng = np.random.default_rng(0)
    steps, batch = 70, 7
    x = rng.standard_normal((steps, batch, 33)).astype(dtype)
    given = cuts(rng, steps, batch, ragged)
    rnnfast.set_num_threads(1)
    state = state_like(rng, layer(x[:1])[1], dtype)
    want, ran = everything(native, layer, x, state, **given)
    assert ran == ["none"] * 3
    for threads in (2, 3):
        rnnfast.set_num_threads(threads)
        native.force_schedule(schedule)
        got, ran = everything(native, layer, x, state, **given)
        native.force_schedule("none")
        assert ran == [schedule] * 3
        assert_all_same_bits(got, want)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("steps", "batch", "hidden"), [(1, 1, 1), (3, 2, 17), (0, 3, 5), (20, 1, 130)]
)
def test_more_threads_than_there_is_work(native, schedule, steps, batch, hidden):
    layer = rnnfast.LSTM(300, hidden, 2, bidirectional=schedule == "directions", seed=0)
    x = np.random.default_rng(0).standard_normal((steps, batch, 300), np.float32)
    rnnfast.set_num_threads(1)
    want, _ = everything(native, layer, x)
    rnnfast.set_num_threads(5)
    native.force_schedule(schedule)
    got, ran = everything(native, layer, x)
    assert set(ran) <= {schedule, "none"}  # one row and one panel are one thread's
    assert_all_same_bits(got, want)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("precision", ["float32", "float64", *FORMATS])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_state_gives_the_bits_of_zeros(native, schedule, cell, precision, ragged):
    """Also where each thread leaves out its part of the first step's product."""
    kind, options = CELLS[cell]
    if "proj_size" in options:
        options = {"proj_size": 9}
    dtype = "float64" if precision == "float64" else "float32"
    options = {"dtype": dtype, "precision": precision, **options}
    layer = kind(7, 70, num_layers=2, bidirectional=True, seed=1, **options)
    x = np.random.default_rng(2).standard_normal((6, 5, 7)).astype(dtype)
    lengths = {"lengths": np.array([2, 6, 0, 3, 6])} if ragged else {}
    rnnfast.set_num_threads(1)
    zeros = np.zeros((4, 5, 70), dtype)
    h0 = zeros[..., : options.get("proj_size", 70)]
    want = layer(x, (h0, zeros) if kind is rnnfast.LSTM else h0, **lengths)[0]
    rnnfast.set_num_threads(2)
    native.force_schedule(schedule)
    assert_same_bits(layer(x, **lengths)[0], want, "output")


def test_an_unknown_schedule(native):
    with pytest.raises(ValueError, match="expected one of none, shards, units"):
        native.force_schedule("guided")


def test_small_work_runs_alone_and_large_work_does_not(native):
    rnnfast.set_num_threads(2)
    rnnfast.LSTM(8, 16, seed=0)(np.zeros((5, 2, 8), np.float32))
    assert native.last_schedule() == "none"
    layer, x = rnnfast.LSTM(256, 256, seed=0), np.zeros((50, 32, 256), np.float32)
    ran = set()
    for _ in range(20):  # a worker whose core is busy is not waited for
        layer(x)
        ran.add(native.last_schedule())
    assert "shards" in ran
