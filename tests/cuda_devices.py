"""What the tests on a CUDA device share: when they run, and results beside torch's in float64."""

from __future__ import annotations

import pytest
import torch

import rnnfast.torch as rt
from rnnfast.torch import cuda

WHERE = "cuda"

MARKS = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and cuda.library() is None,
        reason="rnnfast was built without its CUDA kernels",
    ),
]

KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
# ‖got − want‖ / ‖want‖ of results and of gradients.
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 4e-2)}
# Rounded to 8 bits, a few in a thousand relus are on the other side of their kink.
RELU = (2e-2, 0.15)


def pair(kind, inputs, hidden, dtype=torch.float32, where=None, **options):
    """rnnfast's module in `dtype`, and torch's in float64 with the same values."""
    name, own = KINDS[kind]
    options = {**own, **options}
    torch.manual_seed(2)
    theirs = getattr(torch.nn, name)(inputs, hidden, **options).to(where or WHERE, dtype).double()
    ours = getattr(rt, name)(inputs, hidden, **options).to(where or WHERE, dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape, dtype=torch.float32, where=None):
    """The same for the same shape."""
    torch.manual_seed(sum(shape))
    return torch.randn(*shape).to(where or WHERE, dtype)


def flat(result):
    """Output and states, as a list."""
    output, last = result
    if isinstance(output, torch.nn.utils.rnn.PackedSequence):
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    return [output, *(last if isinstance(last, tuple) else (last,))]


def weighted(results):
    """A number that every entry reaches with a weight of its own."""
    weights = [torch.linspace(-1, 1, r.numel()).view(r.shape).to(r) for r in results]
    return sum((r * w).sum() for r, w in zip(results, weights, strict=True))


def step(module, x, lengths=None):
    """Results, and the gradients of x and all parameters."""
    x = given = x.clone().requires_grad_()
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    results = flat(module(given))
    return results, torch.autograd.grad(weighted(results), [x, *module.parameters()])


def assert_near(found, wanted, tolerance):
    """Each by the norm of the wanted, or by 1."""
    for own, other in zip(found, wanted, strict=True):
        assert own.shape == other.shape
        error = (own.double() - other).norm() / other.norm().clamp(min=1)
        assert error < tolerance, error


def assert_same_step(ours, theirs, x, lengths=None):
    """That of torch in float64, within what the dtype allows."""
    is_rough = x.dtype is torch.bfloat16 and ours.mode == "RNN_RELU"
    tolerances = RELU if is_rough else TOLERANCES[x.dtype]
    found, wanted = step(ours, x, lengths), step(theirs, x.double(), lengths)
    for own, other, tolerance in zip(found, wanted, tolerances, strict=True):
        assert_near(own, other, tolerance)


def assert_same_bits(found, wanted):
    """Of two steps, or of results."""
    for own, other in zip(found, wanted, strict=True):
        if isinstance(own, (list, tuple)):
            assert_same_bits(own, other)
        else:
            assert torch.equal(own, other)
