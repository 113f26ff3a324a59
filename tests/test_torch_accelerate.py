"""Switching models over and back: what changes class, what stays, and what is said of it."""

from __future__ import annotations

import copy
import io
import pickle

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  after torch is known to be there
from torch_models import RECURRENT, Everywhere, everywhere, output  # noqa: E402

import rnnfast.torch as rt  # noqa: E402

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")


scripting = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_is_one_recurrent_module(name):
    theirs = getattr(nn, name)(3, 4)
    x = torch.randn(2, 3)
    want, id_before = output(theirs, x), id(theirs)
    parameters = dict(theirs.named_parameters())
    ours = rt.accelerate(theirs)
    assert id(ours) == id_before
    assert type(ours) is getattr(rt, name)
    assert all(p is parameters[key] for key, p in ours.named_parameters())
    torch.testing.assert_close(output(ours, x), want, rtol=1e-5, atol=1e-6)
    assert rt.restore(ours) is theirs
    assert type(theirs) is getattr(nn, name)
    assert torch.equal(output(theirs, x), want)


@pytest.mark.parametrize("wrong", [None, 5, "model", [torch.nn.LSTM(2, 3)], torch.nn.LSTM])
def test_what_is_no_model(wrong):
    got = "the class LSTM" if wrong is torch.nn.LSTM else type(wrong).__name__
    for call in (rt.accelerate, rt.restore, rt.report, rt.freeze, rt.unfreeze):
        with pytest.raises(TypeError, match=f"model: expected a torch.nn.Module, got {got}"):
            call(wrong)


def test_modules_in_every_place():
    model, x = everywhere()
    want, want_gradients = model(x), gradients(model, x)
    modules, parameters = list(model.modules()), list(model.parameters())
    keys = list(model.state_dict())
    assert rt.accelerate(model) is model
    assert list(map(id, model.modules())) == list(map(id, modules))
    assert list(map(id, model.parameters())) == list(map(id, parameters))
    assert list(model.state_dict()) == keys
    assert model.again is model.first
    for name in RECURRENT:
        module = model.get_submodule(name)
        assert type(module) is getattr(rt, type(module).__name__)
    assert type(model) is Everywhere
    assert type(model.chain[0]) is nn.Linear
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients(model, x), want_gradients, rtol=1e-4, atol=1e-5)


def test_restore_leaves_nothing_behind():
    model, x = everywhere()
    untouched = copy.deepcopy(model)
    want, want_gradients = untouched(x), gradients(untouched, x)
    rt.freeze(rt.accelerate(model))
    with torch.no_grad():
        model(x)
    assert rt.restore(model) is model
    for module, other in zip(model.modules(), untouched.modules(), strict=True):
        assert type(module) is type(other)
        assert vars(module).keys() == vars(other).keys()
    assert torch.equal(model(x), want)
    assert all(map(torch.equal, gradients(model, x).values(), want_gradients.values()))
    rt.restore(model)
    assert torch.equal(model(x), want)


@scripting
def test_a_restored_module_compiles_as_before():
    cell, x = nn.LSTMCell(3, 4), torch.randn(2, 3)
    want = cell(x)
    rt.accelerate(cell)(x)
    got = torch.jit.script(rt.restore(cell))(x)
    assert all(map(torch.equal, got, want))


def test_twice_is_once():
    model, x = everywhere()
    want = rt.accelerate(model)(x)
    classes = [type(module) for module in model.modules()]
    rt.accelerate(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(model(x), want)


def test_an_optimiser_made_before_trains_it():
    model, x = everywhere()
    optimiser = torch.optim.Adam(model.parameters(), 0.05)
    twin = copy.deepcopy(model)
    of_twin = torch.optim.Adam(twin.parameters(), 0.05)
    rt.accelerate(model)
    losses, of_torch = [], []
    for _ in range(5):
        for own, stepper, seen in ((model, optimiser, losses), (twin, of_twin, of_torch)):
            stepper.zero_grad()
            loss = (own(x) - 1).square().mean()
            loss.backward()
            stepper.step()
            seen.append(loss.item())
    assert losses == pytest.approx(of_torch, rel=1e-4)
    assert losses[-1] < 0.9 * losses[0]


def test_hooks_and_flags_are_kept():
    layer, ran = nn.GRU(3, 4).eval(), []
    layer.mark = object()
    mark = layer.mark
    layer.register_forward_pre_hook(lambda module, args: ran.append("before"))
    layer.register_forward_hook(lambda module, args, result: (result[0] * 2, result[1]))
    layer.register_full_backward_hook(lambda module, d_in, d_out: ran.append("backward"))
    layer.weight_hh_l0.register_hook(lambda gradient: ran.append("gradient"))
    x = torch.randn(5, 2, 3, requires_grad=True)
    want = layer(x)[0]
    ran.clear()
    rt.accelerate(layer)
    assert not layer.training
    assert layer.mark is mark
    y = layer(x)[0]
    torch.testing.assert_close(y, want)
    y.sum().backward()
    assert sorted(ran) == ["backward", "before", "gradient"]


def test_frozen_parameters_stay_frozen():
    layer = nn.LSTM(3, 4)
    layer.weight_hh_l0.requires_grad_(False)
    rt.accelerate(layer)(torch.randn(5, 3))[0].sum().backward()
    assert layer.weight_hh_l0.grad is None
    assert layer.weight_ih_l0.grad is not None


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "save"])
def test_copies_of_a_model(way):
    model, x = everywhere()
    rt.accelerate(model)
    with torch.no_grad():
        want = model(x)  # what is kept for further calls must not get in the way
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    assert other.again is other.first
    assert torch.equal(other(x), want)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
        assert torch.equal(model(x), want)
        assert not torch.equal(other(x), want)
    other(x).sum().backward()


def test_a_copy_is_not_frozen():
    model, x = everywhere()
    with torch.no_grad():
        rt.freeze(rt.accelerate(model))(x)
        other = pickle.loads(pickle.dumps(model))
        before = other(x)
        other.first.bias_ih_l0.data.add_(1)
        assert not torch.equal(other(x), before)


def test_state_dicts_go_both_ways():
    model, x = everywhere()
    torch.manual_seed(1)
    theirs = Everywhere()
    ours = rt.accelerate(model)
    assert not torch.allclose(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    theirs.load_state_dict(rt.accelerate(Everywhere()).state_dict())
