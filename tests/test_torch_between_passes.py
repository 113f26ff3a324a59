"""What may happen between the forward pass and backward, and how else backward may be run."""

from __future__ import annotations

import importlib

import pytest
from torch_modules import SIZE, assert_same_gradients, flat, normal, twins

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("native")

KINDS = ["rnn_tanh", "gru", "lstm", "rnn_tanh_cell", "gru_cell", "lstm_cell"]
FEW, MANY = 2, 12  # rows: read where the weights lie, and packed


def steps_of(module, x):
    """The last output of a loop over x (T, B, I)."""
    state = None
    for step in x:
        if hasattr(module, "mode"):
            output, state = module(step.unsqueeze(0), state)
        else:
            state = module(step, state)
            output = flat(state)[0]
    return output


def both(kind, rows, change, dtype=torch.float64, steps=3):
    """The gradients of ours and torch's, where `change(module)` came before backward."""
    found = []
    for module in twins(kind, dtype=dtype):
        x = normal(steps, rows, SIZE).to(dtype).requires_grad_()
        loss = steps_of(module, x).sin().sum()
        parameters = dict(module.named_parameters())
        change(module)
        loss.backward()
        found.append({"x": x.grad, **{name: p.grad for name, p in parameters.items()}})
    return found


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_got_other_memory(kind, rows):
    """As after an update of a target network: backward is that of the values before."""

    def change(module):
        for p in module.parameters():
            p.data = p.data * 2

    assert_same_gradients(*both(kind, rows, change), "float64")


@pytest.mark.parametrize("rows", [FEW, MANY])
@pytest.mark.parametrize("kind", ["gru", "lstm_cell"])
def test_modules_of_another_dtype_since(kind, rows):
    assert_same_gradients(*both(kind, rows, torch.nn.Module.float), "float64")


def give_back(module):
    for p in module.parameters():
        p.untyped_storage().resize_(0)


def flatten(module):
    """All parameters as parts of one tensor, of which none has the start."""
    parameters = list(module.parameters())
    flat_one = torch.cat(
        [torch.zeros(1000, dtype=torch.float64), *(p.data.flatten() for p in parameters)]
    )
    at = 1000
    for p in parameters:
        p.data = flat_one[at : at + p.numel()].view(p.shape)
        at += p.numel()


@pytest.mark.parametrize("prepare", [lambda module: None, flatten], ids=["each", "flat"])
@pytest.mark.parametrize("kind", ["gru", "lstm", "gru_cell"])
def test_parameters_whose_memory_is_gone(kind, prepare):
    """It is told, as by torch, and not read."""
    for module in twins(kind, dtype=torch.float64):
        prepare(module)
        loss = steps_of(module, normal(2, FEW, SIZE)).sum()
        give_back(module)
        with pytest.raises(RuntimeError, match=r"weights: expected them in memory|storage"):
            loss.backward()
        for rows in (FEW, MANY):
            with pytest.raises(RuntimeError, match="storage"):
                steps_of(module, normal(1, rows, SIZE))


@pytest.mark.parametrize("rows", [FEW, MANY])
def test_parameters_in_the_place_of_others_and_then_elsewhere(rows):
    """The values are those of the forward pass, whatever lay there before, and since."""
    found = []
    for module in twins("gru_cell", dtype=torch.float64):
        steps_of(module, normal(2, rows, SIZE))
        x = normal(2, FEW, SIZE).requires_grad_()
        before = [p.data_ptr() for p in module.parameters()]
        for p, place in zip(module.parameters(), before, strict=True):
            values = p.detach().clone()
            p.untyped_storage().resize_(0)
            tried = [torch.empty_like(values) for _ in range(50)]
            p.data = next((t for t in tried if t.data_ptr() == place), tried[0]).copy_(values)
        with torch.no_grad():
            output = steps_of(module, x)
        loss = steps_of(module, x).sin().sum()
        for p in module.parameters():
            p.data = p.data * 2
        loss.backward()
        torch.testing.assert_close(output, steps_of(twins("gru_cell", dtype=torch.float64)[1], x))
        found.append({"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
    assert_same_gradients(*found, "float64")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients_where_parameters_were_frozen_since(kind, steps):
    found = []
    for module in twins(kind, dtype=torch.float64):
        x = normal(steps, FEW, SIZE).double().requires_grad_()
        loss = steps_of(module, x).sin().sum()
        module.requires_grad_(False)
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        gradient.square().sum().backward()
        found.append({"x": x.grad})
        assert all(p.grad is None for p in module.parameters())
    assert_same_gradients(*found, "float64")


class Silent(torch.autograd.Function):
    """Passes no gradient on, and does not say so before backward."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, _):
        return None


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients_at_the_outputs_there_are_none(kind, steps):
    """Not zeros, by which optimisers would take a step."""
    for module in twins(kind, dtype=torch.float64):
        x = normal(steps, FEW, SIZE).requires_grad_()
        Silent.apply(steps_of(module, x)).sum().backward()
        assert x.grad is None and all(p.grad is None for p in module.parameters())


@pytest.mark.skipif(
    torch.__version__ < (2, 6), reason="before torch 2.6 it has no end for callbacks to wait for"
)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_autograd(kind, frozen):
    """Which runs our functions by a graph of its own, that adds up gradients at the weights."""
    enable = torch._dynamo.compiled_autograd._enable
    found = []
    for own in twins(kind, dtype=torch.float64):
        own.requires_grad_(not frozen)
        x = normal(3, FEW, SIZE).double().requires_grad_()
        loss = steps_of(own, x).sin().sum()
        with enable(lambda graph: graph):
            loss.backward()
        found.append({"x": x.grad, **{name: p.grad for name, p in own.named_parameters()}})
    assert_same_gradients(*found, "float64")


def test_plain_backward_while_another_thread_is_in_compiled_autograd(monkeypatch):
    """Which is known of the process, and not of a thread."""
    compiled = importlib.import_module("torch._dynamo.compiled_autograd")
    monkeypatch.setattr(compiled, "in_compiled_autograd_region", True, raising=False)
    for frozen in (False, True):
        found = []
        for module in twins("gru_cell", dtype=torch.float64):
            module.requires_grad_(not frozen)
            x = normal(3, FEW, SIZE).requires_grad_()
            steps_of(module, x).sin().sum().backward()
            found.append({"x": x.grad, **{name: p.grad for name, p in module.named_parameters()}})
        assert_same_gradients(*found, "float64")
