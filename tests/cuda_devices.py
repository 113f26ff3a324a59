"""What the tests on a CUDA device share: when they run, and results beside torch's in float64."""

from __future__ import annotations

import pytest
import torch
from tolerances import REFERENCE

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
    pytest.mark.usefixtures("by_the_kernels"),
]

# Enough for each of the two buffers of an exchange to be written several times.
STEPS = 9
# Units: more blocks of 32 than any device has processors, so that each step is a launch.
HUGE = 6200
KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
# Of results and of gradients, against float64 at up to 200 steps: the API's promise in float32, and
# some ten roundings to bfloat16's 8 bits. No device has confirmed them yet, the emulator alone has:
# its sums round to nearest, where a tensor core's may cut off, which grows with H.
TOLERANCES = {
    torch.float32: (REFERENCE["float32", "forward"], REFERENCE["float32", "backward"]),
    torch.bfloat16: (2e-2, 2e-2),
}
# bfloat16 cannot hold its tolerance where rounding puts the sum that a relu takes on the other side
# of its kink, and a gradient is there or not: of a few units in a thousand, in float32 of one in
# 10⁷. Of n units, allowed on top are so many times √n, and the weight that one alone may have, over
# √ of those that are active.
RELU_KINK = 2.0, 3.0


def pair(kind, inputs, hidden, dtype=torch.float32, where=None, **options):
    """rnnfast's module in `dtype`, and torch's in float64 with the same values."""
    name, own = KINDS[kind]
    options = {**own, **options}
    torch.manual_seed(2)
    theirs = getattr(torch.nn, name)(inputs, hidden, **options).to(where or WHERE, dtype).double()
    ours = getattr(rt, name)(inputs, hidden, **options).to(where or WHERE, dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def normal(*shape, dtype=torch.float32, where=None, more=0):
    """The same for the same shape, and another for more of it."""
    torch.manual_seed(sum(shape) + more)
    return torch.randn(*shape).to(where or WHERE, dtype)


def flat(result):
    """Output and states, as a list."""
    output, last = result
    if isinstance(output, torch.nn.utils.rnn.PackedSequence):
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    return [output, *(last if isinstance(last, tuple) else (last,))]


def weighted(results):
    """A number that every entry reaches with a weight of its own, the same in every dtype.

    Squares modulo a prime are as random as is needed: of weights that change slowly, or turn, sums
    over a batch's steps nearly vanish, and what is left is rounding. They are made on the device:
    nothing may be copied from the host while a graph is captured.
    """
    total = 0
    for r in results:
        k = torch.arange(r.numel(), device=r.device)
        weights = (k * k % 65521 / 32760 - 1).bfloat16()
        total = total + (r * weights.view(r.shape).to(r.dtype)).sum()
    return total


def states_of(module, batch, dtype=torch.float32, where=None):
    """An initial h, or h and c, as a list."""
    rows = module.num_layers * (1 + module.bidirectional)
    count = 2 if module.mode == "LSTM" else 1
    shapes = [(rows, batch, module.hidden_size)] * count
    return [normal(*shape, dtype=dtype, where=where, more=k) for k, shape in enumerate(shapes)]


def step(module, x, lengths=None, states=()):
    """Results, and the gradients of x, the initial states and all parameters."""
    x = given = x.clone().requires_grad_()
    states = [state.clone().requires_grad_() for state in states]
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    initial = (tuple(states) if module.mode == "LSTM" else states[0]) if states else None
    results = flat(module(given, initial))
    return results, torch.autograd.grad(weighted(results), [x, *states, *module.parameters()])


def assert_near(found, wanted, tolerance):
    """Each by the norm of the wanted."""
    for own, other in zip(found, wanted, strict=True):
        assert own.shape == other.shape
        norm = other.norm()
        error = (own.double() - other).norm() / (norm if norm else 1)
        assert error <= tolerance, f"relative error {error:.2e}, allowed {tolerance:.2e}"


def kinked(module, output, wanted):
    """What gradients are allowed for relus on the other side of their kink.

    Seen are those of the last layer; of a layer below there may be as many, and one more.
    """
    below = module.num_layers - 1
    seen = ((output > 0) != (wanted > 0)).sum().item()
    units, active = seen * (1 + below) + below, (wanted > 0).sum().item()
    each, alone = RELU_KINK
    return (each * units**0.5 + alone) / active**0.5 if units else 0.0


def assert_same_step(ours, theirs, x, lengths=None, states=()):
    """That of torch in float64, within what the dtype allows."""
    forward, backward = TOLERANCES[x.dtype]
    found = step(ours, x, lengths, states)
    wanted = step(theirs, x.double(), lengths, [state.double() for state in states])
    assert_near(found[0], wanted[0], forward)
    if ours.mode == "RNN_RELU":
        backward += kinked(ours, found[0][0], wanted[0][0])
    assert_near(found[1], wanted[1], backward)


def assert_same_bits(found, wanted):
    """Of two steps, or of results."""
    for own, other in zip(found, wanted, strict=True):
        if isinstance(own, (list, tuple)):
            assert_same_bits(own, other)
        else:
            assert torch.equal(own, other)
