"""The modules of `rnnfast.torch` give what torch.nn's give, for every argument and layout."""

from __future__ import annotations

import itertools

import pytest
from torch_modules import (
    BATCH,
    CELLS,
    HIDDEN,
    LAYERS,
    MODULES,
    SIZE,
    STEPS,
    TORCH_DTYPES,
    arrange,
    assert_twins,
    by_kernels,
    flat,
    gradients,
    inputs_for,
    make,
    normal,
    rt,
    run,
    seed,
    twins,
)

torch = pytest.importorskip("torch")

OPTIONS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    {"num_layers": 2, "dropout": 0.5},
    {"num_layers": 3, "dropout": 0.3, "bidirectional": True, "batch_first": True},
]


@pytest.mark.parametrize("batch", [BATCH, 1, None])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("kind", LAYERS)
def test_layers(kind, options, batch, dtype):
    pair = twins(kind, dtype=TORCH_DTYPES[dtype], **options)
    for states in (True, False):
        assert_twins(pair, inputs_for(pair[1], batch, states=states))


@pytest.mark.parametrize("batch", [BATCH, 1, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells(kind, bias, batch, dtype):
    pair = twins(kind, bias=bias, dtype=TORCH_DTYPES[dtype])
    for states in (True, False):
        assert_twins(pair, inputs_for(pair[1], batch, states=states))


@pytest.mark.parametrize("sizes", [(1, 1), (1, 20), (17, 3), (33, 16)])
@pytest.mark.parametrize("kind", LAYERS)
def test_sizes(kind, sizes, dtype):
    options = {"proj_size": sizes[1] // 2} if "proj_size" in LAYERS[kind][1] else {}
    pair = twins(kind, *sizes, num_layers=2, **options, dtype=TORCH_DTYPES[dtype])
    assert_twins(pair, inputs_for(pair[1], steps=1))
    assert_twins(pair, inputs_for(pair[1], batch=9, steps=2))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_draws_torchs_masks(kind, training):
    pair = twins(kind, num_layers=3, dropout=0.5, dtype=torch.float64)
    x = inputs_for(pair[1])
    for module in pair:
        module.train(training)
    assert_twins(pair, x)
    with torch.no_grad():
        first, second = (pair[0](*arrange(*x))[0] for _ in range(2))
    assert torch.equal(first, second) != training


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropout_at_its_ends(probability):
    pair = twins("gru", num_layers=2, dropout=probability, dtype=torch.float64)
    assert_twins(pair, inputs_for(pair[1]))


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("kind", ["lstm", "lstm_projected"])
def test_gradients_of_some_results(kind, used, dtype):
    pair = twins(kind, num_layers=2, bidirectional=True, dtype=TORCH_DTYPES[dtype])
    assert_twins(pair, inputs_for(pair[1]), used=used)


# Of a leaf of shape (T, B, I): the same shape, or another, in other strides.
LAYOUTS = {
    "transposed": lambda x: x.transpose(0, 1),
    "features_first": lambda x: x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    "sliced": lambda x: torch.cat([x, 2 * x, x], -1)[..., 1 : 1 + 2 * SIZE : 2],
    "every_second_step": lambda x: torch.cat([x, x])[::2],
    "from_the_middle": lambda x: torch.cat([x, x], 1)[:, 1 : 1 + BATCH],
    "expanded_batch": lambda x: x[:, :1].expand(-1, BATCH, -1),
    "expanded_time": lambda x: x[:1].expand(STEPS, -1, -1),
    "expanded_all": lambda x: x[:1, :1, :1].expand(STEPS, BATCH, SIZE),
    "one_step_far_away": lambda x: x[:1, :1].as_strided((1, 1, SIZE), (1 << 60, 1 << 61, 1)),
    "one_row_strides_of_zero": lambda x: x[:1, :1].as_strided((1, 1, SIZE), (0, 0, 1)),
}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layouts_of_input(kind, layout, batch_first, dtype):
    pair = twins(kind, batch_first=batch_first, bidirectional=True, dtype=TORCH_DTYPES[dtype])
    x = normal(STEPS, BATCH, SIZE, dtype=dtype)
    assert_twins(pair, [x], lambda x: (LAYOUTS[layout](x),))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "far_away"])
@pytest.mark.parametrize("kind", MODULES)
def test_layouts_of_states(kind, layout, dtype):
    pair = twins(kind, dtype=TORCH_DTYPES[dtype])
    batch = 1 if layout == "far_away" else BATCH
    tensors = inputs_for(pair[1], batch)

    def changed(state):
        if layout == "transposed":
            return state.transpose(-1, -2).contiguous().transpose(-1, -2)
        if layout == "sliced":
            return torch.cat([state, state], -1)[..., ::2]
        if layout == "expanded":
            return state[..., :1, :1].expand(state.shape)
        return state.as_strided(state.shape, (*[1 << 60] * (state.dim() - 1), 1))

    assert_twins(pair, tensors, lambda x, *states: arrange(x, *map(changed, states)))


def test_one_tensor_as_both_states():
    pair = twins("lstm", dtype=torch.float64)
    assert_twins(pair, inputs_for(pair[1])[:2], lambda x, h: (x, (h, h)))
    assert_twins(pair, inputs_for(pair[1])[:2], lambda x, h: (x, [h, 2 * h]))


def test_memory_between_the_places_of_numbers(dtype):
    pair = twins("gru", dtype=TORCH_DTYPES[dtype])
    x = inputs_for(pair[1], states=False)[0]
    shifted = bytearray(2) + x.numpy().tobytes()
    odd = torch.frombuffer(shifted, dtype=x.dtype, offset=2).view(x.shape)
    with torch.no_grad():
        for got, want in zip(run(pair[0], [odd]), run(pair[0], [x]), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", MODULES)
def test_empty_batches(kind, dtype):
    ours, theirs = twins(kind, dtype=TORCH_DTYPES[dtype])
    tensors = inputs_for(theirs, batch=0)
    for given in (tensors, tensors[:1]):
        want = gradients(theirs, given)
        got = gradients(ours, given)
        assert [r.shape for r in got[0]] == [r.shape for r in want[0]]
        assert got[1].keys() == want[1].keys()
        for name, gradient in want[1].items():
            assert gradient is got[1][name] is None or torch.equal(got[1][name], gradient), name


@pytest.mark.parametrize("kind", MODULES)
def test_gradients_that_nobody_wants(kind):
    ours, theirs = twins(kind, dtype=torch.float64)
    tensors = inputs_for(theirs)
    with by_kernels():
        for module_grad, input_grad, enabled in itertools.product([True, False], repeat=3):
            ours.requires_grad_(module_grad)
            given = [t.clone().requires_grad_(input_grad) for t in tensors]
            with torch.set_grad_enabled(enabled):
                results = run(ours, given)
            wanted = enabled and (module_grad or input_grad)
            assert all(r.requires_grad == wanted for r in results)
            assert all((r.grad_fn is not None) == wanted for r in results)
        with torch.inference_mode():
            inferred = run(ours, tensors)
    assert all(r.is_inference() for r in inferred)


def test_a_state_alone_asks_for_gradients():
    ours, theirs = twins("lstm", dtype=torch.float64)
    for module in (ours, theirs):
        module.requires_grad_(False)
    tensors = inputs_for(theirs)

    def detached(x, h, c):
        return x.detach(), (h.detach(), c)

    _, want = gradients(theirs, tensors, detached)
    with by_kernels():
        _, got = gradients(ours, tensors, detached)
    assert got["x"] is None and got["h0"] is None
    torch.testing.assert_close(got["c0"], want["c0"])


@pytest.mark.parametrize("kind", MODULES)
def test_float16_gives_torch_s_bits(kind):
    pair = twins(kind, dtype=torch.float16)
    (got, d_got), (want, d_want) = (gradients(m, inputs_for(m)) for m in pair)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(d_got[name], d_want[name]) for name in d_want)


@pytest.mark.parametrize("kind", MODULES)
def test_meta_device(kind):
    ours, theirs = twins(kind, device="meta")
    x, *states = (t.to("meta") for t in inputs_for(theirs))
    for given in ([x], [x, *states]):
        got, want = (flat(m(*arrange(*given))) for m in (ours, theirs))
        assert [(r.device.type, r.shape) for r in got] == [(r.device.type, r.shape) for r in want]
    theirs = make(torch.nn, kind)
    ours.to_empty(device="cpu").load_state_dict(theirs.state_dict())
    assert_twins((ours, theirs), inputs_for(theirs))


@pytest.mark.parametrize("kind", MODULES)
def test_device_and_dtype(kind):
    for options in ({"device": "cpu"}, {"device": torch.device("cpu", 0), "dtype": torch.float64}):
        pair = twins(kind, **options)
        assert_twins(pair, inputs_for(pair[1]))
    with torch.device("meta"):
        assert {p.device.type for p in make(rt, kind).parameters()} == {"meta"}
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        pair = twins(kind)
    finally:
        torch.set_default_dtype(before)
    assert next(pair[0].parameters()).dtype is torch.float64
    assert_twins(pair, inputs_for(pair[1]))


@pytest.mark.parametrize("kind", MODULES)
def test_arguments_by_name(kind):
    ours, theirs = twins(kind, dtype=torch.float64)
    tensors = inputs_for(theirs)
    x, hx = arrange(*tensors)
    with by_kernels():
        named, zeros = flat(ours(input=x, hx=hx)), flat(ours(x, hx=None))
        assert all(torch.equal(a, b) for a, b in zip(named, run(ours, tensors), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(zeros, run(ours, tensors[:1]), strict=True))


def test_positional_arguments():
    for name, args in (("LSTM", (4, 5, 2, False, True, 0.0, True, 3)), ("GRUCell", (4, 5, False))):
        modules = [getattr(place, name)(*args) for place in (rt, torch.nn)]
        modules[1].load_state_dict(modules[0].state_dict())
        assert repr(modules[0]) == repr(modules[1])
        assert_twins(modules, inputs_for(modules[1]))


@pytest.mark.parametrize("kind", MODULES)
def test_a_call_leaves_the_results_of_those_before(kind):
    """Also where they are large enough for memory that the kernels keep from call to call."""
    module = make(rt, kind, 8, 64)
    steps = 300 if kind in LAYERS else None
    first = inputs_for(module, 64, steps)
    for enabled in (False, True):
        with torch.set_grad_enabled(enabled):
            results = run(module, first)
            grads = (
                torch.autograd.grad(results[0].sum(), list(module.parameters())) if enabled else ()
            )
            kept = [r.detach() for r in (*results, *grads)]
            before = [r.clone() for r in kept]
            for _ in range(2):
                other = run(module, [t + 1 for t in first])
                if enabled:
                    torch.autograd.grad(other[0].sum(), list(module.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))


@pytest.mark.parametrize("kind", MODULES)
def test_classes(kind):
    ours, theirs = twins(kind)
    if kind in CELLS:
        assert isinstance(ours, type(theirs))
    else:
        # An instance of torch.nn.LSTM and the others is what torch.compile refuses.
        assert isinstance(ours, torch.nn.RNNBase) and not isinstance(ours, type(theirs))
    assert type(ours).__name__ == type(theirs).__name__
    assert type(ours) is getattr(rt, type(theirs).__name__)


class Own(torch.Tensor):
    """A subclass that says with each result that it took part."""


@pytest.mark.parametrize("where", ["input", "weight"])
@pytest.mark.parametrize("kind", MODULES)
def test_subclasses_of_tensors_have_their_say(kind, where):
    pair = twins(kind, dtype=torch.float64)
    found = []
    for module in pair:
        x = inputs_for(pair[1], states=False)[0]
        if where == "input":
            x = x.as_subclass(Own)
        else:
            name, weight = next(module.named_parameters())
            setattr(module, name, torch.nn.Parameter(weight.detach().as_subclass(Own)))
        found.append(flat(module(x)))
    assert {type(r) for r in found[0]} == {type(r) for r in found[1]} == {Own}
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_subclass_of_ours():
    class Doubled(rt.GRU):
        def __init__(self, size):
            super().__init__(size, HIDDEN, batch_first=True)
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            y, h = super().forward(x)
            return self.scale * y, h

    seed(5)
    module, theirs = Doubled(SIZE), make(torch.nn, "gru", batch_first=True)
    x = inputs_for(theirs, states=False)[0]
    torch.testing.assert_close(module(x)[0], 2 * theirs(x)[0])
    assert "scale" in module.state_dict() and len(module._flat_weights) == 4
