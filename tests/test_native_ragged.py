"""Ragged stacks of the native backend, on rows without padding.

Every result must have the bits of the same stack on padded rows with `lengths`, which other tests
compare with the reference.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import KINDS, assert_same_bits, make, normal, parts, state_for
from tape_cases import Case, flat

import rnnfast

# Of sequences as they are packed: the longest first.
LENGTHS = {
    "falling": (7, 6, 3, 3, 1),
    "equal": (4, 4, 4),
    "one_step": (1, 1, 1, 1),
    "one_long": (9, 1, 1),
    "one_sequence": (6,),
    "one_row": (1,),
}
SHAPES = {
    "one": {},
    "reverse_too": {"bidirectional": True},
    "three_layers": {"num_layers": 3, "bias": False},
    "two_layers_both_directions": {"num_layers": 2, "bidirectional": True},
}
SIZE, HIDDEN = 4, 6


@pytest.fixture(autouse=True)
def _native(native, keep_threads):
    """All of this is about the native backend."""
    yield
    native.force_schedule("none")


class RaggedCase(Case):
    """A case with padding that has become one without, and must keep its bits.

    The arguments, and the output and gradients that are wanted, are those rows alone that have a
    step; lengths are batch sizes. `padded_x` : as it was.
    """

    def __init__(self, native, layer, lengths, seed=0):
        rng = np.random.default_rng(seed)
        steps, batch, options = max(lengths), len(lengths), layer._options
        self.padded_x = normal(rng, (steps, batch, options.input_size), layer.dtype)
        state = state_for(layer, batch, rng)
        super().__init__(layer, self.padded_x, state, np.array(lengths))
        self.padded, self.padded_lengths = self.stack, self.lengths
        has_step = np.arange(steps)[:, None] < self.lengths
        self.lengths = has_step.sum(1)
        self.x, self.output = self.padded_x[has_step], self.output[has_step]
        self.d_output, self.want[0] = self.d_output[has_step], self.want[0][has_step]
        packs, directions = layer._packs(), 2 if options.bidirectional else 1
        weights = [packed.weights for packed in packs.packs]
        self.stack = native.stack(weights, packs.names, directions, False, False, False, True)

    def infer(self, x, state, lengths):
        return self.stack.infer(x, state, lengths, None, None)

    def assert_outputs(self, output, state):
        assert_same_bits(output, self.output)
        assert isinstance(state, tuple) == isinstance(self.last, tuple)
        for a, b in zip(parts(state), parts(self.last), strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_of_padded_rows(native, kind, lengths, shape, dtype):
    layer = make(kind, SIZE, HIDDEN, dtype=dtype, **SHAPES[shape])
    case = RaggedCase(native, layer, LENGTHS[lengths])
    case.assert_outputs(*case.infer(case.x, case.state, case.lengths))
    output, state, tape = case.forward()
    case.assert_outputs(output, state)
    for _ in range(2):  # a tape is not used up
        case.assert_wanted(case.backward(output=output, tape=tape), case.all)


def test_the_tape_has_no_padding(native, dtype):
    layer = make("lstm_projected", SIZE, HIDDEN, num_layers=3, bidirectional=True, dtype=dtype)
    tape = RaggedCase(native, layer, LENGTHS["falling"]).forward()[2]
    row = native.tape_row("lstm", dtype, SIZE, HIDDEN, 3, 3, 2)
    assert tape.shape == (sum(LENGTHS["falling"]) * row,)


@pytest.mark.parametrize("kind", KINDS)
def test_some_gradients(native, kind, rng, dtype):
    layer = make(kind, SIZE, HIDDEN, num_layers=2, bidirectional=True, dtype=dtype)
    case = RaggedCase(native, layer, LENGTHS["falling"])
    masks = rng.random((8, len(case.all))) < 0.5
    masks[:2] = False
    masks[1, 0] = True
    for mask in masks:
        wanted = tuple(mask.tolist())
        case.assert_wanted(case.backward(wanted=wanted), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_lie_apart(native, kind, dtype):
    """What is between them, before them and behind them is neither read nor written."""
    layer = make(kind, SIZE, HIDDEN, bidirectional=True, dtype=dtype)
    case = RaggedCase(native, layer, LENGTHS["falling"])
    arguments = case.arguments()
    for name in ("x", "output", "d_output"):
        dense = arguments[name]
        wide = np.full((len(dense) + 2, dense.shape[1] + 5), np.nan, dtype)
        wide[1:-1, 2:-3] = dense
        wide.flags.writeable = False
        apart = wide[1:-1, 2:-3]
        case.assert_wanted(case.backward(**{name: apart}), case.all)
        if name == "x":
            case.assert_outputs(*case.infer(apart, case.state, case.lengths))


@pytest.mark.parametrize("schedule", ["shards", "units", "directions", "layers"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_gives_the_bits_of_one_thread(native, schedule, kind, dtype, rng):
    options = {"proj_size": 100} if kind == "lstm_projected" else {}
    both = schedule == "directions"
    layer = make(kind, 33, 130, num_layers=2, bidirectional=both, dtype=dtype, **options)
    rnnfast.set_num_threads(1)
    case = RaggedCase(native, layer, (40, 40, 22, 7, 7, 1))
    rnnfast.set_num_threads(3)
    native.force_schedule(schedule)
    output, state, tape = case.forward()
    assert native.last_schedule() == schedule
    case.assert_outputs(output, state)
    masks = rng.random((2, len(case.all))) < 0.5
    masks[:, 0] = True, False
    for mask in [*masks.tolist(), case.all]:
        wanted = tuple(mask)
        found = case.backward(output=output, tape=tape, wanted=wanted)
        assert native.last_schedule() == schedule
        case.assert_wanted(found, wanted)


def test_none_is_zeros(native):
    case = RaggedCase(native, make("lstm", SIZE, HIDDEN, num_layers=2), LENGTHS["falling"])
    zeros = tuple(np.zeros_like(s) for s in case.state)
    got, want = (case.infer(case.x, state, case.lengths)[0] for state in (None, zeros))
    assert_same_bits(got, want)
    assert not any(g.any() for g in flat(case.backward(d_output=None, d_state=None)))


WRONG_SIZES = {
    "none": None,
    "a list": [5, 4, 4, 2, 2, 2, 1],
    "growing": np.array([4, 5, 4, 2, 2, 2, 1]),
    "growing at the end": np.array([5, 4, 4, 2, 2, 1, 2]),
    "zero": np.array([5, 5, 4, 2, 2, 2, 0]),
    "negative": np.array([5, 5, 4, 2, 2, 3, -1]),
    "negative at first": np.array([-1, -1]),
    "fewer rows": np.array([5, 4, 4, 2, 2, 2]),
    "more rows": np.array([5, 4, 4, 2, 2, 2, 1, 1]),
    "more rows than memory": np.array([2**62, 2**62, 2**62, 2**62]),
    "another batch": np.array([4, 4, 4, 4, 4]),
    "no steps": np.array([], np.int64),
    "int32": np.array([5, 4, 4, 2, 2, 2, 1], "i4"),
    "float": np.array([5.0, 4, 4, 2, 2, 2, 1]),
    "two axes": np.array([[5, 4, 4, 2, 2, 2, 1]]),
    "strided": np.repeat([5, 4, 4, 2, 2, 2, 1], 2)[::2],
    "swapped": np.array([5, 4, 4, 2, 2, 2, 1], ">i8"),
}


class TestOtherArguments:
    """They are not read, and nothing is computed."""

    @pytest.fixture
    def case(self, native):
        layer = make("lstm", SIZE, HIDDEN, num_layers=2, bidirectional=True)
        return RaggedCase(native, layer, LENGTHS["falling"])

    @pytest.mark.parametrize("how", WRONG_SIZES)
    def test_batch_sizes(self, case, how):
        wrong = WRONG_SIZES[how]
        assert case.stack.forward(case.x, case.state, wrong, 0) is NotImplemented
        assert case.infer(case.x, case.state, wrong) is NotImplemented
        assert case.backward(lengths=wrong) is NotImplemented

    @pytest.mark.parametrize("name", ["x", "output", "tape", "d_output"])
    def test_other_rows_than_the_batch_sizes_tell(self, case, name):
        given = case.arguments()[name]
        for wrong in (given[:-1], given[:0], given[None], np.concatenate([given, given[:1]])):
            assert case.backward(**{name: wrong}) is NotImplemented
            if name == "x":
                assert case.stack.forward(wrong, case.state, case.lengths, 0) is NotImplemented

    def test_padded_rows(self, case):
        for lengths in (None, case.padded_lengths, case.lengths):
            assert case.infer(case.padded_x, case.state, lengths) is NotImplemented
        assert case.padded.forward(case.x, None, case.lengths, 0) is NotImplemented

    def test_what_no_ragged_stack_does(self, case):
        for call in (case.stack.infer, case.stack.record):
            assert call(case.x, None) is NotImplemented
        assert case.stack.record(case.x, None, case.lengths, None, None) is NotImplemented


def test_stacks_that_cannot_be_ragged(native):
    packs = make("gru", SIZE, HIDDEN)._packs()
    weights = [packed.weights for packed in packs.packs]
    assert native.stack(weights, packs.names, 1, False, False, False, True)
    for one_step, batch_first in [(True, False), (False, True), (True, True)]:
        with pytest.raises(ValueError, match=r"^ragged: expected"):
            native.stack(weights, packs.names, 1, one_step, batch_first, False, True)
