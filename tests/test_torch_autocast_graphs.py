"""Autocast to bfloat16 of float32 modules that are compiled, exported or transformed.

They give what a plain call under autocast does: tensors are in float32, biases, states and
gradients among them, and the operands of products alone are rounded, by the registered operators.
"""

from __future__ import annotations

import io

import pytest

torch = pytest.importorskip("torch")

from tolerances import assert_close  # noqa: E402
from torch.func import functional_call, grad, vmap  # noqa: E402
from torch_graphs import BATCH, SHAPES, inputs  # noqa: E402
from torch_twins import (  # noqa: E402
    CELLS,
    LAYERS,
    as_array,
    flat,
    gradients,
    normal,
    state_for,
    twins,
)

pytestmark = [
    pytest.mark.usefixtures("native", "fresh_compiler"),
    pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*is deprecated"),
]

LOWER = torch.bfloat16
FORMAT = "bfloat16"
# Of the same rounded operands, in sums of another order. One more rounding to bfloat16 is 4e-3.
SAME = 1e-5
PROMISED = 2e-2  # from float64, by the documentation
KINDS = [*LAYERS, *CELLS]


def module_of(kind):
    options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True}
    return twins(kind, **options)[0]


def autocast():
    return torch.autocast("cpu", dtype=LOWER)


def assert_same(got, want):
    """Gradients in float32, which are not numbers of bfloat16."""
    assert any(not torch.equal(a, a.to(LOWER).float()) for a in flat(got))
    for a, b in zip(flat(got), flat(want), strict=True):
        assert a.dtype is b.dtype is torch.float32 and a.shape == b.shape
        assert_close(as_array(a), as_array(b), SAME)


def assert_equal(got, want):
    for a, b in zip(flat(got), flat(want), strict=True):
        assert a.dtype is b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind, dynamic):
    ours = module_of(kind)
    run = torch.compile(ours, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for steps, batch in SHAPES[: 3 if dynamic else 1]:
        found = []
        for call in (run, ours):
            x = inputs(kind, steps, batch).requires_grad_()
            state = state_for(ours, batch)
            given = [s.requires_grad_() for s in flat(state)]
            with autocast():
                result = flat(call(x, state))
            wide = [t.float() for t in result]
            found.append((result, gradients(ours, wide, [x, *given])))
        assert_equal(found[0][0], found[1][0])
        assert_same(found[0][1], found[1][1])


def test_dropout_is_of_float32():
    """Between layers, where h is not an operand yet: the same masks, and the same numbers."""
    ours, _ = twins("gru", num_layers=2, dropout=0.5)
    x, found = inputs("gru"), []
    for call in (torch.compile(ours, backend="aot_eager", fullgraph=True), ours):
        torch.manual_seed(1)
        with autocast():
            y, h = call(x)
        found.append((y, h, gradients(ours, y.float())))
    assert_equal(found[0][:2], found[1][:2])
    assert_same(found[0][2], found[1][2])


@pytest.mark.parametrize("kind", KINDS)
def test_transformed(kind):
    """Over samples, and gradients of each; beside plain calls, one by one."""
    ours = module_of(kind)
    x = torch.stack([inputs(kind, seed=s) for s in range(3)])
    own = {name: p.detach() for name, p in ours.named_parameters()}

    def loss(parameters, x):
        result = functional_call(ours, parameters, (x,))
        return sum((t.float() * normal(*t.shape)).sum() for t in flat(result))

    with autocast(), torch.no_grad():
        over = vmap(ours)(x)
        ones = [flat(ours(one)) for one in x]
    assert_equal(over, [torch.stack(parts) for parts in zip(*ones, strict=True)])
    with autocast():
        each = vmap(grad(loss), in_dims=(None, 0))(own, x)
        at_x = vmap(grad(loss, 1), in_dims=(None, 0))(own, x)
        got = grad(loss)(own, x[0])
    for k, one in enumerate(x):
        one = one.clone().requires_grad_()
        with autocast():
            value = loss(dict(ours.named_parameters()), one)
        want = torch.autograd.grad(value, [one, *ours.parameters()])
        assert_same([at_x[k], *(d[k] for d in each.values())], want)
        if k == 0:
            assert_same(list(got.values()), want[1:])


class Lowered(torch.nn.Module):
    """A model that turns autocast on itself, as one does that is exported with it."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        with autocast():
            return self.inner(x)


def saved_and_loaded(program):
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer).module()


@pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="torch before 2.6 exports no autocast within autocast"
)
def test_exported():
    model = Lowered(module_of("gru"))
    shapes = ({0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)},)
    program = torch.export.export(model, (inputs("gru"),), dynamic_shapes=shapes)
    for run in (program.module(), saved_and_loaded(program)):
        for steps, batch in SHAPES[:3]:
            x = inputs("gru", steps, batch)
            assert_equal(run(x), model(x))


def test_a_program_in_float32_names_no_format():
    """So that one from before there were formats, whose call has no such argument, is the same."""
    ours = module_of("gru")
    x = inputs("gru")
    program = torch.export.export(ours, (x,))
    (call,) = (n for n in program.graph.nodes if "rnnfast.forward" in str(n.target))
    assert len(call.args) == 8 and not call.kwargs
    assert_equal(saved_and_loaded(program)(x), ours(x))


def sample(kind):
    """The arguments of the operator's forward pass, but for `training` and the format."""
    ours = module_of(kind)
    h0, c0 = (*flat(state_for(ours, BATCH)), None)[:2]
    weights = [w.detach() for w in ours._flat_weights]
    own = kind.removesuffix("_projected"), 1 + ours.bidirectional, ours.bias
    return inputs(kind), h0, c0, weights, *own


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm", "lstm_projected"])
def test_opcheck(kind):
    args = sample(kind)
    x, h0, c0, weights, *own = args
    for tensor in flat([x, h0, c0, weights]):
        tensor.requires_grad_()
    torch.library.opcheck(torch.ops.rnnfast.forward.default, (*args, True, FORMAT))
    y, h, c, tape = (t.detach() for t in torch.ops.rnnfast.forward(*args, True, FORMAT))
    d_states = (torch.ones_like(h), torch.ones_like(c) if c.numel() else None)
    x, h0, c0, *weights = (None if t is None else t.detach() for t in (x, h0, c0, *weights))
    wanted = [t is not None for t in (x, h0, c0, *weights)]
    args = torch.ones_like(y), *d_states, x, h0, c0, weights, y, tape, *own, wanted, FORMAT
    torch.library.opcheck(torch.ops.rnnfast.backward.default, args)


def test_packs_of_both_formats_are_kept_apart():
    """Of the same weights, in the same memory, whichever is asked for first."""
    args = sample("lstm")
    run = torch.ops.rnnfast.forward
    plain, rounded = run(*args, False)[0], run(*args, False, FORMAT)[0]
    assert not torch.equal(plain, rounded)
    assert torch.equal(run(*args, False)[0], plain)
    assert torch.equal(run(*args, False, FORMAT)[0], rounded)


def test_gradients_of_gradients():
    """Beside those in float64 without a format."""
    found = []
    for dtype, own in ((torch.float32, (FORMAT,)), (torch.float64, ())):
        x, h0, c0, weights, *options = sample("lstm")
        given = [t.to(dtype).requires_grad_() for t in (x, h0, c0, *weights)]
        y, h, _, _ = torch.ops.rnnfast.forward(*given[:3], given[3:], *options, True, *own)
        value = (y.square()).sum() + h.sum()
        first = torch.autograd.grad(value, given, create_graph=True)
        second = torch.autograd.grad(sum(d.square().sum() for d in first), given)
        found.append([*first, *second])
    for a, b in zip(*found, strict=True):
        assert_close(as_array(a), as_array(b), PROMISED)


@pytest.mark.parametrize(
    ("dtype", "format_name", "expected"),
    [
        (torch.float32, "int8", "None or bfloat16 for torch.float32, got 'int8'"),
        (torch.float32, "", "None or bfloat16 for torch.float32, got ''"),
        (torch.float64, FORMAT, "None for torch.float64, got 'bfloat16'"),
        (LOWER, FORMAT, "None for torch.bfloat16, got 'bfloat16'"),
    ],
)
def test_formats_that_the_operators_refuse(dtype, format_name, expected):
    x, h0, c0, weights, *own = sample("lstm")
    weights = [w.to(dtype) for w in weights]
    args = x.to(dtype), h0.to(dtype), c0.to(dtype), weights, *own
    with pytest.raises(ValueError) as error:
        torch.ops.rnnfast.forward(*args, False, format_name)
    assert str(error.value) == f"format_name: expected {expected}"
