"""PackedSequence through `rnnfast.torch`: what torch.nn gives, sorted or not."""

from __future__ import annotations

import pytest
from torch_modules import (
    HIDDEN,
    LAYERS,
    SIZE,
    TORCH_DTYPES,
    arrange,
    assert_same_outcome,
    assert_same_results,
    assert_twins,
    by_kernels,
    flat,
    inputs_for,
    loss,
    make,
    normal,
    rt,
    run,
    seed,
    twins,
)

torch = pytest.importorskip("torch")

from torch.nn.utils.rnn import (  # noqa: E402  torch may be missing
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

F64 = TORCH_DTYPES["float64"]
STEPS, BATCH = 7, 5

# The lengths, and whether they must be sorted.
LENGTHS = {
    "sorted": ([7, 6, 3, 3, 1], True),
    "unsorted": ([3, 1, 7, 3, 6], False),
    "sorted_as_if_not": ([7, 6, 3, 3, 1], False),
    "equal": ([4] * 5, True),
    "one_step": ([1] * 5, False),
    "one_long": ([1, 1, 7, 1, 1], False),
}

OPTIONS = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 3, "dropout": 0.5},
    {"num_layers": 2, "dropout": 0.5, "bidirectional": True, "batch_first": True},
]


def packing(lengths, batch_first=False, enforce_sorted=False):
    """`arrange` for packed input, from tensors that are padded."""

    def arranged(x, *states):
        packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted)
        return arrange(packed, *states)

    return arranged


def assert_packed_twins(pair, lengths, enforce_sorted=False, states=True):
    tensors = inputs_for(pair[1], len(lengths), max(lengths), states)
    assert_twins(pair, tensors, packing(lengths, pair[1].batch_first, enforce_sorted))


@pytest.mark.parametrize("states", [True, False], ids=["states", "zeros"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", LAYERS)
def test_lengths(kind, lengths, states, dtype):
    pair = twins(kind, bidirectional=True, dtype=TORCH_DTYPES[dtype])
    assert_packed_twins(pair, *LENGTHS[lengths], states)


@pytest.mark.parametrize("lengths", ["sorted", "unsorted"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("kind", LAYERS)
def test_options(kind, options, lengths, dtype):
    pair = twins(kind, dtype=TORCH_DTYPES[dtype], **options)
    for states in (True, False):
        assert_packed_twins(pair, *LENGTHS[lengths], states)


@pytest.mark.parametrize("kind", LAYERS)
def test_one_sequence(kind, dtype):
    pair = twins(kind, num_layers=2, dtype=TORCH_DTYPES[dtype])
    for steps in (1, 2, 6):
        assert_packed_twins(pair, [steps], enforce_sorted=steps == 2)


@pytest.mark.parametrize("used", [(0,), (1,), (2,)])
def test_gradients_of_some_results(used):
    pair = twins("lstm", num_layers=2, bidirectional=True, dtype=F64)
    tensors = inputs_for(pair[1], BATCH, STEPS)
    assert_twins(pair, tensors, packing(LENGTHS["unsorted"][0]), used)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_what_comes_out_is_packed_as_what_went_in(kind, lengths):
    lengths, enforce_sorted = LENGTHS[lengths]
    ours, theirs = twins(kind, bidirectional=True, dtype=F64)
    x = inputs_for(theirs, BATCH, max(lengths), states=False)[0]
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    with by_kernels():
        got, _ = ours(packed)
    want, _ = theirs(packed)
    assert type(got) is PackedSequence
    for a, b in zip(got[1:], want[1:], strict=True):
        assert a is b is None or torch.equal(a, b)
    (got, got_lengths), (want, _) = (pad_packed_sequence(p, total_length=9) for p in (got, want))
    assert got_lengths.tolist() == lengths
    assert_same_results([got], [want], "float64")


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_layouts(layout, dtype):
    """Of the data of the packed rows and of the states."""
    sizes = torch.tensor([4, 3, 1])
    pair = twins("lstm", dtype=TORCH_DTYPES[dtype])
    data, *states = (normal(*s, dtype=dtype) for s in ((8, SIZE), (1, 4, HIDDEN), (1, 4, HIDDEN)))
    changed = {
        "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
        "sliced": lambda t: torch.cat([t, t], -1)[..., ::2],
        "expanded": lambda t: t[..., :1, :].expand(t.shape),
    }[layout]
    assert_twins(
        pair,
        [data, *states],
        lambda data, *states: (PackedSequence(changed(data), sizes), tuple(map(changed, states))),
    )


def test_packed_from_a_list_of_sequences():
    pair = twins("gru", dtype=F64)
    sequences = [normal(steps, SIZE, stream=steps) for steps in (2, 5, 1)]
    assert_twins(pair, sequences, lambda *own: (pack_sequence(own, enforce_sorted=False),))


@pytest.mark.parametrize("kind", LAYERS)
def test_two_layers_one_after_the_other(kind):
    found = []
    for place in (rt, torch.nn):
        first, second = (
            make(place, kind, SIZE, hidden, dtype=F64) for hidden in (HIDDEN, HIDDEN + 2)
        )
        x = normal(STEPS, BATCH, SIZE).requires_grad_()
        y, state = first(pack_padded_sequence(x, LENGTHS["unsorted"][0], enforce_sorted=False))
        results = [*flat(second(y._replace(data=y.data[:, :1].expand(-1, SIZE)))), *flat(state)]
        at = [x, *first.parameters(), *second.parameters()]
        found.append([*results, *torch.autograd.grad(loss(results), at)])
    assert_same_results(*found, "float64", "backward")


@pytest.mark.parametrize("kind", LAYERS)
def test_gradgradcheck(kind):
    own = {"proj_size": 1} if "proj_size" in LAYERS[kind][1] else {}
    module = make(rt, kind, 2, 2, **own, bidirectional=True, dtype=F64)
    tensors = inputs_for(module, 3, 3)
    names = [name for name, _ in module.named_parameters()]
    arranged = packing([2, 3, 1])

    def function(*given):
        seed(11)
        parameters = dict(zip(names, given[len(tensors) :], strict=True))
        call = arranged(*given[: len(tensors)])
        return tuple(flat(torch.func.functional_call(module, parameters, call)))

    given = [t.detach().clone().requires_grad_() for t in (*tensors, *module.parameters())]
    with by_kernels():
        assert torch.autograd.gradcheck(function, given, fast_mode=True)
    # The second derivatives are torch's own, so that torch's functions may be called.
    assert torch.autograd.gradgradcheck(function, given, fast_mode=True)


def test_several_backward_passes_and_a_graph_that_is_gone():
    module = make(rt, "lstm", num_layers=2, dtype=F64)
    tensors = inputs_for(module, BATCH, STEPS)
    with by_kernels():
        result = loss(run(module, tensors, packing(LENGTHS["unsorted"][0])))
        parameters = list(module.parameters())
        first = torch.autograd.grad(result, parameters, retain_graph=True)
        second = torch.autograd.grad(result, parameters)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            torch.autograd.grad(result, parameters)


def test_changed_data_raises():
    module = make(rt, "gru", dtype=F64)
    x = inputs_for(module, BATCH, STEPS, states=False)[0]
    packed = pack_padded_sequence(x, LENGTHS["sorted"][0])
    y, _ = module(packed)
    packed.data.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.data.sum().backward()


@pytest.mark.parametrize("kind", LAYERS)
def test_an_output_changed_in_place(kind, dtype):
    """As by an activation or dropout in place: torch reads no packed output in backward."""
    found = []
    for module in twins(kind, dtype=TORCH_DTYPES[dtype]):
        x = inputs_for(module, BATCH, STEPS, states=False)[0]
        y, _ = module(pack_padded_sequence(x, LENGTHS["sorted"][0]))
        with torch.no_grad():
            y.data.clamp_(min=0)
        y.data.sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert_same_results(*found, dtype, "backward")


def test_batch_sizes_changed_before_backward():
    """They are those of the call, as torch's are."""
    found = []
    for module in twins("gru", num_layers=2, dtype=F64):
        x, sizes = normal(8, SIZE).requires_grad_(), torch.tensor([4, 3, 1])
        y, _ = module(PackedSequence(x, sizes))
        sizes.copy_(torch.tensor([3, 3, 2]))
        found.append(torch.autograd.grad(y.data.square().sum(), [x, *module.parameters()]))
    assert_same_results(*found, "float64", "backward")


def test_the_storage_of_what_is_given_stays_the_callers():
    x, module = inputs_for(make(rt, "gru"), BATCH, STEPS, states=False)[0], make(rt, "gru")
    packed = pack_padded_sequence(x, LENGTHS["unsorted"][0], enforce_sorted=False)
    with by_kernels():
        y, _ = module(packed)
        y.data.sum().backward()
    assert all(t.untyped_storage().resizable() for t in (packed.data, packed.batch_sizes))


PACKED_MISTAKES = {
    "too few states": lambda m, p: m(p, states_of(m, BATCH - 1)),
    "too many states": lambda m, p: m(p, states_of(m, BATCH + 1)),
    "states without batch": lambda m, p: m(p, states_of(m, None)),
    "states of another dtype": lambda m, p: m(p, states_of(m.double(), BATCH)),
    "data of another dtype": lambda m, p: m(p.to(torch.float64)),
    "data of integers": lambda m, p: m(p.to(torch.int64)),
    "data of another width": lambda m, p: m(PackedSequence(p.data[:, :-1], p.batch_sizes)),
    "data of three dimensions": lambda m, p: m(PackedSequence(p.data[None], p.batch_sizes)),
    "too few rows": lambda m, p: m(PackedSequence(p.data[:-1], p.batch_sizes)),
    "too many rows": lambda m, p: m(PackedSequence(torch.cat([p.data] * 2), p.batch_sizes)),
    "sizes that grow": lambda m, p: m(PackedSequence(p.data[:3], torch.tensor([1, 2]))),
    "sizes that grow at the end": lambda m, p: m(
        PackedSequence(p.data[:6], torch.tensor([3, 1, 2]))
    ),
    "a negative size": lambda m, p: m(PackedSequence(p.data[:3], torch.tensor([2, 2, -1]))),
    "negative sizes": lambda m, p: m(PackedSequence(p.data[:2], torch.tensor([-1, -1]))),
    "sizes of two dimensions": lambda m, p: m(PackedSequence(p.data, p.batch_sizes[None])),
    "a size of zero": lambda m, p: m(PackedSequence(p.data[:2], torch.tensor([2, 0]))),
    "sizes of another dtype": lambda m, p: m(PackedSequence(p.data, p.batch_sizes.int())),
    "no steps": lambda m, p: m(PackedSequence(p.data[:0], p.batch_sizes[:0])),
}


def states_of(module, batch):
    return arrange(*inputs_for(module, batch))[1]


@pytest.mark.parametrize("mistake", PACKED_MISTAKES)
@pytest.mark.parametrize("kind", LAYERS)
def test_mistakes_are_torchs(kind, mistake):
    calls = []
    for module in twins(kind):
        x = inputs_for(module, BATCH, STEPS, states=False)[0]
        packed = pack_padded_sequence(x, LENGTHS["unsorted"][0], enforce_sorted=False)
        calls.append(lambda m=module, p=packed: PACKED_MISTAKES[mistake](m, p))
    assert_same_outcome(*calls)


@pytest.mark.parametrize("kind", LAYERS)
def test_float16_gives_torch_s_bits(kind):
    ours, theirs = twins(kind, dtype=torch.float16)
    arranged = packing(LENGTHS["unsorted"][0])
    tensors = inputs_for(theirs, BATCH, STEPS)
    for got, want in zip(run(ours, tensors, arranged), run(theirs, tensors, arranged), strict=True):
        assert torch.equal(got, want)
