"""The native backend gives a row the same bits whatever runs beside it, and on how many threads.

Every layer here has both directions, and more rows than one thread's share of the kernels' tiles.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from oracle import KINDS, assert_same_bits, make, normal, parts, state_for

import rnnfast
from rnnfast import functional
from rnnfast._cells import CELLS, Sizes, weight_shapes

# Below, at, off and at a multiple of every vector width; several panels, the last of them narrow.
HIDDEN_SIZES = (5, 16, 33, 64, 150)
INPUT = 33
BATCH = 64
BATCH_SIZES = (1, 2, 7, BATCH)
THREADS = (1, 2, 3)
# (steps, batch, whether forward is shared out too): rows enough for each thread; and too few, where
# only the products of backward are shared out.
SHARED_OUT = [(140, 61, True), (1700, 3, False)]
TASKS = Path("/proc/self/task")


@pytest.fixture(autouse=True)
def three_threads(estimated, keep_threads):
    rnnfast.set_num_threads(3)


@pytest.fixture(params=HIDDEN_SIZES)
def hidden(request) -> int:
    return request.param


def layer_of(kind: str, hidden: int, dtype: str):
    options = {"proj_size": hidden - 2} if "proj_size" in KINDS[kind][1] else {}
    return make(kind, INPUT, hidden, dtype=dtype, bidirectional=True, **options)


def batch_of(layer, steps: int, batch: int, rng):
    """Random x, state, and gradients of the output and of the state."""
    state = state_for(layer, batch, rng)
    width = 2 * parts(state)[0].shape[-1]
    x = normal(rng, (steps, batch, INPUT), layer.dtype)
    return x, state, normal(rng, (steps, batch, width), layer.dtype), state_for(layer, batch, rng)


def rows_of(state, rows):
    """Some rows of a state."""
    chosen = [np.ascontiguousarray(s[:, rows]) for s in parts(state)]
    return tuple(chosen) if isinstance(state, tuple) else chosen[0]


def run(layer, x, state, d_output, d_state, lengths=None):
    """Arrays by name: those in which axis 1 is the batch, and the gradients of the parameters."""
    tape = layer.record(x, state, lengths=lengths)
    gradients = tape.backward(d_output, d_state)
    rows = {"output": tape.output, "dx": gradients.input}
    rows.update({f"last state {k}": s for k, s in enumerate(parts(tape.state))})
    rows.update({f"d_state {k}": s for k, s in enumerate(parts(gradients.state))})
    return rows, gradients.parameters


def assert_all_same_bits(got, want, rows=slice(None)) -> None:
    """Of everything that `run` gives by rows, where `got` has some rows of `want`."""
    assert got.keys() == want.keys()
    for name, array in got.items():
        assert_same_bits(array, want[name][:, rows], name)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
def test_batch_sizes_and_places(kind, dtype, hidden, ragged, rng):
    """A row is alone, among a few, or anywhere among many, sorted by length or not."""
    steps = 12
    layer = layer_of(kind, hidden, dtype)
    x, state, d_output, d_state = batch_of(layer, steps, BATCH, rng)
    lengths = rng.integers(0, steps + 1, BATCH) if ragged else np.full(BATCH, steps)
    want, _ = run(layer, x, state, d_output, d_state, lengths)
    if not ragged:
        assert_all_same_bits(run(layer, x, state, d_output, d_state)[0], want)
    for size in BATCH_SIZES:
        rows = rng.permutation(BATCH)[:size]
        got, _ = run(
            layer,
            np.ascontiguousarray(x[:, rows]),
            rows_of(state, rows),
            np.ascontiguousarray(d_output[:, rows]),
            rows_of(d_state, rows),
            lengths[rows] if ragged or size == 7 else None,
        )
        assert_all_same_bits(got, want, rows)


@pytest.mark.parametrize("steps, batch, forward_too", SHARED_OUT)
def test_numbers_of_threads(kind, dtype, hidden, steps, batch, forward_too, rng):
    """Of the parameters' gradients too."""
    layer = layer_of(kind, hidden, dtype)
    given = batch_of(layer, steps, batch, rng)
    results = []
    for threads in THREADS:
        rnnfast.set_num_threads(threads)
        with at_work(threads - 1):
            results.append(run(layer, *given))
        with at_work(threads - 1 if forward_too else 0):
            layer(given[0])
    (want, want_parameters), *others = results
    for got, parameters in others:
        assert_all_same_bits(got, want)
        for name, gradient in parameters.items():
            assert_same_bits(gradient, want_parameters[name], name)


@contextmanager
def at_work(workers: int):
    """Asserts that at least so many threads other than this one run within the block."""
    if not TASKS.is_dir():  # not Linux: the results are compared, but not what computed them
        yield
        return
    deadline = time.monotonic() + 10  # on a busy machine a thread may sleep late
    before, previous = _sleeps(), None
    while before != previous:  # one that worked before this block is not to count in it
        assert time.monotonic() < deadline, "the threads do not come to rest"
        time.sleep(0.005)
        before, previous = _sleeps(), before
    yield
    deadline = time.monotonic() + 10
    while sum(n != before.get(thread) for thread, n in _sleeps().items()) < workers:
        assert time.monotonic() < deadline, f"fewer than {workers} threads worked"


def _sleeps() -> dict[str, int]:
    """How often each thread of the process has gone to sleep, but for the calling one."""
    time.sleep(0.002)  # a thread of the pool spins for 40 us before it sleeps
    counts = {}
    for task in TASKS.iterdir():
        if int(task.name) != threading.get_native_id():
            with suppress(FileNotFoundError, ProcessLookupError):  # another's thread, that ended
                status = (task / "status").read_text()
                counts[task.name] = int(status.split("\nvoluntary_ctxt_switches:")[1].split()[0])
    return counts


@pytest.mark.parametrize("hidden", [5, 64])
def test_inference_is_as_training(kind, dtype, hidden, rng):
    layer = layer_of(kind, hidden, dtype)
    x, state, *_ = batch_of(layer, 40, BATCH, rng)
    tape = layer.record(x, state)
    output, last = layer(x, state)
    assert_same_bits(tape.output, output)
    for got, want in zip(parts(tape.state), parts(last), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("batch", [1, 13])
@pytest.mark.parametrize("cell", [*CELLS, *(f"{n}+projection" for n in CELLS if CELLS[n].projects)])
def test_chunks_with_carried_state(cell, dtype, hidden, batch, reverse, rng):
    """States go from piece to piece, and their gradients back."""
    cell, _, projected = cell.partition("+")
    sizes = Sizes(INPUT, hidden, hidden - 2 if projected else 0)
    weights = {
        name: normal(rng, shape, dtype) / np.sqrt(np.array(hidden, dtype))
        for name, shape in weight_shapes(CELLS[cell], sizes, bias=True).items()
    }
    packed = functional.pack(cell, **weights)
    cuts = [0, 1, 2, 10, 24]
    x = normal(rng, (cuts[-1], batch, INPUT), dtype)
    dy = normal(rng, (cuts[-1], batch, sizes.output), dtype)
    widths = (sizes.output, hidden) if "c" in CELLS[cell].states else (sizes.output,)
    state = [normal(rng, (batch, width), dtype) for width in widths]
    d_state = [normal(rng, (batch, width), dtype) for width in widths]

    whole = functional.forward(packed, x, *state, reverse=reverse, training=True)
    gradients = whole.backward(dy, *d_state)

    pieces = [slice(*ends) for ends in pairwise(cuts)]
    if reverse:
        pieces.reverse()
    runs = []
    for piece in pieces:
        runs.append(functional.forward(packed, x[piece], *state, reverse=reverse, training=True))
        assert_same_bits(runs[-1].y, whole.y[piece], "y")
        state = [runs[-1].h] if runs[-1].c is None else [runs[-1].h, runs[-1].c]
    assert_same_bits(runs[-1].h, whole.h, "h")
    if whole.c is not None:
        assert_same_bits(runs[-1].c, whole.c, "c")
    for piece, part in zip(reversed(pieces), reversed(runs), strict=True):
        got = part.backward(dy[piece], *d_state)
        assert_same_bits(got.x, gradients.x[piece], "dx")
        d_state = [got.h0] if got.c0 is None else [got.h0, got.c0]
    assert_same_bits(got.h0, gradients.h0, "dh0")
    if gradients.c0 is not None:
        assert_same_bits(got.c0, gradients.c0, "dc0")
