"""torch on the CPU as the oracle of everything that it has: values, gradients, layouts, padding."""

from __future__ import annotations

import itertools

import pytest
from oracle import KINDS, make, normal, parts, state_for
from tolerances import TORCH, assert_close

import rnnfast

torch = pytest.importorskip("torch")

STEPS, BATCH, SIZE, HIDDEN = 9, 4, 5, 6
LENGTHS = [7, 9, 1, 4]  # torch has no length of 0
IN_TORCH = [kind for kind in KINDS if kind != "gru_reset_before"]


def twins(kind, **options):
    """A layer, and torch's with the same parameters."""
    layer = make(kind, SIZE, HIDDEN, **options)
    names = ["num_layers", "bias", "batch_first", "bidirectional", "proj_size", "nonlinearity"]
    shared = {n: getattr(layer, n) for n in names if hasattr(layer, n)}
    dtype = getattr(torch, layer.dtype)
    other = getattr(torch.nn, type(layer).__name__)(SIZE, HIDDEN, **shared, dtype=dtype)
    assert list(other.state_dict()) == list(layer.parameters)
    other.load_state_dict({n: torch.tensor(a) for n, a in layer.state_dict().items()})
    return layer, other


def tensors(state):
    """A state as torch tensors that require gradients, in the same form."""
    arrays = tuple(torch.tensor(s, requires_grad=True) for s in parts(state))
    return arrays if isinstance(state, tuple) else arrays[0]


def scalar(output, last, d_output, d_state):
    """The loss whose gradients with respect to output and state are the given ones."""
    pairs = zip((output, *parts(last)), (d_output, *parts(d_state)), strict=True)
    return sum((a * torch.tensor(d)).sum() for a, d in pairs)


def assert_same_as_torch(layer, other, x, state, d_output, d_state, lengths=None):
    """Values and gradients of both, from the same inputs."""
    key = layer.dtype
    tx = torch.tensor(x, requires_grad=True)
    tstate = None if state is None else tensors(state)
    if lengths is None:
        want, want_last = other(tx, tstate)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(
            tx, lengths, batch_first=layer.batch_first, enforce_sorted=False
        )
        want, want_last = other(packed, tstate)
        want, _ = torch.nn.utils.rnn.pad_packed_sequence(
            want, batch_first=layer.batch_first, total_length=STEPS
        )
    scalar(want, want_last, d_output, d_state).backward()
    output, last = layer(x, state, lengths=lengths)
    tape = layer.record(x, state, lengths=lengths)
    for got, got_last in ((output, last), (tape.output, tape.state)):
        assert_close(got, want.detach(), TORCH[key, "forward"], "output")
        for a, b in zip(parts(got_last), parts(want_last), strict=True):
            assert_close(a, b.detach(), TORCH[key, "forward"], "state")
    grads = tape.backward(d_output, d_state)
    assert_close(grads.input, tx.grad, TORCH[key, "backward"], "d input")
    if state is not None:
        for a, b in zip(parts(grads.state), parts(tstate), strict=True):
            assert_close(a, b.grad, TORCH[key, "backward"], "d state")
    for name, parameter in other.named_parameters():
        assert_close(grads.parameters[name], parameter.grad, TORCH[key, "backward"], name)


def assert_twins_agree(rng, kind, batched=True, with_state=True, lengths=None, **options):
    layer, other = twins(kind, **options)
    leading = (BATCH, STEPS) if layer.batch_first else (STEPS, BATCH)
    leading = leading if batched else (STEPS,)
    x = normal(rng, (*leading, SIZE), layer.dtype)
    state, d_state = (state_for(layer, BATCH, rng) for _ in range(2))
    if not batched:
        state, d_state = (
            tuple(p[:, 0] for p in s) if isinstance(s, tuple) else s[:, 0] for s in (state, d_state)
        )
    width = (2 if layer.bidirectional else 1) * parts(d_state)[0].shape[-1]
    d_output = normal(rng, (*leading, width), layer.dtype)
    assert_same_as_torch(layer, other, x, state if with_state else None, d_output, d_state, lengths)


@pytest.mark.parametrize(
    "num_layers, bidirectional, bias", list(itertools.product([1, 3], [False, True], [False, True]))
)
@pytest.mark.parametrize("kind", IN_TORCH)
def test_stacks_directions_and_biases(kind, num_layers, bidirectional, bias, dtype, rng):
    assert_twins_agree(
        rng, kind, num_layers=num_layers, bidirectional=bidirectional, bias=bias, dtype=dtype
    )


@pytest.mark.parametrize("batch_first, batched", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize("kind", IN_TORCH)
def test_layouts(kind, batch_first, batched, dtype, rng):
    options = {"num_layers": 2, "bidirectional": True, "dtype": dtype}
    assert_twins_agree(rng, kind, batched=batched, batch_first=batch_first, **options)


@pytest.mark.parametrize("kind", IN_TORCH)
def test_without_initial_state(kind, dtype, rng):
    assert_twins_agree(rng, kind, with_state=False, num_layers=2, bidirectional=True, dtype=dtype)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", IN_TORCH)
def test_lengths_are_a_packed_sequence(kind, bidirectional, batch_first, dtype, rng):
    assert_twins_agree(
        rng,
        kind,
        lengths=LENGTHS,
        num_layers=2,
        bidirectional=bidirectional,
        batch_first=batch_first,
        dtype=dtype,
    )


@pytest.mark.parametrize("kind", IN_TORCH)
def test_long_sequences(kind, dtype, rng):
    layer, other = twins(kind, dtype=dtype)
    x, state = normal(rng, (200, 2, SIZE), dtype), state_for(layer, 2, rng)
    d_output = normal(rng, (200, 2, parts(state)[0].shape[-1]), dtype)
    assert_same_as_torch(layer, other, x, state, d_output, state)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize(
    "name, options",
    [("RNNCell", {}), ("RNNCell", {"nonlinearity": "relu"}), ("GRUCell", {}), ("LSTMCell", {})],
)
def test_cells(name, options, batched, bias, dtype, rng):
    cell = getattr(rnnfast, name)(SIZE, HIDDEN, bias, **options, dtype=dtype, seed=2)
    other = getattr(torch.nn, name)(SIZE, HIDDEN, bias, **options, dtype=getattr(torch, dtype))
    assert list(other.state_dict()) == list(cell.parameters)
    other.load_state_dict({n: torch.tensor(a) for n, a in cell.state_dict().items()})
    leading = (BATCH,) if batched else ()
    x = normal(rng, (*leading, SIZE), dtype)
    state, d_state = (
        tuple(normal(rng, (*leading, HIDDEN), dtype) for _ in range(1 + (name == "LSTMCell")))
        for _ in range(2)
    )
    if len(state) == 1:
        state, d_state = state[0], d_state[0]
    tx, tstate = torch.tensor(x, requires_grad=True), tensors(state)
    want = other(tx, tstate)
    sum(
        (a * torch.tensor(d)).sum() for a, d in zip(parts(want), parts(d_state), strict=True)
    ).backward()
    tape = cell.record(x, state)
    for a, b, c in zip(parts(cell(x, state)), parts(tape.state), parts(want), strict=True):
        assert_close(a, c.detach(), TORCH[dtype, "forward"])
        assert_close(b, c.detach(), TORCH[dtype, "forward"])
    grads = tape.backward(d_state=d_state)
    assert_close(grads.input, tx.grad, TORCH[dtype, "backward"], "d input")
    for a, b in zip(parts(grads.state), parts(tstate), strict=True):
        assert_close(a, b.grad, TORCH[dtype, "backward"], "d state")
    for parameter_name, parameter in other.named_parameters():
        got = grads.parameters[parameter_name]
        assert_close(got, parameter.grad, TORCH[dtype, "backward"], parameter_name)


@pytest.mark.parametrize("kind", IN_TORCH)
def test_repr_is_that_of_torch(kind):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}
    layer, other = twins(kind, **options)
    want = repr(other)
    if kind == "rnn_relu":  # which torch leaves out
        want = want.replace(")", ", nonlinearity='relu')")
    assert repr(layer) == want
