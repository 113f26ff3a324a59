"""Switching modules over that have parametrizations, or get them later."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  after torch is known to be there
from torch.nn.utils import parametrize  # noqa: E402
from torch_models import Scaled, output  # noqa: E402

import rnnfast.torch as rt  # noqa: E402


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "weight"), [("LSTM", "weight_hh_l0"), ("GRUCell", "weight_ih")])
def test_parametrized(name, weight, when):
    torch.manual_seed(0)
    layer, x = getattr(nn, name)(3, 4), torch.randn(6, 3)
    twin = copy.deepcopy(layer)
    parametrize.register_parametrization(twin, weight, Scaled())
    if when == "after":
        rt.accelerate(layer)
    parametrize.register_parametrization(layer, weight, Scaled())
    if when == "before":
        rt.accelerate(layer)
    assert isinstance(layer, getattr(rt, name))
    assert parametrize.is_parametrized(layer, weight)
    assert [entry.accelerated for entry in rt.report(layer)] == [True]
    assert repr(layer) == repr(twin)
    for factor in (1, 3):  # and what is parametrized may change
        with torch.no_grad():
            for own in (layer, twin):
                own.parametrizations[weight].original.mul_(factor)
            torch.testing.assert_close(output(layer, x), output(twin, x))
        found, wanted = (
            torch.autograd.grad(output(own, x).sum(), list(own.parameters()))
            for own in (layer, twin)
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    for own in (layer, twin):
        parametrize.remove_parametrizations(own, weight)
    assert type(layer) is getattr(rt, name)
    torch.testing.assert_close(output(layer, x), output(twin, x))
    output(layer, x).sum().backward()
    assert getattr(layer, weight).grad.abs().max() > 0


def test_restore_of_a_parametrized_module():
    torch.manual_seed(0)
    layer, x = nn.LSTM(3, 4), torch.randn(6, 3)
    parametrize.register_parametrization(layer, "weight_hh_l0", Scaled())
    want = layer(x)[0]
    other = nn.LSTM(3, 4)
    parametrize.register_parametrization(other, "weight_hh_l0", Scaled())
    rt.restore(rt.accelerate(layer))
    assert type(layer).__bases__ == (nn.LSTM,)
    assert torch.equal(layer(x)[0], want)
    assert parametrize.is_parametrized(layer) and parametrize.is_parametrized(other)
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is nn.LSTM
    assert type(other).__bases__ == (nn.LSTM,)  # each has a class of its own
