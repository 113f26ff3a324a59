"""The promise of `freeze` that parameters stay, and what it saves."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch_models import H, by_torch, inputs, packs_made, run  # noqa: E402  after torch is known to be there

import rnnfast.torch as rt  # noqa: E402
from rnnfast import _backend  # noqa: E402
from rnnfast.torch.packs import Parameters  # noqa: E402

# Only the compiled kernels have packs to freeze.
pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def layer():
    """Two layers of an RNN, and what they read."""
    torch.manual_seed(0)
    return rt.RNN(H, H, 2)


def test_freeze_promises_and_unfreeze_takes_back(layer, monkeypatch):
    packed = packs_made(monkeypatch)
    assert rt.freeze(layer) is layer
    before = run(layer)
    layer.weight_hh_l0.data.mul_(2)
    assert torch.equal(run(layer), before)  # by contract: nobody looks
    assert len(packed) == 2
    assert rt.unfreeze(layer) is layer
    torch.testing.assert_close(run(layer), by_torch(layer))
    assert not torch.equal(run(layer), before)


def test_freeze_reads_no_parameter(layer, monkeypatch):
    run(rt.freeze(layer))
    read, backend = [], _backend.current()
    fingerprint = backend.fingerprint
    monkeypatch.setattr(backend, "fingerprint", lambda *args: read.append(1) or fingerprint(*args))
    run(layer)
    assert not read
    run(rt.unfreeze(layer))
    assert read


def test_freeze_holds_for_this_memory_alone(layer):
    run(rt.freeze(layer))
    layer.weight_hh_l0.data = torch.eye(H)
    torch.testing.assert_close(run(layer), by_torch(layer))
    layer.weight_hh_l0.data.mul_(2)  # which is no part of the promise
    torch.testing.assert_close(run(layer), by_torch(layer))
    run(rt.freeze(layer.double()).float())
    torch.testing.assert_close(run(layer), by_torch(layer))


def test_freeze_holds_for_no_parameters_of_a_call(layer):
    """Those of a `functional_call`, as of an average that changes in place."""
    rt.freeze(layer)
    average = {name: p.detach().clone() for name, p in layer.named_parameters()}
    for _ in range(2):
        with torch.no_grad():
            got = torch.func.functional_call(layer, average, (inputs(),))[0]
        layer.load_state_dict(average)
        torch.testing.assert_close(got, by_torch(layer))
        average["weight_hh_l0"].mul_(2)


def test_freeze_of_a_model_and_its_copies():
    torch.manual_seed(0)
    model = rt.freeze(torch.nn.Sequential(torch.nn.Linear(H, H), rt.RNN(H, H)))
    before = run(model)
    other = copy.deepcopy(model)
    run(other)
    for own in (model, other):
        own[1].weight_hh_l0.data.mul_(2)
    assert torch.equal(run(model), before)
    assert not torch.equal(run(other), before)


def test_what_is_frozen_is_what_the_parameters_are_now():
    """Also where they have changed since the last call, as by an optimiser's last step."""
    module, x = rt.GRU(3, 4), torch.randn(5, 2, 3)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    module(x)[0].sum().backward()
    optimiser.step()
    theirs = torch.nn.GRU(3, 4)
    theirs.load_state_dict(module.state_dict())
    rt.freeze(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], theirs(x)[0])


def test_unfrozen_while_the_parameters_are_taken_up(layer, monkeypatch):
    """By another thread: the promise must not outlive it."""
    rt.freeze(layer)
    init = Parameters.__init__

    def meanwhile(*args):
        init(*args)
        rt.unfreeze(layer)

    with monkeypatch.context() as patched:
        patched.setattr(Parameters, "__init__", meanwhile)
        run(layer)
    run(layer)
    layer.weight_hh_l0.data.mul_(2)
    torch.testing.assert_close(run(layer), by_torch(layer))


def test_a_shallow_copy_has_no_part_in_the_promise(layer):
    run(layer)
    other = copy.copy(layer)
    assert other.weight_hh_l0 is layer.weight_hh_l0
    rt.freeze(other)
    before = run(other)
    layer.weight_hh_l0.data.mul_(2)
    torch.testing.assert_close(run(layer), by_torch(layer))
    assert torch.equal(run(other), before)
    rt.freeze(layer)
    rt.unfreeze(other)
    before = run(layer)
    layer.weight_hh_l0.data.mul_(2)
    assert torch.equal(run(layer), before)
