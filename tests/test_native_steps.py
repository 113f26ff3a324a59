"""Backward passes of single steps, and of the parameters of many steps together.

What `Stack.backward` gives, which other tests compare with the reference, they must give as well.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits, normal, parts
from tape_cases import HIDDEN, ONE_STEP, SIZE, Case, cell_case
from test_native_tape_arguments import WRONG

import rnnfast
from rnnfast._cells import CELLS

# With one product in a step.
SINGLE = [kind for kind in ONE_STEP if kind != "gru_reset_before"]
EVERY = (True, True, True)


@pytest.fixture(autouse=True)
def _native(native, keep_threads):
    """All of this is about the native backend."""
    yield
    native.force_schedule("none")


def step(case, wanted=EVERY, **changes):
    """x, h before the step, and what `step_backward` gives."""
    given = {name: a for name, a in case.arguments().items() if name in STEP_ARGUMENTS}
    given = {**given, "wanted": wanted, **changes}
    return case.stack.step_backward(*(given[name] for name in STEP_ARGUMENTS))


STEP_ARGUMENTS = ("x", "state", "output", "tape", "d_output", "d_state", "wanted", "threads")


def left(case):
    """What a step leaves for `steps_backward`."""
    h = None if case.state is None else parts(case.state)[0]
    return case.x, h, step(case)[2]


def cell_of(kind, dtype, size=SIZE, hidden=HIDDEN, bias=True):
    constructor, options = ONE_STEP[kind]
    return constructor(size, hidden, bias=bias, dtype=dtype, seed=2, **options)


def case_of(cell, batch, rng, state=True):
    dtype = cell.parameters["weight_ih"].dtype
    shape = () if batch is None else (batch,)
    states = [normal(rng, (*shape, cell.hidden_size), dtype) for _ in parts_of(cell)]
    initial = tuple(states) if len(states) > 1 else states[0]
    return Case(cell, normal(rng, (*shape, cell.input_size), dtype), initial if state else None)


def parts_of(cell):
    return CELLS[cell._cell.name].states


def together(cases, threads=0):
    steps = [left(case) for case in cases]
    wanted = (True,) * cases[0].parameters
    return cases[0].stack.steps_backward(steps, wanted, threads)


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", SINGLE)
def test_one_step_has_the_bits_of_its_pass(kind, batched, bias, state, dtype):
    case = cell_case(kind, dtype, batched=batched, bias=bias, state=state)
    want = case.want
    for wanted in np.ndindex(2, 2, 2):
        dx, d_state, gates = step(case, tuple(map(bool, wanted)))
        assert [g is not None for g in (dx, d_state, gates)] == list(map(bool, wanted))
        if dx is not None:
            assert_same_bits(dx, want[0])
        for got, one in zip(parts(d_state) if d_state is not None else (), want[1:], strict=False):
            assert_same_bits(got, one)
    for got, one in zip(together([case]), want[-case.parameters :], strict=True):
        assert_same_bits(got, one)


@pytest.mark.parametrize("size, hidden", [(1, 1), (17, 33), (64, 16)])
@pytest.mark.parametrize("batches", [[3] * 7, [9, 4, 4, 1, None, 4], [0, 3], [40] * 9], ids=str)
@pytest.mark.parametrize("kind", SINGLE)
def test_steps_together(kind, batches, size, hidden, dtype, rng):
    """The sums of what each step gives by itself, also of other batch sizes and without a state."""
    cell = cell_of(kind, dtype, size, hidden)
    cases = [case_of(cell, batch, rng, state=bool(i % 3)) for i, batch in enumerate(batches)]
    close = 1e-12 if dtype == "float64" else 1e-4
    for k, got in enumerate(together(cases)):
        want = sum(case.want[k - case.parameters].astype("f8") for case in cases)
        np.testing.assert_allclose(got, want, rtol=close, atol=close * np.abs(want).max(initial=1))


@pytest.mark.parametrize("kind", SINGLE)
def test_steps_of_few_rows_have_the_bits_of_one_pass(kind, dtype, rng):
    """Their rows are summed as those of one step of all of them are."""
    cell = cell_of(kind, dtype)
    cases = [case_of(cell, 4, rng) for _ in range(5)]
    states = zip(*(parts(case.state) for case in cases), strict=True)
    joined = [np.concatenate(of_all) for of_all in states]
    whole = case_of(cell, 20, rng)
    d_states = [np.concatenate(d) for d in zip(*(parts(c.d_state) for c in cases), strict=True)]
    whole.x = np.concatenate([case.x for case in cases])
    whole.state = tuple(joined) if len(joined) > 1 else joined[0]
    whole.d_state = tuple(d_states) if len(d_states) > 1 else d_states[0]
    _, _, want = whole.backward()
    for got, one in zip(together(cases), want, strict=True):
        assert_same_bits(got, one)


@pytest.mark.parametrize("schedule", ["shards", "units"])
@pytest.mark.parametrize("kind", SINGLE)
def test_threads_give_the_bits_of_one(kind, schedule, native, rng):
    rnnfast.set_num_threads(1)
    cell = cell_of(kind, "float32", 33, 130)
    cases = [case_of(cell, 40, rng) for _ in range(20)]
    alone = [*step(cases[1])[:1], step(cases[1])[2], *together(cases)]
    rnnfast.set_num_threads(3)
    native.force_schedule(schedule)
    dx, _, gates = step(cases[1])
    assert native.last_schedule() == schedule
    parameters = together(cases)
    assert native.last_schedule() == schedule
    for got, want in zip([dx, gates, *parameters], alone, strict=True):
        assert_same_bits(got, want)
    together(cases, threads=1)
    assert native.last_schedule() == "none"


def test_some_parameters_alone(rng):
    cases = [case_of(cell_of("lstm", "float32"), 3, rng) for _ in range(4)]
    every = together(cases)
    steps = [left(case) for case in cases]
    for mask in np.ndindex(2, 2, 2, 2):
        wanted = tuple(map(bool, mask))
        found = cases[0].stack.steps_backward(steps, wanted, 0)
        assert [g is not None for g in found] == list(wanted)
        for got, want in zip(found, every, strict=True):
            if got is not None:
                assert_same_bits(got, want)


def test_only_cells_with_one_product_in_a_step():
    case = cell_case("gru_reset_before")
    assert step(case) is NotImplemented
    gates = left(cell_case("lstm"))[2]
    assert case.stack.steps_backward([(case.x, None, gates)], case.all[2:], 0) is NotImplemented
    layer = rnnfast.LSTM(SIZE, HIDDEN)
    layer(normal(np.random.default_rng(0), (1, 1, SIZE), "float32"))
    assert layer._packs().native.steps_backward([], (True,) * 4, 0) is NotImplemented


@pytest.mark.parametrize("how", WRONG)
def test_other_arguments_are_not_read(how):
    case = cell_case("lstm")
    wrong, given = WRONG[how], case.arguments()
    for name in ("x", "tape"):
        if not (name == "x" and how == "fewer rows"):  # then it is the states that do not fit
            assert step(case, **{name: wrong(given[name])}) is NotImplemented
    for which in range(2):
        for name in ("state", "d_state"):
            pair = list(given[name])
            pair[which] = wrong(pair[which])
            if not (name == "d_state" and how == "None"):
                assert step(case, **{name: tuple(pair)}) is NotImplemented
    good = left(case)
    wanted = case.all[2:]
    for which in range(3):
        own = list(good)
        own[which] = wrong(own[which])
        if not (which == 1 and how == "None"):
            for steps in ([tuple(own)], [good, tuple(own)]):
                assert case.stack.steps_backward(steps, wanted, 0) is NotImplemented


def test_wrong_forms():
    case = cell_case("lstm")
    good, wanted = left(case), case.all[2:]
    backward = case.stack.steps_backward
    for steps in ([], (good,), None, 3, [None], [good[:2]], [[*good]], [(*good, None)], [good, 1]):
        assert backward(steps, wanted, 0) is NotImplemented
    for some in (None, True, wanted[1:], (*wanted, True), (1, 1, 1, 1), list(wanted)):
        assert backward([good], some, 0) is NotImplemented
    for some in (None, True, (), (True, True), (1, 1, 1), [True] * 3):
        assert step(case, some) is NotImplemented
    with pytest.raises(TypeError, match="steps_backward: got 2 arguments"):
        backward([good], wanted)
    with pytest.raises(TypeError, match="step_backward: got 1 arguments"):
        case.stack.step_backward(case.x)
    with pytest.raises(TypeError, match="int"):
        backward([good], wanted, "1")
