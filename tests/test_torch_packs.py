"""Packed weights follow the parameters, however these are changed."""

from __future__ import annotations

import copy
import multiprocessing

import pytest

torch = pytest.importorskip("torch")

from torch_models import H, by_torch, inputs, packs_made, run  # noqa: E402  after torch is known to be there

import rnnfast.torch as rt  # noqa: E402

# Only the compiled kernels have packs; all else is torch's own on every call.
pytestmark = pytest.mark.usefixtures("native")


@pytest.fixture
def layer():
    """Two layers of an RNN, and what they read."""
    torch.manual_seed(0)
    return rt.RNN(H, H, 2)


@pytest.fixture
def packed(monkeypatch):
    """The packs that are made from now on; one for each layer and direction of a module."""
    return packs_made(monkeypatch)


def shared_array(layer):
    layer.weight_hh_l0.detach().numpy()[2, 3] = 0.5


def flattened(layer):
    """One buffer, of which the parameters are views."""
    own = torch.cat([p.detach().reshape(-1) for p in layer.parameters()])
    torch.nn.utils.vector_to_parameters(own * 1.25, layer.parameters())


def copied(layer):
    with torch.no_grad():
        layer.weight_ih_l0.copy_(torch.linspace(-1, 1, H * H).view(H, H))


def stepped(layer):
    layer(inputs())[0].sum().backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()


def soft_update(layer):
    """A target network's, which bumps no version."""
    online = rt.RNN(H, H, 2)
    for own, other in zip(layer.parameters(), online.parameters(), strict=True):
        own.data.mul_(0.9).add_(0.1 * other.data)


def averaged(layer):
    """An exponential moving average's."""
    average = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    average.update_parameters(rt.RNN(H, H, 2))
    average.update_parameters(rt.RNN(H, H, 2))
    torch.nn.Module.load_state_dict(layer, average.module.state_dict())


def loaded(layer):
    layer.load_state_dict(rt.RNN(H, H, 2).state_dict())


def assigned(layer):
    layer.load_state_dict(rt.RNN(H, H, 2).state_dict(), assign=True)


def replaced(layer):
    layer.weight_hh_l1.data = torch.eye(H)


def new_parameter(layer):
    layer.weight_hh_l1 = torch.nn.Parameter(torch.eye(H))


def transposed(layer):
    layer.weight_hh_l0.data = layer.weight_hh_l0.data.t()


def transposed_in_place(layer):
    layer.weight_hh_l0.data.copy_(layer.weight_hh_l0.data.t().clone())


def changed_after_transposing(layer):
    transposed(layer)
    run(layer)
    layer.weight_hh_l0.data[1, 2] += 0.5


def signs(layer):
    layer.weight_hh_l0.data.neg_()


def sign_of_all(layer):
    for p in layer.parameters():
        p.data.neg_()


def one_element(layer):
    layer.weight_hh_l0.data[3, 1] += 0.25


def through_a_view(layer):
    layer.weight_hh_l0.data.view(-1)[7:9].fill_(0.3)


def two_rows(layer):
    layer.weight_hh_l0.data[[1, 4]] = layer.weight_hh_l0.data[[4, 1]]


def two_elements(layer):
    flat = layer.weight_ih_l0.data.view(-1)
    flat[[2, 3]] = flat[[3, 2]]


def two_weights(layer):
    """Their memory stays, and so does what all of it together holds."""
    ih, hh = layer.weight_ih_l0.data, layer.weight_hh_l0.data
    layer.weight_ih_l0.data, layer.weight_hh_l0.data = hh, ih


def contents_of_two_weights(layer):
    ih = layer.weight_ih_l0.data.clone()
    layer.weight_ih_l0.data.copy_(layer.weight_hh_l0.data)
    layer.weight_hh_l0.data.copy_(ih)


def one_bias(layer):
    layer.bias_hh_l0.data[-1] += 0.25


def upper_layer(layer):
    layer.weight_ih_l1.data[0, 0] += 0.25


def zero_and_minus_zero(layer):
    layer.weight_hh_l0.data.zero_()
    run(layer)
    layer.weight_hh_l0.data[0, 1] = 2.0


CHANGES = [
    shared_array, flattened, copied, stepped, soft_update, averaged, loaded, assigned, replaced,
    new_parameter, transposed, transposed_in_place, changed_after_transposing, signs, sign_of_all,
    one_element, through_a_view, two_rows, two_elements, two_weights, contents_of_two_weights,
    one_bias, upper_layer, zero_and_minus_zero,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_is_never_stale(layer, packed, change):
    before = run(layer)
    del packed[:]
    assert torch.equal(run(layer), before)
    assert not packed  # so that there was something to be stale
    change(layer)
    want = by_torch(layer)
    assert not torch.allclose(want, before, atol=1e-4), "the change shows nowhere"
    torch.testing.assert_close(run(layer), want)
    torch.testing.assert_close(layer(inputs())[0].detach(), want)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_gradients_are_never_stale(layer, change):
    x = inputs().requires_grad_()
    layer(x)[0].sum().backward()
    change(layer)
    theirs = torch.nn.RNN(H, H, 2)
    theirs.load_state_dict(layer.state_dict())
    got, want = (
        torch.autograd.grad(own(x)[0].square().sum(), [x, *own.parameters()])
        for own in (layer, theirs)
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", [0, 1, 77, 300 * 100 - 1])
def test_one_element_of_a_large_matrix(place):
    torch.manual_seed(0)
    module = rt.RNN(H, 300)
    module.weight_hh_l0.data[:, 100:] = 0
    before = run(module)
    row, column = divmod(place, 100)
    module.weight_hh_l0.data[row, column] += 0.5
    want = by_torch(module)
    assert not torch.equal(want, before)
    torch.testing.assert_close(run(module), want)


def test_packs_are_used_again_while_nothing_changes(layer, packed):
    run(layer)
    assert len(packed) == 2
    for _ in range(3):
        run(layer)
    run(rt.accelerate(copy.deepcopy(layer)))  # a copy has its own
    assert len(packed) == 4
    layer.bias_ih_l1.data.add_(1)
    run(layer)
    run(layer)
    assert len(packed) == 6


def test_two_modules_may_share_parameters(packed):
    torch.manual_seed(0)
    one, other = rt.RNN(H, H), rt.RNN(H, H)
    for name, parameter in one.named_parameters():
        setattr(other, name, parameter)
    assert torch.equal(run(one), run(other))
    one.weight_hh_l0.data.mul_(2)
    torch.testing.assert_close(run(other), by_torch(one))


def test_a_weight_of_another_shape_at_the_same_place():
    theirs, x = torch.nn.RNN(1, H), torch.randn(3, 1)
    ours = rt.accelerate(copy.deepcopy(theirs))
    with torch.no_grad():
        ours(x)
        for module in (theirs, ours):
            module.weight_ih_l0.data = module.weight_ih_l0.data.t()
        with pytest.raises(RuntimeError) as of_torch:
            theirs(x)
        with pytest.raises(RuntimeError) as of_ours:
            ours(x)
    assert str(of_ours.value) == str(of_torch.value)


def test_storage_may_still_be_resized():
    """As those who shard parameters do."""
    module, x = rt.RNN(H, H), inputs()
    with torch.no_grad():
        want, _ = module(x)
    kept = module.weight_hh_l0.detach().clone()
    storage = module.weight_hh_l0.untyped_storage()
    size = storage.size()
    storage.resize_(0)
    storage.resize_(size)
    with torch.no_grad():
        module.weight_hh_l0.copy_(kept)
    assert torch.equal(run(module), want)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_a_change_from_another_process(layer):
    before = run(layer)
    layer.share_memory()
    assert torch.equal(run(layer), before)
    process = multiprocessing.get_context("fork").Process(target=one_element, args=(layer,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    want = by_torch(layer)
    assert not torch.equal(want, before)
    torch.testing.assert_close(run(layer), want)


def test_a_weight_with_the_negative_bit():
    """Whose memory holds the negative of what it is."""
    module, x = rt.RNN(H, H), inputs()
    weight = module.weight_hh_l0.detach()
    for value in (weight, torch._neg_view(weight), weight):
        with torch.no_grad():
            got, _ = torch.func.functional_call(module, {"weight_hh_l0": value}, (x,))
            want, _ = torch.func.functional_call(
                torch.nn.RNN(H, H),
                {**dict(module.named_parameters()), "weight_hh_l0": value.clone()},
                (x,),
            )
        torch.testing.assert_close(got, want)
