"""Steps of a loop with gradients, of which the compiled module runs the later ones in one call."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from test_torch_again import CHANGES, Other, assert_near  # noqa: E402
from torch_twins import CELLS, LAYERS, flat, normal, state_for, twins  # noqa: E402

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there
from rnnfast import _backend  # noqa: E402
from rnnfast.torch import exchange, steps  # noqa: E402
from rnnfast.torch.cache import PackCache  # noqa: E402

# What can be called step by step on one graph: a projection cannot.
KINDS = [*(kind for kind in LAYERS if kind != "lstm_projected"), *CELLS]
# Of weights that are read where they lie, and of packs.
ROWS = {"borrowed": 2, "packed": 9}

pytestmark = [
    pytest.mark.usefixtures("native"),
    pytest.mark.skipif(not exchange._IS_DIRECT, reason="this torch exchanges arrays alone"),
]


def inputs(kind, batch=2, count=5, **options):
    """One for each step."""
    shape = (batch, 4) if kind in CELLS else (1, batch, 4)
    return [normal(*shape, seed=k, **options).requires_grad_() for k in range(count)]


class Loop:
    """A module and the state after so many of its steps."""

    def __init__(self, module, kind, state):
        self.module, self.state, self.outputs = module, state, []
        self._is_cell = kind in CELLS

    def step(self, x):
        result = self.module(x, self.state)
        self.state = result if self._is_cell else result[1]
        self.outputs += flat(result)
        return result


def loops(kind, batch, **options):
    """Ours and torch's, of the same weights, after two steps."""
    pair = []
    for module in twins(kind, **options):
        dtype = options.get("dtype", torch.float32)
        loop = Loop(module, kind, state_for(module, batch, dtype))
        for x in inputs(kind, batch, 2, dtype=dtype):
            loop.step(x)
        pair.append(loop)
    return pair


def total(outputs):
    return sum((k + 1) * output.sin().sum() for k, output in enumerate(outputs))


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64, "bias": False}])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_outputs_and_gradients(kind, rows, options, taken):
    dtype = options.get("dtype", torch.float32)
    found = []
    for module in twins(kind, **options):
        state = state_for(module, ROWS[rows], dtype)
        given = [*inputs(kind, ROWS[rows], dtype=dtype), *flat(state)]
        for tensor in given:
            tensor.requires_grad_()
        loop = Loop(module, kind, state)
        for x in given[:5]:
            loop.step(x)
        asked = [*given, *module.parameters()]
        found.append((loop.outputs, torch.autograd.grad(total(loop.outputs), asked)))
    (got, d_got), (want, d_want) = found
    assert_near(got, want)
    for a, b in zip(d_got, d_want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    known = 1 if kind in CELLS else 2  # a layer's first step from a leaf is of no loop
    assert taken == [False] * known + [True] * (5 - known)


def test_a_cell_without_a_state(taken):
    """It starts another sequence on the graph of one that goes on."""
    (ours, theirs), xs = loops("lstm_cell", 2), inputs("lstm_cell")
    del taken[:]
    for loop in (ours, theirs):
        loop.state = None
        for x in xs:
            loop.step(x)
    assert_near(ours.outputs, theirs.outputs)
    assert all(taken)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_parameters_show(kind, change, rows):
    pair = loops(kind, ROWS[rows])
    for loop in pair:
        CHANGES[change](loop.module)
        for x in inputs(kind, ROWS[rows]):
            loop.step(x)
    for a, b in zip(*(loop.outputs for loop in pair), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_changed_in_place(kind, rows):
    """As torch has it: no gradient of what was computed with others, but those of later steps."""
    ours, theirs = loops(kind, ROWS[rows])
    x, found = inputs(kind, ROWS[rows])[0], []
    for loop in (ours, theirs):
        with torch.no_grad():
            list(loop.module.parameters())[1].mul_(2)
        before, loop.state = flat(loop.state), state_for(loop.module, ROWS[rows])
        for _ in range(2):
            loop.step(x)
        asked = [x, *loop.module.parameters()]
        found.append(torch.autograd.grad(total(loop.outputs[-2:]), asked))
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total(before).backward()
    assert_near(ours.outputs, theirs.outputs)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in LAYERS])
def test_a_layer_called_with_more_steps(kind, rows):
    """From a state on the graph, from one that is not, and from none."""
    batch, found = ROWS[rows], []
    for loop in loops(kind, batch):
        x, first = normal(3, batch, 4).requires_grad_(), loop.state
        loop.step(x)
        for state in (first, state_for(loop.module, batch), None):
            loop.state = state
            loop.step(x[:1])
            loop.step(x[1:])
        asked = [x, *loop.module.parameters()]
        found.append((*loop.outputs, *torch.autograd.grad(total(loop.outputs), asked)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_need_no_gradient_any_more(kind):
    found = []
    for loop in loops(kind, 2):
        weight = list(loop.module.parameters())[1]
        weight.requires_grad_(False)
        x = inputs(kind)[0]
        loop.step(x)
        asked = [x, next(loop.module.parameters())]
        weight.requires_grad_()
        found.append(torch.autograd.grad(total(loop.outputs[-1:]), [*asked, weight]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", ROWS.values())
@pytest.mark.parametrize(("name", "value"), [("batch_first", True), ("mode", "RNN_RELU")])
def test_changes_of_a_layer_show(name, value, batch):
    pair = loops("rnn_tanh", batch)
    shape = (batch, 1, 4) if name == "batch_first" else (1, batch, 4)
    for loop in pair:
        setattr(loop.module, name, value)
        last, loop.state = loop.state, None
        loop.step(normal(1, batch, 4))  # with `batch_first` so many steps, which need no state
        for state in (last, None):
            loop.state = state
            for _ in range(2):
                loop.step(normal(*shape))
    assert_near(*(loop.outputs for loop in pair))


def test_another_nonlinearity_of_a_cell():
    ours, theirs = loops("rnn_tanh_cell", 2)
    x = inputs("rnn_tanh_cell")[0]
    for loop in (ours, theirs):
        loop.module.nonlinearity = "relu"
        loop.step(x)
    assert_near(ours.outputs, theirs.outputs)
    ours.module.nonlinearity = "gelu"
    with pytest.raises(RuntimeError, match="gelu"):
        ours.step(x)


def test_dropout_between_layers(taken):
    ours, theirs = loops("gru", 2, num_layers=2, dropout=0.5)
    x = inputs("gru")[0]
    for loop in (ours, theirs):
        loop.module.eval()
        loop.state = state_for(loop.module, 2).requires_grad_() * 1
        for _ in range(3):
            loop.step(x)
    assert_near(ours.outputs[-6:], theirs.outputs[-6:])
    assert taken[-1]
    ours.module.train()
    state = ours.state
    assert not torch.equal(ours.module(x, state)[0], ours.module(x, state)[0])
    assert taken[-2:] == [False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_other_arguments(kind):
    """Of every kind that the compiled module does not take: torch's results and errors."""
    ours, theirs = loops(kind, 2)
    x = inputs(kind)[0].detach()
    negated = torch.complex(x, -x).conj().imag  # lies in memory as -x
    calls = [negated, x.as_subclass(Other), x.double(), x[..., :3], x.to("meta"), x.numpy(), None]
    forms = [lambda s: s, lambda s: 3]
    forms.append(lambda s: [*s] if isinstance(s, tuple) else s.detach())
    forms.append(lambda s: s[0] if isinstance(s, tuple) else (s, s))
    forms.append(lambda s: s[:1] if isinstance(s, tuple) else s[..., :2])
    with torch.inference_mode():
        inferred = x * 1
    for form in forms:
        for given in (*calls, inferred, x):
            try:
                want = theirs.module(given, form(theirs.state))
            except Exception as error:
                with pytest.raises(type(error)) as raised:
                    ours.module(given, form(ours.state))
                assert str(raised.value) == str(error)
            else:
                got = ours.module(given, form(ours.state))
                assert_near(got, want)
                assert [type(t) for t in flat(got)] == [type(t) for t in flat(want)]
                assert [t.requires_grad for t in flat(got)] == [t.requires_grad for t in flat(want)]


@pytest.mark.parametrize("kind", CELLS)
def test_gradients_that_lie_otherwise(kind):
    """Negated, spread out, or none: of what they stand for."""
    made = normal(2, 5, seed=9)
    others = [
        torch.complex(made, -made).conj().imag,
        torch._neg_view(made),
        made[:1].expand(2, 5),
        made.T.contiguous().T,
        torch.zeros(2, 5),
        torch._efficientzerotensor(2, 5, dtype=torch.float32),
    ]
    for gradient in others:
        found = []
        for loop in loops(kind, 2):
            x = inputs(kind)[0]
            last = flat(loop.step(x))[-1]
            asked = [x, *loop.module.parameters()]
            found.append(torch.autograd.grad(last, asked, gradient, allow_unused=True))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b)


def test_gradients_of_many_at_once_and_of_gradients():
    """What torch's own operations take back, of steps that were run so."""
    found = []
    for loop in loops("lstm_cell", 2, dtype=torch.float64):
        x = inputs("lstm_cell", dtype=torch.float64)[0]
        h, _ = loop.step(x)
        asked = [x, *loop.module.parameters()]
        many = normal(3, *h.shape, dtype=torch.float64)
        batched = torch.autograd.grad(h, asked, many, retain_graph=True, is_grads_batched=True)
        (first,) = torch.autograd.grad(h.sin().sum(), x, create_graph=True)
        found.append((*batched, *torch.autograd.grad(first.square().sum(), asked)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rows", ROWS)
def test_a_frozen_module(rows, taken):
    """Its promise is of contents: gradients are as ever, and what is given back counts at once."""
    ours, theirs = loops("gru_cell", ROWS[rows])
    x = inputs("gru_cell", ROWS[rows])[0]
    rt.freeze(ours.module)
    for _ in range(3):
        ours.step(x), theirs.step(x)
    assert taken[-1]
    rt.unfreeze(ours.module)
    for loop in (ours, theirs):
        loop.module.weight_hh.data.mul_(2)
        loop.step(x)
    assert_near(ours.outputs, theirs.outputs)


def test_another_backend(taken, monkeypatch):
    ours, theirs = loops("gru_cell", 2)
    x = inputs("gru_cell")[0]
    del taken[:]
    monkeypatch.setattr(_backend, "_current", _backend.load("numpy"))
    assert_near(ours.step(x), theirs.step(x))
    assert taken == [False]


def test_a_graph_that_is_gone(taken):
    """Its steps are those of no other."""
    ours, theirs = loops("lstm_cell", 2)
    x = inputs("lstm_cell")[0]
    for loop in (ours, theirs):
        total(loop.outputs).backward()
        del loop.outputs[:]
        loop.state = None
    assert PackCache.of(ours.module).shared is None
    del taken[:]
    for loop in (ours, theirs):
        for _ in range(3):
            loop.step(x)
    assert_near(ours.outputs, theirs.outputs)
    assert taken == [False, True, True]


@pytest.mark.parametrize("rows", ROWS)
def test_wrong_calls_of_the_stack(native, rows):
    batch = ROWS[rows]
    ours, _ = loops("gru_cell", batch)
    own, _ = steps._last(PackCache.of(ours.module))
    _, (stack, place, seen) = own._again
    weights, x = own.weights, inputs("gru_cell", batch)[0]
    assert seen == (None if rows == "borrowed" else native.fingerprint(weights))
    for given in (
        (),
        (place, weights, x, None, 1),
        ("", weights, x, None, 1, seen),
        (place, [*weights], x, None, 1, seen),
        (place, weights, x, None, "two", seen),
        (place, weights, x, None, 1, "seen"),
    ):
        with pytest.raises(TypeError):
            stack.forward_at(*given)
    for right in (seen, None, native.fingerprint(weights)):
        got = stack.forward_at(place, weights, x, None, 1, right)
        assert all(map(torch.equal, flat(got), flat(stack.forward(x, None, None, 1))))
    wrong = native.fingerprint(weights) ^ 1
    assert stack.forward_at(place, weights, x, None, 1, wrong) is NotImplemented
    assert stack.forward_at(place[:-1], weights, x, None, 1, seen) is NotImplemented
    other = (*weights[:3], weights[3].detach().clone())
    assert stack.forward_at(place, other, x, None, 1, seen) is NotImplemented
