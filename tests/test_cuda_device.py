"""rnnfast.torch on a CUDA device: `pytest -m cuda` where there is one, with the library built.

Against torch in float64 on the CPU: every cell and dtype, by each way that a pass is launched.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import rnnfast.torch as rt  # noqa: E402
from rnnfast.torch import cuda  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(
        torch.cuda.is_available() and cuda.library() is None,
        reason="rnnfast was built without its CUDA kernels",
    ),
]

KINDS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
}
TOLERANCES = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (2e-2, 4e-2)}
# (T, B, I, H): one block and many; rows in one tile, in several and in several shards; last, more H
# than has its weights in registers.
SIZES = [
    (5, 1, 3, 8),
    (7, 3, 5, 45),
    (33, 17, 16, 256),
    (16, 70, 8, 512),
    (9, 130, 4, 768),
    (4, 2, 4, 1040),
    (4, 4, 8, 1500),
]


@pytest.fixture(autouse=True)
def by_the_kernels(monkeypatch):
    """No test may pass by torch's own implementation."""
    calls = []
    forward = cuda._forward
    monkeypatch.setattr(cuda, "_forward", lambda *a, **k: [calls.append(a), forward(*a, **k)][1])
    yield
    assert calls


def step(module, x, lengths=None):
    """Results and gradients for ones of the results; relative to the largest of each."""
    x = x.clone().requires_grad_()
    given = x
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, last = module(given)
    if lengths is not None:
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output)
    results = [output, *(last if isinstance(last, tuple) else (last,))]
    weights = [torch.linspace(-1, 1, r.numel()).view(r.shape).to(r) for r in results]
    loss = sum((r * w).sum() for r, w in zip(results, weights, strict=True))
    return results, torch.autograd.grad(loss, [x, *module.parameters()])


def assert_near(found, wanted, tolerance):
    for own, other in zip(found, wanted, strict=True):
        error = (own.double().cpu() - other).abs().max() / other.abs().max().clamp(min=1)
        assert error < tolerance, error


@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size)))
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_results_and_gradients(kind, dtype, size, ragged):
    steps, batch, inputs, hidden = size
    name, options = KINDS[kind]
    torch.manual_seed(2)
    theirs = getattr(torch.nn, name)(inputs, hidden, bidirectional=True, **options)
    theirs = theirs.to(dtype).double()
    ours = getattr(rt, name)(inputs, hidden, bidirectional=True, **options)
    ours = ours.to("cuda", dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(steps, batch, inputs).to(dtype)
    lengths = torch.randint(1, steps + 1, (batch,)) if ragged else None
    found, wanted = step(ours, x.cuda(), lengths), step(theirs, x.double(), lengths)
    for own, other, tolerance in zip(found, wanted, TOLERANCES[dtype], strict=True):
        assert_near(own, other, tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_again(kind):
    name, options = KINDS[kind]
    module = getattr(rt, name)(16, 256, **options).cuda()
    x = torch.randn(64, 16, 16, device="cuda")
    first, again = step(module, x), step(module, x)
    for own, other in zip((*first[0], *first[1]), (*again[0], *again[1]), strict=True):
        assert torch.equal(own, other)


def test_on_a_stream_of_the_callers_and_in_a_graph():
    module = rt.LSTM(16, 128).cuda()
    x = torch.randn(32, 4, 16, device="cuda")
    with torch.no_grad():
        wanted = module(x)[0]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            module(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = module(x)[0]
        x.mul_(2)
        graph.replay()
        assert not torch.equal(output, wanted)
        assert torch.equal(output, module(x)[0])


def test_autocast():
    module = rt.GRU(16, 64).cuda()
    x = torch.randn(8, 4, 16, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        output, _ = module(x)
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), module(x)[0], rtol=2e-2, atol=2e-2)
