"""Backward passes of single steps, and of the parameters of many steps together.

What `Stack.backward` gives, which other tests compare with the reference, they must give as well.
"""

from __future__ import annotations

import numpy as np
import pytest
from oracle import assert_same_bits, make, normal, parts, state_for
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
    return case.x, h, case.forward()[2], step(case)[2]


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


LAYERS = {
    "one": {},
    "two": {"num_layers": 2},
    "three": {"num_layers": 3, "bias": False},
    "batch_first": {"num_layers": 2, "batch_first": True},
}


def step_of(layer, batch, rng, state=True):
    """The same of a layer that is called with one step; batch None: unbatched."""
    dtype, size = layer.parameters["weight_ih_l0"].dtype, layer.input_size
    initial = state_for(layer, batch or 1, rng)
    if batch is None:
        shape = (1, size)
        initial = tuple(s[:, 0].copy() for s in parts(initial))
        initial = initial if len(initial) > 1 else initial[0]
    else:
        shape = (batch, 1, size) if layer.batch_first else (1, batch, size)
    return Case(layer, normal(rng, shape, dtype), initial if state else None)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("kind", SINGLE)
def test_one_step_of_a_layer_has_the_bits_of_its_pass(kind, form, batch, dtype, rng):
    layer = make(kind, SIZE, HIDDEN, dtype=dtype, **LAYERS[form])
    for state in (True, False):
        case = step_of(layer, batch, rng, state)
        dx, d_state, _ = step(case)
        for got, want in zip([dx, *parts(d_state)], case.want, strict=False):
            assert_same_bits(got, want)
        for got, want in zip(together([case]), case.want[-case.parameters :], strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("kind", SINGLE)
def test_steps_of_a_layer_together(kind, form, dtype, rng):
    layer = make(kind, 17, 33, dtype=dtype, **LAYERS[form])
    cases = [step_of(layer, batch, rng, bool(batch)) for batch in (3, 3, 9, 9, None, 1, 40)]
    assert_sums(cases)


@pytest.mark.parametrize("size, hidden", [(1, 1), (17, 33), (64, 16)])
@pytest.mark.parametrize("batches", [[3] * 7, [9, 4, 4, 1, None, 4], [0, 3], [40] * 9], ids=str)
@pytest.mark.parametrize("kind", SINGLE)
def test_steps_together(kind, batches, size, hidden, dtype, rng):
    """The sums of what each step gives by itself, also of other batch sizes and without a state."""
    cell = cell_of(kind, dtype, size, hidden)
    assert_sums([case_of(cell, batch, rng, bool(i % 3)) for i, batch in enumerate(batches)])


def assert_sums(cases):
    """What the steps give together is the sum of what each gives by itself."""
    close = 1e-12 if cases[0].x.dtype == "float64" else 1e-4
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


def test_other_passes_are_refused(rng):
    """Two products in a step, two directions, a projection, more steps than one, or none."""
    refused = [
        cell_case("gru_reset_before"),
        step_of(make("gru_reset_before", SIZE, HIDDEN), 3, rng),
        step_of(make("lstm", SIZE, HIDDEN, bidirectional=True), 3, rng),
        step_of(make("lstm", SIZE, HIDDEN, proj_size=2), 3, rng),
        *(
            Case(layer, normal(rng, (steps, 3, SIZE), "float32"), None)
            for layer in [make("lstm", SIZE, HIDDEN)]
            for steps in (0, 2)
        ),
    ]
    x, _, tape, gates = left(cell_case("lstm"))
    for case in refused:
        assert step(case) is NotImplemented
        for own in ((x, None, tape, gates), (case.x, None, tape, gates)):
            assert case.stack.steps_backward([own], case.all[2:], 0) is NotImplemented
    # What a layer cannot do without.
    for kind, name in (("rnn_tanh", "output"), ("lstm", "tape")):
        case = step_of(make(kind, SIZE, HIDDEN), 3, rng)
        assert step(case, **{name: None}) is NotImplemented
    case = step_of(make("lstm", SIZE, HIDDEN, num_layers=2), 3, rng)
    x, h, tape, gates = left(case)
    backward = case.stack.steps_backward
    assert backward([(x, h, tape, gates)], case.all[2:], 0) is not NotImplemented
    for own in ((x, h, None, gates), (x, h, tape[:-1], gates), (x, h, tape, gates[:1])):
        assert backward([own], case.all[2:], 0) is NotImplemented
    cell = cell_case("lstm")
    assert step(cell, d_output=cell.x) is NotImplemented


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
    for which in range(4):
        own = list(good)
        own[which] = wrong(own[which])
        if not (which in (1, 2) and how == "None"):
            for steps in ([tuple(own)], [good, tuple(own)]):
                assert case.stack.steps_backward(steps, wanted, 0) is NotImplemented


def test_wrong_forms():
    case = cell_case("lstm")
    good, wanted = left(case), case.all[2:]
    backward = case.stack.steps_backward
    for steps in ([], (good,), None, 3, [None], [good[:3]], [[*good]], [(*good, None)], [good, 1]):
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
