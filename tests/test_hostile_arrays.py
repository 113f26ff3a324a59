"""Whatever is given as an array: the result of a clean copy of it, or an error that names it."""

from __future__ import annotations

import copy
import re
import time

import numpy as np
import pytest
from oracle import assert_same_gradients, assert_same_states, make, normal, parts, state_for

import rnnfast
from rnnfast import functional

pytest.importorskip("hypothesis")
from hostile import Wrapper, clean, variants
from hypothesis import given, settings
from hypothesis import strategies as st

BOUNDED = settings(derandomize=True, database=None, deadline=None, max_examples=150)
STEPS, BATCH, SIZE, HIDDEN = 4, 3, 5, 6


class LayerTarget:
    """`record` and `backward` of a layer with dropout; each array by the name that errors use."""

    def __init__(self, dtype):
        rng = np.random.default_rng(1)
        self.layer = make("lstm", SIZE, HIDDEN, num_layers=2, dropout=0.5, dtype=dtype)
        h, c = state_for(self.layer, BATCH, rng)
        dh, dc = state_for(self.layer, BATCH, rng)
        self.arrays = {
            "x": normal(rng, (STEPS, BATCH, SIZE), dtype),
            "state[0]": h,
            "state[1]": c,
            "d_output": normal(rng, (STEPS, BATCH, HIDDEN), dtype),
            "d_state[0]": dh,
            "d_state[1]": dc,
        }

    def run(self, arrays, **options):
        a = arrays
        layer = copy.deepcopy(self.layer)  # with the same random generator each time
        before = layer._rng.bit_generator.state, layer.state_dict()
        try:
            tape = layer.record(a["x"], (a["state[0]"], a["state[1]"]), **options)
        except Exception:
            assert layer._rng.bit_generator.state == before[0]
            raise
        finally:
            for name, value in before[1].items():
                np.testing.assert_array_equal(layer.parameters[name], value)
        try:
            grads = tape.backward(a["d_output"], (a["d_state[0]"], a["d_state[1]"]))
        except Exception:
            tape.backward(retain=True)  # is still to be had
            raise
        results = [tape.output, *tape.state, grads.input, *parts(grads.state)]
        return [*results, *grads.parameters.values(), layer(a["x"], **options)[0]]


class FunctionalTarget:
    """`pack`, `forward` and `Run.backward`."""

    def __init__(self, dtype):
        rng = np.random.default_rng(2)
        shapes = {
            "weight_ih": (4 * HIDDEN, SIZE),
            "weight_hh": (4 * HIDDEN, 2),
            "bias_ih": (4 * HIDDEN,),
            "bias_hh": (4 * HIDDEN,),
            "weight_hr": (2, HIDDEN),
            "x": (STEPS, BATCH, SIZE),
            "h0": (BATCH, 2),
            "c0": (BATCH, HIDDEN),
            "dy": (STEPS, BATCH, 2),
            "dh": (BATCH, 2),
            "dc": (BATCH, HIDDEN),
        }
        self.arrays = {name: normal(rng, shape, dtype) for name, shape in shapes.items()}

    def run(self, arrays, **options):
        values = list(arrays.values())
        packed = functional.pack("lstm", *values[:5])
        run = functional.forward(packed, *values[5:8], **options, training=True)
        grads = run.backward(*values[8:])
        return [run.y, run.h, run.c, grads.x, grads.h0, grads.c0, *grads.weights]


TARGETS = {
    (target.__name__, dtype): target(dtype)
    for target in (LayerTarget, FunctionalTarget)
    for dtype in ("float32", "float64")
}


def outcome(target, arrays, **options):
    """The results as bytes, or the class and text of the error."""
    try:
        with np.errstate(all="ignore"):
            return [array.tobytes() for array in target.run(arrays, **options)]
    except (TypeError, ValueError) as error:
        names = "|".join(map(re.escape, [*arrays, "x", "state", "d_state", "lengths", "reset"]))
        assert re.match(rf"({names}): expected .*, got ", str(error), re.DOTALL), str(error)
        return type(error), str(error)


def memory_of(value) -> bytes | None:
    return value.tobytes() if isinstance(value, np.ndarray) and not value.dtype.hasobject else None


@pytest.mark.parametrize("key", TARGETS, ids="-".join)
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_arrays(key):
    target = TARGETS[key]
    usual = outcome(target, target.arrays)
    assert isinstance(usual, list)

    @given(st.sampled_from(list(target.arrays)), st.data())
    @BOUNDED
    def check(name, data):
        good = target.arrays[name]
        value = data.draw(variants(good))
        before = memory_of(value)
        got = outcome(target, {**target.arrays, name: value})
        assert memory_of(value) == before, "an argument was written to"
        same = clean(value, good.dtype)
        if same is None:
            assert isinstance(got, tuple), "took what is no array of this dtype"
            # The dtype of weight_ih is the one that the others should have had.
            assert got[1].startswith(f"{name}: ") or name == "weight_ih", got[1]
        else:
            assert got == outcome(target, {**target.arrays, name: same})
            assert isinstance(got, list) or same.shape != good.shape, got
        assert outcome(target, target.arrays) == usual

    check()


INTEGERS = st.one_of(
    st.integers(0, STEPS),
    st.integers(-(2**70), 2**70),
    st.sampled_from([-1, STEPS + 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]),
)
ODD_NUMBERS = st.one_of(
    INTEGERS, st.booleans(), st.floats(), st.none(), st.text(max_size=2), st.complex_numbers()
)


@st.composite
def lengths(draw):
    """Lists of good and bad integers, now and then of something else, or arrays of them."""
    number = draw(st.sampled_from([st.integers(0, STEPS), INTEGERS, ODD_NUMBERS]))
    size = draw(st.sampled_from([BATCH, BATCH, BATCH, 0, 1, BATCH + 1]))
    values = draw(st.lists(number, min_size=size, max_size=size))
    form = draw(st.sampled_from(["list", "tuple", "nested", *"bhilqBHILQfd?"]))
    if form in ("list", "tuple", "nested"):
        return {"list": values, "tuple": tuple(values), "nested": [values]}[form]
    try:
        with np.errstate(all="ignore"):
            array = np.array(values).astype(form)
    except (TypeError, ValueError, OverflowError):
        return Wrapper(values)
    return draw(st.sampled_from([array, array[::-1], array.astype(array.dtype.newbyteorder())]))


@pytest.mark.filterwarnings("ignore:.*complex.*:numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("key", list(TARGETS)[::2], ids="-".join)
def test_lengths(key):
    target = TARGETS[key]

    @given(lengths())
    @BOUNDED
    def check(value):
        got = outcome(target, target.arrays, lengths=value)
        try:
            array = np.asarray(value)
        except (TypeError, ValueError):
            array = np.array(None)
        good = array.dtype.kind in "iu" and array.shape == (BATCH,)
        if good and all(0 <= int(n) <= STEPS for n in array):
            same = np.array([int(n) for n in array])
            assert got == outcome(target, target.arrays, lengths=same)
        else:
            assert got[1].startswith("lengths: "), got

    check()


@pytest.mark.parametrize("key", list(TARGETS)[::2], ids="-".join)
def test_any_byte_of_a_reset_but_zero_is_true(key):
    reset = np.random.default_rng(3).random((STEPS, BATCH)) < 0.5
    odd = (reset * np.uint8([2, 255, 128])).view(bool)
    want = outcome(TARGETS[key], TARGETS[key].arrays, reset=reset)
    assert outcome(TARGETS[key], TARGETS[key].arrays, reset=odd) == want
    for wrong in (reset.astype(int), reset.T, reset[None], [[None]], "text", Wrapper(None)):
        got = outcome(TARGETS[key], TARGETS[key].arrays, reset=wrong)
        assert isinstance(got, tuple)
        assert got[1].startswith("reset: ")


STATE = np.zeros((1, BATCH, HIDDEN), "f4")
NO_STATES = [STATE, [STATE], (STATE,) * 3, {"h": STATE}, "hc", 1.0, (), ((STATE, STATE),)]


@pytest.mark.parametrize("wrong", NO_STATES, ids=lambda state: type(state).__name__)
def test_states_of_another_form(wrong):
    layer, x = make("lstm", SIZE, HIDDEN), np.zeros((STEPS, BATCH, SIZE), "f4")
    with pytest.raises((TypeError, ValueError), match=r"^state: expected a pair \(h, c\), got "):
        layer(x, wrong)
    with pytest.raises((TypeError, ValueError), match=r"^d_state: expected a pair \(h, c\), got "):
        layer.record(x).backward(None, wrong)


@pytest.mark.parametrize("what", ["x", "h0", "weight"])
@pytest.mark.parametrize("rows", [np.float32(0), np.zeros(SIZE, "f4")], ids=["zero", "row"])
def test_arrays_beyond_memory_are_refused_at_once(rows, what):
    """A PiB, most of it not there: more than the address space of a process."""
    huge = np.broadcast_to(rows, (2**46, 1, SIZE))
    layer = make("gru", SIZE, HIDDEN)
    weights = [np.zeros((3 * HIDDEN, n), "f4") for n in (SIZE, HIDDEN)]
    packed = functional.pack("gru", *weights)
    small = np.zeros((STEPS, 1, SIZE), "f4")
    calls = {
        "x": [
            lambda: layer(huge),
            lambda: layer.record(huge),
            lambda: layer.record(huge, recompute=True),
            lambda: functional.forward(packed, huge),
        ],
        "h0": [
            lambda: layer(small, huge),
            lambda: functional.forward(packed, small, huge[:, 0]),
        ],
        "weight": [lambda: functional.pack("gru", huge[:, 0], weights[1])],
    }
    start = time.monotonic()
    for call in calls[what]:
        with pytest.raises((MemoryError, ValueError)):
            call()
    assert time.monotonic() - start < 5


def nothing(*shape, dtype="float32"):
    """An empty array at an odd address, which NumPy calls aligned."""
    empty = np.ndarray(shape, dtype, np.zeros(64, np.uint8), 1)
    assert empty.flags.aligned and empty.ctypes.data % 2 == 1
    return empty


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4), (3, 2, 0)])
def test_empty_arrays_at_an_odd_address(kind, dtype, backend, shape, rng):
    layer = make(kind, shape[2], 5, dtype=dtype)
    x, plain = nothing(*shape, dtype=dtype), np.zeros(shape, dtype)
    state = state_for(layer, shape[1], rng)
    if shape[1] == 0:
        empty = [nothing(*part.shape, dtype=dtype) for part in parts(state)]
        state = tuple(empty) if len(empty) > 1 else empty[0]
    for initial in (None, state):
        output, last = layer(x, initial)
        want, want_last = layer(plain, initial)
        np.testing.assert_array_equal(output, want)
        assert_same_states(last, want_last)
    tapes = [layer.record(a, state) for a in (x, plain)]
    d_output = [normal(rng, tapes[0].output.shape, dtype)] * 2
    if not d_output[0].size:
        d_output[0] = nothing(*d_output[0].shape, dtype=dtype)
    assert_same_gradients(*(t.backward(d) for t, d in zip(tapes, d_output, strict=True)))


def test_empty_arrays_of_cells_at_an_odd_address(backend):
    cell = rnnfast.LSTMCell(4, 5, seed=0)
    x, state = nothing(0, 4), (nothing(0, 5), nothing(0, 5))
    assert [part.shape for part in cell(x, state)] == [(0, 5)] * 2
    assert cell.record(x, state).backward(nothing(0, 5)).input.shape == (0, 4)
