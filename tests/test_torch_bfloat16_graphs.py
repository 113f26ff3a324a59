"""bfloat16 in the registered operators: compiled, exported, transformed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tolerances import BFLOAT16, assert_close  # noqa: E402
from torch.func import functional_call, grad, vmap  # noqa: E402
from torch_graphs import BATCH, SHAPES, inputs  # noqa: E402
from torch_twins import (  # noqa: E402
    CELLS,
    LAYERS,
    as_array,
    flat,
    gradients,
    state_for,
    twins,
)

pytestmark = [
    pytest.mark.usefixtures("native", "fresh_compiler"),
    pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*is deprecated"),
]

LOWER = torch.bfloat16


def pair(kind, **options):
    """Ours in bfloat16, and torch.nn's in float64 with the same values."""
    ours, theirs = twins(kind, **options)
    return ours.to(LOWER), theirs.to(LOWER).double()


def sample(kind, batch=BATCH, **options):
    """The arguments of the operator's forward pass."""
    ours, _ = pair(kind, **options)
    h0, c0 = (*flat(state_for(ours, batch, LOWER)), None)[:2]
    weights = [w.detach() for w in ours._flat_weights]
    cell = kind.removesuffix("_projected")
    return inputs(kind).to(LOWER), h0, c0, weights, cell, 1 + ours.bidirectional, ours.bias


def assert_near(got, want):
    got, want = flat(got), flat(want)
    for a, b in zip(got, want, strict=True):
        assert a.dtype is LOWER and a.shape == b.shape
        assert_close(as_array(a), as_array(b), BFLOAT16)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_projected"])
def test_opcheck(kind):
    x, h0, c0, weights, *own = sample(kind, num_layers=2)
    given = [x, *([h0] if c0 is None else [h0, c0]), *weights]
    for tensor in given:
        tensor.requires_grad_()
    args = x, h0, c0, weights, *own
    torch.library.opcheck(torch.ops.rnnfast.forward.default, (*args, True))
    y, h, c, tape = (t.detach() for t in torch.ops.rnnfast.forward(*args, True))
    assert (y.dtype, h.dtype, c.dtype, tape.dtype) == (LOWER, LOWER, LOWER, torch.float32)
    d_states = (torch.ones_like(h), torch.ones_like(c) if c.numel() else None)
    x, h0, c0, *weights = (None if t is None else t.detach() for t in (x, h0, c0, *weights))
    wanted = [t is not None for t in (x, h0, c0, *weights)]
    args = torch.ones_like(y), *d_states, x, h0, c0, weights, y, tape, *own, wanted
    torch.library.opcheck(torch.ops.rnnfast.backward.default, args)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_bits_of_a_plain_call(kind):
    ours, _ = pair(kind, num_layers=2, bidirectional=True)
    args = sample(kind, num_layers=2, bidirectional=True)
    state = args[1] if args[2] is None else args[1:3]
    with torch.no_grad():
        want = flat(ours(args[0], state))
        for training in (False, True):
            got = [t for t in torch.ops.rnnfast.forward(*args, training)[:3] if t.numel()]
            assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_compiled_training(kind):
    ours, exact = pair(kind)
    run = torch.compile(ours, backend="aot_eager", fullgraph=True)
    found = []
    for module, call, dtype in ((ours, run, LOWER), (exact, exact, torch.float64)):
        x = inputs(kind).to(LOWER).to(dtype).requires_grad_()
        state = state_for(module, BATCH, LOWER)
        state = tuple(s.to(dtype) for s in state) if isinstance(state, tuple) else state.to(dtype)
        result = call(x, state)
        assert module is exact or all(t.dtype is LOWER for t in flat(result))
        found.append([*flat(result), *gradients(module, [t.double() for t in flat(result)], [x])])
    assert_near(*found)


@pytest.mark.parametrize("kind", ["gru", "lstm_projected", "lstm_cell"])
def test_compiled_under_autocast(kind):
    """float32 weights, whose gradients are in float32."""
    ours, theirs = twins(kind)
    x = inputs(kind).requires_grad_()
    run = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=LOWER):
        result, other = run(x), theirs(x)
    assert [t.dtype for t in flat(result)] == [t.dtype for t in flat(other)]
    want = flat(theirs.double()(x.double()))
    for a, b in zip(flat(result), want, strict=True):
        assert_close(as_array(a), as_array(b), BFLOAT16)
    found = gradients(ours, [t.double() for t in flat(result)], [x])
    for a, b in zip(found, gradients(theirs, want, [x]), strict=True):
        assert a.dtype is torch.float32
        assert_close(as_array(a), as_array(b), BFLOAT16)


def test_export():
    ours, exact = pair("gru", num_layers=2)
    shapes = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)},)
    x = inputs("gru").to(LOWER)
    run = torch.export.export(ours, (x,), dynamic_shapes=shapes).module()
    for steps, batch in SHAPES[:3]:
        x = inputs("gru", steps, batch).to(LOWER)
        assert_near(run(x), exact(x.double()))


@pytest.mark.parametrize("kind", ["rnn_tanh", "lstm", "gru_cell"])
def test_transforms(kind):
    """Over samples, and gradients of each; beside the same one by one in float64."""
    found = []
    for module, dtype in zip(pair(kind), (LOWER, torch.float64), strict=True):
        x = torch.stack([inputs(kind, seed=s) for s in range(3)]).to(LOWER).to(dtype)

        def loss(parameters, x, module=module):
            return flat(functional_call(module, parameters, (x,)))[0].square().sum()

        own = {name: p.detach() for name, p in module.named_parameters()}
        if dtype is LOWER:
            over = vmap(module)(x)
            each = vmap(grad(loss), in_dims=(None, 0))(own, x)
        else:
            over = [torch.stack(p) for p in zip(*(flat(module(one)) for one in x), strict=True)]
            ones = [grad(loss)(own, one) for one in x]
            each = {name: torch.stack([one[name] for one in ones]) for name in own}
        found.append([t.detach() for t in (*flat(over), *each.values())])
    assert_near(*found)
