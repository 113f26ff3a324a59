"""Parameters of `rnnfast.torch`'s modules: saved, copied, replaced, parametrized, as torch's."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from torch_modules import (
    LAYERS,
    MODULES,
    TORCH_DTYPES,
    arrange,
    assert_same_results,
    assert_twins,
    by_kernels,
    flat,
    inputs_for,
    loss,
    make,
    rt,
    run,
    seed,
    twins,
)

torch = pytest.importorskip("torch")

F64 = TORCH_DTYPES["float64"]
STACKED = {"num_layers": 2, "bidirectional": True, "dropout": 0.25, "batch_first": True}


def options_of(kind):
    return STACKED if kind in LAYERS else {"bias": False}


def randomized(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


def weight_names(module):
    """The recurrent weights, matrices of more than one row and column."""
    return [name for name, _ in module.named_parameters() if "weight_hh" in name]


@pytest.mark.parametrize("kind", MODULES)
def test_the_same_parameters_and_repr(kind):
    for options in ({}, options_of(kind)):
        ours, theirs = twins(kind, **options)
        assert repr(ours) == repr(theirs)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for (name, a), (other, b) in zip(
            ours.named_parameters(), theirs.named_parameters(), strict=True
        ):
            assert name == other and type(a) is torch.nn.Parameter
            assert torch.equal(a, b), "the same seed makes the same parameters"
        if kind in LAYERS:
            assert ours._all_weights == theirs._all_weights
            assert ours._flat_weights_names == theirs._flat_weights_names
            assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
            assert [len(a) for a in ours.all_weights] == [len(b) for b in theirs.all_weights]


@pytest.mark.parametrize("kind", MODULES)
def test_reset_parameters(kind):
    pair = twins(kind)
    for module in pair:
        seed(8)
        module.reset_parameters()
    assert_twins(pair, inputs_for(pair[1]))


@pytest.mark.parametrize("kind", MODULES)
def test_state_dicts_both_ways(kind):
    pair = ours, theirs = twins(kind, dtype=F64, **options_of(kind))
    ours.load_state_dict(randomized(theirs).state_dict(), strict=True)
    assert_twins(pair, inputs_for(theirs))
    theirs.load_state_dict(randomized(ours).state_dict(), strict=True)
    assert_twins(pair, inputs_for(theirs))
    fresh = make(rt, kind, device="meta", dtype=F64, **options_of(kind))
    fresh.load_state_dict(theirs.state_dict(), assign=True)
    assert_twins((fresh, theirs), inputs_for(theirs))


def through_a_file(value, **options):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, **options)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": lambda module: through_a_file(module, weights_only=False),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("kind", MODULES)
def test_copies(kind, way):
    ours, theirs = twins(kind, dtype=F64, **options_of(kind))
    tensors = inputs_for(theirs)
    run(ours, tensors)  # so that weights are packed
    other = COPIES[way](ours)
    assert type(other) is type(ours) and repr(other) == repr(ours)
    assert_twins((other, theirs), tensors)
    randomized(other)
    assert_twins((ours, theirs), tensors)
    theirs.load_state_dict(other.state_dict())
    assert_twins((other, theirs), tensors)


@pytest.mark.parametrize("kind", MODULES)
def test_saved_state_dicts(kind):
    ours, theirs = twins(kind, dtype=F64, **options_of(kind))
    state = through_a_file(randomized(ours).state_dict(), weights_only=True)
    theirs.load_state_dict(state, strict=True)
    assert_twins((ours, theirs), inputs_for(theirs))


def test_a_copy_shares_no_parameters_and_a_shallow_one_does():
    ours = make(rt, "gru", dtype=F64)
    x = inputs_for(ours, states=False)
    before = run(ours, x)[0]
    deep, shallow = copy.deepcopy(ours), copy.copy(ours)
    randomized(ours)
    assert torch.equal(run(deep, x)[0], before)
    assert torch.equal(run(shallow, x)[0], run(ours, x)[0])


def first_name(module):
    return next(name for name, _ in module.named_parameters())


def assigned(module, tensor):
    setattr(module, first_name(module), torch.nn.Parameter(tensor))


def data_assigned(module, tensor):
    next(module.parameters()).data = tensor


def data_changed(module, tensor):
    next(module.parameters()).data.mul_(0.5).add_(tensor, alpha=0.5)


def changed_by_numpy(module, tensor):
    next(module.parameters()).detach().numpy()[:] = tensor.numpy()


def registered(module, tensor):
    module.register_parameter(first_name(module), torch.nn.Parameter(tensor))


def deleted_and_assigned(module, tensor):
    name = first_name(module)
    delattr(module, name)
    setattr(module, name, torch.nn.Parameter(tensor))


def assigned_in_other_strides(module, tensor):
    assigned(module, tensor.t().contiguous().t())


CHANGES = [
    assigned,
    data_assigned,
    data_changed,
    changed_by_numpy,
    registered,
    deleted_and_assigned,
    assigned_in_other_strides,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("kind", MODULES)
def test_changes_of_a_parameter_count_from_the_next_call(kind, change):
    pair = twins(kind, dtype=F64)
    tensors = inputs_for(pair[1])
    for step in range(2):
        before = run(pair[0], tensors)
        for module in pair:
            seed(20 + step)
            change(module, torch.randn_like(next(module.parameters())).detach())
        assert_twins(pair, tensors)
        assert not torch.allclose(run(pair[0], tensors)[0], before[0])


@pytest.mark.parametrize("kind", MODULES)
def test_conversions(kind):
    pair = twins(kind)
    for convert in (torch.nn.Module.double, torch.nn.Module.half, torch.nn.Module.float):
        for module in pair:
            convert(module)
        if next(pair[1].parameters()).dtype is not torch.float16:
            assert_twins(pair, inputs_for(pair[1]))
    assert_twins(
        tuple(module.to("cpu", F64).share_memory() for module in pair), inputs_for(pair[1])
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_flat_weights(kind):
    pair = ours, theirs = twins(kind, num_layers=2, dtype=F64)
    assert ours.flatten_parameters() is None
    assigned(ours, torch.ones_like(ours.weight_ih_l0))
    assert ours._flat_weights[0] is ours.weight_ih_l0
    ours.double()
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    theirs.load_state_dict(ours.state_dict())
    assert_twins(pair, inputs_for(theirs))


class Halved(torch.nn.Module):
    def forward(self, weight):
        return 0.5 * weight


PARAMETRIZATIONS = {
    "weight_norm": torch.nn.utils.parametrizations.weight_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
    "spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
    "own": lambda m, name: torch.nn.utils.parametrize.register_parametrization(m, name, Halved()),
}
LEGACY = {
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
}


def assert_twins_in_step(pair, tensors):
    """As `assert_twins`, but each called as often: some parametrizations change at each call."""
    found = []
    for module in pair:
        own = [t.clone().requires_grad_() for t in tensors]
        results = run(module, own)
        found.append([*results, *torch.autograd.grad(loss(results), [*own, *module.parameters()])])
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("called_before", [False, True])
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("kind", MODULES)
def test_parametrizations(kind, name, called_before):
    pair = twins(kind, dtype=F64, **({"num_layers": 2} if kind in LAYERS else {}))
    tensors, names = inputs_for(pair[1]), weight_names(pair[1])
    for module in pair:
        if called_before:
            run(module, tensors)
        seed(9)
        for weight in names:
            PARAMETRIZATIONS[name](module, weight)
        # In training its power iteration goes on at each look at the weight, at which torch's
        # layers look several times a call.
        module.train(name != "spectral_norm")
    pair[0].load_state_dict(pair[1].state_dict(), strict=True)
    assert repr(pair[0]) == repr(pair[1])
    for _ in range(3):
        with by_kernels():
            own = run(pair[0], tensors)
        assert_same_results(own, run(pair[1], tensors), "float64")
        assert_twins_in_step(pair, tensors)
        for module in pair:
            with torch.no_grad():
                next(module.parameters()).mul_(1.1)
    for module in pair:
        for weight in names:
            torch.nn.utils.parametrize.remove_parametrizations(module, weight)
    assert type(pair[0]) is getattr(rt, MODULES[kind][0])
    assert_twins_in_step(pair, tensors)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", LEGACY)
@pytest.mark.parametrize("kind", MODULES)
def test_legacy_hooks(kind, name):
    pair = twins(kind, dtype=F64)
    tensors = inputs_for(pair[1])
    for module in pair:
        seed(9)
        LEGACY[name](module, weight_names(module)[0])
    for _ in range(2):
        assert_twins_in_step(pair, tensors)
        for module in pair:
            with torch.no_grad():
                list(module.parameters())[-1].mul_(1.1)


@pytest.mark.parametrize("kind", MODULES)
def test_functional_call(kind):
    pair = twins(kind, dtype=F64)
    tensors = inputs_for(pair[1])
    own = dict(pair[1].named_parameters())
    given = {name: (2 * p).detach().requires_grad_() for name, p in own.items()}
    found = []
    for module in pair:
        before = run(module, tensors)
        results = flat(torch.func.functional_call(module, given, arrange(*tensors)))
        found.append([*results, *torch.autograd.grad(loss(results), list(given.values()))])
        assert all(torch.equal(a, b) for a, b in zip(run(module, tensors), before, strict=True))
    assert_same_results(*found, "float64", "backward")


def test_functional_call_of_some_parameters():
    pair = twins("lstm", dtype=F64)
    tensors = inputs_for(pair[1])
    weight = torch.ones_like(pair[1].weight_hh_l0).requires_grad_()
    found = []
    for module in pair:
        call = {"weight_hh_l0": weight * 0.1}
        results = flat(torch.func.functional_call(module, call, arrange(*tensors)))
        found.append([*results, *torch.autograd.grad(loss(results), [weight, module.bias_hh_l0])])
    assert_same_results(*found, "float64", "backward")
