"""Loops that call a layer with one step after the other: rnnfast/torch/steps.py."""

from __future__ import annotations

import importlib

import pytest
from tolerances import BFLOAT16, assert_close
from torch_modules import SIZE, assert_same_gradients, flat, make, normal, twins

torch = pytest.importorskip("torch")
checkpoint = importlib.import_module("torch.utils.checkpoint").checkpoint
caches = importlib.import_module("rnnfast.torch.cache")
rt = importlib.import_module("rnnfast.torch")

pytestmark = pytest.mark.usefixtures("native")


def inputs(steps=6, batch=3):
    return normal(steps, batch, SIZE)


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
    shared = getattr(layer, "_rnnfast", None) and caches.PackCache.of(layer).shared
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
    cache = caches.PackCache.of(layer)
    _, state = layer(x[:1])
    assert cache.shared is None
    layer(x[:2], state)
    assert cache.shared is None
    kept = [layer(x[1:2], state)]  # with which goes what is shared
    shared = cache.shared
    kept.append(layer(x[2:3], state))
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
            return checkpoint(layer, x, state, use_reentrant=reentrant)

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
        assert_close(found[0][name], want, BFLOAT16, name)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_weights_made_from_others(kind):
    """As by a parametrization: no step shares them with the next."""
    found = []
    for layer in twins(kind, dtype=torch.float64):
        made = {name: p.sin() for name, p in layer.named_parameters()}

        def call(x, state, layer=layer, made=made):
            return torch.func.functional_call(layer, made, (x, state))

        steps_of(layer, inputs(steps=4), call).backward()
        if isinstance(layer, rt.modules.Layer):
            assert caches.PackCache.of(layer).shared is None
        found.append({name: p.grad for name, p in layer.named_parameters()})
    assert_same_gradients(*found, "float64")
