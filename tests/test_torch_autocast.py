"""`torch.autocast` on the CPU, and half-precision inputs outside of it, against torch.nn's own."""

from __future__ import annotations

import pytest

import rnnfast

torch = pytest.importorskip("torch")
rt = pytest.importorskip("rnnfast.torch")

from tolerances import BFLOAT16, assert_close  # noqa: E402
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence  # noqa: E402
from torch_twins import (  # noqa: E402
    CELLS,
    INPUT,
    LAYERS,
    as_array,
    flat,
    loss,
    normal,
    state_for,
    twins,
)

STEPS, BATCH = 4, 3
HALVES = [torch.bfloat16, torch.float16]
CASES = [
    *((kind, {}, "padded") for kind in [*LAYERS, *CELLS]),
    *((kind, {}, "packed") for kind in LAYERS),
    *((kind, {"num_layers": 2, "bidirectional": True}, "padded") for kind in LAYERS),
    ("lstm", {"batch_first": True}, "padded"),
    ("gru", {"batch_first": True}, "packed"),
]

# To float16 all is in float32: half an ULP of a result that is rounded once is 2**-12, and as much
# again where h0 or a packed x is rounded on its way. To bfloat16 operands of products are rounded
# too, by 2**-9 each: `BFLOAT16`.
FLOAT16 = {torch.float16: 2.0**-11, torch.float32: 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def flat_arrays(result):
    return [part for each in result for part in (each if isinstance(each, tuple) else (each,))]


def attempt(run):
    """The result, or the error in its place."""
    try:
        return run()
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        return error


def to(value, dtype):
    if value is None or isinstance(value, (torch.Tensor, PackedSequence)):
        return None if value is None else value.to(dtype)
    return tuple(to(part, dtype) for part in value)


def call(kind, theirs, form, batch=BATCH):
    """x in one of its forms, in float32 but with values that all dtypes hold, and a state."""
    steps = () if kind in CELLS else (STEPS,)
    x = normal(*steps, batch, INPUT)
    if getattr(theirs, "batch_first", False):
        x = x.transpose(0, 1)
    state = state_for(theirs, batch)
    if form == "packed":
        lengths = [STEPS, 2, 1]
        x = pack_padded_sequence(x, lengths, batch_first=theirs.batch_first)
    return to(to(x, torch.bfloat16), torch.float32), to(to(state, torch.bfloat16), torch.float32)


def tensors(result):
    """Of a result in which sequences may be packed."""
    if isinstance(result, PackedSequence):
        return [result.data]
    if isinstance(result, torch.Tensor):
        return [result]
    return [tensor for part in result for tensor in tensors(part)]


def assert_same_or_right(got, want, exact, lower=torch.bfloat16):
    """In torch.nn's dtypes and near the result in float32; or refused as torch.nn refuses it."""
    if isinstance(got, Exception):
        assert isinstance(want, Exception), got
        assert type(got) is type(want) and str(got) == str(want)
        return
    if not isinstance(want, Exception):
        assert [t.dtype for t in tensors(got)] == [t.dtype for t in tensors(want)]
    for a, b in zip(tensors(got), tensors(exact), strict=True):
        allowed = BFLOAT16 if lower is torch.bfloat16 else FLOAT16[a.dtype]
        assert_close(as_array(a), as_array(b), allowed)


@pytest.mark.parametrize("lower", HALVES, ids=str)
@pytest.mark.parametrize(("kind", "options", "form"), CASES, ids=str)
def test_results(kind, options, form, lower):
    """For x and the states in each dtype, and no states: torch.nn's dtype, float32's values."""
    ours, theirs = twins(kind, **options)
    x, state = call(kind, theirs, form)
    for of_x in (torch.float32, *HALVES):
        for of_state in (None, torch.float32, *HALVES):
            given = [to(x, of_x), None if of_state is None else to(state, of_state)]
            with torch.no_grad():
                exact = theirs(x, None if of_state is None else state)
                with torch.autocast("cpu", dtype=lower):
                    got, want = (attempt(lambda m=m: m(*given)) for m in (ours, theirs))  # noqa: B023
            assert_same_or_right(got, want, exact, lower)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_bits_are_those_of_a_layer_in_that_precision(native, kind):
    """On float32 parameters, which calls in between read as they are."""
    ours, theirs = twins(kind, num_layers=2)
    name, own = LAYERS[kind]
    layer = getattr(rnnfast, name)(
        INPUT, theirs.hidden_size, num_layers=2, **own, precision="bfloat16"
    )
    layer.load_state_dict({k: w.numpy() for k, w in theirs.state_dict().items()})
    x, _ = call(kind, theirs, "padded")
    want = [torch.from_numpy(part) for part in flat_arrays(layer(x.numpy()))]
    with torch.no_grad():
        before = flat(ours(x))
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                got = flat(ours(x))
            assert all(torch.equal(a, b.to(a.dtype)) for a, b in zip(got, want, strict=True))
            assert all(map(torch.equal, flat(ours(x)), before))
            assert not torch.equal(before[0].to(got[0].dtype), got[0])


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_gradients(kind):
    """In the parameters' dtype, and near those of float32."""
    ours, theirs = twins(kind)
    x, state = call(kind, theirs, "padded")
    x.requires_grad_()
    want = torch.autograd.grad(loss(theirs(x, state)), [x, *theirs.parameters()])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = ours(x, state)
    value = loss([t.float() for t in flat(result)])
    got = torch.autograd.grad(value, [x, *ours.parameters()])
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert_close(as_array(a), as_array(b), BFLOAT16)


def test_gradient_of_bfloat16_input():
    ours, theirs = twins("lstm")
    x, _ = call("lstm", theirs, "padded")
    leaf = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ours(leaf)
    y.float().pow(2).sum().backward()
    x.requires_grad_()
    theirs(x)[0].pow(2).sum().backward()
    assert leaf.grad.dtype == torch.bfloat16
    assert_close(as_array(leaf.grad), as_array(x.grad), BFLOAT16)


def test_a_training_step_beside_torch_nn():
    """A model under autocast with a layer before and one after: losses stay together."""
    losses = []
    for recurrent in twins("lstm", num_layers=2):
        torch.manual_seed(0)
        model = torch.nn.ModuleList(
            [torch.nn.Linear(INPUT, INPUT), recurrent, torch.nn.Linear(recurrent.hidden_size, 1)]
        )
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        x = normal(STEPS, BATCH, INPUT)
        own = []
        for _ in range(4):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = model[2](model[1](model[0](x))[0])
                value = torch.nn.functional.mse_loss(y.float(), normal(*y.shape, seed=9))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            own.append(value.item())
        losses.append(own)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.parametrize("kind", ["gru", "lstm_cell"])
def test_hooks_run_once(kind):
    """Autocast is no second call of the module."""
    ours, theirs = twins(kind)
    x, _ = call(kind, theirs, "padded")
    for module in (ours, theirs):
        calls = []
        module.register_forward_pre_hook(lambda *_, calls=calls: calls.append("before"))
        module.register_forward_hook(lambda *_, calls=calls: calls.append("after"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            module(x)
        assert calls == ["before", "after"]


def test_float64_stays_torch_s():
    """Autocast leaves float64 alone in torch.nn's layers or refuses it; so do these."""
    ours, theirs = twins("gru", dtype=torch.float64)
    x = normal(STEPS, BATCH, INPUT, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = (attempt(lambda m=m: m(x)) for m in (ours, theirs))
    if isinstance(want, Exception):
        assert type(got) is type(want) and str(got) == str(want)
    else:
        for a, b in zip(flat(got), flat(want), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", ["width", "dimensions", "state", "list"])
@pytest.mark.parametrize("kind", ["gru", "lstm", "gru_cell"])
def test_errors_are_torch_s(kind, wrong):
    ours, theirs = twins(kind)
    x, state = call(kind, theirs, "padded")
    given = {
        "width": (x[..., 1:],),
        "dimensions": (x[None, None],),
        "state": (x, tuple(s[..., 1:] for s in state) if kind == "lstm" else state[..., 1:]),
        "list": (x, [state, state, state]),
    }[wrong]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = (attempt(lambda m=m: m(*given)) for m in (ours, theirs))
    assert isinstance(want, Exception)
    assert type(got) is type(want) and str(got) == str(want)


def test_disabled_inside_and_nested():
    ours, theirs = twins("gru")
    x, _ = call("gru", theirs, "padded")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            assert ours(x)[0].dtype == theirs(x)[0].dtype == torch.float32
        assert ours(x)[0].dtype == theirs(x)[0].dtype
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


@pytest.mark.parametrize("kind", ["gru", "lstm", "lstm_cell"])
def test_under_compile(kind):
    ours, theirs = twins(kind)
    x, state = call(kind, theirs, "padded")
    x.requires_grad_()
    exact = theirs(x, state)
    want_gradients = torch.autograd.grad(loss(exact), [x, *theirs.parameters()])
    torch.compiler.reset()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, want = compiled(x, state), theirs(x, state)
    assert_same_or_right(got, want, exact)
    value = loss([t.float() for t in flat(got)])
    for a, b in zip(
        torch.autograd.grad(value, [x, *ours.parameters()]), want_gradients, strict=True
    ):
        assert a.dtype == torch.float32
        assert_close(as_array(a), as_array(b), BFLOAT16)


@pytest.mark.parametrize("lower", HALVES, ids=str)
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_half_precision_without_autocast(kind, lower):
    """Modules in half precision, and such an x or states alone: torch.nn's result or its error."""
    ours, theirs = twins(kind)
    x, state = call(kind, theirs, "padded")
    for module_dtype in (torch.float32, lower):
        ours.to(module_dtype), theirs.to(module_dtype)
        for given in ((to(x, lower),), (to(x, lower), to(state, lower)), (x, to(state, lower))):
            got, want = (attempt(lambda m=m: m(*given)) for m in (ours, theirs))  # noqa: B023
            if isinstance(want, Exception):
                assert type(got) is type(want) and str(got) == str(want)
                continue
            for a, b in zip(flat(got), flat(want), strict=True):
                assert a.dtype == b.dtype
                allowed = BFLOAT16 if lower is torch.bfloat16 else 0
                assert_close(as_array(a), as_array(b), allowed)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_dtypes_in_training(kind):
    """Of results as torch.nn's, and of gradients as the tensors are that they belong to."""
    for module_dtype in (torch.float32, torch.bfloat16):
        for of_x, of_state in ((torch.float32, torch.float32), (torch.bfloat16, None)):
            results = []
            for module in twins(kind):
                module.to(module_dtype)
                x, state = call(kind, module, "padded")
                x = to(x, of_x).requires_grad_()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    result = flat(module(x, None if of_state is None else to(state, of_state)))
                found = torch.autograd.grad(
                    loss([t.float() for t in result]), [x, *module.parameters()]
                )
                assert [g.dtype for g in found[1:]] == [p.dtype for p in module.parameters()]
                results.append([t.detach() for t in (*result, *found)])
            for a, b in zip(*results, strict=True):
                assert a.dtype == b.dtype
                assert_close(as_array(a), as_array(b), 2 * BFLOAT16)


@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_with_some_steps_in_bfloat16(native, kind):
    """Steps of either precision on one graph have products of their own in backward."""
    found = []
    for module in twins(kind):
        x, state = call(kind, module, "padded")
        for step in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 3 == 1):
                state = module(x, to(state, torch.float32))
        found.append(torch.autograd.grad(loss(to(state, torch.float32)), module.parameters()))
    for a, b in zip(*found, strict=True):
        assert a.dtype == torch.float32
        assert_close(as_array(a), as_array(b), 2 * BFLOAT16)


def test_a_subclass_runs_once():
    """Its forward, which is not ours to call again."""

    class Doubled(rt.GRU):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    module, x = Doubled(3, 4), torch.randn(5, 2, 3)
    want = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x)[0]
    assert (got - want).norm() <= 1e-2 * want.norm()
