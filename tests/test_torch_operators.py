"""The registered operators `rnnfast::forward` and `rnnfast::backward`, called by their names."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch_twins import LAYERS, OUTPUT, assert_like, flat, normal, state_for, twins  # noqa: E402

from rnnfast.torch.kinds import DTYPES  # noqa: E402

pytestmark = pytest.mark.usefixtures("native")

STEPS, BATCH = 3, 2

# The options that change how many weights there are, and of which shapes.
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False, "bidirectional": True},
    {"bias": False, "num_layers": 2},
]


def forward(*args):
    return torch.ops.rnnfast.forward(*args)


def backward(*args):
    return torch.ops.rnnfast.backward(*args)


def sample(kind, options, dtype=torch.float32, with_states=True, requires_grad=False):
    """The arguments of `forward` for a layer of `kind`, and torch.nn's result for them."""
    _, theirs = twins(kind, dtype=dtype, **options)
    x = normal(STEPS, BATCH, theirs.input_size, dtype=dtype)
    state = state_for(theirs, BATCH, dtype) if with_states else None
    h0, c0 = (*flat(() if state is None else state), None, None)[:2]
    cell = kind.removesuffix("_projected")
    directions = 1 + theirs.bidirectional
    weights = [w.detach().clone() for w in theirs._flat_weights]
    tensors = [t for t in (x, h0, c0, *weights) if t is not None]
    with torch.no_grad():
        want = theirs(x, state)
    for tensor in tensors:
        tensor.requires_grad_(requires_grad)
    return (x, h0, c0, weights, cell, directions, theirs.bias), want


def backward_sample(kind, options, dtype=torch.float32, with_states=True, wanted=None):
    """The arguments of `backward` for the same."""
    args, _ = sample(kind, options, dtype, with_states)
    y, h, c, tape = forward(*args, True)
    x, h0, c0, weights, *own = args
    ends = [normal(*end.shape, dtype=dtype, seed=30 + i) for i, end in enumerate((y, h))]
    dc = normal(*c.shape, dtype=dtype, seed=32) if c.numel() else None
    wanted = [t is not None for t in (x, h0, c0, *weights)] if wanted is None else wanted
    return (*ends, dc, x, h0, c0, weights, y, tape, *own, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_values_are_those_of_torch_nn(kind, options, dtype):
    keeps = not kind.startswith("rnn") or "num_layers" in options  # beside the RNN's y
    for with_states in (False, True):
        args, want = sample(kind, options, dtype, with_states)
        for training in (False, True):
            y, h, c, tape = forward(*args, training)
            got = [y, h, c] if c.numel() else [y, h]
            assert_like(got, want, OUTPUT[dtype])
            assert (tape.numel() > 0) is (training and keeps)


# Of two dtypes one takes seconds more.
BOTH = [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)]


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize(
    ("kind", "options"), [*((kind, OPTIONS[1]) for kind in LAYERS), ("lstm", OPTIONS[3])], ids=str
)
def test_opcheck_of_forward(kind, options, dtype):
    """Schema, fake implementation, gradients, and static and dynamic shapes under AOT dispatch."""
    args, _ = sample(kind, options, dtype, requires_grad=True)
    torch.library.opcheck(torch.ops.rnnfast.forward.default, (*args, True))


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", ["gru", "lstm_projected"])
def test_opcheck_of_inference(kind, dtype):
    args, _ = sample(kind, {}, dtype, with_states=False)
    torch.library.opcheck(torch.ops.rnnfast.forward.default, (*args, False))


@pytest.mark.parametrize("kind", LAYERS)
def test_same_arguments_give_the_same_bits(kind):
    """In the tape as well: nothing in it is what happened to lie in memory."""
    args, _ = sample(kind, {"num_layers": 2})
    first = [result.clone() for result in forward(*args, True)]
    for size in {result.numel() for result in first}:
        torch.full((16, size), float("nan"))  # freed at once: memory that the next call may take
    for a, b in zip(forward(*args, True), first, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", LAYERS)
def test_opcheck_of_backward(kind, dtype):
    args = backward_sample(kind, OPTIONS[1], dtype)
    torch.library.opcheck(torch.ops.rnnfast.backward.default, args)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_opcheck_of_copy(dtype):
    y = normal(4, 3, 5).to(dtype).requires_grad_()
    torch.library.opcheck(torch.ops.rnnfast.copy.default, (y,))
    torch.library.opcheck(torch.ops.rnnfast.copy.default, (y.detach().transpose(0, 1),))


def test_opcheck_of_backward_with_gradients_of_some_results():
    args = list(backward_sample("lstm", {}, with_states=False))
    args[0] = args[2] = None
    torch.library.opcheck(torch.ops.rnnfast.backward.default, tuple(args))


@pytest.mark.parametrize("unwanted", range(7))
def test_an_unwanted_gradient_has_no_elements_and_the_others_stay(unwanted):
    every = flat(backward(*backward_sample("lstm", {})))
    wanted = [i != unwanted for i in range(7)]
    got = flat(backward(*backward_sample("lstm", {}, wanted=wanted)))
    assert got[unwanted].numel() == 0
    for index, (a, b) in enumerate(zip(got, every, strict=True)):
        if index != unwanted:
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_gradients_of_gradients():
    """`gradgradcheck` of the operator: `rnnfast::backward` is differentiable in all it is given."""
    for kind in ("gru", "lstm_projected"):
        args, _ = sample(kind, {}, torch.float64, requires_grad=True)
        x, h0, c0, weights, *own = args
        given = [t for t in (x, h0, c0, *weights) if t is not None]

        def run(*tensors, has_c=c0 is not None, own=tuple(own)):
            x, h0, *rest = tensors
            c0 = rest.pop(0) if has_c else None
            results = forward(x, h0, c0, rest, *own, True)
            return results[: 2 + has_c]

        assert torch.autograd.gradcheck(run, given)
        assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_results_share_no_memory(kind, training):
    args, _ = sample(kind, {"num_layers": 2})
    results = forward(*args, training)
    assert_nothing_is_shared([*flat(args[:3]), *args[3]], results)


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_share_no_memory(kind):
    args = backward_sample(kind, {"num_layers": 2})
    assert_nothing_is_shared(
        flat([part for part in args[:9] if part is not None]), flat(backward(*args))
    )


def assert_nothing_is_shared(given, results):
    filled = [t for t in results if t.numel()]
    seen = {t.untyped_storage().data_ptr() for t in given}
    for tensor in filled:
        assert tensor.untyped_storage().data_ptr() not in seen
        seen.add(tensor.untyped_storage().data_ptr())
        assert tensor.is_contiguous()


def test_strided_arguments():
    """Views of any strides give what their contiguous copies give."""
    args, _ = sample("lstm", {})
    x, h0, c0, weights, *own = args
    views = [t.mT.contiguous().mT if t.dim() > 1 else t for t in (x, h0, c0, *weights)]
    assert not views[0].is_contiguous() and not views[3].is_contiguous()
    got = forward(*views[:3], views[3:], *own, True)
    for a, b in zip(got[:3], forward(*args, True)[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    arguments = backward_sample("lstm", {})
    strided = [t.mT.contiguous().mT if isinstance(t, torch.Tensor) else t for t in arguments[:8]]
    for a, b in zip(
        flat(backward(*strided, *arguments[8:])), flat(backward(*arguments)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_weights_changed_in_place_are_seen():
    """What `_version` does not tell: packs are found by the weights' contents."""
    args, _ = sample("gru", {})
    before = forward(*args, False)[0].clone()
    args[3][1].data.mul_(0.5)
    after = forward(*args, False)[0]
    assert not torch.equal(before, after)
    copies = [w.clone() for w in args[3]]
    torch.testing.assert_close(forward(*args[:3], copies, *args[4:], False)[0], after)


class Own(torch.Tensor):
    pass


def test_subclasses_hold_what_tensors_do():
    """As where a model is compiled or counted whose inputs are of a class of their own."""
    (x, *rest), _ = sample("gru", {})
    found = [flat(forward(given, *rest, True)) for given in (x, x.as_subclass(Own))]
    for want, got in zip(*found, strict=True):
        assert torch.equal(got.as_subclass(torch.Tensor), want)
