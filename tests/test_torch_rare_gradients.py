"""Backward passes of plain calls that only torch's operations can do, or that have little to do."""

from __future__ import annotations

import time

import pytest
from tolerances import TORCH, assert_close
from torch_modules import (
    CELLS,
    LAYERS,
    MODULES,
    TORCH_DTYPES,
    arrange,
    flat,
    inputs_for,
    make,
    normal,
    rt,
    twins,
)

import rnnfast

torch = pytest.importorskip("torch")
forward_ad = torch.autograd.forward_ad

F64 = TORCH_DTYPES["float64"]


def recorded(module):
    """The output of a call, what it was given, and all that gradients may be taken at."""
    tensors = [t.requires_grad_() for t in inputs_for(module)]
    return flat(module(*arrange(*tensors)))[0], [*tensors, *module.parameters()]


def assert_all_close(got, want):
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert (a is None) == (b is None), k
        if b is not None:
            assert_close(a.detach(), b.detach(), TORCH["float64", "backward"], f"gradient {k}")


@pytest.mark.parametrize("kind", MODULES)
def test_vmap_over_a_backward_pass(kind):
    """Rows of a Jacobian of a graph that was recorded outside, as in the example of torch.vmap."""
    found = []
    for module in twins(kind, dtype=F64):
        y, at = recorded(module)
        each = torch.eye(y.numel(), dtype=F64)[::5].view(-1, *y.shape)

        def row(v, y=y, at=at):
            return torch.autograd.grad(y, at, v, retain_graph=True, allow_unused=True)

        found.append(torch.vmap(row)(each))
        assert not any(d.requires_grad for d in found[-1] if d is not None)
    assert_all_close(*found)


class Own(torch.Tensor):
    """A subclass, which torch's operations keep."""


@pytest.mark.parametrize("kind", MODULES)
def test_a_gradient_of_a_subclass(kind):
    found = []
    for module in twins(kind, dtype=F64):
        y, at = recorded(module)
        own = normal(*y.shape, stream=7).as_subclass(Own)
        found.append(torch.autograd.grad(y, at, own, allow_unused=True))
    assert_all_close(*found)


@pytest.mark.parametrize("kind", MODULES)
def test_tangents_of_gradients(kind):
    """Gradients are linear in those at the output, and so their tangents are gradients too."""
    y, at = recorded(make(rt, kind, dtype=F64))
    value, tangent = (normal(*y.shape, stream=stream) for stream in (7, 8))
    options = {"retain_graph": True, "allow_unused": True}
    want = [torch.autograd.grad(y, at, d, **options) for d in (value, tangent)]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, tangent)
        found = [
            (None, None) if d is None else forward_ad.unpack_dual(d)
            for d in torch.autograd.grad(y, at, dual, **options)
        ]
    assert_all_close([d for d, _ in found], want[0])
    assert_all_close([d for _, d in found], want[1])


def test_an_output_that_nothing_wanted_reaches():
    """c does not depend on the projection of its own step."""
    found = []
    for place in (rt, torch.nn):
        module = make(place, "lstm_projected", dtype=F64)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("hr" in name)
        y, (_, c) = module(normal(1, 2, 4))
        total = y.square().sum() + c.sum()
        found.append(torch.autograd.grad(total, module.weight_hr_l0, create_graph=True))
    assert_all_close(*found)
    (got,) = found[0]
    assert got.requires_grad


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("trained", ["l0", "l1", "none"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_below_what_is_wanted(kind, bidirectional, trained, layers):
    """With gradients at the parameters of one layer alone, or at a state and at no parameter."""
    found = []
    for module in twins(kind, dtype=F64, num_layers=layers, bidirectional=bidirectional):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trained in name)
        x, *states = inputs_for(module)
        at = [p for p in module.parameters() if p.requires_grad] or [states[0].requires_grad_()]
        results = flat(module(*arrange(x, *states)))
        total = sum((r * normal(*r.shape, stream=9)).sum() for r in results)
        found.append(torch.autograd.grad(total, at))
    assert_all_close(*found)


@pytest.mark.usefixtures("keep_threads")
def test_frozen_layers_below_cost_no_work(native):
    """A backward pass of the highest of four layers has a fifth of the products of one of all."""
    rnnfast.set_num_threads(1)
    torch.set_num_threads(1)  # its own operations would wait for a thread that has no core
    module, x = make(rt, "gru", 128, 128, num_layers=4), torch.randn(40, 16, 128)
    least = {True: float("inf"), False: float("inf")}
    for rounds in range(60):  # on a machine that others use, now and then nine are not enough
        if rounds >= 9 and least[False] < 0.5 * least[True]:
            break
        for all_of_them in least:
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(all_of_them or "l3" in name)
            y = module(x)[0].sum()
            start = time.thread_time()  # on this thread, whoever has its core meanwhile
            y.backward()
            least[all_of_them] = min(least[all_of_them], time.thread_time() - start)
    assert least[False] < 0.5 * least[True]


@pytest.mark.parametrize("kind", CELLS)
def test_what_the_steps_of_a_loop_compute(kind, native, monkeypatch):
    """The gradients at x where it needs one, and none at the states before the first step."""
    steps = pytest.importorskip("rnnfast.torch.steps")
    wanted, gradients = [], steps.step_gradients
    monkeypatch.setattr(
        steps, "step_gradients", lambda *args: wanted.append(args[-1]) or gradients(*args)
    )
    cell = make(rt, kind, dtype=F64)

    def found(x, needed):
        cell.requires_grad_(needed)
        wanted.clear()
        state = cell(normal(3, 4))
        flat(cell(x, state))[0].sum().backward()
        return wanted

    x = normal(3, 4)
    assert found(x, True) == [(False, True, True), (False, False, True)]
    assert found(x.requires_grad_(), True) == [(True, True, True), (False, False, True)]
    assert found(x, False) == [(True, False, False)]
