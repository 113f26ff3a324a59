"""Forward-mode differentiation, which torch's own implementation does: never a zero tangent."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch.autograd import forward_ad  # noqa: E402
from torch.func import (  # noqa: E402
    functional_call,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
)
from torch_functions import (  # noqa: E402
    BATCH,
    DERIVATIVE,
    DOUBLE,
    EVERY,
    SOME,
    STEPS,
    VALUE,
    as_function,
    inputs,
    pair,
    parameters,
)
from torch_twins import (  # noqa: E402
    GRADIENT,
    INPUT,
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
def test_jvp(kind):
    """With tangents of x and of the parameters, each of which matters."""
    ours, theirs = pair(kind)
    x = inputs(kind)
    for tangent_of in ("x", "parameters", "both"):
        dx = inputs(kind, seed=40) * (tangent_of != "parameters")
        own = {
            name: normal(*p.shape, dtype=DOUBLE, seed=41) * (tangent_of != "x")
            for name, p in ours.named_parameters()
        }
        got, want = (jvp(as_function(m), (parameters(m), x), (own, dx)) for m in (ours, theirs))
        assert_like(got[0], want[0], VALUE)
        assert all(tangent.abs().max() > 0 for tangent in flat(want[1]))
        assert_like(got[1], want[1], DERIVATIVE)


@pytest.mark.parametrize("kind", SOME)
def test_jacfwd_hessian_and_linearize(kind):
    ours, theirs = pair(kind)
    x = inputs(kind, batch=1)

    def first(module):
        return lambda x: flat(module(x))[0]

    want = jacrev(first(theirs))(x)
    assert_like(jacfwd(first(ours))(x), want, DERIVATIVE)
    got, want = (hessian(lambda x, m=m: loss(m(x)))(x) for m in (ours, theirs))
    assert_like(got, want, DERIVATIVE)
    ours.requires_grad_(False)  # torch.nn's, too, must not need gradients here
    value, push = linearize(first(ours), x)
    assert_like(value, first(theirs)(x), VALUE)
    tangent = inputs(kind, batch=1, seed=40)
    assert_like(push(tangent), jvp(first(theirs), (x,), (tangent,))[1], DERIVATIVE)


@pytest.mark.parametrize("of", ["x", "state", "weight"])
@pytest.mark.parametrize("kind", SOME)
def test_forward_mode_by_dual_tensors(kind, of):
    ours, theirs = pair(kind)
    found = []
    for module in (ours, theirs):
        x, state = inputs(kind), state_for(module, BATCH, DOUBLE)
        own = parameters(module)
        with forward_ad.dual_level():

            def dual(tensor):
                return forward_ad.make_dual(tensor, normal(*tensor.shape, dtype=DOUBLE, seed=40))

            if of == "x":
                x = dual(x)
            elif of == "state":
                state = tuple(map(dual, state)) if isinstance(state, tuple) else dual(state)
            else:
                own = {name: dual(p) if "hh" in name else p for name, p in own.items()}
            results = flat(functional_call(module, own, (x, state)))
            found.append([forward_ad.unpack_dual(result) for result in results])
    for got, want in zip(*found, strict=True):
        assert_like(got.primal, want.primal, VALUE)
        assert want.tangent is not None and got.tangent is not None
        assert_like(got.tangent, want.tangent, DERIVATIVE)


def test_forward_mode_in_float32():
    """Torch's own LSTM is one operation of oneDNN there, which refuses: no zero tangent."""
    ours, theirs = twins("lstm")
    x = normal(STEPS, BATCH, INPUT)
    messages = []
    for module in (ours, theirs):
        try:
            _, tangent = jvp(lambda x, m=module: m(x)[0], (x,), (torch.ones_like(x),))
        except (NotImplementedError, RuntimeError) as error:
            messages.append(str(error))
        else:
            double = module.double()
            _, want = jvp(
                lambda x, m=double: m(x)[0], (x.double(),), (torch.ones_like(x).double(),)
            )
            assert_like(tangent.double(), want, GRADIENT[torch.float32])
            messages.append(None)
    assert messages[0] in (None, messages[1])
