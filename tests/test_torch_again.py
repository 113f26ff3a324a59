"""Calls without gradients as one before them, which the compiled module answers by itself."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch_twins import CELLS, LAYERS, flat, normal, state_for, twins  # noqa: E402

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there
from rnnfast import _backend  # noqa: E402
from rnnfast.torch import exchange  # noqa: E402

KINDS = [*LAYERS, *CELLS]
pytestmark = [
    pytest.mark.usefixtures("native"),
    pytest.mark.skipif(not exchange._IS_DIRECT, reason="this torch exchanges arrays alone"),
]


def one_step(kind: str, batch: int | None = 2, steps: int = 1) -> torch.Tensor:
    """Or some, of a layer."""
    rows = () if batch is None else (batch,)
    return normal(*(() if kind in CELLS else (steps,)), *rows, 4)


# Rows and steps of calls that read weights where they lie, and of those that are packed.
CALLS = {"borrowed": (2, 1), "packed": (9, 3)}


def assert_near(found, wanted):
    for got, want in zip(flat(found), flat(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def known(kind, batch=2, steps=1, **options):
    """Twins, of which ours has run such a call."""
    ours, theirs = twins(kind, **options)
    dtype = options.get("dtype", torch.float32)
    with torch.no_grad():
        ours(one_step(kind, batch, steps).to(dtype), state_for(theirs, batch, dtype))
    return ours, theirs


def structure(result):
    return tuple(map(structure, result)) if isinstance(result, tuple) else result.shape


@pytest.mark.parametrize("options", [{}, {"dtype": torch.float64, "bias": False}])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_results_in_the_same_form(kind, options, taken):
    ours, theirs = twins(kind, **options)
    dtype = options.get("dtype", torch.float32)
    for batch in (2, 1, None):
        x = one_step(kind, batch).to(dtype)
        for state in (None, state_for(theirs, batch, dtype)):
            with torch.no_grad():
                found, want = [ours(x, state) for _ in range(3)], theirs(x, state)
            assert_near(found[0], want)
            for one in found:
                assert structure(one) == structure(want)
                assert all(map(torch.equal, flat(one), flat(found[0])))
            places = {tensor.data_ptr() for one in found for tensor in flat(one)}
            assert len(places) == 3 * len(flat(want))
    assert not taken[0]
    assert all(taken[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_calls_on_packs_and_others_in_turn(kind, taken):
    ours, theirs = twins(kind)
    with torch.no_grad():
        for _ in range(3):
            for batch, steps in CALLS.values():
                x, state = one_step(kind, batch, steps), state_for(theirs, batch)
                assert_near(ours(x, state), theirs(x, state))
    assert taken == [False, False, True, True, True, True]


def test_packs_of_large_weights_are_not_tried(taken):
    """Where they have changed, a fingerprint for nothing would take long."""
    theirs = torch.nn.GRU(4, 300)
    ours = rt.accelerate(copy.deepcopy(theirs))
    assert sum(p.numel() for p in ours.parameters()) * 4 > 1 << 20
    x = one_step("gru", 9, 3)
    with torch.no_grad():
        for _ in range(3):
            assert_near(ours(x), theirs(x))
    assert not any(taken)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_stacks(kind, options, taken):
    ours, theirs = twins(kind, batch_first=True, **options)
    steps = normal(3, 1, 4)
    with torch.inference_mode():
        for x in (steps, steps, steps[0], steps.transpose(0, 1)):
            assert_near(ours(x), theirs(x))
    assert taken == [False, True, True, False]  # of which the last has three steps


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_module(kind, taken):
    ours, theirs = twins(kind)
    x, state = one_step(kind), state_for(theirs, 2)
    with torch.no_grad():
        for change in (rt.freeze, rt.unfreeze, rt.freeze):
            del taken[:]
            change(ours)
            for _ in range(2):
                assert_near(ours(x, state), theirs(x, state))
            assert taken == [False, True]
        before = ours(x, state)
        next(ours.parameters()).data.mul_(2)
        assert all(map(torch.equal, flat(ours(x, state)), flat(before)))
        next(theirs.parameters()).data.mul_(2)
        assert_near(rt.unfreeze(ours)(x, state), theirs(x, state))


CHANGES = {
    "values": lambda module: next(module.parameters()).data.mul_(-2),
    "a view": lambda module: next(module.parameters()).data[1:].view(-1).add_(1),
    "not finite": lambda module: list(module.parameters())[1].data.fill_(torch.nan),
    "memory": lambda module: setattr(
        next(module.parameters()), "data", 2 * next(module.parameters()).data
    ),
    "parameter": lambda module: setattr(
        module,
        next(iter(module._parameters)),
        torch.nn.Parameter(2 * next(module.parameters()).detach()),
    ),
    "transposed": lambda module: setattr(
        list(module.parameters())[1], "data", list(module.parameters())[1].data.flip(0).T.T
    ),
    "parametrized": lambda module: torch.nn.utils.parametrize.register_parametrization(
        module, next(iter(module._parameters)), torch.nn.Tanh()
    ),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_of_parameters_show(kind, change, call):
    batch, steps = CALLS[call]
    ours, theirs = known(kind, batch, steps)
    x, state = one_step(kind, batch, steps), state_for(theirs, batch)
    for module in (ours, theirs):
        CHANGES[change](module)
    with torch.no_grad():
        for _ in range(2):
            got, want = ours(x, state), theirs(x, state)
            for a, b in zip(flat(got), flat(want), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize(("name", "value"), [("batch_first", True), ("mode", "RNN_RELU")])
def test_changes_of_a_layer_show(name, value):
    ours, theirs = known("rnn_tanh")
    for module in (ours, theirs):
        setattr(module, name, value)
    x = normal(1, 1, 4) if name == "mode" else normal(2, 1, 4)
    with torch.no_grad():
        for _ in range(2):
            assert_near(ours(x), theirs(x))


def test_a_mode_that_is_none():
    ours, theirs = known("gru")
    for module in (ours, theirs):
        module.mode = "SRU"
    x = one_step("gru")
    with torch.no_grad():  # torch's GRU does not look at it
        assert_near(ours(x), theirs(x))


def test_another_nonlinearity_of_a_cell():
    ours, theirs = known("rnn_tanh_cell")
    x = one_step("rnn_tanh_cell")
    with torch.no_grad():
        for module in (ours, theirs):
            module.nonlinearity = "relu"
        assert_near(ours(x), theirs(x))
        ours.nonlinearity = "gelu"
        with pytest.raises(RuntimeError, match="gelu"):
            ours(x)


@pytest.mark.parametrize("promise", [rt.freeze, rt.unfreeze])
def test_dropout_between_layers(promise, taken):
    """Where all layers are alike: one would do for all."""
    theirs = torch.nn.GRU(4, 4, 2, dropout=0.5)
    ours = rt.GRU(4, 4, 2, dropout=0.5)
    ours.load_state_dict(theirs.state_dict())
    promise(ours)
    x = one_step("gru")
    with torch.no_grad():
        for _ in range(2):
            ours.train()
            assert not torch.equal(ours(x)[0], ours(x)[0])
            assert taken[-2:] == [False, False]
            ours.eval()
            for _ in range(2):
                assert_near(ours(x), theirs.eval()(x))
            assert taken[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_tangents(kind):
    ours, theirs = known(kind, dtype=torch.float64)
    x = one_step(kind).double()
    assert flat(ours(x))[0].requires_grad
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        got, want = ([forward_ad.unpack_dual(t) for t in flat(m(dual))] for m in (ours, theirs))
        for a, b in zip(got, want, strict=True):
            assert_near([a.primal, a.tangent], [b.primal, b.tangent])


class Other(torch.Tensor):
    """A subclass, of which torch makes the results."""


@pytest.mark.parametrize("kind", KINDS)
def test_other_arguments(kind):
    """Of every kind that the compiled module does not take: torch's results and errors."""
    ours, theirs = known(kind)
    x, state = one_step(kind), state_for(theirs, 2)
    negated = torch.complex(x, -x).conj().imag  # lies in memory as -x
    assert negated.is_neg()
    negated_states = tuple(torch.complex(s, -s).conj().imag for s in flat(state))
    states = [state, list(flat(state)), negated_states]
    if len(negated_states) == 1:
        states[2] = negated_states[0]
    wrong = state[0] if isinstance(state, tuple) else (state, state)
    calls = [(given, s) for given in (x, negated, x.as_subclass(Other)) for s in states]
    calls += [(x, wrong), (x.double(), state), (x[..., :3], state), (x[..., :0], state)]
    calls += [(x.numpy(), state), (x.to("meta"), state), (x, 3), (x.expand(2, *x.shape), state)]
    with torch.no_grad():
        for given, s in calls:
            try:
                want = theirs(given, s)
            except Exception as error:
                with pytest.raises(type(error)) as raised:
                    ours(given, s)
                assert str(raised.value) == str(error)
            else:
                got = ours(given, s)
                assert_near(got, want)
                assert [type(t) for t in flat(got)] == [type(t) for t in flat(want)]


def test_another_backend(taken, monkeypatch):
    ours, theirs = known("gru")
    x = one_step("gru")
    monkeypatch.setattr(_backend, "_current", _backend.load("numpy"))
    with torch.no_grad():
        assert_near(ours(x), theirs(x))
    assert not any(taken)


def test_contents_that_come_back(taken):
    """A pack of what the weights were before is none of what they are."""
    batch, steps = CALLS["packed"]
    ours, theirs = known("gru", batch, steps)
    x = one_step("gru", batch, steps)
    with torch.no_grad():
        for factor in (2, 0.5, 1, -1):
            for module in (ours, theirs):
                module.weight_hh_l0.data.mul_(factor)
            assert_near(ours(x), theirs(x))
    assert taken == [False, False, False, True, False]


@pytest.mark.parametrize("call", CALLS)
def test_wrong_calls_of_the_stack(native, call):
    batch, steps = CALLS[call]
    layer, _ = known("gru", batch, steps)
    ((_, stack, seen),) = layer._rnnfast._parameters._again.values()
    weights, x = tuple(p.detach() for p in layer.parameters()), one_step("gru", batch, steps)
    place = native.place(weights)
    assert seen == (None if call == "borrowed" else native.fingerprint(weights))
    for given in (
        (),
        (place, weights, x, None, 1),
        (b"", (), 1, 2),
        ("", weights, x, None, 1, seen),
        (place, [*weights], x, None, 1, seen),
        (place, weights, x, None, "two", seen),
        (place, weights, x, None, 1, "seen"),
    ):
        with pytest.raises(TypeError):
            stack(*given)
    with pytest.raises(OverflowError):
        stack(place, weights, x, None, 1, 1 << 64)
    assert stack("", (), None, None, 1, seen) is NotImplemented
    for right in (seen, None, native.fingerprint(weights)):
        assert stack(place, weights, x, None, 1, right) is not NotImplemented
    assert stack(place, weights, x, None, 1, native.fingerprint(weights) ^ 1) is NotImplemented
    assert stack(place, weights[:3], x, None, 1, seen) is NotImplemented
    assert stack(place[:-1], weights, x, None, 1, seen) is NotImplemented
    other = (*weights[:3], weights[3].clone())
    assert stack(place, other, x, None, 1, seen) is NotImplemented
