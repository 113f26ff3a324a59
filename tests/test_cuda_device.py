"""The kernels on a CUDA device: `pytest -m cuda` where there is one, with the library built.

Against torch in float64: every cell and dtype, by each way that a pass is launched.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import cuda_devices  # noqa: E402
from cuda_devices import (  # noqa: E402
    HUGE,
    KINDS,
    STEPS,
    TOLERANCES,
    assert_same_bits,
    normal,
    pair,
    states_of,
    step,
)

pytestmark = cuda_devices.MARKS

# Units, by what the plan of a pass (csrc/cuda) makes of them: less than a block has, and no whole
# number of blocks; on Hopper clusters of blocks of 8 units up to 64, of 16 up to 256, of 32 at 512;
# in float32 and above all processors, in blocks of 8 units, at 1500 of 16, at 2200 of 32, their
# weights in registers, shared memory or, by cell and dtype, in part read in each step.
HIDDEN = [8, 45, 64, 200, 256, 512, 768, 1024, 1040, 1500, 2200]
# Rows: one, one tile, more than one, all that a block has, more than that.
BATCHES = [1, 8, 17, 64, 130]


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_results_and_gradients(kind, dtype, batch, hidden, ragged):
    """From states of the caller's, whose gradients are taken as well."""
    ours, theirs = pair(kind, 5, hidden, dtype, bidirectional=True)
    lengths = None
    if ragged:
        torch.manual_seed(3)
        lengths = torch.randint(1, STEPS + 1, (batch,))
    x, states = normal(STEPS, batch, 5, dtype=dtype), states_of(ours, batch, dtype)
    cuda_devices.assert_same_step(ours, theirs, x, lengths, states)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_for_each_step(kind, dtype):
    """Twice 32 of them in a graph, and some alone."""
    ours, theirs = pair(kind, 5, HUGE, dtype)
    cuda_devices.assert_same_step(ours, theirs, normal(70, 17, 5, dtype=dtype))


@pytest.mark.parametrize("hidden", [256, 512, 768, 1500, 2200])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences(kind, dtype, hidden):
    """From states of zeros, which are none for the kernels."""
    ours, theirs = pair(kind, 16, hidden, dtype)
    cuda_devices.assert_same_step(ours, theirs, normal(200, 8, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_long_sequences_in_layers(kind, dtype):
    ours, theirs = pair(kind, 16, 128, dtype, num_layers=2)
    x, states = normal(200, 16, 16, dtype=dtype), states_of(ours, 16, dtype)
    cuda_devices.assert_same_step(ours, theirs, x, states=states)


@pytest.mark.parametrize("hidden", [64, 256, 1040, 1500, 2200, HUGE])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_again(kind, hidden):
    ours, _ = pair(kind, 16, hidden)
    x = normal(64, 16, 16)
    assert_same_bits(step(ours, x), step(ours, x))


@pytest.mark.parametrize("hidden", [64, 768])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_with_nan_is_alone(kind, hidden):
    ours, _ = pair(kind, 16, hidden)
    x = normal(6, 20, 16)
    with torch.no_grad():
        wanted = ours(x)[0]
        x[2, 7] = float("nan")
        found = ours(x)[0]
    others = torch.arange(20, device=x.device) != 7
    assert torch.equal(found[:, others], wanted[:, others])
    assert torch.equal(found[:2, 7], wanted[:2, 7]) and not found[2:, 7].isfinite().any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind):
    found = []
    for module in (pair := cuda_devices.pair(kind, 5, 45)):
        dtype = torch.float32 if module is pair[0] else torch.float64
        x = normal(7, 3, 5).to(dtype).requires_grad_()
        at = [x, *module.parameters()]
        first = torch.autograd.grad(
            cuda_devices.weighted(cuda_devices.flat(module(x))).square(), at, create_graph=True
        )
        second = torch.autograd.grad(sum(g.square().sum() for g in first), at)
        found.append([*first, *second])
    cuda_devices.assert_near(*found, 2 * TOLERANCES[torch.float32][1])  # of two passes backward
