"""`torch.compile(fullgraph=True)`, with torch's configuration as it is."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")

from subprocesses import python  # noqa: E402
from torch._dynamo.backends.registry import lookup_backend  # noqa: E402
from torch_graphs import BATCH, DERIVATIVE, SHAPES, STEPS, VALUE, inputs, taggers  # noqa: E402
from torch_twins import (  # noqa: E402
    CELLS,
    GRADIENT,
    HIDDEN,
    INPUT,
    LAYERS,
    OUTPUT,
    assert_like,
    flat,
    gradients,
    normal,
    state_for,
    twins,
)

# On other backends torch.compile meets torch.nn's own implementation, which it refuses to trace.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("native", "fresh_compiler"),
    pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:.*is deprecated"),
]


def compiled(module, backend="aot_eager", **options):
    return torch.compile(module, backend=backend, fullgraph=True, **options)


def assert_trains_alike(run, ours, theirs, *given, within=lambda module: module):
    """Results and all gradients of the compiled `run` are those of torch.nn's module.

    within : what `run` does with the module besides.
    """
    given = [x.clone().requires_grad_() if isinstance(x, torch.Tensor) else x for x in given]
    at = [x for x in given if isinstance(x, torch.Tensor)]
    got, want = run(*given), within(theirs)(*given)
    assert_like(got, want, VALUE)
    assert_like(gradients(ours, got, at), gradients(theirs, want, at), DERIVATIVE)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
def test_training(kind):
    ours, theirs = twins(kind)
    run = compiled(ours)
    assert_trains_alike(run, ours, theirs, inputs(kind), state_for(theirs, BATCH))


@pytest.mark.parametrize("kind", ["rnn_relu", "gru", "lstm_projected", "lstm_cell"])
def test_inference(kind):
    """Without states, and without gradients: by `no_grad`, or as nothing requires any."""
    ours, theirs = twins(kind)
    x = inputs(kind)
    run = compiled(ours)
    with torch.no_grad():
        assert_like(run(x), theirs(x), VALUE)
    ours.requires_grad_(False)
    got = run(x)
    assert_like(got, theirs(x), VALUE)
    assert not any(part.requires_grad for part in flat(got))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lstm_projected", {"num_layers": 2, "bidirectional": True}),
        ("gru", {"batch_first": True, "bidirectional": True}),
        ("lstm", {"bias": False, "num_layers": 2, "batch_first": True}),
    ],
    ids=str,
)
def test_options(kind, options):
    ours, theirs = twins(kind, **options)
    x = inputs(kind)
    x = x.transpose(0, 1) if theirs.batch_first else x
    assert_trains_alike(compiled(ours), ours, theirs, x, state_for(theirs, BATCH))


@pytest.mark.parametrize("kind", ["gru", "lstm_projected", "rnn_tanh_cell"])
def test_float64(kind):
    ours, theirs = twins(kind, dtype=torch.float64)
    x = inputs(kind).double()
    got, want = compiled(ours)(x), theirs(x)
    assert_like(got, want, OUTPUT[torch.float64])
    assert_like(gradients(ours, got), gradients(theirs, want), GRADIENT[torch.float64])


@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
def test_unbatched(kind):
    ours, theirs = twins(kind)
    x = inputs(kind)
    x = x[0] if kind in CELLS else x[:, 0]
    assert_trains_alike(compiled(ours), ours, theirs, x, state_for(theirs, None))


def test_frozen_parameters():
    """Gradients of those that require them alone; the others' stay None."""
    pair = twins("lstm")
    for module in pair:
        module.weight_ih_l0.requires_grad_(False)
        module.bias_hh_l0.requires_grad_(False)
        run = compiled(module) if module is pair[0] else module
        run(inputs("lstm"))[0].pow(2).sum().backward()
    for got, want in zip(*(module.parameters() for module in pair), strict=True):
        assert (got.grad is None) == (want.grad is None)
        if want.grad is not None:
            assert_like(got.grad, want.grad, DERIVATIVE)


def test_dropout():
    """New masks in each call, the same from the same seed, gradients of the pass that ran."""
    ours, theirs = twins("lstm", num_layers=2, dropout=0.5)
    run, x = compiled(ours), inputs("lstm")

    def seeded(run):
        torch.manual_seed(1)
        return run(x)

    first = seeded(run)
    assert_like(seeded(run), first, 0.0)
    assert not torch.equal(run(x)[0], first[0])
    want = seeded(theirs)
    assert_like(first, want, VALUE)
    assert_like(gradients(ours, first), gradients(theirs, want), DERIVATIVE)
    ours.eval(), theirs.eval()
    assert_like(run(x), theirs(x), VALUE)


@pytest.fixture
def counted():
    """A function that compiles, and the list of the graphs that it has made."""
    graphs = []

    def backend(graph, examples):
        if any(node.op == "call_function" for node in graph.graph.nodes):
            graphs.append(graph)
        return lookup_backend("aot_eager")(graph, examples)

    def run(module, **options):
        return compiled(module, backend, **options)

    return run, graphs


@pytest.mark.parametrize("kind", [*LAYERS, "gru_cell", "lstm_cell"])
def test_dynamic_shapes_compile_once(kind, counted):
    """With `dynamic=True` one graph serves every T and B, in training."""
    compile_counted, graphs = counted
    ours, theirs = twins(kind)
    run = compile_counted(ours, dynamic=True)
    after_first = None
    for steps, batch in SHAPES:
        x = inputs(kind, steps, batch)
        assert_trains_alike(run, ours, theirs, x, state_for(theirs, batch))
        after_first = after_first or len(graphs)
    # The first call reaches the backend twice (torch 2.13 restarts its trace), later ones never.
    assert len(graphs) == after_first <= 2


def test_shapes_that_change_compile_few_times(counted):
    """Without being told, torch compiles once for the first T and B, and once for changing ones."""
    compile_counted, graphs = counted
    ours, theirs = twins("gru")
    run = compile_counted(ours)
    for steps, batch in SHAPES:
        x = inputs("gru", steps, batch)
        assert_like(run(x), theirs(x), VALUE)
    assert len(graphs) == 2


def test_neither_t_nor_b_is_specialised():
    """`mark_dynamic` raises where tracing has fixed a size that it says is not."""
    ours, theirs = twins("lstm", num_layers=2, bidirectional=True)
    x = inputs("lstm")
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    with torch.no_grad():
        assert_like(compiled(ours)(x), theirs(x), VALUE)


def test_weights_and_grad_mode_compile_no_more(counted):
    """A training loop with an evaluation in each step: two graphs, whatever the weights become."""
    ours, theirs = twins("gru")
    compile_counted, graphs = counted
    run, x = compile_counted(ours), inputs("gru")
    optimisers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (ours, theirs)]
    for _ in range(4):
        for call in (run, theirs):
            call(x)[0].pow(2).sum().backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            assert_like(run(x), theirs(x), VALUE)
    assert len(graphs) == 2


class Decoder(torch.nn.Module):
    """A loop of Python over a cell, whose output is its next input."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell
        self.head = torch.nn.Linear(HIDDEN, INPUT)

    def forward(self, x, state):
        outputs = []
        for _ in range(STEPS):
            state = self.cell(x, state)
            x = self.head(state[0] if isinstance(state, tuple) else state)
            outputs.append(x)
        return torch.stack(outputs), state


@pytest.mark.parametrize("kind", ["gru_cell", "lstm_cell"])
def test_a_loop_over_a_cell(kind):
    pair = []
    for cell in twins(kind):
        torch.manual_seed(0)
        pair.append(Decoder(cell))
    x, state = inputs(kind), state_for(pair[1].cell, BATCH)
    assert_trains_alike(compiled(pair[0]), *pair, x, state)


def test_an_accelerated_model():
    ours, theirs = taggers()
    assert_trains_alike(compiled(ours), ours, theirs, inputs("gru"))


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
def test_inductor():
    """The default backend, which plans memory and strides; here with operations that it fuses."""
    ours, theirs = twins("lstm", batch_first=True)

    def around(module):
        return lambda x: torch.tanh(module(x * 2)[0].transpose(0, 1)) + 1

    run = torch.compile(around(ours), fullgraph=True)
    assert_trains_alike(run, ours, theirs, inputs("lstm"), within=around)


def test_module_compile_and_its_copy():
    """`module.compile()`, of torch.nn.Module; the state dict stays torch.nn's."""
    ours, theirs = twins("gru")
    ours.compile(backend="aot_eager", fullgraph=True)
    x = inputs("gru")
    assert_like(ours(x), theirs(x), VALUE)
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_wrong_arguments_raise():
    """What torch refuses is refused, by whatever class torch.compile wraps an error in."""
    ours, _ = twins("gru")
    run = compiled(ours)
    for x in (normal(STEPS, BATCH, INPUT + 1), normal(2, STEPS, BATCH, INPUT)):
        with pytest.raises(Exception, match=r"(?i)input|expected"):
            run(x)
    # Before 2.5 the compiler refuses torch's own code, which has the error, before it comes to it.
    own = "|_update_flat_weights" if torch.__version__ < (2, 5) else ""
    with pytest.raises(Exception, match=r"(?i)hidden|expected" + own):
        run(inputs("gru"), normal(1, BATCH + 1, HIDDEN))


def test_packed_sequences_without_fullgraph():
    """Torch.compile leaves them to Python."""
    ours, theirs = twins("lstm")
    packed = torch.nn.utils.rnn.pack_sequence([inputs("lstm")[:n, 0] for n in (4, 3, 1)])
    run = torch.compile(ours, backend="aot_eager")
    got, want = run(packed), theirs(packed)
    assert_like([got[0].data, got[1]], [want[0].data, want[1]], VALUE)


@pytest.mark.parametrize("of", ["vmap", "grad"])
def test_transforms_inside_are_refused(of):
    """Of `torch.func`, in what is compiled: the operators have no rules for them there."""
    ours = twins("gru")[0]

    def transformed(x):
        if of == "vmap":
            return torch.func.vmap(lambda x: ours(x)[0])(x)
        return torch.func.grad(lambda x: ours(x)[0].pow(2).sum())(x[0])

    with pytest.raises(Exception, match=r"atching rule|functorch"):
        compiled(transformed)(normal(2, STEPS, BATCH, INPUT))


def test_dynamo_is_imported_by_its_users_alone():
    """It takes seconds. Neither importing rnnfast.torch nor training by it asks for it."""
    found = python(
        "import sys, torch, rnnfast.torch as rt\n"
        "before = 'torch._dynamo' in sys.modules\n"
        "m = rt.accelerate(torch.nn.LSTM(3, 4))\n"
        "m(torch.zeros(2, 1, 3))[0].sum().backward()\n"
        "with torch.no_grad(): m(torch.zeros(2, 1, 3))\n"
        "c = rt.GRUCell(3, 4)\n"
        "with torch.autocast('cpu'): c(torch.zeros(1, 3))\n"
        "print(before, 'torch._dynamo' in sys.modules)"
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("made", ["rt.LSTM(3, 4)", "rt.GRUCell(3, 4)"])
def test_a_compiled_call_is_the_first_of_a_process(made):
    found = python(
        "import torch, rnnfast.torch as rt\n"
        f"module, x = {made}, torch.ones(2, 3)\n"
        "first = torch.compile(module, backend='aot_eager', fullgraph=True)(x)\n"
        "print(torch.equal(first[0], module(x)[0]))",
        RNNFAST_BACKEND="native",
    )
    assert found.stdout.split() == ["True"], found.stderr
