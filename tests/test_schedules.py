"""Every way to share a stack out to threads gives the bits of one thread."""

import numpy as np
import pytest

import rnnfast
from rnnfast import _backend

SCHEDULES = ("shards", "units", "directions", "layers")
CELLS = {
    "rnn": (rnnfast.RNN, {}),
    "gru": (rnnfast.GRU, {}),
    "gru_reset_before": (rnnfast.GRU, {"reset_after": False}),
    "lstm": (rnnfast.LSTM, {}),
    "lstm_projected": (rnnfast.LSTM, {"proj_size": 137}),
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


def everything(layer, x, **options):
    """Outputs, states and gradients, by name."""
    output, state = layer(x, **options)
    tape = layer.record(x, **options)
    rng = np.random.default_rng(1)
    d_output = rng.standard_normal(tape.output.shape).astype(x.dtype)
    grads = tape.backward(d_output)
    flat = {"output": output, "tape.output": tape.output, "dx": grads.input, **grads.parameters}
    for name, value in (("state", state), ("d_state", grads.state)):
        parts = value if isinstance(value, tuple) else (value,)
        flat.update({f"{name}{i}": part for i, part in enumerate(parts)})
    return flat


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name, strict=True)


@pytest.mark.parametrize("ragged", [False, True], ids=["full", "ragged"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_gives_the_bits_of_one_thread(native, schedule, cell, dtype, ragged):
    kind, options = CELLS[cell]
    both = schedule == "directions"
    # Units are shared out by panels of four vectors: for three threads, three of the widest.
    layer = kind(33, 200, 3, bidirectional=both, dtype=dtype, seed=0, **options)
    rng = np.random.default_rng(0)
    steps, batch = 45, 7
    x = rng.standard_normal((steps, batch, 33)).astype(dtype)
    given = cuts(rng, steps, batch, ragged)
    rnnfast.set_num_threads(1)
    want = everything(layer, x, **given)
    assert native.last_schedule() == "none"
    for threads in (2, 3):
        rnnfast.set_num_threads(threads)
        native.force_schedule(schedule)
        got = everything(layer, x, **given)
        assert native.last_schedule() == schedule
        native.force_schedule("none")
        assert_same_bits(got, want)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("steps", "batch", "hidden"), [(1, 1, 1), (3, 2, 17), (0, 3, 5), (20, 1, 70)]
)
def test_more_threads_than_there_is_work(native, schedule, steps, batch, hidden):
    layer = rnnfast.LSTM(5, hidden, 2, bidirectional=schedule == "directions", seed=0)
    x = np.random.default_rng(0).standard_normal((steps, batch, 5), np.float32)
    rnnfast.set_num_threads(1)
    want = everything(layer, x)
    rnnfast.set_num_threads(5)
    native.force_schedule(schedule)
    assert_same_bits(everything(layer, x), want)


def test_an_unknown_schedule(native):
    with pytest.raises(ValueError, match="expected one of none, shards, units"):
        native.force_schedule("guided")


def test_small_work_runs_alone_and_large_work_does_not(native):
    rnnfast.set_num_threads(2)
    native.force_schedule("none")
    rnnfast.LSTM(8, 16, seed=0)(np.zeros((5, 2, 8), np.float32))
    assert native.last_schedule() == "none"
