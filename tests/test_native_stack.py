"""The compiled stack, which takes a caller's arrays as they lie or not at all.

Everything else goes the long way, through Python's checks. Both must give the same bits, and a
caller must not be able to tell which one it was but by the clock.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, assert_same_gradients, assert_same_states, make, normal, parts, state_for

import rnnfast

STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6
SHAPES = {
    "one": {},
    "both_directions": {"bidirectional": True},
    "three_layers": {"num_layers": 3},
    "four_layers_both_directions": {"num_layers": 4, "bidirectional": True},
    "batch_first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
CELLS = {
    "rnn": rnnfast.RNNCell,
    "lstm": rnnfast.LSTMCell,
    "gru": rnnfast.GRUCell,
}


@pytest.fixture(autouse=True)
def _native(native):
    """All of this is about the native backend."""


def with_stack(layer):
    """`layer`, with its weights packed."""
    layer._packs()
    return layer


def arguments(layer, rng, batched=True):
    """An input, and a state, in the layer's layout."""
    x = normal(rng, (STEPS, BATCH, SIZE), layer.dtype)
    state = state_for(layer, BATCH, rng)
    if not batched:
        state = [s[:, 0].copy() for s in parts(state)]
        return x[:, 0].copy(), tuple(state) if len(state) > 1 else state[0]
    return (x.swapaxes(0, 1).copy() if layer.batch_first else x), state


def all_results(layer, x, state, **options):
    """Everything that both passes give."""
    output, last = layer(x, state, **options)
    tape = layer.record(x, state, **options)
    gradients = tape.backward(np.cos(tape.output), tape.state, retain=True)
    return output, last, tape.output, tape.state, gradients, tape.backward()


def assert_same_results(got, want):
    for a, b in zip(got, want, strict=True):
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert not a.size or a.strides == b.strides
        elif hasattr(a, "parameters"):
            assert_same_gradients(a, b)
        else:
            assert_same_states(a, b)


@pytest.mark.parametrize("cuts", ["none", "lengths", "reset", "both"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_layer_by_layer(kind, shape, cuts, dtype, rng):
    layer = with_stack(make(kind, SIZE, HIDDEN, dtype=dtype, **SHAPES[shape]))
    options = {}
    if cuts in ("lengths", "both"):
        options["lengths"] = np.array([3, 0, 5])
    if cuts in ("reset", "both"):
        options["reset"] = rng.random((STEPS, BATCH)) < 0.4
    x, state = arguments(layer, rng)
    states = [state] if cuts == "none" else [state, None]
    got = [all_results(layer, x, s, **options) for s in states]
    layer._packs().native = None
    for results, given in zip(got, states, strict=True):
        assert_same_results(results, all_results(layer, x, given, **options))


@pytest.mark.parametrize("kind", KINDS)
def test_unbatched(kind, rng):
    layer = with_stack(make(kind, SIZE, HIDDEN, num_layers=2, bidirectional=True))
    x, state = arguments(layer, rng, batched=False)
    got = all_results(layer, x, state)
    layer._packs().native = None
    assert_same_results(got, all_results(layer, x, state))


@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, batch, dtype, rng):
    cell = with_stack(CELLS[kind](SIZE, HIDDEN, dtype=dtype, seed=1))
    shape = () if batch is None else (batch,)
    x = normal(rng, (*shape, SIZE), dtype)
    state = normal(rng, (*shape, HIDDEN), dtype)
    if kind == "lstm":
        state = state, normal(rng, (*shape, HIDDEN), dtype)

    def results():
        tape = cell.record(x, state)
        gradients = tape.backward(np.cos(tape.output), tape.state, retain=True)
        return cell(x, state), cell(x), tape.output, tape.state, gradients, tape.backward()

    assert cell._native().infer(x, state) is not NotImplemented
    got = results()
    cell._packs().native = None
    assert_same_results(got, results())


@pytest.mark.parametrize("steps, batch, size", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_sizes(kind, steps, batch, size, rng):
    layer = with_stack(make(kind, size, HIDDEN, num_layers=3, bidirectional=True))
    x, state = normal(rng, (steps, batch, size), "float32"), state_for(layer, batch, rng)
    got = all_results(layer, x, state)
    layer._packs().native = None
    assert_same_results(got, all_results(layer, x, state))


def test_many_steps_without_rows_cost_nothing():
    layer = with_stack(rnnfast.LSTM(1, 1, num_layers=2, bidirectional=True))
    tape = layer.record(np.empty((2**40, 0, 1), np.float32))
    assert tape.output.shape == (2**40, 0, 2)
    assert tape.backward().input.shape == (2**40, 0, 1)
    wide = with_stack(rnnfast.LSTM(1, 64))
    for call in (wide, wide.record):
        with pytest.raises(ValueError, match="array is too big"):
            call(np.empty((2**56, 0, 1), np.float32))


def misaligned(array):
    odd = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    odd[...] = array
    return odd


# What holds the same numbers, but not as they are needed.
FOREIGN = {
    "list": list,
    "subclass": lambda a: a.view(np.matrix) if a.ndim == 2 else np.ma.masked_array(a),
    "byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "misaligned": misaligned,
    "strided": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1, :])[..., ::-1, :],
}
WRONG = {
    "dtype": lambda a: a.astype("f8" if a.dtype == "f4" else "f4"),
    "integers": lambda a: a.astype("i4"),
    "short": lambda a: a[..., :-1].copy(),
    "another batch": lambda a: np.concatenate([a, a], axis=1),
    "more axes": lambda a: a[None],
    "no axis": lambda a: a[0, 0, 0],
    "object": lambda a: object(),
    "type": lambda a: np.ndarray,
}


class TestOtherArguments:
    """They are not read, and nothing is computed: the long way decides what they are."""

    @pytest.fixture
    def layer(self):
        return with_stack(make("lstm", SIZE, HIDDEN, num_layers=2))

    @pytest.fixture
    def given(self, layer, rng):
        x, (h, c) = arguments(layer, rng)
        return [x, h, c]

    @pytest.mark.parametrize("which", range(3))
    @pytest.mark.parametrize("how", [*FOREIGN, *WRONG])
    def test_of_a_pass(self, layer, given, which, how):
        want = all_results(layer, given[0], tuple(given[1:]))
        other = list(given)
        other[which] = {**FOREIGN, **WRONG}[how](given[which])
        stack, (x, h, c) = layer._native(), other
        if (which, how) != (0, "another batch"):
            assert stack.infer(x, (h, c)) is NotImplemented
            assert stack.record(x, (h, c)) is NotImplemented
        if how in FOREIGN:
            assert_same_results(all_results(layer, x, (h, c)), want)
        else:
            with pytest.raises(
                (TypeError, ValueError), match=r"^(x|state\[\d\]): expected .*, got"
            ):
                layer(x, (h, c))

    @pytest.mark.parametrize("which", range(3))
    @pytest.mark.parametrize("how", [*FOREIGN, *WRONG])
    def test_of_a_backward_pass(self, layer, given, which, how):
        tape = layer.record(given[0])
        good = [np.cos(tape.output), *(np.sin(s) for s in tape.state)]
        want = tape.backward(good[0], tuple(good[1:]), retain=True)
        other = list(good)
        other[which] = {**FOREIGN, **WRONG}[how](good[which])
        d_output, d_state = other[0], tuple(other[1:])
        assert tape._run.backward(d_output, d_state) is NotImplemented
        if how in FOREIGN:
            assert_same_gradients(tape.backward(d_output, d_state), want)
        else:
            with pytest.raises((TypeError, ValueError), match=r"^d_(output|state\[\d\]): expected"):
                tape.backward(d_output, d_state)
            assert_same_gradients(tape.backward(*(good[0], tuple(good[1:]))), want)

    @pytest.mark.parametrize("form", ["h", "none", "three", "None and c", "a list"])
    def test_states_that_are_no_pair(self, layer, given, form):
        x, h, c = given
        states = {"h": h, "none": (), "three": (h, c, c), "None and c": (None, c), "a list": [h, c]}
        assert layer._native().infer(x, states[form]) is NotImplemented

    @pytest.mark.parametrize(
        "lengths, reset, reset_reversed",
        [
            (np.array([1, 2, STEPS + 1]), None, None),
            (np.array([1, -1, 2]), None, None),
            (np.array([1, 2]), None, None),
            (np.array([1, 2, 3], "i4"), None, None),
            ([1, 2, 3], None, None),
            (None, np.zeros((STEPS, BATCH), bool), None),
            (None, np.zeros((BATCH, STEPS), bool), np.zeros((STEPS, BATCH), bool)),
            (None, np.zeros((STEPS, BATCH), "u1"), np.zeros((STEPS, BATCH), bool)),
            (None, np.zeros((STEPS, 2 * BATCH), bool)[:, ::2], np.zeros((STEPS, BATCH), bool)),
        ],
    )
    def test_cuts_that_no_check_has_seen(self, layer, given, lengths, reset, reset_reversed):
        stack = layer._native()
        for call in (stack.infer, stack.record):
            assert call(given[0], None, lengths, reset, reset_reversed) is NotImplemented

    @pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
    def test_other_numbers_of_arguments(self, layer, given, count):
        stack = layer._native()
        run, *_ = stack.record(given[0], None)
        for call in (stack.infer, stack.record, run.backward):
            with pytest.raises(TypeError, match=f"got {count} arguments"):
                call(*[None] * count)


def test_stacks_that_do_not_fit(native):
    def packs_of(layer):
        return [packed.weights for packed in layer._packs().packs]

    two = with_stack(make("lstm", SIZE, HIDDEN, num_layers=2, bidirectional=True))
    good, names = packs_of(two), two._packs().names
    assert native.stack(good, names, 2, False, False, False)
    wide, double = make("lstm", SIZE, HIDDEN + 1), make("lstm", SIZE, HIDDEN, dtype="float64")
    for packs, labels, directions, one_step in [
        ([], [], 1, False),
        (good[:3], names[:3], 2, False),
        (good, names, 1, False),
        (good, names, 3, False),
        (good, names, 0, False),
        (good, names[:3], 2, False),
        (good, [("a", "b", "c", "d", "e")] * 4, 2, False),
        (
            good,
            [("a", "b", None, None, None), *names[1:-1], ("a", None, None, None, None)],
            2,
            False,
        ),
        (good[::-1], names, 2, False),
        (good[:2], names[:2], 2, True),
        ([*good[:3], *packs_of(wide)], names, 2, False),
        ([good[0], *packs_of(double)], names[:2], 2, False),
        ([good[0], *packs_of(make("gru", SIZE, HIDDEN))], names[:2], 2, False),
    ]:
        with pytest.raises(ValueError, match=r"^(packs|names|directions): expected"):
            native.stack(packs, labels, directions, one_step, False, False)
    for nothing in (None, 1, two):
        with pytest.raises(TypeError):
            native.stack([nothing], names[:1], 1, False, False, False)
