"""Weights in other memory at each call, as of pruning and weight dropout: no less right."""

from __future__ import annotations

import gc
import importlib
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch_models import packs_made  # noqa: E402
from torch_twins import CELLS, LAYERS, flat, normal, state_for, twins  # noqa: E402

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there

caches = importlib.import_module("rnnfast.torch.cache")
exchange = importlib.import_module("rnnfast.torch.exchange")

KINDS = [*LAYERS, *CELLS]
ROWS = 2
pytestmark = pytest.mark.usefixtures("native")


def with_tensors(kind, **options):
    """Twins whose weights are attributes, which each call may give anew."""
    pair = twins(kind, **options)
    for module in pair:
        for name, parameter in list(module.named_parameters()):
            delattr(module, name)
            setattr(module, name, parameter.detach())
        module.flatten_parameters = lambda: None
    return pair


def names_of(module):
    return [n for n in vars(module) if n.startswith(("weight_", "bias_"))]


def renew(pair, change):
    """Gives both the same changed weights in new memory, and returns them."""
    ours, theirs = pair
    made = []
    for name in names_of(ours):
        value = change(getattr(theirs, name))
        for module in pair:
            own = value.detach().clone().requires_grad_(value.requires_grad)
            setattr(module, name, own)
            made.append(own)
    return made


def inputs_for(kind, steps):
    return normal(*(() if kind in CELLS else (steps,)), ROWS, 4)


def assert_same(pair, x, state):
    found = [flat(module(x, state)) for module in pair]
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    return found


@pytest.fixture
def asked(monkeypatch):
    """How often weights were asked all that shows whether the kernels take them."""
    count, fits = [], caches.fits
    monkeypatch.setattr(caches, "fits", lambda *args: count.append(1) or fits(*args))
    return count


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_each_call_has_its_own(kind, steps, asked):
    pair = with_tensors(kind)
    x, state = inputs_for(kind, steps), state_for(pair[1], ROWS)
    before = None
    for turn in range(4):
        renew(pair, lambda w, turn=turn: w + 0.1 * turn)
        with torch.no_grad():
            (got, *_), _ = assert_same(pair, x, state)
        assert before is None or not torch.equal(got, before)
        before = got
    assert len(asked) == 1 or not exchange._IS_DIRECT


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_at_those_of_the_call(kind, steps):
    pair = with_tensors(kind)
    x, state = inputs_for(kind, steps), state_for(pair[1], ROWS)
    for _ in range(3):
        weights = renew(pair, lambda w: (w.detach() * 1.1).requires_grad_())
        for outputs in assert_same(pair, x, state):
            sum(out.cos().sum() for out in outputs).backward()
        for got, want in zip(weights[::2], weights[1::2], strict=True):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not exchange._IS_DIRECT, reason="this torch exchanges arrays alone")
def test_the_same_contents_elsewhere_are_packed_once(monkeypatch):
    """As those of a mask that stays."""
    pair = with_tensors("gru")
    x = inputs_for("gru", 5)
    made = packs_made(monkeypatch)
    with torch.no_grad():
        for _ in range(3):
            renew(pair, torch.clone)
            assert_same(pair, x, None)
        assert len(made) == 1
        renew(pair, lambda w: 2 * w)
        assert_same(pair, x, None)
    assert len(made) == 2


def test_what_the_kernels_do_not_take_comes_in_between():
    pair = with_tensors("gru")
    x = inputs_for("gru", 1)

    def odd(weight):
        """In each form that memory may have: the first is as the kernels take it."""
        size = weight.shape
        yield weight.clone()
        yield torch._neg_view(-weight)
        yield weight.t().contiguous().t() if weight.dim() == 2 else weight[:1].expand(size)
        yield torch._efficientzerotensor(size)
        yield torch.cat([weight, weight])[: len(weight)]
        yield torch.zeros(())[None].expand(weight.numel()).view(size)
        memory = bytearray(weight.numel() * 4 + 1)
        unaligned = torch.frombuffer(memory, dtype=torch.float32, offset=1).view(size)
        yield unaligned.copy_(weight)
        yield weight.clone()

    names = names_of(pair[0])
    forms = {name: list(odd(getattr(pair[1], name))) for name in names}
    with torch.no_grad():
        for turn in range(8):
            for name in names:
                pair[0].__dict__[name] = forms[name][turn]
                pair[1].__dict__[name] = forms[name][turn].clone().contiguous()
            assert_same(pair, x, None)


def test_of_another_shape_or_dtype_torch_tells():
    pair = with_tensors("rnn_tanh")
    x = inputs_for("rnn_tanh", 1)
    for change in (lambda w: torch.cat([w, w]), lambda w: w.double()):
        with torch.no_grad():
            assert_same(pair, x, None)
            told, own = [], dict(vars(pair[0]))
            for module in pair:
                module.weight_hh_l0 = change(module.weight_hh_l0)
                with pytest.raises((RuntimeError, ValueError)) as error:
                    module(x)
                told.append(str(error.value))
                module.weight_hh_l0 = own["weight_hh_l0"]
        assert told[0] == told[1]


@pytest.mark.parametrize("left", [0, 0.5])
def test_without_all_of_their_memory_they_are_torch_s(left):
    """As where parameters are sharded, whose storage is given back."""
    ours, _ = pair = with_tensors("lstm")
    with torch.no_grad():
        assert_same(pair, inputs_for("lstm", 1), None)
    cache = caches.PackCache.of(ours)
    kind = ours._kind(cache)
    weights = [w.clone() for w in ours._weights(cache)]
    assert cache.get(kind, tuple(weights)) is not None
    weights[1] = weights[1].clone()
    storage = weights[1].untyped_storage()
    storage.resize_(int(storage.nbytes() * left))
    assert cache.get(kind, tuple(weights)) is None


def test_others_that_were_replaced_are_not_kept():
    """By what makes borrowing the next ones quicker."""
    ours, _ = twins("gru")
    with torch.no_grad():
        ours(inputs_for("gru", 1))
    old = [weakref.ref(p.untyped_storage()) for p in ours.parameters()]
    for parameter in ours.parameters():
        parameter.data = parameter.detach().clone()
    with torch.no_grad():
        ours(inputs_for("gru", 5))
    gc.collect()
    assert [storage() for storage in old] == [None] * 4


def test_other_memory_while_it_is_looked_at(monkeypatch):
    """As by another thread: what is kept is of one memory."""
    packs = importlib.import_module("rnnfast.torch.packs")
    pair = twins("gru")
    x = inputs_for("gru", 1)
    first, other = ([p.detach() * k for p in pair[0].parameters()] for k in (2, -1))
    with torch.no_grad():
        pair[0](x)
        for parameter, data in zip(pair[0].parameters(), first, strict=True):
            parameter.data = data
        asked = packs.has_memory

        def swapping(tensor):
            for parameter, data in zip(pair[0].parameters(), other, strict=True):
                parameter.data = data
            return asked(tensor)

        monkeypatch.setattr(packs, "has_memory", swapping)
        pair[0](x)
        monkeypatch.undo()
        for own, theirs, data in zip(*(m.parameters() for m in pair), first, strict=True):
            own.data = theirs.data = data
        for _ in range(2):
            assert_same(pair, x, None)


def test_a_promise_is_for_the_memory_it_was_given_for():
    pair = twins("gru")
    x = inputs_for("gru", 1)
    rt.freeze(pair[0])
    with torch.no_grad():
        assert_same(pair, x, None)
        for _ in range(2):
            for module in pair:
                for parameter in module.parameters():
                    parameter.data = parameter.data * 2
            assert_same(pair, x, None)


def test_what_tells_of_the_place(native):
    """The compiled module's `moved`."""
    if not exchange._IS_DIRECT:
        pytest.skip("tensors are not taken as they are")
    first, other = (torch.randn(3, 2), torch.randn(4)), (torch.randn(3, 2), torch.randn(4))
    place = native.place(first)
    assert native.moved(place, first) == place
    assert native.moved(place, other) == native.place(other) != place
    assert native.moved(place, (torch.nn.Parameter(other[0]), other[1])) == native.place(other)
    for wrong in [
        (),
        other[:1],
        (*other, other[0]),
        other[::-1],
        (other[0].double(), other[1]),
        (torch.randn(2, 3), other[1]),
        (torch.randn(2, 3).t(), other[1]),
        (torch._neg_view(other[0]), other[1]),
        (other[0].numpy(), other[1]),
        (None, other[1]),
        (other[0].to("meta"), other[1]),
    ]:
        assert native.moved(place, wrong) is None
    for wrong in [(place,), (place, list(other)), (None, other), (place, other, None)]:
        with pytest.raises(TypeError):
            native.moved(*wrong)
