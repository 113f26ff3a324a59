"""Gradients of gradients, and batches of gradients, of rnnfast.torch on an emulated CUDA device."""

from __future__ import annotations

import contextlib

import pytest

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence  # noqa: E402
from torch_twins import normal, state_for, twins  # noqa: E402

from rnnfast.torch import cuda  # noqa: E402

pytestmark = pytest.mark.slow

CELLS = ["rnn_tanh", "rnn_relu", "gru", "lstm"]
OPTIONS = {"plain": {}, "deep": {"num_layers": 2, "bidirectional": True}, "bare": {"bias": False}}
BATCH, STEPS = 3, 4
LENGTHS = [1, 4, 2]
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def emulated(emulated_library, monkeypatch):
    """Tensors of the host in float32 are the device's; those in float64 are torch.nn's."""
    monkeypatch.setattr(cuda, "library", lambda: emulated_library)
    monkeypatch.setattr(cuda, "_is_on_device", lambda x: True)
    monkeypatch.setattr(cuda, "_on_stream", lambda x: (contextlib.nullcontext(), 0))


@pytest.fixture
def backward_passes(emulated_library, monkeypatch):
    """Those that the kernels ran."""
    ran, backward = [], emulated_library.backward
    monkeypatch.setattr(
        emulated_library, "backward", lambda *given: [ran.append(given), backward(*given)][1]
    )
    return ran


def ours_and_torchs(kind, **options):
    """The module in float32, by our kernels; and torch's in float64, which is the reference."""
    ours, theirs = twins(kind, **options)

    def by_kernels(x, state):
        result = cuda.layer(ours, x, state)
        assert result is not None
        return result

    def by_torch(x, state):
        output, last = theirs(x, state if state is None or kind == "lstm" else state[0])
        return output, (last if kind == "lstm" else (last,))

    return (ours, torch.float32, by_kernels), (theirs.double(), torch.float64, by_torch)


def inputs(module, dtype):
    """x and states that need gradients."""
    state = state_for(module, BATCH)
    tensors = (
        normal(STEPS, BATCH, module.input_size),
        *(state if isinstance(state, tuple) else (state,)),
    )
    return [t.to(dtype).requires_grad_() for t in tensors]


def results(call, x, state, is_packed):
    given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if is_packed else x
    output, last = call(given, state)
    return [pad_packed_sequence(output)[0] if is_packed else output, *last]


def weighted(tensors, first_seed):
    """A number that each entry of each tensor reaches with a weight of its own."""
    return sum(
        (t * normal(*t.shape, dtype=t.dtype, seed=first_seed + i)).sum()
        for i, t in enumerate(tensors)
    )


def assert_same(found):
    for own, other in zip(*found, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            assert own.shape == other.shape and own.dtype is torch.float32
            error = (own - other).norm() / other.norm().clamp(min=1)
            assert error < TOLERANCE, error


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["even", "ragged"])
def test_double_backward(kind, options, is_packed, backward_passes):
    """Of the sum of squares of all gradients: at x, the states and each parameter."""
    found = []
    for module, dtype, call in ours_and_torchs(kind, **options):
        x, *state = inputs(module, dtype)
        at = [x, *state, *module.parameters()]
        loss = weighted([r.tanh() for r in results(call, x, state, is_packed)], 20)
        first = torch.autograd.grad(loss, at, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), at)
        found.append([*first, *second])
    assert_same(found)
    # The outer pass also goes back through the forward pass, whose kernels have gradients of their
    # own: once for each layer and direction. Those of the inner one are torch's.
    rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    assert len(backward_passes) == rows


@pytest.mark.parametrize("kind", CELLS)
def test_double_backward_without_a_state(kind):
    """As a penalty on the gradient at the input has it, of parameters some of which are frozen."""
    found = []
    for module, dtype, call in ours_and_torchs(kind, bidirectional=True):
        module.bias_hh_l0.requires_grad_(False)
        x = inputs(module, dtype)[0]
        output, *_ = results(call, x, None, False)
        (dx,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        found.append([dx, *(p.grad for p in module.parameters())])
    assert_same(found)
    assert [p is None for p in found[0]].count(True) == 1


def test_third_derivatives():
    found = []
    for module, dtype, call in ours_and_torchs("gru"):
        x, *state = inputs(module, dtype)
        value = weighted(results(call, x, state, False), 20)
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = weighted([gradient], 30)
        found.append([gradient.detach()])
    assert_same(found)


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["even", "ragged"])
def test_batches_of_gradients(kind, is_packed, backward_passes):
    """Torch runs one backward pass over all of them, as its jacobian does with vectorize=True."""
    found = []
    for module, dtype, call in ours_and_torchs(kind, bidirectional=True):
        x, *state = inputs(module, dtype)
        output, *_ = results(call, x, state, is_packed)
        batch, at = normal(3, *output.shape, dtype=dtype), [x, *state, *module.parameters()]
        found.append(torch.autograd.grad(output, at, batch, is_grads_batched=True))
    assert_same(found)
    assert not backward_passes


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_past_a_rows_length_count_neither_way(reverse):
    ours, _ = twins("lstm")
    form = cuda._Form("lstm", reverse, torch.tensor(LENGTHS, dtype=torch.int32))
    x, h0, c0 = inputs(ours, torch.float32)
    given = [x, h0.detach()[0].requires_grad_(), c0.detach()[0].requires_grad_()]
    at = [*given, *ours.parameters()]
    y, h, c = cuda._Pass.apply(form, *at)
    found = [
        torch.autograd.grad(
            [y, h, c],
            at,
            [normal(*r.shape, seed=i) for i, r in enumerate((y, h, c))],
            create_graph=differentiable,
            retain_graph=True,
        )
        for differentiable in (False, True)
    ]
    for by_kernels, by_torch in zip(*found, strict=True):
        torch.testing.assert_close(by_kernels, by_torch, rtol=1e-4, atol=1e-5)


def test_negated_gradients():
    """What torch keeps as the negative of other memory: the kernels would not see the sign."""
    found = []
    for module, dtype, call in ours_and_torchs("lstm"):
        x, *state = inputs(module, dtype)
        output, *_ = results(call, x, state, False)
        negative = torch._neg_view(normal(*output.shape, dtype=dtype))
        assert negative.is_neg()
        found.append(torch.autograd.grad(output, [x, *module.parameters()], negative))
    assert_same(found)


def test_bfloat16_is_computed_in_float32():
    ours, theirs = twins("lstm")
    ours.bfloat16(), theirs.bfloat16().double()
    found = []
    for module, dtype in ((ours, torch.bfloat16), (theirs, torch.float64)):
        x = normal(STEPS, BATCH, module.input_size).bfloat16().to(dtype).requires_grad_()
        output = (cuda.layer(module, x, None) if module is ours else module(x))[0]
        (dx,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        found.append([dx, *torch.autograd.grad(dx.square().sum(), list(module.parameters()))])
    for own, other in zip(*found, strict=True):
        assert own.dtype is torch.bfloat16
        error = (own.double() - other).norm() / other.norm()
        assert error < 3e-2, error
