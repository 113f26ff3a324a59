"""Training passes of the native stack on a tape of the caller's, of all gradients or of some.

`Stack.record` and `Run.backward`, which other tests compare with the reference, must give the same
bits.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest
from oracle import KINDS, assert_same_bits, make, normal, parts, state_for
from tape_cases import (
    BATCH,
    HIDDEN,
    LENGTHS,
    ONE_STEP,
    SIZE,
    STEPS,
    Case,
    cell_case,
    flat,
    layer_case,
)

import rnnfast
from rnnfast._cells import CELLS

SHAPES = {
    "one": {},
    "no_bias": {"bias": False},
    "both_directions": {"bidirectional": True},
    "two_layers": {"num_layers": 2},
    "three_layers": {"num_layers": 3},
    "three_layers_both_directions": {"num_layers": 3, "bidirectional": True},
    "batch_first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


@pytest.fixture(autouse=True)
def _native(native):
    """All of this is about the native backend."""


def assert_same_passes(case):
    output, state, tape = case.forward()
    if case.one_step:
        assert output is None
    else:
        assert_same_bits(output, case.output)
        assert output.flags.c_contiguous
    assert isinstance(state, tuple) == isinstance(case.last, tuple)
    for a, b in zip(parts(state), parts(case.last), strict=True):
        assert_same_bits(a, b)
    before = tape.tobytes()
    for _ in range(2):  # a tape is not used up
        case.assert_wanted(case.backward(output=output, tape=tape), case.all)
    assert tape.tobytes() == before


@pytest.mark.parametrize("form", ["batched", "lengths", "unbatched", "no_state"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_a_run(kind, shape, form, dtype):
    given = {
        "batched": {},
        "lengths": {"lengths": LENGTHS},
        "unbatched": {"batched": False},
        "no_state": {"state": False},
    }[form]
    assert_same_passes(layer_case(kind, dtype, **SHAPES[shape], **given))


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ONE_STEP)
def test_same_bits_as_a_run_of_a_cell(kind, batched, bias, state, dtype):
    assert_same_passes(cell_case(kind, dtype, batched=batched, bias=bias, state=state))


@pytest.mark.parametrize("steps, batch, size", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_empty_sizes(kind, steps, batch, size, rng):
    layer = make(kind, size, HIDDEN, num_layers=3, bidirectional=True)
    x, state = normal(rng, (steps, batch, size), "float32"), state_for(layer, batch, rng)
    case = Case(layer, x, state)
    assert_same_passes(case)
    alone = (False,) * case.parameters
    for at_x, at_state in ((True, False), (False, True)):
        wanted = (at_x, at_state, *alone)
        case.assert_wanted(case.backward(wanted=wanted), wanted)


def cases(dtype="float32"):
    """One of each kind, with as many parameters as it can have."""
    for kind in KINDS:
        yield layer_case(kind, dtype, num_layers=2, bidirectional=True, lengths=LENGTHS)
        yield layer_case(kind, dtype, num_layers=3)
    for kind in ONE_STEP:
        yield cell_case(kind, dtype)


class TestWanted:
    def test_each_gradient_alone_and_all_but_it(self, dtype):
        for case in cases(dtype):
            for one in range(len(case.all)):
                alone = tuple(i == one for i in range(len(case.all)))
                for wanted in (alone, tuple(not w for w in alone)):
                    case.assert_wanted(case.backward(wanted=wanted), wanted)

    def test_none_and_some(self, rng, dtype):
        for case in cases(dtype):
            masks = rng.random((8, len(case.all))) < 0.5
            masks[0] = False
            for mask in masks:
                wanted = tuple(mask.tolist())
                case.assert_wanted(case.backward(wanted=wanted), wanted)

    @pytest.mark.parametrize("steps", [0, 5])
    def test_zeros_where_there_are_no_steps_or_rows(self, steps, rng):
        layer = make("lstm_projected", SIZE, HIDDEN, num_layers=2)
        batch = 0 if steps else BATCH
        case = Case(layer, normal(rng, (steps, batch, SIZE), "float32"), None)
        for one in range(2, len(case.all)):
            wanted = tuple(i == one for i in range(len(case.all)))
            gradient = case.backward(wanted=wanted)[2][one - 2]
            assert not gradient.any()


class TestUse:
    """What a caller may do with a tape between the two passes."""

    def test_the_tape_may_move(self, dtype):
        for case in cases(dtype):
            arguments = case.arguments()
            tape = arguments["tape"]
            for offset in range(1, 4):  # off the cache lines
                moved = np.empty(tape.size + offset, tape.dtype)[offset:]
                moved[:] = tape
                moved.flags.writeable = False
                arguments["tape"] = moved
                case.assert_wanted(case.stack.backward(*arguments.values()), case.all)

    def test_nothing_is_written_but_the_results(self):
        for case in cases():
            arguments = case.arguments()
            given = [a for a in arguments.values() if a is not None]
            arrays = [a for g in given for a in (g if isinstance(g, tuple) else (g,))]
            arrays = [a for a in arrays if isinstance(a, np.ndarray)]
            before = [a.tobytes() for a in arrays]
            for array in arrays:
                array.flags.writeable = False
            results = flat(case.stack.backward(*arguments.values()))
            assert [a.tobytes() for a in arrays] == before
            for result in results:
                assert result.flags.writeable
                assert not any(np.shares_memory(result, a) for a in arrays)

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_lies_past_the_lengths_is_not_read(self, kind, dtype):
        """Neither in x and in gradients of the output, nor, by backward, in the output."""
        case = layer_case(kind, dtype, lengths=LENGTHS, num_layers=2, bidirectional=True)
        past = np.arange(STEPS)[:, None] >= LENGTHS
        case.x[past] = case.d_output[past] = np.nan
        output, state, tape = case.forward()
        assert_same_bits(output, case.output)
        for a, b in zip(parts(state), parts(case.last), strict=True):
            assert_same_bits(a, b)
        output[past] = np.nan
        case.assert_wanted(case.backward(output=output, tape=tape), case.all)

    @pytest.mark.parametrize("kind", KINDS)
    def test_strides(self, kind, dtype):
        case = layer_case(kind, dtype, num_layers=2, bidirectional=True)
        for name in ("x", "output", "d_output"):
            dense = case.arguments()[name]
            wide = np.full((BATCH, STEPS + 1, dense.shape[-1] + 2), np.nan, dtype)
            strided = wide[:, 1:, :-2].swapaxes(0, 1)
            strided[...] = dense
            case.assert_wanted(case.backward(**{name: strided}), case.all)
        row = case.d_output[:1, :1].copy()
        repeated = np.broadcast_to(row, case.d_output.shape)  # as the gradient of a sum has it
        got = flat(case.backward(d_output=repeated))
        for a, b in zip(got, flat(case.backward(d_output=repeated.copy())), strict=True):
            assert_same_bits(a, b)

    def test_none_is_zeros(self):
        for case in cases():
            zeros = tuple(np.zeros_like(s) for s in parts(case.last))
            zeros = zeros if isinstance(case.last, tuple) else zeros[0]
            nothing = flat(case.backward(d_output=None, d_state=None))
            assert not any(gradient.any() for gradient in nothing)
            got = flat(case.backward(d_state=None))
            for a, b in zip(got, flat(case.backward(d_state=zeros)), strict=True):
                np.testing.assert_array_equal(a, b)
            if isinstance(case.last, tuple):
                got = flat(case.backward(d_state=(None, case.d_state[1])))
                want = flat(case.backward(d_state=(zeros[0], case.d_state[1])))
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_array_equal(a, b)

    def test_arguments_may_share_memory(self):
        layer = make("lstm", HIDDEN, HIDDEN, num_layers=2)
        case = Case(layer, normal(np.random.default_rng(5), (STEPS, BATCH, HIDDEN), "f4"), None)
        output, state, tape = case.forward()
        want = case.backward(output=output, tape=tape, d_output=output.copy(), d_state=state)
        got = case.backward(output=output, tape=tape, d_output=output, d_state=state)
        for a, b in zip(flat(got), flat(want), strict=True):
            assert_same_bits(a, b)
        # In one piece of memory, end to end.
        arrays = [case.x, output, tape, case.d_output]
        memory = np.concatenate([a.ravel() for a in arrays])
        cuts = np.split(memory, np.cumsum([a.size for a in arrays])[:-1])
        x, output, tape, d_output = (
            cut.reshape(a.shape) for cut, a in zip(cuts, arrays, strict=True)
        )
        found = case.backward(x=x, output=output, tape=tape, d_output=d_output)
        case.assert_wanted(found, case.all)

    def test_many_threads_of_the_caller(self):
        case = layer_case("gru", num_layers=2, bidirectional=True)
        arguments = case.arguments().values()
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: case.stack.backward(*arguments), range(40)):
                case.assert_wanted(found, case.all)

    @pytest.mark.parametrize("fill", [0, np.nan, np.inf, -1e30, "bits"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_whatever_the_tape_holds(self, kind, fill, rng):
        """Its numbers are numbers: no place in memory depends on them."""
        case = layer_case(kind, num_layers=2, bidirectional=True)
        tape = case.forward()[2]
        if fill == "bits":
            tape = rng.integers(0, 1 << 32, tape.size, np.uint32).view("f4")
        else:
            tape[:] = fill
        for lengths in (None, LENGTHS):
            found = flat(case.backward(tape=tape, lengths=lengths))
            assert [f.shape for f in found] == [w.shape for w in case.want]


SCHEDULES = ("shards", "units", "directions", "layers")


@pytest.mark.usefixtures("keep_threads")
class TestThreads:
    @pytest.fixture(autouse=True)
    def _no_schedule_after(self, native):
        yield
        native.force_schedule("none")

    @pytest.mark.parametrize("schedule", SCHEDULES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_a_schedule_gives_the_bits_of_one_thread(self, native, schedule, kind, rng):
        options = {"proj_size": 100} if kind == "lstm_projected" else {}
        both = schedule == "directions"
        layer = make(kind, 33, 130, num_layers=2, bidirectional=both, **options)
        x = normal(rng, (40, 5, 33), "float32")
        lengths = np.array([40, 7, 0, 22, 40])
        rnnfast.set_num_threads(1)
        case = Case(layer, x, state_for(layer, 5, rng), lengths)
        rnnfast.set_num_threads(3)
        native.force_schedule(schedule)
        output, _, tape = case.forward()
        assert native.last_schedule() == schedule
        assert_same_bits(output, case.output)
        masks = rng.random((3, len(case.all))) < 0.5
        masks[:, 0] = True, False, True
        for mask in [*masks.tolist(), [True] * len(case.all), [False] * len(case.all)]:
            wanted = tuple(mask)
            found = case.backward(output=output, tape=tape, wanted=wanted)
            assert native.last_schedule() == schedule
            case.assert_wanted(found, wanted)

    def test_the_limit_is_one_call_s(self, native, rng):
        layer = make("lstm", 33, 64, num_layers=2)
        rnnfast.set_num_threads(1)
        case = Case(layer, normal(rng, (20, 4, 33), "float32"), None)
        rnnfast.set_num_threads(2)
        native.force_schedule("shards")
        calls = {
            "infer": lambda threads: case.stack.infer(case.x, None, None, None, None, threads),
            "forward": case.forward,
            "backward": lambda threads: case.backward(threads=threads),
        }
        for call in calls.values():
            for threads, ran in [
                (1, "none"),
                (2, "shards"),
                (0, "shards"),
                (-1, "shards"),
                (1 << 40, "shards"),
            ]:
                call(threads)
                assert native.last_schedule() == ran
        # Nor does a call that fails leave it behind.
        assert case.backward(threads=1, d_output=1) is NotImplemented
        case.forward(0)
        assert native.last_schedule() == "shards"
        case.forward(1)
        case.stack.record(case.x, None)
        assert native.last_schedule() == "shards"


def test_every_cell_is_here():
    """Those of `_cells.CELLS` that layers and cells run."""
    layers = {make(kind)._cell.name for kind in KINDS}
    assert layers == set(CELLS) == set(ONE_STEP)
    assert set(chain(*SHAPES.values())) >= {"bias", "num_layers", "bidirectional", "batch_first"}
