"""What the documentation promises of numbers: accuracy, NaN and Inf, denormals, environment."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import platform
import time
from contextlib import contextmanager

import numpy as np
import pytest
from oracle import first_steps_from_zeros, make, normal, parts, state_for, use_or_skip
from tolerances import REFERENCE, assert_close

import rnnfast
from rnnfast import _backend, functional

# (batch, input, hidden, options) of models in use: one stream of speech features, a batch of
# sentences, two layers in two directions.
SHAPES = {
    "stream": (1, 40, 128, {}),
    "batch": (12, 100, 72, {}),
    "stack": (4, 20, 48, {"num_layers": 2, "bidirectional": True}),
}
STEPS = 200
FAST = [name for name in _backend.BACKENDS if name != "numpy"]


@pytest.fixture(params=FAST)
def backend(request, keep_backend) -> str:
    """Each backend but the reference, in use."""
    return use_or_skip(request.param)


def by_name(tape, gradients) -> dict[str, dict[str, np.ndarray]]:
    """All results of both passes."""
    forward = {"output": tape.output}
    forward.update({f"state {k}": s for k, s in enumerate(parts(tape.state))})
    backward = {"dx": gradients.input, **gradients.parameters}
    backward.update({f"d_state {k}": s for k, s in enumerate(parts(gradients.state))})
    return {"forward": forward, "backward": backward}


def both_passes(layer, x, state, d_output, d_state):
    tape = layer.record(x, state)
    return by_name(tape, tape.backward(d_output, d_state))


def in_float64(value):
    """An array, or a pair of them, in float64."""
    if isinstance(value, tuple):
        return tuple(map(in_float64, value))
    return None if value is None else value.astype(np.float64)


def reference(layer, *given):
    """The same by the NumPy reference in float64."""
    in_use = _backend.current().name
    _backend.use("numpy")
    options = {**layer._options._asdict(), "dtype": "float64"}
    twin = type(layer)(**{n: v for n, v in options.items() if v is not None})
    twin.load_state_dict(layer.state_dict())
    try:
        return both_passes(twin, *map(in_float64, given))
    finally:
        _backend.use(in_use)


def case(layer, steps: int, batch: int, rng):
    """Random x, state, and gradients of the output and of the state."""
    output = layer(np.zeros((1, 1, layer.input_size), layer.dtype))[0]
    return (
        normal(rng, (steps, batch, layer.input_size), layer.dtype),
        state_for(layer, batch, rng),
        normal(rng, (steps, batch, output.shape[-1]), layer.dtype),
        state_for(layer, batch, rng),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_accuracy(kind, dtype, backend, shape, rng):
    batch, input_size, hidden, options = SHAPES[shape]
    layer = make(kind, input_size, hidden, dtype=dtype, **options)
    given = case(layer, STEPS, batch, rng)
    got, want = both_passes(layer, *given), reference(layer, *given)
    for which, arrays in want.items():
        for name, array in arrays.items():
            assert_close(got[which][name], array, REFERENCE[dtype, which], f"{which} {name}")


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["x", "state", "d_output", "d_state", "weight_hh_l0"])
def test_not_finite_goes_where_the_reference_has_it(kind, dtype, backend, where, poison, rng):
    """At a width that leaves lanes empty, where 0 * Inf must not come from."""
    layer = make(kind, 3, 19, dtype=dtype)
    given = x, state, d_output, d_state = case(layer, 6, 5, rng)
    if where == "weight_hh_l0":
        with layer.parameters.edit() as p:
            p[where][7, 1] = poison
    else:
        target = {"x": x[2], "state": parts(state)[-1][0], "d_output": d_output[2]}
        target["d_state"] = parts(d_state)[-1][0]
        target[where][3, 1] = poison
    got, want = both_passes(layer, *given), reference(layer, *given)
    for which, arrays in want.items():
        for name, array in arrays.items():
            what = f"{which} {name}"
            for test in (np.isnan, np.isposinf, np.isneginf):
                np.testing.assert_array_equal(test(got[which][name]), test(array), err_msg=what)


@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
@pytest.mark.parametrize("row", [0, -1])
def test_first_step_from_zeros(kind, dtype, backend, row, poison, rng):
    """Its product with R is left out where that is zeros, but not where R makes it NaN."""
    layer = make(kind, 3, 19, dtype=dtype, bidirectional=True)
    first_steps = first_steps_from_zeros(layer, row, poison, rng)
    assert all(np.isnan(step).any() == (poison is not None) for step in first_steps)


def decayed(value):
    """`value` times so little that all of it is denormal."""
    if isinstance(value, tuple):
        return tuple(map(decayed, value))
    return value * value.dtype.type(np.finfo(value.dtype).tiny / 100)


def test_denormals_cost_no_time(kind, dtype, backend, rng, keep_threads):
    """States, gates and gradients that have decayed, against the same before."""
    rnnfast.set_num_threads(1)  # so that no time goes into waking others up
    layer = make(kind, 32, 64, dtype=dtype, bias=False)
    given = case(layer, 30, 16, rng)
    small = tuple(map(decayed, given))
    assert (small[0] != 0).any()
    normal_time = denormal_time = np.inf
    for _ in range(100):  # the best of many: others use this machine too
        normal_time = min(normal_time, seconds(both_passes, layer, *given))
        denormal_time = min(denormal_time, seconds(both_passes, layer, *small))
        if denormal_time < 2 * normal_time:
            return
    assert denormal_time < 3 * normal_time


def test_denormals_are_zero_inside(kind, dtype, backend, rng):
    """Which keeps them from costing time on the processors where they do."""
    layer = make(kind, 32, 64, dtype=dtype, bias=False)
    x, state, *_ = map(decayed, case(layer, 30, 16, rng))
    output, last = layer(x, state)
    for array in (output, *parts(last)):
        assert (array == 0).all()


def test_padding_costs_no_time(kind, backend, rng, keep_threads):
    """A twentieth of the steps, in less than half of the time."""
    rnnfast.set_num_threads(1)
    layer = make(kind, 32, 64)
    x, state, d_output, _ = case(layer, 400, 16, rng)
    short = np.full(16, 20)

    def train(lengths):
        layer.record(x, state, lengths=lengths).backward(d_output)

    def infer(lengths):
        layer(x, state, lengths=lengths)

    for run in (infer, train):
        short_time = full_time = np.inf
        for _ in range(100):  # the best of many, as above
            short_time = min(short_time, seconds(run, short))
            full_time = min(full_time, seconds(run, None))
            if short_time < 0.25 * full_time:
                break
        assert short_time < 0.5 * full_time, run.__name__


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "dropout": 0.5}])
def test_numpy_raises_nothing(kind, dtype, backend, options, rng):
    """Whatever overflows, under or is not a number inside, `np.errstate` does not hear of it."""
    layer = make(kind, 3, 19, dtype=dtype, **options)
    given = case(layer, 6, 5, rng)
    huge, tiny = np.finfo(dtype).max / 4, np.finfo(dtype).tiny
    for scale in (huge, tiny, np.inf):
        extreme = [scaled(value, scale) for value in given]
        with np.errstate(all="raise"):
            layer(*extreme[:2])
            both_passes(layer, *extreme)


def test_numpy_raises_nothing_where_the_directions_meet(backend):
    """Each direction's gradient at x is finite; their sum is not."""
    layer = make("rnn_relu", 1, 1, bidirectional=True, bias=False)
    weights = {name: np.full((1, 1), "ih" in name, np.float32) for name in layer.parameters}
    layer.load_state_dict(weights)
    tape = layer.record(np.ones((1, 1, 1), np.float32))
    with np.errstate(all="raise"):
        gradients = tape.backward(np.full((1, 1, 2), 3e38, np.float32))
    assert np.isposinf(gradients.input).all()


def scaled(value, scale):
    """With the signs of `value`, but zeros."""
    if isinstance(value, tuple):
        return tuple(scaled(v, scale) for v in value)
    return (np.sign(value) * value.dtype.type(scale)).astype(value.dtype)


# By machine: FE_UPWARD, FE_DIVBYZERO, FE_ALL_EXCEPT of <fenv.h>.
FENV = {"x86_64": (0x800, 4, 0x3D), "aarch64": (0x400000, 2, 0x1F)}


class FloatingPoint:
    """The C library's view of this thread's floating-point environment."""

    def __init__(self) -> None:
        machine = platform.machine()
        library = ctypes.util.find_library("m")
        if machine not in FENV or not library:
            pytest.skip("needs <fenv.h> of a known machine")
        self.upward, self.divbyzero, self.all = FENV[machine]
        self.c = ctypes.CDLL(library)

    @contextmanager
    def rounding_upward(self):
        before = self.c.fegetround()
        assert self.c.fesetround(self.upward) == 0
        try:
            assert (np.ones(1) + 1e-20 > 1).all()
            yield
            assert self.c.fegetround() == self.upward, "the caller's rounding mode is gone"
        finally:
            self.c.fesetround(before)


@pytest.mark.parametrize("batch", [1, 64], ids=["one_thread", "pool"])
def test_a_callers_rounding_mode_stays_and_has_no_effect(kind, dtype, native, batch, rng):
    machine = FloatingPoint()
    layer = make(kind, 40, 64, dtype=dtype)
    given = case(layer, 30, batch, rng)
    weights = {n: normal(rng, w.shape, dtype) / 10 for n, w in layer.parameters.items()}
    layer.load_state_dict(weights)
    want = both_passes(layer, *given)
    layer.load_state_dict(weights)  # to be packed anew
    with machine.rounding_upward():
        got = both_passes(layer, *given)
    for which, arrays in want.items():
        for name, array in arrays.items():
            np.testing.assert_array_equal(got[which][name], array, err_msg=f"{which} {name}")


@pytest.fixture
def no_collection():
    """No garbage is collected: Hypothesis measures how long that takes, in floating point."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("raised", [False, True])
def test_a_callers_exception_flags_stay(kind, dtype, backend, raised, rng, no_collection):
    """Of what happens inside nothing is to be seen, not even Inf - Inf."""
    machine = FloatingPoint()
    layer = make(kind, 40, 64, dtype=dtype)
    x, state, d_output, d_state = case(layer, 30, 16, rng)
    x[3, 2], x[5, 3, ::2], d_output[4, 1] = np.inf, np.finfo(dtype).max, -np.inf
    both_passes(layer, x, state, d_output, d_state)  # the fallback compiles
    run = functional.forward(
        layer._packs().packs[0], x, *(s[0] for s in parts(state)), training=True
    )
    machine.c.feclearexcept(machine.all)
    if raised:
        machine.c.feraiseexcept(machine.divbyzero)
    before = machine.c.fetestexcept(machine.all)
    assert before == (machine.divbyzero if raised else 0)
    _backend.current().forward(run.packed.cell, run.packed.weights, run.args, True)
    assert machine.c.fetestexcept(machine.all) == before
    run.backward(d_output)
    assert machine.c.fetestexcept(machine.all) == before
    machine.c.feclearexcept(machine.all)
