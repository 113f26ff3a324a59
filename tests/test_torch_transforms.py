"""`torch.func`, against torch.nn's own or explicit loops."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.func import (  # noqa: E402
    functional_call,
    functionalize,
    grad,
    jacrev,
    stack_module_state,
    vjp,
    vmap,
)
from torch_functions import (  # noqa: E402
    BATCH,
    DEEP,
    DERIVATIVE,
    DOUBLE,
    EVERY,
    SAMPLES,
    SOME,
    STEPS,
    VALUE,
    as_function,
    ensemble,
    inputs,
    loop,
    pair,
    parameters,
)
from torch_twins import (  # noqa: E402
    CELLS,
    INPUT,
    OUTPUT,
    assert_like,
    flat,
    loss,
    normal,
    state_for,
    twins,
)

pytestmark = [
    # On other backends calls run by torch's own layers, some of which torch has no rules for.
    pytest.mark.usefixtures("native"),
    # Torch itself warns where its vmap loops over samples, which its layers' operations make it do.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


@pytest.mark.parametrize("kind", EVERY)
def test_vmap_over_x(kind):
    ours, theirs = pair(kind)
    x = inputs(kind, SAMPLES)
    assert_like(vmap(ours)(x), loop(theirs, x), VALUE)
    assert_like(vmap(ours, in_dims=1)(x.movedim(0, 1)), loop(theirs, x), VALUE)


@pytest.mark.parametrize("kind", EVERY)
def test_vmap_over_states(kind):
    ours, theirs = pair(kind)
    x, state = inputs(kind, SAMPLES), state_for(theirs, BATCH, DOUBLE)
    several = [torch.stack([s * k for k in range(SAMPLES)]) for s in flat(state)]

    def form(states):
        return tuple(states) if len(states) == 2 else states[0]

    shared = loop(lambda sample: theirs(sample, state), x)
    assert_like(vmap(ours, in_dims=(0, None))(x, state), shared, VALUE)
    both = loop(lambda sample, *own: theirs(sample, form(own)), x, *several)
    assert_like(vmap(ours)(x, form(several)), both, VALUE)
    alone = loop(lambda *own: theirs(x[0], form(own)), *several)
    assert_like(vmap(ours, in_dims=(None, 0))(x[0], form(several)), alone, VALUE)


@pytest.mark.parametrize("options", [DEEP, {"batch_first": True}, {"bias": False}], ids=str)
def test_vmap_of_options(options):
    ours, theirs = pair("lstm", **options)
    x = inputs("lstm", SAMPLES)
    assert_like(vmap(ours)(x), loop(theirs, x), VALUE)


@pytest.mark.parametrize("kind", SOME)
def test_vmap_of_unbatched_calls(kind):
    """What is a batch to the user may be one to vmap alone."""
    ours, theirs = pair(kind)
    x = inputs(kind)
    axis = 0 if kind in CELLS else 1
    got = vmap(ours, in_dims=axis)(x)
    assert_like(got, loop(theirs, x.movedim(axis, 0)), VALUE)


@pytest.mark.parametrize("kind", EVERY)
def test_ensemble(kind):
    """`stack_module_state`: vmap over the weights, with an x for each member, or one for all."""
    ours, theirs, stacked = ensemble(kind)
    x = inputs(kind, SAMPLES)
    members = [{name: p[k] for name, p in stacked.items()} for k in range(SAMPLES)]
    run = as_function(ours)
    want = loop(as_function(theirs), members, x)
    assert_like(vmap(run)(stacked, x), want, VALUE)
    want = loop(lambda own: as_function(theirs)(own, x[0]), members)
    assert_like(vmap(run, in_dims=(0, None))(stacked, x[0]), want, VALUE)


def test_ensemble_of_modules():
    """As torch's tutorial has it; gradients reach the stacked parameters outside of the vmap."""
    modules = [pair("lstm", **DEEP)[0] for _ in range(2)]
    with torch.no_grad():
        for p in modules[1].parameters():
            p.mul_(0.5)
    stacked, buffers = stack_module_state(modules)
    x = inputs("lstm")

    def run(own, other):
        return functional_call(modules[0], (own, other), (x,))[0]

    y = vmap(run)(stacked, buffers)
    got = torch.autograd.grad(loss(y), list(stacked.values()))
    wanted = torch.stack([module(x)[0] for module in modules])
    assert_like(y, wanted, VALUE)
    own = [list(module.parameters()) for module in modules]
    want = torch.autograd.grad(loss(wanted), own[0] + own[1])
    count = len(own[0])
    assert_like(got, [torch.stack(p) for p in zip(want[:count], want[count:], strict=True)], 1e-12)


@pytest.mark.parametrize("kind", EVERY)
def test_grad(kind):
    ours, theirs = pair(kind)
    x = inputs(kind)
    got = grad(lambda own, x: loss(as_function(ours)(own, x)), argnums=(0, 1))(parameters(ours), x)
    x = x.requires_grad_()
    want = torch.autograd.grad(loss(theirs(x)), [*theirs.parameters(), x])
    assert_like([*got[0].values(), got[1]], want, DERIVATIVE)


@pytest.mark.parametrize("kind", EVERY)
def test_gradients_per_sample(kind):
    """vmap(grad) of the parameters: no sample's gradient holds another's."""
    ours, theirs = pair(kind)
    x = inputs(kind, SAMPLES)

    def of(module):
        return grad(lambda own, sample: loss(as_function(module)(own, sample)))

    got = vmap(of(ours), in_dims=(None, 0))(parameters(ours), x)
    want = loop(lambda sample: of(theirs)(parameters(theirs), sample).values(), x)
    assert_like(got.values(), want, DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_gradients_of_each_member_of_an_ensemble(kind):
    ours, theirs, stacked = ensemble(kind)
    x = inputs(kind, SAMPLES)
    members = [{name: p[k] for name, p in stacked.items()} for k in range(SAMPLES)]

    def of(module):
        return grad(lambda own, sample: loss(as_function(module)(own, sample)), argnums=(0, 1))

    got = vmap(of(ours))(stacked, x)
    want = loop(lambda own, sample: flat([of(theirs)(own, sample)[0].values()]), members, x)
    assert_like(got[0].values(), want, DERIVATIVE)
    assert_like(got[1], loop(lambda *given: of(theirs)(*given)[1], members, x), DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_gradients_outside_of_vmap(kind):
    """vmap of the module's call, with `backward` by autograd on what it gives."""
    ours, theirs = pair(kind)
    x = inputs(kind, SAMPLES).requires_grad_()
    got = torch.autograd.grad(loss(vmap(ours)(x)), [x, *ours.parameters()])
    want = torch.autograd.grad(loss(loop(theirs, x)), [x, *theirs.parameters()])
    assert_like(got, want, DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_jacrev(kind):
    ours, theirs = pair(kind)
    x = inputs(kind)
    got = jacrev(lambda x: flat(ours(x))[0])(x)
    want = torch.autograd.functional.jacobian(lambda x: flat(theirs(x))[0], x)
    assert_like(got, want, DERIVATIVE)
    got = jacrev(lambda own: flat(as_function(ours)(own, x))[0])(parameters(ours))
    want = jacrev(lambda own: flat(as_function(theirs)(own, x))[0])(parameters(theirs))
    assert_like(got.values(), want.values(), DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_vjp(kind):
    ours, theirs = pair(kind)
    x = inputs(kind)
    (result, pull), (want, wanted) = (vjp(lambda x, m=m: flat(m(x))[-1], x) for m in (ours, theirs))
    assert_like(result, want, VALUE)
    for cotangent in (torch.ones_like(want), normal(*want.shape, dtype=DOUBLE)):
        assert_like(pull(cotangent), wanted(cotangent), DERIVATIVE)


def second_order(module, x):
    """A derivative of a derivative in x and all parameters."""

    def first(own, x):
        found = grad(lambda *at: loss(as_function(module)(*at)), argnums=(0, 1))(own, x)
        return loss([*found[0].values(), found[1]])

    found = grad(first, argnums=(0, 1))(parameters(module), x)
    return [*found[0].values(), found[1]]


@pytest.mark.parametrize("kind", EVERY)
def test_grad_of_grad(kind):
    ours, theirs = pair(kind)
    x = inputs(kind)
    assert_like(second_order(ours, x), second_order(theirs, x), DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_vmap_of_grad_of_grad(kind):
    ours, theirs = pair(kind)
    x = inputs(kind, 2)
    got = vmap(lambda sample: tuple(second_order(ours, sample)))(x)
    assert_like(got, loop(lambda sample: second_order(theirs, sample), x), DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_nested_vmap(kind):
    ours, theirs = pair(kind)
    x = inputs(kind, 2, SAMPLES)
    want = loop(lambda own: loop(theirs, own), x)
    assert_like(vmap(vmap(ours))(x), want, VALUE)


@pytest.mark.parametrize("kind", SOME)
def test_nested_vmap_over_weights_and_samples(kind):
    """Each member of an ensemble over each sample, in both orders of nesting, and its gradients."""
    ours, theirs, stacked = ensemble(kind)
    x = inputs(kind, 2)
    members = [{name: p[k] for name, p in stacked.items()} for k in range(SAMPLES)]
    run = as_function(ours)
    want = loop(lambda own: loop(lambda sample: as_function(theirs)(own, sample), x), members)
    assert_like(vmap(vmap(run, (None, 0)), (0, None))(stacked, x), want, VALUE)
    got = vmap(vmap(run, (0, None)), (None, 0))(stacked, x)
    assert_like([part.movedim(0, 1) for part in flat(got)], want, VALUE)

    def of(module):
        return grad(lambda own, sample: loss(as_function(module)(own, sample)))

    got = vmap(vmap(of(ours), (None, 0)), (0, None))(stacked, x)
    want = loop(lambda own: loop(lambda sample: of(theirs)(own, sample).values(), x), members)
    assert_like(got.values(), want, DERIVATIVE)


def test_nested_vmap_of_gradients_per_sample():
    """Gradients of the weights under two vmaps, neither of which is over weights."""
    ours, theirs = pair("gru")
    x = inputs("gru", 2, SAMPLES)

    def of(module):
        run = as_function(module)
        return lambda sample: grad(lambda own: loss(run(own, sample)))(parameters(module))

    got = vmap(vmap(of(ours)))(x)
    want = loop(lambda own: loop(lambda sample: of(theirs)(sample).values(), own), x)
    assert_like(got.values(), want, DERIVATIVE)


def test_vmap_in_chunks_and_out_dims():
    ours, theirs = pair("gru")
    x = inputs("gru", SAMPLES)
    y = vmap(lambda sample: ours(sample)[0], out_dims=2, chunk_size=3)(x)
    assert_like(y.movedim(2, 0), loop(lambda sample: theirs(sample)[0], x), VALUE)


def test_vmap_with_dropout():
    """Torch's: refused without a mode of randomness; with one, the mask of each sample differs."""
    ours, _ = pair("lstm", num_layers=2, dropout=0.5)
    x = inputs("lstm").expand(SAMPLES, STEPS, BATCH, INPUT)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(ours)(x)
    y, _ = vmap(ours, randomness="different")(x)
    assert not torch.equal(y[0], y[1])
    y, _ = vmap(ours, randomness="same")(x)
    torch.testing.assert_close(y[0], y[1])


def test_vmap_in_float32():
    """The dtype in which torch.nn's LSTM is one operation of oneDNN, which has no vmap."""
    ours, theirs = twins("lstm")
    x = normal(SAMPLES, STEPS, BATCH, INPUT)
    assert_like(vmap(ours)(x), loop(theirs, x), OUTPUT[torch.float32])


def test_functionalize():
    ours, theirs = pair("gru")
    x = inputs("gru")
    assert_like(functionalize(ours)(x), theirs(x), VALUE)


def test_functional_call_leaves_the_module():
    ours, theirs = pair("lstm")
    x, halved = inputs("lstm"), {name: p / 2 for name, p in ours.named_parameters()}
    assert_like(functional_call(ours, halved, (x,)), functional_call(theirs, halved, (x,)), VALUE)
    assert_like(ours(x), theirs(x), VALUE)
    leaves = {name: p.detach().requires_grad_() for name, p in halved.items()}
    got, want = (
        torch.autograd.grad(loss(functional_call(m, leaves, (x,))), list(leaves.values()))
        for m in (ours, theirs)
    )
    assert_like(got, want, DERIVATIVE)
