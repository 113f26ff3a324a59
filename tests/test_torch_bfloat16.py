"""Modules in bfloat16: no further from the same computed in float64 than torch.nn's own."""

from __future__ import annotations

import copy
import importlib
import threading

import pytest
from tolerances import BFLOAT16, assert_close, relative_error

import rnnfast

torch = pytest.importorskip("torch")

from torch_models import packs_made  # noqa: E402  after torch is known to be there
from torch_modules import (  # noqa: E402
    CELLS,
    LAYERS,
    MODULES,
    arrange,
    by_kernels,
    flat,
    inputs_for,
    make,
    normal,
    outcome,
    run,
)

rt = importlib.import_module("rnnfast.torch")

INPUT, HIDDEN, STEPS, BATCH = 20, 24, 12, 4
DEEP = {"num_layers": 2, "bidirectional": True}
OPTIONS = [
    *((kind, {}) for kind in MODULES),
    *((kind, {"bias": False}) for kind in MODULES),
    *((kind, {**DEEP, "batch_first": True}) for kind in LAYERS),
]

# Half an ULP, by which a result is rounded that is right in every bit: errors as small as that are
# no more than chance.
ROUNDING = 2.0**-9

# On other backends each call is torch's own, which does not keep all that is promised here.
pytestmark = [
    pytest.mark.usefixtures("native"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]


def three(kind, **options):
    """Ours and torch.nn's in bfloat16, and torch.nn's with the same values in float64."""
    ours, theirs = (
        make(place, kind, INPUT, HIDDEN, dtype=torch.bfloat16, **options)
        for place in (rt, torch.nn)
    )
    return ours, theirs, copy.deepcopy(theirs).double()


def results_and_gradients(module, tensors, arranged=arrange):
    """Of a call on the tensors in the module's dtype, and of a loss with bfloat16's values."""
    dtype = next(module.parameters()).dtype
    own = [t.to(dtype).clone().requires_grad_() for t in tensors]
    results = run(module, own, arranged)
    ends = [
        normal(*r.shape, dtype="bfloat16", stream=50 + k).to(dtype) for k, r in enumerate(results)
    ]
    return results, torch.autograd.grad(results, [*own, *module.parameters()], ends)


def assert_no_further(got, theirs, truth, what):
    """From `truth` than `theirs`, or, where these are exact, than rounding takes one."""
    own, other = (relative_error(t.detach().double(), truth.detach()) for t in (got, theirs))
    assert own <= max(1.1 * other, ROUNDING), f"{what}: {own:.1e}, torch's own {other:.1e}"
    assert own <= BFLOAT16, f"{what}: {own:.1e}"


def packed_arrange(lengths):
    def arranged(x, *states):
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
        return (packed, *arrange(x, *states)[1:])

    return arranged


def assert_as_good(modules, tensors, arranged=arrange):
    """Results with and without gradients, and gradients; and all in torch's dtypes and layout."""
    ours, theirs, exact = modules
    want, d_want = results_and_gradients(theirs, tensors, arranged)
    truth, d_truth = results_and_gradients(exact, tensors, arranged)
    with by_kernels():
        got, d_got = results_and_gradients(ours, tensors, arranged)
        with torch.no_grad():
            inferred = run(ours, tensors, arranged)
    for k, (a, b, c, d) in enumerate(zip(got, inferred, want, truth, strict=True)):
        assert type(a) is type(b) is type(c) is torch.Tensor
        assert a.dtype is b.dtype is c.dtype is torch.bfloat16
        assert torch.equal(a, b)
        assert a.stride() == b.stride() == c.stride()
        assert_no_further(a, c, d, f"result {k}")
    names = ["x", "h0", "c0"][: len(tensors)] + [name for name, _ in ours.named_parameters()]
    for name, a, c, d in zip(names, d_got, d_want, d_truth, strict=True):
        assert a.dtype is c.dtype is torch.bfloat16
        if getattr(ours, "nonlinearity", "") == "relu":  # a rounding decides the side of the kink
            assert_close(a.double(), d, 0.1, name)
        else:
            assert_no_further(a, c, d, name)


@pytest.mark.parametrize(("kind", "options"), OPTIONS, ids=str)
def test_padded(kind, options):
    modules = three(kind, **options)
    for states in (True, False):
        given = inputs_for(modules[1], BATCH, STEPS, states)
        assert_as_good(modules, given)


@pytest.mark.parametrize("kind", MODULES)
def test_unbatched_and_strided(kind):
    modules = three(kind)
    assert_as_good(modules, inputs_for(modules[1], None, STEPS))
    x, *states = inputs_for(modules[1], BATCH, STEPS)
    apart = [torch.stack([t, t], -1)[..., 0] for t in (x, *states)]
    with by_kernels(), torch.no_grad():
        got, want = (run(modules[0], t) for t in (apart, (x, *states)))
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("options", [{}, DEEP], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_packed(kind, options):
    modules = three(kind, **options)
    arranged = packed_arrange([3, STEPS, 1, 7])
    assert_as_good(modules, inputs_for(modules[1], BATCH, STEPS), arranged)


@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_drops_what_torch_s_drops(kind):
    """From the same seed; another mask would be an error of about one."""
    ours, theirs, _ = three(kind, num_layers=2, dropout=0.5)
    given = inputs_for(theirs, BATCH, STEPS)
    with by_kernels():
        got, d_got = results_and_gradients(ours, given)
    want, d_want = results_and_gradients(theirs, given)
    for a, b in zip([*got, *d_got], [*want, *d_want], strict=True):
        assert a.dtype is b.dtype
        assert_close(a.detach().double(), b.detach().double(), 0.1)


@pytest.mark.parametrize("kind", ["gru", "lstm", "gru_cell", "lstm_cell"])
def test_gradients_of_gradients(kind):
    ours, _, exact = three(kind)
    found = []
    for module in (ours, exact):
        dtype = next(module.parameters()).dtype
        x, *states = (t.to(dtype).requires_grad_() for t in inputs_for(module, 2, 3))
        out = flat(module(*arrange(x, *states)))[0]
        at = [x, *module.parameters()]
        first = torch.autograd.grad(out.double().pow(2).sum(), at, create_graph=True)
        found.append(torch.autograd.grad(sum(g.double().pow(2).sum() for g in first), at))
    for a, b in zip(*found, strict=True):
        assert a.dtype is torch.bfloat16
        assert_close(a.double(), b, BFLOAT16)


@pytest.mark.parametrize("mistake", ["x", "states", "h0", "width", "float32 module"])
@pytest.mark.parametrize("kind", MODULES)
def test_errors_are_torch_s(kind, mistake):
    ours, theirs, _ = three(kind)
    x, *states = inputs_for(theirs, BATCH, STEPS)
    given = {
        "x": (x.float(), *states),
        "states": (x, *(s.float() for s in states)),
        "h0": (x, states[0].float(), *states[1:]),
        "width": (x[..., 1:], *states),
        "float32 module": (x, *states),
    }[mistake]
    if mistake == "float32 module":
        ours.float(), theirs.float()
    got, want = (outcome(lambda m=m: m(*arrange(*given))) for m in (ours, theirs))
    assert isinstance(want, tuple)
    assert got == want


def test_large_tensors_without_gradients():
    """Which are converted into memory of the kernels; where x needs a gradient, into torch's."""
    ours, _, _ = three("gru", batch_first=True)
    x = normal(64, 128, INPUT, dtype="bfloat16")
    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        want, last = ours(given.clone().requires_grad_())
        with torch.no_grad():
            got, end = ours(given)
            kept = got.clone()
            ours(-given)  # does not write where the result is
        assert got.dtype is torch.bfloat16 and got.stride() == want.stride()
        assert got.transpose(0, 1).is_contiguous()
        assert torch.equal(got, want) and torch.equal(end, last) and torch.equal(got, kept)


@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
def test_weights_are_packed_when_they_change_alone(kind, monkeypatch):
    ours, theirs, _ = three(kind)
    given = inputs_for(theirs, BATCH, STEPS)
    packed = packs_made(monkeypatch)
    with torch.no_grad():
        before = run(ours, given)
        assert all(map(torch.equal, run(ours, given), before))
        assert len(packed) == 1
        weight = next(ours.parameters())
        value = weight[0, 0].clone()
        weight.data[0, 0] += 1
        assert not torch.equal(run(ours, given)[0], before[0])
        assert len(packed) == 2
        rt.freeze(ours)
        run(ours, given)
        weight.data[0, 0] = value
        run(ours, given)
        assert len(packed) == 3  # once more, at the promise
        rt.unfreeze(ours)
        assert all(map(torch.equal, run(ours, given), before))


def test_a_module_that_changes_its_dtype():
    ours, theirs, _ = three("lstm")
    given = inputs_for(theirs, BATCH, STEPS)
    with torch.no_grad(), by_kernels():
        first = run(ours, given)
        wide = run(ours.float(), [t.float() for t in given])
        again = run(ours.bfloat16(), given)
    assert all(map(torch.equal, first, again))
    assert wide[0].dtype is torch.float32
    assert_close(first[0].double(), wide[0].double(), BFLOAT16)


def test_several_threads():
    """Which have the weights copied before they are packed."""
    ours, theirs, _ = three("gru")
    given = inputs_for(theirs, BATCH, STEPS)
    with torch.no_grad():
        want = run(ours, given)
        rt.unfreeze(ours)  # drops the packs
        done = threading.Event()
        other = threading.Thread(target=done.wait)
        other.start()
        try:
            found = run(ours, given)
        finally:
            done.set()
        other.join()
    assert all(map(torch.equal, found, want))


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_of_steps(kind):
    """Whose weights' gradients are of all steps together."""
    ours, theirs, exact = three(kind)
    xs = normal(STEPS, BATCH, INPUT, dtype="bfloat16")
    found = []
    for module in (ours, theirs, exact):
        state, dtype = None, next(module.parameters()).dtype
        for x in xs.to(dtype):
            state = module(x, state)
        value = flat(state)[0].double().pow(2).sum()
        found.append(torch.autograd.grad(value, list(module.parameters())))
    for name, a, b, c in zip(dict(ours.named_parameters()), *found, strict=True):
        assert a.dtype is torch.bfloat16
        assert_no_further(a, b, c, name)


def test_training_beside_torch_nn():
    losses = []
    for module in three("lstm"):
        dtype = next(module.parameters()).dtype
        x = normal(STEPS, BATCH, INPUT, dtype="bfloat16").to(dtype)
        goal = normal(BATCH, HIDDEN, dtype="bfloat16", stream=7).tanh().to(dtype)
        optimiser = torch.optim.SGD(module.parameters(), lr=2.0)
        for _ in range(20):
            value = (module(x)[0][-1] - goal).pow(2).mean()
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        losses.append(float(value.detach()))
    assert losses[0] == pytest.approx(losses[2], rel=0.1)
    assert losses[0] < 0.5


def test_other_backends_leave_it_to_torch():
    rnnfast.set_backend("numpy")
    ours, theirs, _ = three("gru")
    given = inputs_for(theirs, BATCH, STEPS)
    assert all(map(torch.equal, run(ours, given), run(theirs, given)))
