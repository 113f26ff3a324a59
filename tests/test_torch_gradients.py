"""Differentiation through `rnnfast.torch`: torch's graph, its hooks, and gradients of gradients."""

from __future__ import annotations

import pytest
from tolerances import TORCH, assert_close
from torch_modules import (
    CELLS,
    LAYERS,
    MODULES,
    TORCH_DTYPES,
    arrange,
    assert_same_gradients,
    assert_same_results,
    by_kernels,
    flat,
    gradients,
    inputs_for,
    loss,
    make,
    normal,
    rt,
    run,
    seed,
    twins,
)

from rnnfast._native_backend import NativeBackend

torch = pytest.importorskip("torch")

F64 = TORCH_DTYPES["float64"]

# (kind, options, batch) of each thing that a gradient can depend on.
CHECKED = [
    *((kind, {}, 2) for kind in MODULES),
    *((kind, {"bias": False}, None) for kind in MODULES),
    *((kind, {"num_layers": 2, "bidirectional": True, "batch_first": True}, 2) for kind in LAYERS),
    *((kind, {"num_layers": 2, "bidirectional": True}, None) for kind in LAYERS),
    ("lstm", {"num_layers": 2, "dropout": 0.5}, 2),
    ("gru", {"num_layers": 2, "dropout": 0.5, "batch_first": True}, None),
]


def small(kind, options, batch):
    """A small module in float64, and a function of its input, states and parameters."""
    own = {"proj_size": 1} if "proj_size" in MODULES[kind][1] else {}
    module = make(rt, kind, 3, 2, **{**own, **options}, dtype=F64)
    tensors = inputs_for(module, batch, steps=2)
    names = [name for name, _ in module.named_parameters()]

    def function(*given):
        seed(11)
        parameters = dict(zip(names, given[len(tensors) :], strict=True))
        call = arrange(*given[: len(tensors)])
        return tuple(flat(torch.func.functional_call(module, parameters, call)))

    given = [t.detach().clone().requires_grad_() for t in (*tensors, *module.parameters())]
    return function, given


@pytest.mark.parametrize(("kind", "options", "batch"), CHECKED)
def test_gradcheck(kind, options, batch):
    function, given = small(kind, options, batch)
    with by_kernels():
        assert torch.autograd.gradcheck(function, given, fast_mode="num_layers" in options)


@pytest.mark.parametrize(("kind", "options", "batch"), CHECKED)
def test_gradgradcheck(kind, options, batch):
    function, given = small(kind, options, batch)
    with by_kernels():
        # Along random directions: number by number this takes minutes.
        assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


def second(module, tensors):
    """The gradients of a penalty on the gradients, the usual use of `create_graph`."""
    own = [t.clone().requires_grad_() for t in tensors]
    results = run(module, own)
    at = [*own, *module.parameters()]
    first = torch.autograd.grad(loss(results), at, create_graph=True)
    penalty = sum((g**2).sum() for g in first) + loss(results)
    return [g.detach() for g in first], torch.autograd.grad(penalty, at)


@pytest.mark.parametrize("kind", MODULES)
def test_create_graph(kind):
    pair = twins(kind, dtype=F64)
    with by_kernels():
        got = second(pair[0], inputs_for(pair[1]))
    for a, b in zip(got, second(pair[1], inputs_for(pair[1])), strict=True):
        assert_same_results(a, b, "float64", "backward")


def test_create_graph_where_torchs_lstm_has_none(native):
    (ours, _), (_, precise) = twins("lstm"), twins("lstm", dtype=F64)
    precise.load_state_dict(ours.state_dict())
    tensors = inputs_for(precise)
    got = second(ours, [t.float() for t in tensors])
    for a, b in zip(got, second(precise, tensors), strict=True):
        for found, wanted in zip(a, b, strict=True):
            # Twice the length of one backward pass, and squares of its results.
            assert_close(found, wanted, 4 * TORCH["float32", "backward"])


def test_a_state_made_from_the_input():
    pair = twins("gru", dtype=F64, batch_first=False)
    x, h = inputs_for(pair[1])
    results = []
    for module in pair:
        own, weight = x.clone().requires_grad_(), h.clone().requires_grad_()
        y, _ = module(own, weight * own.mean())
        first = torch.autograd.grad(y.sum(), [own, weight], create_graph=True)
        results.append(
            [*first, *torch.autograd.grad(sum((g**2).sum() for g in first), [own, weight])]
        )
    assert_same_results(*results, "float64", "backward")


@pytest.mark.parametrize("kind", MODULES)
def test_batches_of_gradients(kind):
    """Torch runs one backward pass over all of them, as its jacobian does with vectorize=True."""
    found = []
    pair = twins(kind, dtype=F64)
    for module in pair:
        x = inputs_for(pair[1], states=False)[0].requires_grad_()
        result = flat(module(x))[0]
        batch, at = normal(3, *result.shape), [x, *module.parameters()]
        found.append(torch.autograd.grad(result, at, batch, is_grads_batched=True))
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("kind", MODULES)
def test_several_backward_passes(kind):
    ours = make(rt, kind, dtype=F64)
    x = inputs_for(ours, states=False)[0].requires_grad_()
    with by_kernels():
        result = flat(ours(x))[0].sum()
        for passes in (1, 2, 3):
            result.backward(retain_graph=True)
            if passes == 1:
                once = [p.grad.clone() for p in (x, *ours.parameters())]
            for p, first in zip((x, *ours.parameters()), once, strict=True):
                torch.testing.assert_close(p.grad, passes * first)


@pytest.mark.parametrize("kind", MODULES)
def test_a_graph_that_is_gone(kind):
    texts = []
    for module in twins(kind):
        result = flat(module(inputs_for(module, states=False)[0]))[0].sum()
        result.backward()
        with pytest.raises(RuntimeError) as caught:
            result.backward()
        texts.append(str(caught.value))
    assert texts[0] == texts[1] and "backward through the graph a second time" in texts[0]


def changed_after_forward(change, kind, index=None):
    """Calls `change(x, weight, results)` between forward and backward."""
    module = make(rt, kind, dtype=F64)
    x, *states = (t.requires_grad_() * 1 for t in inputs_for(module))
    with by_kernels():
        results = flat(module(*arrange(x, *states)))
        with torch.no_grad():
            change(x, next(module.parameters()), results)
        loss(results, index).backward()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("what", ["input", "weight"])
def test_what_changes_before_backward_raises(kind, what, native):
    changes = {
        "input": lambda x, weight, results: x.mul_(2),
        "weight": lambda x, weight, results: weight.mul_(2),
    }
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed_after_forward(changes[what], kind)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("what", ["input", "weight"])
def test_what_changes_before_the_backward_of_a_cell_raises(kind, what):
    def change(x, weight, results):
        (x if what == "input" else weight).mul_(2)

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        changed_after_forward(change, kind)


def test_changes_in_place_take_part_in_the_gradients():
    pair = twins("lstm", dtype=F64)
    found = []
    for module in pair:
        x = inputs_for(pair[1], states=False)[0].requires_grad_()
        y, (h, c) = module(x * 1)
        c.mul_(3)
        h += c
        found.append(torch.autograd.grad((y.sum() + (h * h).sum()), [x, *module.parameters()]))
    assert_same_results(*found, "float64", "backward")


class Spy:
    """A native stack that keeps what its backward passes returned."""

    def __init__(self, stack, seen):
        self._stack, self._seen = stack, seen

    def __getattr__(self, name):
        return getattr(self._stack, name)

    def backward(self, *args):
        result = self._stack.backward(*args)
        if result is not NotImplemented:  # it does not take strides of any kind
            self._seen.append(result)
        return result

    def step_backward(self, *args):
        """Of a cell, whose weights have a pass of their own, for all steps of a loop."""
        result = self._stack.step_backward(*args)
        if result is not NotImplemented:
            dx, d_state, gates = result
            self._seen.append((dx, d_state, gates is not None))
        return result

    def steps_backward(self, *args):
        dx, d_state, _ = self._seen.pop()
        parameters = self._stack.steps_backward(*args)
        self._seen.append((dx, d_state, parameters))
        return parameters


@pytest.fixture
def computed(native, monkeypatch):
    """What the backward passes of modules made from now on computed: (dx, d states, d weights)."""
    seen, stack = [], NativeBackend.stack
    monkeypatch.setattr(
        NativeBackend, "stack", lambda *args, **kwargs: Spy(stack(*args, **kwargs), seen)
    )
    return seen


@pytest.mark.parametrize("kind", MODULES)
def test_frozen_parameters_cost_no_work(kind, computed):
    ours, theirs = twins(kind, dtype=F64)
    for module in (ours, theirs):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("bias" in name)
    tensors = inputs_for(theirs)
    (got, d_got), (want, d_want) = (gradients(m, tensors) for m in (ours, theirs))
    assert_same_results(got, want, "float64")
    assert_same_gradients(d_got, d_want, "float64")
    assert not any("weight" in name for name in d_got)
    names = [name for name, _ in ours.named_parameters()]
    ((dx, _, parameters),) = computed
    assert dx is not None
    assert [d is None for d in parameters] == ["weight" in name for name in names]


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_of_parameters_alone_or_of_the_input_alone(kind, computed):
    ours = make(rt, kind, dtype=F64)
    x = inputs_for(ours, states=False)[0]
    flat(ours(x))[0].sum().backward()
    assert x.grad is None and all(p.grad is not None for p in ours.parameters())
    ours.requires_grad_(False)
    flat(ours(x.requires_grad_()))[0].sum().backward()
    (first_dx, _, first_parameters), (dx, _, parameters) = computed
    assert first_dx is None and all(d is not None for d in first_parameters)
    assert dx is not None
    # Of a step that shares its weights with others: that nothing is left for them.
    assert parameters is False or all(d is None for d in parameters)
