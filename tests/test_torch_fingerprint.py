"""The fingerprint of parameters: changes that training and users make all show in it."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch_models import H, by_torch, run  # noqa: E402  after torch is known to be there

import rnnfast.torch as rt  # noqa: E402


def fingerprints_chain(native) -> int:
    """After how many elements of float32 a chain of the fingerprint goes on: 8 vectors of them."""
    return 8 * native.vector_bytes() // 4


@pytest.mark.parametrize("size", [64, 128])
def test_signs_of_a_few_elements_of_a_large_matrix(native, size):
    """Which a mixing that moves the top bit alone to where another sign stands does not see."""
    torch.manual_seed(0)
    module, far = rt.RNN(H, size), fingerprints_chain(native)
    before = run(module)
    flat = module.weight_hh_l0.data.view(-1)
    for places in ([5], [4], [5, 5 + far], [4 + far, 5, 5 + far], [4, 5, 5 + far], [5, 4 + far]):
        flat[places] *= -1
        want = by_torch(module)
        assert not torch.allclose(want, before, atol=1e-5)
        torch.testing.assert_close(run(module), want)
        flat[places] *= -1
        assert torch.equal(run(module), before)


def test_the_fingerprint_sees_every_small_change(native):
    """Signs, sums and factors at one to seven places, beside each other or a chain apart."""
    rng, far = np.random.default_rng(0), fingerprints_chain(native)
    places = [5, 4, 7, 5 + far, 4 + far, 5 + 2 * far, 4 + 2 * far]
    arrays = {}
    for values in (rng.standard_normal(8 * far), np.zeros(8 * far), np.ones(8 * far)):
        values = values.astype(np.float32)
        for bits in range(2 ** len(places)):
            own = [place for k, place in enumerate(places) if bits >> k & 1]
            for change in (lambda v: -v, lambda v: v + 2, lambda v: v + 1, lambda v: v * 4):
                other = values.copy()
                other[own] = change(other[own])
                arrays[other.tobytes()] = native.fingerprint((other,))
    assert len(set(arrays.values())) == len(arrays)
