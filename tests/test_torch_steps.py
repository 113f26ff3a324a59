"""What the steps of a loop share on torch's graph: rnnfast/torch/steps.py."""

from __future__ import annotations

import gc
import importlib
import weakref

import pytest
from torch_modules import CELLS, SIZE, assert_same_gradients, flat, normal, twins

torch = pytest.importorskip("torch")
caches = importlib.import_module("rnnfast.torch.cache")
rt = importlib.import_module("rnnfast.torch")

pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture(params=list(CELLS))
def both(request):
    """Torch's cell and ours, with the same weights."""
    return twins(request.param, dtype=torch.float64)[::-1]


def inputs(steps=6, batch=3):
    return normal(steps, batch, SIZE)


def run(cell, x, state=None):
    """The loss of the states after each step, and the last state."""
    total = 0
    for step in x:
        state = cell(step, state)
        total = total + flat(state)[0].sin().sum()
    return total, state


def found(cell):
    return {name: p.grad for name, p in cell.named_parameters()}


def test_batches_that_shrink_and_single_rows(both):
    """As in decoding: the steps of one size are one batch, which is added to that of another."""
    x = inputs(steps=6, batch=9)
    for cell in both:
        total, state = run(cell, x[:2])
        cut = tuple(s[:4] for s in state) if isinstance(state, tuple) else state[:4]
        more, state = run(cell, x[2:4, :4], cut)
        one = tuple(s[2] for s in state) if isinstance(state, tuple) else state[2]
        (total + more + run(cell, x[4:, 2], one)[0]).backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_inputs_whose_rows_lie_apart(both):
    """Neither forward nor backward copies them."""
    x = inputs(steps=6, batch=4).repeat(1, 1, 2)[..., :SIZE]
    assert not x[0].is_contiguous()
    for cell in both:
        run(cell, x)[0].backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_more_rows_than_a_chunk_of_the_kernels(both):
    x = inputs(steps=5, batch=2041)
    for cell in both:
        run(cell, x)[0].backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_loops_side_by_side_and_truncated(both):
    """Two graphs of the same weights, taken back one after the other, and one cut in the middle."""
    x = inputs()
    for cell in both:
        (first, _), (second, state) = run(cell, x), run(cell, x[:2])
        second.backward()
        first.backward()
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        run(cell, x, state)[0].backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_weights_that_stop_and_start_needing_gradients(both):
    """In the middle of a loop."""
    x = inputs()
    for cell in both:
        total, state = run(cell, x[:2])
        cell.weight_hh.requires_grad_(False)
        more, state = run(cell, x[2:4], state)
        cell.weight_hh.requires_grad_(True)
        last, _ = run(cell, x[4:], state)
        (total + more + last).backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_weights_changed_between_loops(both):
    x = inputs()
    for cell in both:
        run(cell, x)[0].backward()
        cell.weight_hh.data.mul_(0.5)
        run(cell, x)[0].backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_gradients_of_inputs_alone_leave_nothing_behind(both):
    ours = both[1]
    x = inputs().requires_grad_()
    total, _ = run(ours, x)
    shared = caches.PackCache.of(ours).shared[0]()
    for _ in range(2):
        torch.autograd.grad(total, x, retain_graph=True)
    assert caches.PackCache.of(ours).shared is None
    assert shared._left == {}
    total.backward()
    assert shared._left == {}


def test_a_graph_is_freed_at_once(both):
    """Without the garbage collector: nothing on it refers back to itself."""
    x = inputs()
    gc.collect()
    gc.disable()
    try:
        total, state = run(both[1], x)
        node = weakref.ref(flat(state)[0].grad_fn)
        assert node() is not None
        total.backward()
        del total, state
        assert node() is None
    finally:
        gc.enable()


def test_a_graph_without_backward_and_weights_written_with_what_they_are(both):
    """A step that was never taken back must not make the next one's weights look changed."""
    x = inputs(steps=1)
    for cell in both:
        run(cell, x)
        cell.load_state_dict(cell.state_dict())
        run(cell, x)[0].backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_weights_made_from_others_are_not_kept(both):
    """Their graph would live as long as the module."""
    ours = both[1]
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    made = {name: p * scale for name, p in ours.named_parameters()}
    y = torch.func.functional_call(ours, made, (inputs()[0],))
    flat(y)[0].sum().backward()
    assert scale.grad is not None
    assert caches.PackCache.of(ours).shared is None


@pytest.mark.parametrize("cell", ["RNNCell", "GRUCell", "LSTMCell"])
def test_no_inputs(cell):
    """Which torch's constructor takes; the error at the call is its own."""
    found = []
    for module in (getattr(rt, cell)(0, 5), getattr(torch.nn, cell)(0, 5)):
        with pytest.raises(RuntimeError) as error:
            module(torch.zeros(3, 4))
        found.append(str(error.value))
        with torch.no_grad():
            result = module(torch.zeros(3, 0))
        assert (result[0] if isinstance(result, tuple) else result).shape == (3, 5)
    assert found[0] == found[1]


def test_few_and_many_rows_in_turn_share_a_token():
    """Whether their weights are packed or read where they lie."""
    ours, theirs = twins("lstm_cell", dtype=torch.float64)
    found, tokens = [], set()
    for cell in (ours, theirs):
        x = inputs(steps=6, batch=20)
        few = many = None
        for step in x:
            few, many = cell(step[:2], few), cell(step, many)
            if cell is ours:
                tokens.add(caches.PackCache.of(cell).shared[1])
        (few[0].sin().sum() + many[0].cos().sum()).backward()
        found.append({name: p.grad for name, p in cell.named_parameters()})
    assert len(tokens) == 1
    assert_same_gradients(*found, "float64")


def test_weights_changed_by_a_hook_in_the_middle_of_backward(both):
    """Torch refuses to go on, and so do we."""
    x = inputs(steps=3)
    for cell in both:

        def change(_, cell=cell):
            with torch.no_grad():
                cell.weight_hh.mul_(2)

        state = cell(x[1], cell(x[0]))
        flat(state)[0].register_hook(change)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            flat(cell(x[2], state))[0].sum().backward()


def test_a_graph_that_is_dropped_leaves_nothing(both):
    """Neither weights that were replaced since, nor what adds up gradients of their shape."""
    for cell in both:
        cell(inputs()[0])
        old = [weakref.ref(p) for p in cell.parameters()]
        state = {name: value.clone() for name, value in cell.state_dict().items()}
        cell.load_state_dict(state, assign=True)
        gc.collect()
        assert [one() for one in old] == [None] * 4

        cell(inputs()[0])
        cell.input_size = SIZE + 2
        cell.weight_ih.data = normal(len(cell.weight_ih), SIZE + 2)
        run(cell, normal(6, 3, SIZE + 2))[0].backward()
    assert_same_gradients(*map(found, both), "float64")


# ---- Steps that are alone -----------------------------------------------------------------------


needs_hooks = pytest.mark.skipif(
    not hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    reason="this torch does not tell of hooks on saved tensors, with which no step is alone",
)


def takes_weights(state):
    """Whether a step's node has them, and not what stands for those of several steps."""
    return flat(state)[0].grad_fn.name() == "_PassBackward"


def losses(cell, x):
    """What its steps take back: each by itself, in a loop, from states off the graph."""
    taken = []

    def back(state):
        taken.append(takes_weights(state))
        flat(state)[0].sin().sum().backward()

    for step in x[:3]:
        back(cell(step))
    for _ in range(2):
        state = None
        for step in x:
            state = cell(step, state)
        back(state)
    total, state = 0, cell(x[0])
    back(state)
    for step in x:
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        state = cell(step, state)
        total = total + flat(state)[0].sin().sum()
    taken.append(takes_weights(state))
    total.backward()
    return taken


@needs_hooks
def test_steps_alone_and_in_loops_by_turns(both):
    """A graph of one step lets the next be taken for such, and one of several does not."""
    x = inputs(steps=4)
    taken = [losses(cell, x) for cell in both]
    assert taken[1] == [False, True, True, False, False, False, False]
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


@needs_hooks
def test_steps_alone_that_have_not_gone_back_are_a_loop(both):
    x = inputs(steps=4)
    for cell in both:
        for _ in range(2):
            flat(cell(x[0]))[0].sum().backward()
        outputs = [flat(cell(step))[0] for step in x]
        sum(y.sin().sum() for y in outputs).backward()
    # The first was taken for another alone.
    assert [takes_weights(y) for y in outputs] == [True, False, False, False]
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


@needs_hooks
def test_steps_of_weights_made_from_others_are_alone(both):
    x = inputs(steps=3)
    for cell in both:
        torch.nn.utils.parametrizations.weight_norm(cell, "weight_hh")
        total, state = run(cell, x)
        total.backward()
    assert takes_weights(state)
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


@pytest.mark.parametrize("before", [1, 2, 3])
def test_a_checkpoint_after_a_step_alone(both, before):
    """What runs once more saves as many tensors as it did the first time."""
    x = inputs(steps=4)
    checkpoint = torch.utils.checkpoint.checkpoint

    def segment(cell, state):
        for step in x:
            state = cell(step, state)
        return state

    for cell in both:
        for step in x[:before]:
            flat(cell(step))[0].sum().backward()
        state = checkpoint(cell, x[0], use_reentrant=False)
        state = checkpoint(cell, x[1], state, use_reentrant=False)
        state = checkpoint(segment, cell, state, use_reentrant=False)
        flat(state)[0].sin().sum().backward()
        flat(cell(x[0]))[0].sum().backward()
        flat(checkpoint(segment, cell, None, use_reentrant=False))[0].sum().backward()
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


@needs_hooks
@pytest.mark.parametrize("batch", [1, 2, 6, 7, 8, 9, 40])
def test_steps_alone_of_any_rows_and_strides(both, batch):
    """Also where the kernels refuse them as they are at first."""
    x = normal(3, batch, 2 * SIZE)
    for cell in both:
        for step in x:
            for given in (step[:, :SIZE].contiguous(), step[:, ::2]):
                state = cell(given)
                flat(state)[0].sin().sum().backward()
        with pytest.raises((RuntimeError, ValueError)):
            cell(x[0])
        state = cell(x[0, :, ::2])
        flat(state)[0].sum().backward()
    assert takes_weights(state)
    assert_same_gradients(found(both[1]), found(both[0]), "float64")


def test_weights_changed_before_a_checkpoint_runs_again(both):
    """Torch computes with the new ones; we refuse, as wherever weights change before backward."""
    ours = both[1]
    torch.nn.utils.parametrizations.weight_norm(ours, "weight_hh")
    x = inputs(steps=1)
    flat(ours(x[0]))[0].sum().backward()
    state = torch.utils.checkpoint.checkpoint(ours, x[0], use_reentrant=False)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        flat(state)[0].sum().backward()
