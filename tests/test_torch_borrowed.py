"""One step of few rows, which reads parameters where they lie: as they are, and in safety."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_models import packs_made  # noqa: E402
from torch_twins import CELLS, LAYERS, flat, normal, state_for, twins  # noqa: E402

import rnnfast.torch as rt  # noqa: E402  after torch is known to be there

KINDS = [*LAYERS, *CELLS]
pytestmark = pytest.mark.usefixtures("native")


def one_step(kind: str, rows: int = 2, seed: int = 3) -> torch.Tensor:
    return normal(*(() if kind in CELLS else (1,)), rows, 4, seed=seed)


def passes(module, x, state, *, before_backward=lambda: None):
    """Results and gradients, at parameters, x and the states."""
    given = [x, *flat(state)]
    given = [tensor.detach().clone().requires_grad_() for tensor in given]
    outputs = flat(module(given[0], given[1] if len(given) == 2 else tuple(given[1:])))
    before_backward()
    parameters = list(module.parameters())
    loss = sum(out.cos().sum() for out in outputs)
    return [out.detach() for out in outputs], torch.autograd.grad(loss, [*parameters, *given])


def assert_near(found, wanted):
    for got, want in zip(flat(found), flat(wanted), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_packed_and_each_change_shows(kind, monkeypatch):
    ours, theirs = twins(kind)
    made = packs_made(monkeypatch)
    x, state = one_step(kind), state_for(theirs, 2)
    for change in (
        lambda w: None,
        lambda w: w.data.mul_(-2),
        lambda w: w.data[1:].view(-1).add_(1),
    ):
        for module in (ours, theirs):
            change(next(module.parameters()))
        with torch.no_grad():
            assert_near(ours(x, state), theirs(x, state))
        assert_near(passes(ours, x, state), passes(theirs, x, state))
    assert not made


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "bias": False}])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_bits_of_packed_weights(kind, options, monkeypatch):
    ours, _ = twins(kind, **options)
    x, state = one_step(kind), state_for(ours, 2)
    found = passes(ours, x, state)
    made = packs_made(monkeypatch)
    packed = passes(rt.freeze(ours), x, state)
    assert made
    assert all(map(torch.equal, flat(found), flat(packed)))
    rows = normal(1, 40, 4)
    in_a_batch, _ = ours(rows)
    alone, _ = rt.unfreeze(ours)(rows[:, 7:8])
    assert torch.equal(in_a_batch[:, 7:8], alone)


def test_more_steps_or_rows_are_packed(monkeypatch):
    ours, theirs = twins("gru")
    made = packs_made(monkeypatch)
    with torch.no_grad():
        for x in (normal(2, 1, 4), normal(1, 9, 4), normal(3, 4)):
            assert_near(ours(x), theirs(x))
        assert len(made) == 1
        ours(one_step("gru"))
    assert len(made) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_memory_that_was_freed_and_is_back_elsewhere(kind):
    """As with those who shard parameters, who give their memory back between the passes."""
    ours, theirs = twins(kind)
    x, state = one_step(kind), state_for(theirs, 2)
    kept, moved = [], []

    def swap():
        for parameter in ours.parameters():
            storage, before = parameter.untyped_storage(), parameter.data_ptr()
            values, size = parameter.detach().clone(), storage.size()
            storage.resize_(0)
            kept.extend(torch.full((size // 4,), torch.nan) for _ in range(50))  # where that was
            storage.resize_(size)
            moved.append(parameter.data_ptr() != before)
            with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(parameter):
                parameter.copy_(values)

    assert_near(passes(ours, x, state, before_backward=swap), passes(theirs, x, state))
    assert any(moved)


def test_storage_given_back_while_others_take_its_place():
    """What had been packed was of the first storage, of which nothing is left."""
    ours, theirs = twins("gru")
    x = normal(6, 3, 4)
    with torch.no_grad():
        ours(x)
        for parameter in ours.parameters():
            before, values = parameter.data_ptr(), parameter.detach().clone()
            parameter.untyped_storage().resize_(0)
            tried = [torch.empty_like(values) for _ in range(50)]
            parameter.data = next((t for t in tried if t.data_ptr() == before), tried[0])
            parameter.copy_(values)
        assert_near(ours(x), theirs(x))


@pytest.mark.parametrize("kind", KINDS)
def test_other_memory_between_the_passes(kind):
    found = []
    for module in twins(kind):
        x, state = one_step(kind), state_for(module, 2)

        def swap(module=module):
            for parameter in module.parameters():
                parameter.data = parameter.data * 1.0

        found.append(passes(module, x, state, before_backward=swap))
    assert_near(*found)


def test_saved_parameters_moved_by_hooks():
    ours, theirs = twins("lstm")
    x, state = one_step("lstm"), state_for(theirs, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.double(), lambda t: t.float()):
        found = passes(ours, x, state)
    assert_near(found, passes(theirs, x, state))


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_of_steps_of_few_and_of_many_rows(kind):
    """Whose weights' gradients are computed together."""
    found = []
    for module in twins(kind):
        x = normal(4, 20, 4).requires_grad_()
        state, total = None, 0
        for rows, step in zip((2, 2, 20, 20), x, strict=True):
            if rows == 20 and state is not None and len(flat(state)[0]) == 2:
                state = None
            state = module(step[:rows], state)
            total = total + sum(s.cos().sum() for s in flat(state))
        found.append(torch.autograd.grad(total, [x, *module.parameters()]))
    assert_near(*found)
