"""Results lie in memory as torch.nn's do, in whose order dropout draws its masks."""

from __future__ import annotations

import contextlib

import pytest
from torch_modules import LAYERS, SIZE, by_kernels, flat, normal, twins

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("native")

OPTIONS = {
    "one": {},
    "two_ways": {"bidirectional": True},
    "two": {"num_layers": 2},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}
SHAPES = {"several": (4, 5), "one_step": (4, 1), "one_row": (1, 5), "large": (64, 128)}
# A large tensor is a copy of others, whatever the options.
CASES = [(o, s) for o in OPTIONS for s in SHAPES if s != "large" or o == "one"]


@pytest.mark.parametrize(("options", "shape"), CASES)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_strides(kind, batch_first, options, shape):
    """Of outputs and states, with and without gradients, and of what backward needs of them."""
    batch, steps = SHAPES[shape]
    both = twins(kind, batch_first=batch_first, **OPTIONS[options])
    given = normal(*((batch, steps) if batch_first else (steps, batch)), SIZE, dtype="float32")
    for grad in (False, True):
        results = []
        for module in both:
            torch.manual_seed(0)
            with torch.set_grad_enabled(grad):
                results.append(flat(module(given)))
        for ours, theirs in zip(*results, strict=True):
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_behind_a_layer_draws_the_same_mask(kind):
    both = twins(kind, batch_first=True)
    x = normal(4, 5, SIZE, dtype="float32")
    found = []
    for module, kernels in zip(both, (by_kernels(), contextlib.nullcontext()), strict=True):
        torch.manual_seed(0)
        with kernels:
            y, _ = module(x)
        dropped = torch.nn.functional.dropout(y, 0.5)
        dropped.square().sum().backward()
        found.append([dropped.detach(), *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_what_may_be_viewed():
    module = twins("gru", batch_first=True)[0]
    y, _ = module(normal(4, 5, SIZE, dtype="float32"))
    assert y.transpose(0, 1).view(20, -1).shape[0] == 20
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        y.view(20, -1)
