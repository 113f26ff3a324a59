"""Tensors in the compiled module: which it takes, and what stands in for them with older torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_twins import CELLS, LAYERS, flat, normal, state_for, twins  # noqa: E402

import rnnfast  # noqa: E402
from rnnfast.torch import exchange  # noqa: E402  after torch is known to be there

HAS_EXCHANGE = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
NATIVE = {**os.environ, "RNNFAST_BACKEND": "native"}  # also where the tests run on others
needs_exchange = pytest.mark.skipif(not HAS_EXCHANGE, reason="this torch has no such functions")

SCRIPT = """
import sys, torch
sys.path.insert(0, sys.argv[1])
del torch.Tensor.__dlpack_c_exchange_api__
from test_torch_exchange import results
torch.save(results(), sys.argv[2])
"""


def results() -> list[torch.Tensor]:
    """All that modules give, and all their gradients."""
    found = []
    for kind in [*LAYERS, *CELLS]:
        ours, _ = twins(kind)
        shape = (3, 4) if kind in CELLS else (6, 3, 4)
        x = normal(*shape).requires_grad_()
        with torch.no_grad():
            found += flat(ours(x))
        outputs = flat(ours(x, state_for(ours, 3)))
        sum(out.cos().sum() for out in outputs).backward()
        found += [*outputs, x.grad, *(p.grad for p in ours.parameters())]
        if kind in LAYERS:
            state = state_for(ours, 3)
            for _ in range(3):  # steps of a loop, whose weights' gradients are made together
                y, state = ours(x[:1], state)
            found += torch.autograd.grad(y.sum(), [x, *ours.parameters()])
            packed = torch.nn.utils.rnn.pack_padded_sequence(x.detach(), [6, 4, 1])
            found.append(ours(packed)[0].data)
        with torch.no_grad():
            ours.bfloat16()
            found += [r for _ in range(2) for r in flat(ours(x.bfloat16()))]
    return [tensor.detach() for tensor in found]


@needs_exchange
def test_the_same_bits_by_arrays(native, tmp_path):
    """As with versions of torch that have no functions to exchange tensors."""
    file = tmp_path / "results.pt"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(file)]
    subprocess.run(command, check=True, timeout=120, env=NATIVE)
    theirs, ours = torch.load(file, weights_only=True), results()
    assert len(theirs) == len(ours) > 0
    assert all(map(torch.equal, theirs, ours))


OTHERS = """
import torch
del torch.Tensor.__dlpack_c_exchange_api__
import rnnfast.torch as rt

CHANGES = [torch.Tensor.bfloat16, torch.Tensor.to_sparse, torch.Tensor.int, lambda t: t.to("meta")]

def outcome(module, *given):
    try:
        return module(*given)[0].dtype
    except Exception as error:
        return type(error), str(error)

for name, shape in (("GRU", (1, 1)), ("GRUCell", (1,))):
    x, h = torch.zeros(*shape, 4), torch.zeros(*shape, 5)
    ours, theirs = (getattr(where, name)(4, 5) for where in (rt, torch.nn))
    for change in CHANGES:
        for given in ((change(x), h), (x, change(h))):
            assert outcome(ours, *given) == outcome(theirs, *given), given
    for change in CHANGES[0], CHANGES[3]:
        ours, theirs = (getattr(where, name)(4, 5) for where in (rt, torch.nn))
        with torch.no_grad():
            ours(x)
        ours._apply(change), theirs._apply(change)
        assert outcome(ours, change(x)) == outcome(theirs, change(x))
        assert outcome(ours, x) == outcome(theirs, x)
print("the same")
"""


@needs_exchange
def test_other_kinds_of_tensors_by_arrays(native):
    """NumPy has no arrays for some that torch's own implementation takes, or has errors for."""
    run = subprocess.run(
        [sys.executable, "-c", OTHERS], capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "the same\n", run.stderr


@needs_exchange
def test_new_tensors(native):
    for half, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        made = native.empty_like(normal(3, 4, 5).transpose(0, 2), half)
        assert made.dtype is dtype and made.shape == (5, 4, 3) and made.is_contiguous()
        made.fill_(1.5)
        assert made.sum() == 90
    for other in (normal(2, 2, 2, 2), np.zeros(3), None, normal(3).to_sparse()):
        assert native.empty_like(other, True) is None


@needs_exchange
def test_new_tensors_side_by_side(native):
    """Of few numbers and of many, each has memory of its own that starts with a cache line."""
    sizes = [*range(20), *range(1000, 1040), 70_000, 600_000]
    made = [native.empty_like(torch.empty(size), False).fill_(size) for size in sizes]
    for size, tensor in zip(sizes, made, strict=True):
        assert tensor.data_ptr() % 64 == 0 and len(tensor) == size
        assert torch.equal(tensor, torch.full((size,), float(size)))


@needs_exchange
def test_copies(native):
    for given in (
        normal(3, 4, 5),
        normal(7, dtype=torch.float64),
        normal(300, 400).bfloat16(),
        torch.arange(6).view(2, 3),
        torch.zeros(0, 3),
        torch.tensor(2.0),
    ):
        made = native.copy(given)
        assert made.dtype is given.dtype and made.shape == given.shape
        assert torch.equal(made, given) and (
            not given.numel() or made.data_ptr() != given.data_ptr()
        )
    for other in (normal(3, 4).t(), normal(2, 2, 2, 2), None, normal(3).to_sparse()):
        assert native.copy(other) is None


def test_layers_on_arrays_take_tensors_as_before(native):
    """Through NumPy, to which those that stand for their negative are an error."""
    layer, x = rnnfast.GRU(4, 5, seed=0), normal(6, 3, 4)
    h = normal(1, 3, 5)
    want, _ = layer(x.numpy(), h.numpy())
    for given in ((x, h.numpy()), (x.numpy(), h)):
        got, _ = layer(*given)
        assert type(got) is np.ndarray and np.array_equal(got, want)
    for given in ((torch._neg_view(x), h.numpy()), (x.numpy(), torch._neg_view(h))):
        with pytest.raises((RuntimeError, TypeError)):
            layer(*given)
    tape = layer.record(x.numpy(), h.numpy())
    with pytest.raises((RuntimeError, TypeError)):
        tape.backward(torch._neg_view(normal(6, 3, 5)))


@pytest.fixture
def stack(native):
    """Of an Elman RNN of 2 inputs and 3 units, which takes tensors."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape, np.float32) for shape in [(3, 2), (3, 3), (3,), (3,)]]
    pack = native.pack("rnn_tanh", *weights, None)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", None)
    return exchange.stack_taking_tensors(native.stack([pack], [names], 1, False, False, True))


class Own(torch.Tensor):
    pass


@needs_exchange
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(4, 5, 2, device="meta"),
        torch.zeros(4, 5, 2).to_sparse(),
        torch._efficientzerotensor(4, 5, 2),
        torch.zeros(4, 5, 2, dtype=torch.float64),
        torch.zeros(4, 5, 2, dtype=torch.complex64),
        torch.zeros(4, 5, 2, dtype=torch.int32),
        torch.zeros(4, 5, 2, dtype=torch.bfloat16),
        torch.zeros(4, 5, 3),
        torch.zeros(1, 4, 5, 2),
        torch.zeros(()),
        torch.zeros(4, 2, 5).mT,
        torch.zeros(2).expand(4, 5, 2)[..., :1].expand(4, 5, 2),
        torch.zeros(4, 5, 2).as_subclass(Own),
    ],
    ids=lambda x: f"{tuple(x.shape)} {x.dtype} {x.layout} {x.device}",
)
def test_tensors_that_it_leaves(stack, x):
    assert stack.infer(x, None) is NotImplemented
    assert stack.forward(x, None, None, 1) is NotImplemented
    good = torch.zeros(4, 5, 2)
    assert stack.infer(good, x) is NotImplemented
    assert stack.infer(good, None)[0].shape == (4, 5, 3)


@needs_exchange
def test_results_are_tensors_where_x_is_one(stack):
    x = normal(4, 5, 2)
    y, h = stack.infer(x, None)
    by_array, h_by_array = stack.infer(x.numpy(), None)
    assert type(y) is type(h) is torch.Tensor and type(by_array) is np.ndarray
    assert np.array_equal(y.numpy(), by_array) and np.array_equal(h.numpy(), h_by_array)
    assert y.is_contiguous() and y.data_ptr() % 64 == 0 and not y.requires_grad
    mixed, _ = stack.infer(x, h_by_array)
    assert torch.equal(mixed, stack.infer(x, h)[0])


@needs_exchange
def test_results_keep_their_memory(stack):
    """Whatever else is made and freed meanwhile, of small and of large sizes."""
    for steps in (1, 40_000):
        x = normal(steps, 5, 2)
        y, _ = stack.infer(x, None)
        part, want = y[-1, :2], y[-1, :2].clone()
        del y
        for _ in range(5):
            stack.infer(x + 1, None)
        assert torch.equal(part, want)


def test_gradients_that_stand_for_their_negative(native):
    ours, theirs = twins("gru", batch_first=True)
    x, dy = normal(3, 6, 4), normal(3, 6, 5)
    negative = torch._neg_view(dy)
    assert negative.is_neg()
    found = []
    for module, grad in ((ours, negative), (theirs, -dy)):
        module(x)[0].backward(grad)
        found.append([p.grad for p in module.parameters()])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("which", ["x", "state", "weight"])
def test_inputs_that_stand_for_their_negative(native, which):
    ours, theirs = twins("rnn_tanh")
    x, h = normal(6, 3, 4), normal(1, 3, 5)
    with torch.no_grad():
        ours(x, h)  # its weights are packed
        if which == "weight":
            for module in (ours, theirs):
                module.weight_hh_l0.data = torch._neg_view(module.weight_hh_l0.data)
        given = [torch._neg_view(t) if w == which else t for w, t in (("x", x), ("state", h))]
        for got, want in zip(ours(*given), theirs(*given), strict=True):
            torch.testing.assert_close(got, want)


def readers(native, monkeypatch):
    """The compiled module's `can_read`, and what stands in for it with older torch."""
    found = [exchange.reader_of_tensors(native)]
    monkeypatch.setattr(exchange, "_IS_DIRECT", False)
    return [*found, exchange.reader_of_tensors(native)]


def test_what_a_pass_may_read(native, monkeypatch):
    weights = normal(8, 3), normal(8, 2)
    place = exchange.taking_tensors(native.place)(weights)
    x, h, negative = normal(1, 3), normal(1, 2), torch._neg_view(normal(1, 2))
    moved = weights[0], weights[1].clone()
    same_memory = weights[0], torch._neg_view(weights[1])
    assert same_memory[1].data_ptr() == weights[1].data_ptr()

    right = [(weights, x, None), (weights, x, (h,)), (weights, x, (h, h)), (weights, x.mT, ())]
    wrong = [
        *((other, x, (h,)) for other in (moved, same_memory, weights[:1], (*weights, h))),
        *((other, x, None) for other in (weights[::-1], (weights[0].view(3, 8), weights[1]), ())),
        *((weights, other, None) for other in (torch._neg_view(x), x[:0], x.as_subclass(Own))),
        *((weights, other, None) for other in (x.numpy(), None, 3)),
        *((weights, x, other) for other in ((negative,), (h, negative), (h.numpy(),), (None,))),
    ]
    for can_read in readers(native, monkeypatch):
        assert [can_read(place, *given) for given in right] == [True] * len(right)
        assert [can_read(place, *given) for given in wrong] == [False] * len(wrong)


@needs_exchange
def test_wrong_calls_of_what_tells_it(native):
    for given in ((), (b"", ()), ("", (), None, None), (b"", [], None, None)):
        with pytest.raises(TypeError):
            native.can_read(*given)
    place, x = native.place(()), normal(1, 3)
    negated = torch.complex(x, x).conj().imag
    for states in ([normal(1, 2)], 3, "hc", negated, (x, negated)):
        assert not native.can_read(place, (), x, states)
    for states in (None, x, (x,), (x, x)):
        assert native.can_read(place, (), x, states)


class Told(Exception):
    pass


class Telling(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise Told


def test_modes_see_what_is_asked_of_tensors(native):
    """And what they raise comes through."""
    ours, theirs = twins("gru")
    x = normal(1, 2, 4)
    with torch.no_grad(), torch.device("cpu"):
        assert torch.allclose(ours(x)[0], theirs(x)[0])
    with pytest.raises(Told), torch.no_grad(), Telling():
        ours(x)
