"""What the steps of a loop share on torch's graph: rnnfast/torch/steps.py."""

from __future__ import annotations

import gc
import importlib
import weakref

import pytest
from torch_modules import CELLS, SIZE, assert_same_gradients, flat, make, normal, twins

torch = pytest.importorskip("torch")
steps = importlib.import_module("rnnfast.torch.steps")
packs = importlib.import_module("rnnfast.torch.packs")
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
    shared, _ = packs.PackCache.of(ours).shared
    for _ in range(2):
        torch.autograd.grad(total, x, retain_graph=True)
    assert packs.PackCache.of(ours).shared is None
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
    assert packs.PackCache.of(ours).shared is None


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


LAYERS = {
    "one": {},
    "two": {"num_layers": 2},
    "dropout": {"num_layers": 2, "dropout": 0.5},
    "batch_first": {"num_layers": 3, "batch_first": True, "bias": False},
    "both_directions": {"bidirectional": True},
}


def decode(layer, x, dtype):
    """A loop that calls a layer with one step after the other: the loss, and gradients by name."""
    torch.manual_seed(3)  # of dropout
    x = x.to(dtype).requires_grad_()
    state, total = None, 0
    for step in x:
        one = step.unsqueeze(1 if layer.batch_first else 0)
        y, state = layer(one, state)
        total = total + y.sin().sum() + flat(state)[-1].cos().sum()
    total.backward()
    gradients = {name: p.grad for name, p in layer.named_parameters()}
    return total, {**gradients, "x": x.grad}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", LAYERS)
@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru", "lstm", "lstm_projected"])
def test_loops_of_layers(kind, form, dtype):
    ours, theirs = twins(kind, dtype=dtype, **LAYERS[form])
    x = inputs(steps=5, batch=3)
    (got, d_got), (want, d_want) = (decode(m, x, dtype) for m in (ours, theirs))
    torch.testing.assert_close(got, want)
    assert_same_gradients(d_got, d_want, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_steps_of_a_layer_from_a_state_on_a_graph_share_a_token(kind):
    """And no others: one of more steps, or without such a state, has its own gradients."""
    layer = make(rt, kind, dtype=torch.float64)
    x = inputs(steps=4)
    cache = packs.PackCache.of(layer)
    _, state = layer(x[:1])
    assert cache.shared is None
    layer(x[:2], state)
    assert cache.shared is None
    layer(x[1:2], state)
    shared = cache.shared
    _, state = layer(x[2:3], state)
    assert cache.shared is shared is not None
    with torch.no_grad():
        layer(x[3:], state)
    assert cache.shared is shared


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_an_output_of_a_step_may_be_changed(kind):
    """And so may its state, where nothing goes on from it."""
    ours, theirs = twins(kind, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):
        x = inputs(steps=3)
        _, first = layer(x[:1])
        y, state = layer(x[1:2] * 1, first)
        if kind != "lstm" or layer is ours:  # torch's own reads its output in backward
            y = y.mul_(3) / 3
        flat(state)[0].add_(1)
        (y.sin().sum() + flat(state)[0].cos().sum()).backward()
        found.append({name: p.grad for name, p in layer.named_parameters()})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("form", ["one", "two"])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_gradients_of_gradients_through_steps_of_a_layer(kind, form):
    found = []
    for layer in twins(kind, dtype=torch.float64, **LAYERS[form]):
        x = inputs(steps=3).requires_grad_()
        state, total = None, 0
        for step in x:
            y, state = layer(step[None], state)
            total = total + y.sin().sum()
        weights = list(layer.parameters())
        first = torch.autograd.grad(total, [x, *weights], create_graph=True)
        sum((g * g).sum() for g in first).backward()
        found.append({**{n: p.grad for n, p in layer.named_parameters()}, "x": x.grad})
    assert_same_gradients(*found, "float64")
