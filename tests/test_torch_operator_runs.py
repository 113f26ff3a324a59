"""How the registered operators run: at once where they know the weights, else by way of checks."""

from __future__ import annotations

import importlib

import pytest
from subprocesses import python
from torch_modules import normal, twins

torch = pytest.importorskip("torch")
runs = importlib.import_module("rnnfast.torch.operator_runs")

pytestmark = pytest.mark.usefixtures("native")

T, B = 3, 2


class Own(torch.Tensor):
    """A subclass, which the kernels do not read."""


def layer(kind, dtype="float32"):
    """An input, and the weights of a layer."""
    module = twins(kind, dtype=getattr(torch, dtype))[0]
    weights = [w.detach() for w in module._flat_weights]
    return normal(T, B, module.input_size, dtype=dtype), weights


def passes(kind, x, weights, states=(None, None), dy=None):
    """What `forward` gives, and `backward` for all gradients, of y itself without a dy."""
    y, h, c, tape = torch.ops.rnnfast.forward(x, *states, weights, kind, 1, True, True)
    at = [True, states[0] is not None, states[1] is not None, *[True] * 4]
    given = y if dy is None else dy, None, None, x, *states, weights, y, tape, kind, 1, True
    dx, dh0, dc0, d_weights = torch.ops.rnnfast.backward(*given, at)
    return y, h, c, dx, dh0, dc0, *d_weights


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_weights_that_are_known_are_not_checked_again(kind, dtype, monkeypatch):
    x, weights = layer(kind, dtype)
    want = passes(kind, x, weights)
    for name in ("checked_kind", "check_backward", "_packed"):
        monkeypatch.setattr(runs, name, lambda *_: pytest.fail("checked or packed again"))
    assert all(map(torch.equal, passes(kind, x, weights), want))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_what_stands_for_something_else(kind):
    """Also where the weights are known, and all is read as it lies in memory."""
    x, weights = layer(kind)
    want = passes(kind, x, weights)
    negative, negatives = torch._neg_view(-x), [torch._neg_view(-w) for w in weights]
    others = (
        (negative, weights),
        (x, [*negatives[:1], *weights[1:]]),
        (x, [*weights[:3], *negatives[3:]]),
        (x.transpose(0, 1).contiguous().transpose(0, 1), weights),
        (x.as_subclass(Own), weights),
    )
    for _ in range(2):
        for given in others:
            assert all(map(torch.equal, passes(kind, *given), want))
    weights[1].data[0, 0] += 1  # which no version tells
    assert not torch.equal(passes(kind, x, weights)[0], want[0])


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_what_a_stack_does_not_take_is_copied_for_it(kind, monkeypatch):
    """And run on the weights that are known."""
    x, weights = layer(kind)
    width = weights[1].shape[1]
    state = normal(1, 1, width, dtype="float32").expand(1, B, width)
    states = (state, state if kind == "lstm" else None)
    dy = normal(1, B, 1, dtype="float32").expand(T, B, width)
    whole = tuple(None if s is None else s.contiguous() for s in states)
    want = passes(kind, x, weights, whole, dy.contiguous())
    monkeypatch.setattr(runs, "_packed", lambda *_: pytest.fail("looked for the weights again"))
    assert all(map(torch.equal, passes(kind, x, weights, states, dy), want))


@pytest.mark.skipif(
    torch.__version__ < (2, 5),
    reason="torch 2.4 asks by itself whether outputs lie where weights do",
)
def test_weights_that_get_other_memory_meanwhile():
    """As by `module.to`, in another thread: what is being read stays until it has been."""
    code = """
import sys, threading, time
import torch
import rnnfast.torch as rt

sys.setswitchinterval(1e-5)
torch.set_num_threads(1)
module = rt.LSTM(256, 512)  # 6 MB
weights, x = [w.detach() for w in module._flat_weights], torch.randn(1, 1, 256)

def run():
    return torch.ops.rnnfast.forward(x, None, None, weights, "lstm", 1, True, False)[0]

want, over = run(), threading.Event()

def move():
    while not over.is_set():
        for weight in weights:
            weight.data = weight.clone()

mover = threading.Thread(target=move, daemon=True)
mover.start()
end = time.monotonic() + 2
same = [torch.equal(run(), want) for _ in iter(lambda: time.monotonic() < end, False)]
over.set()
mover.join()
print(len(same) > 1 and all(same))
"""
    # So that memory which is freed is gone at once.
    done = python(code, MALLOC_MMAP_THRESHOLD_="65536", RNNFAST_BACKEND="native")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
