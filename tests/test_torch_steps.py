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
    shared = getattr(layer, "_rnnfast", None) and packs.PackCache.of(layer).shared
    share = not (layer.bidirectional or layer.dropout or layer.proj_size)
    assert (shared is not None) == (share and isinstance(layer, rt.modules.Layer))
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


def steps_of(layer, x, call=None):
    """The loss of a loop, of whose steps `call` runs each."""
    state, total = None, 0
    for step in x:
        y, state = (call or layer)(step[None], state)
        total = total + y.sin().sum()
    return total


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_a_frozen_layer_and_frozen_weights_in_a_loop(kind):
    found = []
    for layer in twins(kind, dtype=torch.float64, num_layers=2):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_("l1" in name and name != "bias_hh_l1")
        steps_of(layer, inputs(steps=4)).backward()
        found.append({name: p.grad for name, p in layer.named_parameters()})
    assert {name for name, d in found[0].items() if d is None} == {
        name for name, d in found[1].items() if d is None
    }
    got, want = ({n: d for n, d in own.items() if d is not None} for own in found)
    assert_same_gradients(got, want, "float64")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_checkpointed_steps(kind, reentrant):
    found = []
    for layer in twins(kind, dtype=torch.float64, num_layers=2):

        def call(x, state, layer=layer):
            return torch.utils.checkpoint.checkpoint(layer, x, state, use_reentrant=reentrant)

        x = inputs(steps=4).requires_grad_()
        steps_of(layer, x, call).backward()
        found.append({**{n: p.grad for n, p in layer.named_parameters()}, "x": x.grad})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_saved_tensors_that_come_back_otherwise(kind):
    """With other strides: what the kernels do not take as it lies is copied."""

    def spread(tensor):
        return torch.stack([tensor, tensor], -1)[..., 0]

    found = []
    for layer in twins(kind, dtype=torch.float64):
        with torch.autograd.graph.saved_tensors_hooks(spread, lambda tensor: tensor):
            total = steps_of(layer, inputs(steps=4))
        total.backward()
        found.append({name: p.grad for name, p in layer.named_parameters()})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("which", ["h", "c"])
def test_one_of_two_states_on_the_graph(which):
    found = []
    for layer in twins("lstm", dtype=torch.float64):
        x = inputs(steps=2)
        h, c = layer(x[:1])[1]
        state = (h, c.detach()) if which == "h" else (h.detach(), c)
        layer(x[1:], state)[0].sin().sum().backward()
        found.append({name: p.grad for name, p in layer.named_parameters()})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_unbatched_steps(kind):
    found = []
    for layer in twins(kind, dtype=torch.float64, num_layers=2):
        x = inputs(steps=4, batch=1)[:, 0].requires_grad_()
        steps_of(layer, x).backward()
        found.append({**{n: p.grad for n, p in layer.named_parameters()}, "x": x.grad})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_steps_in_bfloat16(kind):
    """The gradients of one call with all steps, up to what rounding the states between does."""
    layer = make(rt, kind, dtype=torch.bfloat16)
    x = inputs(steps=4).to(torch.bfloat16)
    found = []
    for run_all in (lambda: steps_of(layer, x), lambda: layer(x)[0].sin().sum()):
        layer.zero_grad()
        run_all().backward()
        found.append({name: p.grad.float() for name, p in layer.named_parameters()})
    for name, want in found[1].items():
        torch.testing.assert_close(found[0][name], want, rtol=0.05, atol=0.05 * want.abs().max())


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
                tokens.add(packs.PackCache.of(cell).shared[1])
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
