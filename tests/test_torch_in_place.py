"""Inputs and outputs that change between the passes: right where torch is, or torch's error."""

from __future__ import annotations

import io

import pytest
from tolerances import assert_close
from torch_modules import (
    LAYERS,
    MODULES,
    SIZE,
    TORCH_DTYPES,
    assert_same_results,
    dtype_of,
    flat,
    inputs_for,
    loss,
    make,
    normal,
    rt,
    run,
    seed,
    twins,
)

torch = pytest.importorskip("torch")
checkpoint = pytest.importorskip("torch.utils.checkpoint").checkpoint

F64 = TORCH_DTYPES["float64"]
FORMS = {
    "plain": {},
    "two directions": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "two layers": {"num_layers": 2, "batch_first": True, "bidirectional": True},
    "dropout": {"num_layers": 2, "batch_first": True, "dropout": 0.3},
}


def by_both(pair, program):
    """What `program` makes of both modules: its gradients, or None where torch notices a change."""
    found = []
    for module in pair:
        seed(7)
        try:
            program(module).sum().backward()
            found.append([p.grad for p in module.parameters()])
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
            found.append(None)
    return found


def assert_same(found, name="float64"):
    got, want = found
    assert (got is None) == (want is None)
    if want is not None:
        assert_same_results(got, want, name, "backward")


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_output_changed_in_place_is_as_in_torch(kind, form, name, native):
    """As by an activation or dropout in place: an error where torch's layer reads its output."""
    pair = twins(kind, dtype=TORCH_DTYPES[name], **FORMS[form])
    x = inputs_for(pair[1], states=False)[0]

    def program(module):
        y = module(x)[0]
        with torch.no_grad():
            y.clamp_(min=0)
        return y

    found = by_both(pair, program)
    assert_same(found, name)
    both = FORMS[form].get("bidirectional")
    assert (found[0] is None) == (kind == "lstm" and name == "float32" and not both)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_an_output_changed_within_a_checkpoint(kind, form):
    """Of which the second pass's output is read, and nobody looks whether that has changed."""
    pair = twins(kind, dtype=F64, **FORMS[form])
    x = inputs_for(pair[1], states=False)[0].requires_grad_()

    def program(module):
        return checkpoint(lambda x: module(x)[0].mul_(3).sin(), x, use_reentrant=False)

    assert_same(by_both(pair, program))


@pytest.mark.parametrize("how", ["plain", "checkpoint"])
@pytest.mark.parametrize("form", ["batch first", "two layers", "dropout"])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_residual_sum_into_the_input(kind, form, how):
    """Of (B, T, I) torch reads a copy, so that x may become x + layer(x)."""
    pair = twins(kind, SIZE, SIZE, dtype=F64, **FORMS[form])
    x, weight = inputs_for(pair[1], states=False)[0], normal(SIZE, SIZE).requires_grad_()
    at_inputs = []

    def program(module):
        x_here, own = x.clone().requires_grad_(), weight.detach().clone().requires_grad_()
        at_inputs.append((x_here, own))

        def block(given):
            inner = given @ own
            inner += module(inner)[0].sum(-1, keepdim=True)
            return inner.sin()

        return checkpoint(block, x_here, use_reentrant=False) if how != "plain" else block(x_here)

    assert_same(by_both(pair, program))
    for got, want in zip(*at_inputs, strict=True):
        assert_close(got.grad, want.grad, 1e-10)


@pytest.mark.parametrize("steps, batch", [(1, 3), (3, 1)])
def test_an_input_that_is_no_copy_in_torch(steps, batch):
    """Of one step or row (B, T, I) lies as (T, B, I) does: both notice the change."""
    pair = twins("gru", SIZE, SIZE, dtype=F64, batch_first=True)
    x = normal(batch, steps, SIZE)
    found = []
    for module in pair:
        inner = x * 1
        y = module(inner)[0]
        inner += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
        found.append(y.detach())
    torch.testing.assert_close(*found)


# The larger one is of those whose copying torch's threads would share.
@pytest.mark.parametrize("batch, steps", [(3, 6), (450, 20)])
@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_gradients_at_an_input_that_has_changed(kind, batch, steps):
    pair = twins(kind, dtype=F64, batch_first=True)
    given = inputs_for(pair[1], batch, steps, states=False)[0]
    found = []
    for module in pair:
        x = given.clone().requires_grad_()
        inner = x * 1
        y = module(inner)[0]
        inner.mul_(2)
        (first,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        first.square().sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("form", ["batch first", "dropout"])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_input_from_inference_mode(kind, form):
    """Features of a frozen encoder, say: torch saves a copy of them."""
    pair = twins(kind, dtype=F64, **FORMS[form])
    with torch.inference_mode():
        x = inputs_for(pair[1], states=False)[0].clone()
    assert_same(by_both(pair, lambda module: module(x)[0]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("form", ["plain", "batch first", "two layers"])
@pytest.mark.parametrize("kind", ["gru", "rnn_tanh", "lstm", "lstm_projected"])
def test_an_output_changed_after_and_within_what_is_compiled(kind, form, backend):
    torch._dynamo.reset()
    name = "float32" if kind == "lstm" else "float64"  # a plain call reads the output of that one
    eager, module = (make(rt, kind, dtype=TORCH_DTYPES[name], **FORMS[form]) for _ in range(2))
    x = inputs_for(module, states=False)[0]
    within = torch.compile(lambda x: module(x)[0].mul_(2).sin(), backend=backend, fullgraph=True)
    after = torch.compile(lambda x: module(x)[0], backend=backend, fullgraph=True)
    for program in (within, lambda x: after(x).mul_(2).sin()):
        found = []
        for own, call in ((module, program), (eager, lambda x: eager(x)[0].mul(2).sin())):
            own.zero_grad()
            call(x).sum().backward()
            found.append([p.grad for p in own.parameters()])
        assert_same_results(*found, name, "backward")


@pytest.mark.parametrize("kind", ["gru", "lstm_projected"])
def test_an_output_changed_under_a_transform(kind):
    module = make(rt, kind, dtype=F64, batch_first=True)
    x, parameters = inputs_for(module, states=False)[0], dict(module.named_parameters())

    def loss_of(parameters, in_place):
        y = torch.func.functional_call(module, parameters, (x,))[0]
        return (y.mul_(2) if in_place else y.mul(2)).sin().sum()

    got, want = (torch.func.grad(loss_of)(parameters, how) for how in (True, False))
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient)


# Of torch's modules these do not read their last states in backward; its RNN's cells do.
KEPT_APART = [kind for kind in MODULES if kind in LAYERS or not kind.startswith("rnn")]


@pytest.mark.parametrize("kind", KEPT_APART)
def test_last_states_may_change_in_place(kind):
    """Such as by the mask of the episodes that are over."""
    found = []
    pair = twins(kind, dtype=F64)
    tensors = inputs_for(pair[1])
    for module in pair:
        results = run(module, tensors)
        for k, state in enumerate(results[-len(tensors) + 1 :]):
            state.mul_(2 + k)
        found.append(torch.autograd.grad(loss(results), list(module.parameters())))
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("kind", MODULES)
def test_a_file_of_a_whole_module_needs_its_class_alone(kind):
    """Not that of what is kept with it, once it has been called."""
    module = make(rt, kind)
    run(module, inputs_for(module))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    torch.serialization.add_safe_globals([type(module)])
    try:
        loaded = torch.load(file, weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
    assert dtype_of(loaded) == "float32"
    for got, want in zip(
        run(loaded, inputs_for(module)), run(module, inputs_for(module)), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", ["rnn_tanh_cell", "gru_cell", "lstm_cell"])
def test_cells_without_units(kind):
    got, want = (flat(module(normal(3, 4, dtype="float32"))) for module in twins(kind, 4, 0))
    assert [t.shape for t in got] == [t.shape for t in want]
